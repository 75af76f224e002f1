"""Opening what a user gave, one image of many: what fails is said with its place, and need not end the others."""

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
from img2img.inference.conversion import OpenedImages, open_input


@dataclass(frozen=True)
class FailedImage:
    """An image that could not be opened, and why."""

    error: InputError


def open_one(image: Any, place: str = "", *, white: int | None = None) -> OpenedImages:
    """What `open_input` gives.

    Args:
        image: what was given.
        place: what to call it in an error, where that does not name a file.
        white: as of `open_input`.

    Raises:
        InputError: it is no image, or the system does not let it be read.
    """
    is_path = isinstance(image, str | os.PathLike)
    try:
        return open_input(expanded(image) if is_path else image, white=white)
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
            f"{str(image)!r} cannot be read ({reason}): expected an image file that this user may read; check its name, its "
            "permissions and the disk"
        ) from error


def open_each(images: Iterable[Any], *, white: int | None = None) -> Iterator[OpenedImages | FailedImage]:
    """Images opened one by one, as they are asked for; `white` as of `open_input`."""
    for number, image in enumerate(images):
        try:
            yield open_one(image, f"images[{number}]", white=white)
        except InputError as error:
            yield FailedImage(error)


def folder_of(images: Any) -> Path | None:
    """The folder that was given, or None where something else was."""
    if not isinstance(images, str | os.PathLike):
        return None
    found = expanded(images)
    return found if os.path.isdir(found) else None


def as_many(images: Any) -> Iterable[Any]:
    """The images of a folder, or of anything else that gives them one after another.

    Raises:
        InputError: it is one image (iterating over an array would give its rows), or nothing of the kind.
    """
    folder = folder_of(images)
    if folder is not None:
        return list_images(folder)
    one = isinstance(images, str | bytes | os.PathLike | Image.Image) or (
        isinstance(images, np.ndarray | Tensor) and images.ndim < 4
    )
    if one or not isinstance(images, Iterable):
        raise InputError(
            f"got a {type(images).__name__} for many images: expected a list of them, another iterable, or a folder; give "
            "one image as [image]"
        )
    return images
