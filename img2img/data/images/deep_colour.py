"""Colours of 16 bits a channel, of which Pillow keeps the upper 8: too few where a camera uses 12 of the 16."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from img2img.data.images.bit_depth import current_white, note_highest_value, to_8_bits
from img2img.errors import InputError

_DARK = 64
"""Where no channel of the upper 8 bits reaches this, the highest value is looked up."""


def scale_deep_colours(image: Image.Image, kind: str | None, path: Path, raw: tuple[Any, ...]) -> Image.Image:
    """The picture with `depth.reading`'s white, where its file has 16-bit colours and a white is given; otherwise as it is.

    Args:
        image: the file's first frame, as it is stored.
        kind: the file's format.
        path: the file.
        raw: what Pillow's decoder was told: the name of how the pixels are kept, or a PPM's largest value.

    Raises:
        InputError: a white is given, and the file is of a kind whose 16 bits cannot be read.
    """
    wide = any(";16" in part if isinstance(part, str) else kind == "PPM" and part > 255 for part in raw[:2])
    if not wide or image.mode not in ("RGB", "RGBA", "RGBX", "LA"):
        return image
    colours = image.convert("L") if image.mode == "LA" else image.convert("RGB")
    highest, white = int(np.asarray(colours).max()), current_white()
    if white is None and highest >= _DARK:
        note_highest_value(highest * 257, str(path), str(path.parent))
        return image
    values = _read(path)
    if values is None or values.shape[:2] != (image.height, image.width):
        if white is None:
            return image
        raise InputError(f"{path} has 16-bit colours that cannot be read with white={white}: save it as a PNG of 16 bits")
    opaque, alpha = (values[..., :-1], values[..., -1:]) if values.shape[2] in (2, 4) else (values, None)
    note_highest_value(int(opaque.max()), str(path), str(path.parent))
    if white is None:
        return image
    eight = to_8_bits(opaque, white)
    if alpha is not None:
        eight = np.concatenate([eight, to_8_bits(alpha)], axis=2)
    deep = Image.fromarray(eight)
    deep.info = dict(image.info)
    return deep


def _read(path: Path) -> NDArray[np.uint16] | None:
    """(H, W, C) as the file keeps them, red first, alpha last; None where OpenCV reads no 16 bits of it."""
    import cv2

    values = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        return None
    return np.asarray(values[..., [2, 1, 0, 3][: values.shape[2]]] if values.shape[2] >= 3 else values)
