"""Opening a bundle as a model."""

import os
from typing import Any

from img2img import validation
from img2img.bundle import bundle_folder
from img2img.inference.model import Model, Precision, Weights


def load(
    folder: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: Precision = "float32",
    weights: Weights = "cached",
    **more: Any,
) -> Model:
    """Open a bundle, or a run's folder, which has one in `bundle/`.

    Args:
        folder: the bundle; or "starter", which comes with img2img.
        device: see `Model`, as are `precision` and `weights`.
        precision: "float32" or "bfloat16".
        weights: "cached" or "merged".
        more: `weights_bytes`, `loaded_bytes` and `batching` of `Model`.

    Raises:
        InputError: nothing there, or a file is damaged; see `bundle.open_bundle`.
    """
    return Model(bundle_folder(validation.path("folder", folder)), device=device, precision=precision, weights=weights, **more)
