"""Parts of a dataset: training, validation and test images by position, small subsets, and tasks of a few classes each."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from img2img.data.base import PARTS, ImageDataset, Sample
from img2img.errors import InputError

Part = Literal["train", "val", "test"]


class Subset(ImageDataset):
    """The items of `dataset` at `indices`, in that order."""

    def __init__(self, dataset: ImageDataset, indices: Iterable[int], *, name: str = "") -> None:
        self._dataset = dataset
        self._indices = list(indices)
        self.classes = dataset.classes
        self.name = name or dataset.name
        if wrong := [i for i in self._indices if not 0 <= i < len(dataset)]:
            raise InputError(f"got the indices {wrong[:8]}: expected 0..{len(dataset) - 1}, positions in {dataset.name!r}")
        if dataset.categories is not None:
            self.categories = dataset.categories[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[self._indices[index]]

    def files(self, index: int) -> Sequence[tuple[str, Path]]:
        """Those of the whole set's sample."""
        return self._dataset.files(int(self._indices[index]))

    def common_files(self) -> Sequence[tuple[str, Path]]:
        """Those of the whole set."""
        return self._dataset.common_files()

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """The rows of the whole set's."""
        whole = self._dataset.arrays()
        return None if whole is None else (whole[0][self._indices], whole[1][self._indices])


def take(dataset: ImageDataset, part: Part, *, fractions: Sequence[float] = (0.8, 0.1, 0.1), blocks: int | None = None) -> Subset:
    """One part of a set that comes without a split. The three parts are disjoint and together the whole set.

    Item after item goes to the part that lacks most of its fraction so far. So each part is spread evenly over the order,
    and each class of a set sorted by class reaches every part, which a cut into three runs would prevent; and the same set
    always gives the same parts, with no seed to keep. Neighbours end up in different parts: for frames of a video, whose
    neighbours are near copies, use `blocks`, or separate folders.

    Args:
        part: "train", "val" or "test".
        fractions: of train, val and test; they sum to 1. A part of fraction 0 gets nothing.
        blocks: cut the order into so many blocks of neighbours, and each block into its beginning, middle and end, for train,
            val and test. All parts have frames of every scene then, and few of them are neighbours of one in another part.

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
    members = _spread(len(dataset), fractions) if blocks is None else _blocks(len(dataset), fractions, blocks)
    if any(f > 0 and not m for f, m in zip(fractions, members, strict=True)):
        sizes = dict(zip(PARTS, map(len, members), strict=True))
        remedy = "add images, or raise the small fractions"
        if blocks is not None and blocks > 1:
            remedy = f"give fewer blocks than {blocks}, so that each has an image for every part, or add images"
        raise InputError(
            f"{dataset.name!r} has {len(dataset)} images, which split by {tuple(fractions)} into {sizes}: expected at least "
            f"one in each part; {remedy}"
        )
    return Subset(dataset, members[PARTS.index(part)], name=f"{dataset.name}-{part}")


def _spread(size: int, fractions: Sequence[float]) -> list[list[int]]:
    members: list[list[int]] = [[], [], []]
    for i in range(size):
        members[max(range(3), key=lambda p: fractions[p] * (i + 1) - len(members[p]))].append(i)
    return members


def _blocks(size: int, fractions: Sequence[float], blocks: int) -> list[list[int]]:
    members: list[list[int]] = [[], [], []]
    for block in range(blocks):
        first, end = block * size // blocks, (block + 1) * size // blocks
        cuts = [first, *(first + round(share * (end - first)) for share in (fractions[0], fractions[0] + fractions[1])), end]
        for own, (start, stop) in zip(members, pairwise(cuts), strict=True):
            own += range(start, stop)
    return members


def limit(dataset: ImageDataset, n: int) -> Subset:
    """At most `n` items, spread evenly over the order, since the first `n` of a sorted set may all be of one class.

    Raises:
        InputError: `n` below 1.
    """
    if n < 1:
        raise InputError(f"got a limit of {n} images: expected at least 1")
    size = len(dataset)
    return Subset(dataset, (i * size // n for i in range(n)) if n < size else range(size))


class SplitClasses(Subset):
    """The images of one task's classes, relabelled 0, 1, ..., with none of them decoded to find out.

    The list of classes is cut into pieces of `classes_per_task`, and task n has the n-th; a rest that fills no piece belongs to
    no task. The pieces depend on `dataset.classes` alone, so parts with the same classes are cut alike. Split ImageNet, 100
    tasks of 10 classes, is made so from a `ClassFolder` ("ImpressLearn", 2022, section 4).

    Args:
        dataset: the dataset.
        number: the task, from 1.
        classes_per_task: how many classes it has.
        order: of the list: "sorted" as the dataset has its classes, "random" shuffled by
            `numpy.random.default_rng(seed).permutation`. Within a task the classes keep the dataset's order.
        seed: of the shuffle, 0 or more.

    Raises:
        InputError: a dataset whose categories are not known beforehand, an option out of range, or a task without an image.
    """

    categories: NDArray[np.int64]

    def __init__(
        self,
        dataset: ImageDataset,
        *,
        number: int,
        classes_per_task: int,
        order: Literal["sorted", "random"] = "sorted",
        seed: int = 0,
    ) -> None:
        if (categories := dataset.categories) is None:
            raise InputError(
                f"got {dataset.name!r} to split by class: expected a dataset that knows the class of every image beforehand; "
                "give for instance a folder of images by class"
            )
        count = len(dataset.classes)
        if not 1 <= classes_per_task <= count:
            raise InputError(f"got classes_per_task={classes_per_task}: expected 1..{count}, the classes of {dataset.name!r}")
        if not 1 <= number <= count // classes_per_task:
            raise InputError(
                f"got the task number {number}: expected 1..{count // classes_per_task}, since {dataset.name!r} has {count} "
                f"classes and a task {classes_per_task}"
            )
        if order not in ("sorted", "random") or seed < 0:
            raise InputError(f"got order={order!r}, seed={seed}: expected 'sorted' or 'random' and 0 or more; correct it")
        ordered = np.arange(count) if order == "sorted" else np.random.default_rng(seed).permutation(count)
        chosen = np.sort(ordered[(number - 1) * classes_per_task : number * classes_per_task])
        super().__init__(dataset, np.flatnonzero(np.isin(categories, chosen)).tolist(), name=f"{dataset.name}-{number}")
        if not len(self):
            raise InputError(
                f"{dataset.name!r} has no image of the classes of task {number}, {[dataset.classes[c] for c in chosen]}: "
                "expected some; choose another task or check the data"
            )
        self.categories = np.searchsorted(chosen, categories[self._indices]).astype(np.int64)
        self.classes = tuple(dataset.classes[c] for c in chosen)

    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), category=int(self.categories[index]))

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """The task's rows of the whole dataset's, with its own class indices."""
        rows = super().arrays()
        return None if rows is None else (rows[0], self.categories.copy())
