"""One frozen network, many image tasks: continual learning with per-task weight masks.

    import img2img
    from img2img import masks

    net = img2img.MaskedNetwork(backbone, head="head")
    net.add_task("edges", masks.Piggyback(), head=backbone.make_head(3))
    y = net(x, task="edges")

Importing the package loads torch and safetensors; everything else is loaded by the module that uses it.
"""

from typing import Any

from img2img.errors import InputError
from img2img.masks import MaskedNetwork

__version__ = "0.1.0"
__all__ = ["InputError", "MaskedNetwork", "from_pretrained", "load"]


def load(folder: str, **options: Any) -> Any:
    """Open a bundle for inference: see `img2img.inference.load`."""
    from img2img.inference import load as load_bundle

    return load_bundle(folder, **options)


def from_pretrained(name_or_folder: str, **options: Any) -> Any:
    """Open a shared bundle, from a folder or from the Hub: see `img2img.hub.from_pretrained`."""
    from img2img.hub import from_pretrained as open_shared

    return open_shared(name_or_folder, **options)
