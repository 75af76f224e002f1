"""One frozen network, many image tasks: continual learning with per-task weight masks.

    import img2img
    from img2img import masks

    net = img2img.MaskedNetwork(backbone, head="head")
    net.add_task("edges", masks.Piggyback(), head=backbone.make_head(3))
    y = net(x, task="edges")

    model = img2img.load("runs/demo")
    result = model.run("colour", "photo.jpg")

Importing the package loads nothing but the standard library. Each name is imported from its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from img2img.version import __version__

if TYPE_CHECKING:
    from img2img.api import absorb, add_task, run
    from img2img.errors import InputError
    from img2img.hub import from_pretrained, push_to_hub, save_pretrained
    from img2img.inference import Model, load
    from img2img.inference.evaluation import evaluate
    from img2img.masks import MaskedNetwork

__all__ = [
    "InputError",
    "MaskedNetwork",
    "Model",
    "__version__",
    "absorb",
    "add_task",
    "evaluate",
    "from_pretrained",
    "load",
    "push_to_hub",
    "run",
    "save_pretrained",
]

_ORIGINS = {
    "InputError": "img2img.errors:InputError",
    "MaskedNetwork": "img2img.masks:MaskedNetwork",
    "Model": "img2img.inference:Model",
    "absorb": "img2img.api:absorb",
    "add_task": "img2img.api:add_task",
    "evaluate": "img2img.inference.evaluation:evaluate",
    "from_pretrained": "img2img.hub:from_pretrained",
    "load": "img2img.inference:load",
    "masks": "img2img.masks:",
    "push_to_hub": "img2img.hub:push_to_hub",
    "run": "img2img.api:run",
    "save_pretrained": "img2img.hub:save_pretrained",
}
"""Where each public name is defined, as `module:attribute`; without an attribute it is the module."""


def __getattr__(name: str) -> Any:
    # PEP 562. Imports inside functions of this module would count as imports of the package itself by every module in it.
    if name not in _ORIGINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _ORIGINS[name].partition(":")
    value = getattr(import_module(module), attribute) if attribute else import_module(module)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
