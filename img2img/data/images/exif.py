"""Which way is up: EXIF's orientation of a picture, and what it makes of the stored pixels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_ORIENTATION = 274
"""EXIF's tag."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What shows the stored pixels as a viewer does, by EXIF's orientation."""


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, from 1 (as stored) to 8; 1 where there is no sound one. Of a picture that is not loaded yet only its
    header is read."""
    try:
        # PNG's own would decode all pixels first, in search of EXIF behind them.
        exif = Image.Image.getexif(image)
        found = exif.get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block is common and says nothing about the pixels
        return 1
    return found if found in _TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """A copy with the EXIF orientation applied, where there is a sound one."""
    image.load()
    return turn(image, orientation_of(image))


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """A copy of stored pixels as an EXIF orientation shows them."""
    shown = image.transpose(_TURNS[orientation]) if orientation in _TURNS else image.copy()
    if orientation in _TURNS:
        for name in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):  # they would turn it once more
            shown.info.pop(name, None)
    return shown


def turned(stored: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Stored pixels (H, W, ...) as an EXIF orientation (1 to 8) shows them; from 5 on height and width change places."""
    if orientation not in _TURNS:
        return stored
    if orientation >= 5:
        stored = stored.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        stored = stored[::-1]
    if orientation in (2, 3, 6, 7):
        stored = stored[:, ::-1]
    return np.ascontiguousarray(stored)
