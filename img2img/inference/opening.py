"""Opening what a user gave, one picture of many: what fails is said with its place, and need not end the others."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from img2img.data.images.listing import list_images
from img2img.errors import InputError
from img2img.files.paths import expanded
from img2img.inference.images import Opened, open_input


@dataclass(frozen=True)
class Failed:
    """A picture that could not be opened, and why."""

    error: InputError


def open_one(picture: Any, place: str = "", *, white: int | None = None) -> Opened:
    """What `open_input` gives.

    Args:
        picture: what was given.
        place: what to call it in an error, where that does not name a file.
        white: as of `open_input`.

    Raises:
        InputError: it is no picture, or the system does not let it be read.
    """
    is_path = isinstance(picture, str | os.PathLike)
    try:
        return open_input(expanded(picture) if is_path else picture, white=white)
    except InputError as error:
        if place and not is_path:
            raise InputError(f"{place}: {error}") from error
        raise
    except MemoryError:
        raise
    except (OSError, ValueError) as error:  # no permission, a name that is too long, a zero byte in it
        if not is_path:
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{str(picture)!r} cannot be read ({reason}): expected a picture file that this user may read; check its name, its "
            "permissions and the disk"
        ) from error


def open_each(pictures: Iterable[Any], *, white: int | None = None) -> Iterator[Opened | Failed]:
    """Pictures opened one by one, as they are asked for; `white` as of `open_input`."""
    for number, picture in enumerate(pictures):
        try:
            yield open_one(picture, f"pictures[{number}]", white=white)
        except InputError as error:
            yield Failed(error)


def folder_of(pictures: Any) -> Path | None:
    """The folder that was given, or None where something else was."""
    if not isinstance(pictures, str | os.PathLike):
        return None
    found = expanded(pictures)
    return found if os.path.isdir(found) else None


def as_many(pictures: Any) -> Iterable[Any]:
    """The pictures of a folder, or of anything else that gives them one after another.

    Raises:
        InputError: it is one picture (iterating over an array would give its rows), or nothing of the kind.
    """
    folder = folder_of(pictures)
    if folder is not None:
        return list_images(folder)
    one = isinstance(pictures, str | bytes | os.PathLike | Image.Image) or (
        isinstance(pictures, np.ndarray | Tensor) and pictures.ndim < 4
    )
    if one or not isinstance(pictures, Iterable):
        raise InputError(
            f"got a {type(pictures).__name__} for many pictures: expected a list of them, another iterable, or a folder; give "
            "one picture as [picture]"
        )
    return pictures
