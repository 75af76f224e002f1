"""Small pictures of one size that are kept in memory as one array."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from img2img.data.base import PARTS, ImageDataset, Sample
from img2img.errors import InputError


class ArrayDataset(ImageDataset):
    """Some rows of an array of pictures, with their categories.

    The array is shared, not copied, and what a task does to its pictures is done when they are asked for: hundreds of tasks
    over one dataset (permuted MNIST) take little more memory than one.

    Args:
        images: (M, H, W) grey or (M, H, W, 3) RGB, uint8 in [0, 255]. It is never changed.
        categories: (N,) class indices of the chosen pictures.
        rows: (N,) the positions of the chosen pictures in `images`; None for all of them in order.
        classes: class names by index.
        name: what messages and reports call the set; a sample is called `name/row`.
        source: the files that the array and the categories were read from, see `ImageDataset.common_files`.
        change: applied to pictures as they are read: (K, H, W[, 3]) uint8 -> the same shape, each picture by itself; a function
            that can be pickled, if worker processes are to read the set.

    Raises:
        InputError: an array of another type or shape, lengths that differ, or a row or a category out of range.
    """

    categories: NDArray[np.int64]

    def __init__(
        self,
        images: NDArray[np.uint8],
        categories: NDArray[np.int64],
        *,
        rows: NDArray[np.int64] | None = None,
        classes: Sequence[str],
        name: str,
        source: Sequence[Path] = (),
        change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
    ) -> None:
        if images.dtype != np.uint8 or images.shape[3:] not in ((), (3,)) or images.ndim < 3:
            raise InputError(
                f"{name!r} has pictures {images.shape} {images.dtype}: expected (N, H, W) or (N, H, W, 3) uint8; convert them"
            )
        self._rows = np.arange(len(images)) if rows is None else np.asarray(rows, dtype=np.int64)
        self.categories = np.asarray(categories, dtype=np.int64)
        if self.categories.shape != self._rows.shape:
            raise InputError(f"{name!r} has {len(self._rows)} pictures and {len(self.categories)} categories: expected one each")
        for values, count, what in ((self._rows, len(images), "rows"), (self.categories, len(classes), "categories")):
            if len(values) and not 0 <= values.min() <= values.max() < count:
                raise InputError(
                    f"{name!r} has {what} from {values.min()} to {values.max()}: expected 0..{count - 1}; correct them"
                )
        self._images = images
        self._change = change
        self._source = tuple(source)
        self.classes = tuple(classes)
        self.name = name

    def __len__(self) -> int:
        return len(self.categories)

    def __getitem__(self, index: int) -> Sample:
        row = int(self._rows[index])
        image = self._changed(self._images[row : row + 1])[0]
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        return Sample(image=image, category=int(self.categories[index]), name=f"{self.name}/{row:05}")

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """All pictures, (N, H, W) or (N, H, W, 3) uint8, and their categories, (N,) int64: new arrays, made at each call."""
        return self._changed(self._images[self._rows]), self.categories.copy()

    def common_files(self) -> Sequence[tuple[str, Path]]:
        """The files of the arrays."""
        return tuple((path.name, path) for path in self._source)

    def _changed(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return images if self._change is None else self._change(images)


def require_part(part: str, val: int, option: str) -> None:
    """Check the name of a part of a dataset that has no validation pictures of its own, but cuts `val` from its training file.

    Raises:
        InputError: another name than train, val and test, or val where `val` is 0 or less.
    """
    if part not in PARTS:
        raise InputError(f"got part={part!r}: expected one of {', '.join(PARTS)}; correct it")
    if val < 0 or (part == "val" and val == 0):
        raise InputError(
            f"got part={part!r} with {option}={val}: expected {'1' if part == 'val' else '0'} or more, the pictures that are cut "
            f"from the training file to validate on; raise {option} in every part alike"
        )
