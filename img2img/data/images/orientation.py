"""Photos that EXIF turns, and labels or targets that somebody drew on them: on the pixels as shown, or as they are stored."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from img2img.data.images.exif import orientation_of
from img2img.data.images.header import open_header
from img2img.data.warn_once import warn_once
from img2img.errors import InputError

DrawnOn = Literal["shown", "stored"]
"""Viewers and most tools for drawing show a photo upright, by its EXIF; others, COCO's among them, know no EXIF."""

_LOOKED_AT = 2000


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
    """EXIF's orientation of a file, from 1 (not turned) to 8, by its header alone; 1 of what is no picture."""
    try:
        with open(path, "rb") as file, open_header(file) as image:
            return orientation_of(image)
    except Exception:  # it will be said when the file is read
        return 1


def warn_of_turned(photos: Sequence[tuple[Path, Path | None]], taken: DrawnOn, *, name: str) -> None:
    """Say how many labelled photos are turned by EXIF, and what their labels are taken for; of many, of a spread of them.

    Args:
        photos: each with the file of its label or target, which is left out of the count where it is turned by EXIF itself.
        taken: what the labels are drawn on, which nobody has said.
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
