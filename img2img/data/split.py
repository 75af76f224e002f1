"""Parts of a dataset: training, validation and test pictures by position, and small subsets."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from img2img.data.base import PARTS, ImageDataset, Sample
from img2img.errors import InputError

Part = Literal["train", "val", "test"]


class Subset(ImageDataset):
    """The items of `pictures` at `indices`, in that order."""

    def __init__(self, pictures: ImageDataset, indices: Iterable[int], *, name: str = "") -> None:
        self._pictures = pictures
        self._indices = list(indices)
        self.classes = pictures.classes
        self.name = name or pictures.name
        if wrong := [i for i in self._indices if not 0 <= i < len(pictures)]:
            raise InputError(f"got the indices {wrong[:8]}: expected 0..{len(pictures) - 1}, positions in {pictures.name!r}")
        if pictures.categories is not None:
            self.categories = pictures.categories[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._pictures[self._indices[index]]

    def files(self, index: int) -> Sequence[tuple[str, Path]]:
        """Those of the whole set's sample."""
        return self._pictures.files(int(self._indices[index]))

    def common_files(self) -> Sequence[tuple[str, Path]]:
        """Those of the whole set."""
        return self._pictures.common_files()

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """The rows of the whole set's."""
        whole = self._pictures.arrays()
        return None if whole is None else (whole[0][self._indices], whole[1][self._indices])


def take(pictures: ImageDataset, part: Part, *, fractions: Sequence[float] = (0.8, 0.1, 0.1)) -> Subset:
    """One part of a set that comes without a split. The three parts are disjoint and together the whole set.

    Item after item goes to the part that lacks most of its fraction so far. So each part is spread evenly over the order,
    and each class of a set sorted by class reaches every part, which a cut into three runs would prevent; and the same set
    always gives the same parts, with no seed to keep. Neighbours end up in different parts: for frames of a video, whose
    neighbours are near copies, use separate folders.

    Args:
        part: "train", "val" or "test".
        fractions: of train, val and test; they sum to 1. A part of fraction 0 gets nothing.

    Raises:
        InputError: another part, fractions that do not sum to 1, a part of fraction 0, or a set too small to give every
            part with a fraction above 0 at least one item.
    """
    if part not in PARTS:
        raise InputError(f"got the part {part!r}: expected one of {', '.join(PARTS)}")
    if len(fractions) != 3 or min(fractions) < 0 or not abs(sum(fractions) - 1) < 1e-6:  # `not <`: NaN too
        raise InputError(f"got the fractions {tuple(fractions)}: expected three for {', '.join(PARTS)} that sum to 1")
    if fractions[PARTS.index(part)] == 0:
        raise InputError(f"the fraction of the part {part!r} is 0: expected more; raise it in {tuple(fractions)}")
    members: list[list[int]] = [[], [], []]
    for i in range(len(pictures)):
        members[max(range(3), key=lambda p: fractions[p] * (i + 1) - len(members[p]))].append(i)
    if any(f > 0 and not m for f, m in zip(fractions, members, strict=True)):
        sizes = dict(zip(PARTS, map(len, members), strict=True))
        raise InputError(
            f"{pictures.name!r} has {len(pictures)} pictures, which split by {tuple(fractions)} into {sizes}: expected at least "
            "one in each part; add pictures, raise the small fractions or set them to 0"
        )
    return Subset(pictures, members[PARTS.index(part)], name=f"{pictures.name}-{part}")


def limit(pictures: ImageDataset, n: int) -> Subset:
    """At most `n` items, spread evenly over the order, since the first `n` of a sorted set may all be of one class.

    Raises:
        InputError: `n` below 1.
    """
    if n < 1:
        raise InputError(f"got a limit of {n} pictures: expected at least 1")
    size = len(pictures)
    return Subset(pictures, (i * size // n for i in range(n)) if n < size else range(size))
