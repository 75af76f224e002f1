"""EXIF's orientation of photos: what it makes of the stored pixels, and of labels or targets that were drawn on them.

Viewers and most tools for drawing show a photo upright, by its EXIF; others, COCO's among them, know no EXIF. So labels belong
either to the photo as it is shown or to the pixels as they are stored.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from img2img.data.images.header import open_header
from img2img.data.warn_once import warn_once
from img2img.errors import InputError

DrawnOn = Literal["shown", "stored"]
"""What labels were drawn on: photos as viewers show them, or the pixels as the files keep them."""

_LOOKED_AT = 2000
"""Photos of a set whose headers are read to warn of turned ones."""

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
    """EXIF's orientation, from 1 (as stored) to 8; 1 where there is no sound one. Of an image that is not loaded yet only its
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


def check_drawn_on(drawn_on: str | None) -> None:
    """Raise an `InputError` unless it is one of `DrawnOn`, or None."""
    if drawn_on not in (None, "shown", "stored"):
        raise InputError(
            f"got drawn_on={drawn_on!r}: expected 'shown' for labels drawn on photos as viewers show them, or 'stored' for those "
            "of the pixels as the files keep them, before EXIF turns them"
        )


def of_which_pixels(stored: bool, orientation: int) -> str:
    """What sizes are of, for the error that two of them differ; where the other `drawn_on` could be the remedy it is named."""
    if stored:
        return "before the EXIF orientation" + (", or with drawn_on: shown after it" if orientation >= 5 else "")
    return "after the EXIF orientation" + (", or with drawn_on: stored before it" if orientation >= 5 else "")


def header_orientation(path: str | os.PathLike[str]) -> int:
    """EXIF's orientation of a file, from 1 (not turned) to 8, by its header alone; 1 of what is no image."""
    try:
        with open(path, "rb") as file, open_header(file) as image:
            return orientation_of(image)
    except Exception:  # reading the file raises the error
        return 1


def warn_of_turned(photos: Sequence[tuple[Path, Path | None]], taken: DrawnOn, *, name: str) -> None:
    """Warn of labelled photos that EXIF turns, with what their labels are taken for; of many a spread is looked at.

    Args:
        photos: each with the file of its label or target, which is left out of the count where it is turned by EXIF itself.
        taken: what the labels are taken to be drawn on, since no option gives it.
        name: of the set.
    """
    count = min(len(photos), _LOOKED_AT)
    some = [photos[i * len(photos) // count] for i in range(count)]
    turned = [p for p, label in some if header_orientation(p) != 1 and (label is None or header_orientation(label) == 1)]
    if turned:
        other = "stored" if taken == "shown" else "shown"
        ways = {"shown": "the photos as viewers show them", "stored": "the pixels as they are stored"}
        warn_once(
            f"{name}: EXIF turns {len(turned)} of {count} labelled photos{' looked at' if count < len(photos) else ''}, such as "
            f"{turned[0]}. Their labels are taken to be drawn on {ways[taken]} (drawn_on: {taken}); look at some, and give "
            f"drawn_on: {other} if they were drawn on {ways[other]}"
        )
