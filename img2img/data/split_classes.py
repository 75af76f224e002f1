"""A dataset of many classes cut into tasks of a few classes each."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from img2img.data.base import ImageDataset, Sample
from img2img.errors import InputError


class SplitClasses(ImageDataset):
    """The pictures of one task's classes, relabelled 0, 1, ..., with none of them decoded to find out.

    The list of classes is cut into pieces of `classes_per_task`, and task n has the n-th; a rest that fills no piece belongs to
    no task. The pieces depend on `pictures.classes` alone, so parts with the same classes are cut alike. Split ImageNet, 100
    tasks of 10 classes, is made so from a `ClassFolder` ("ImpressLearn", 2022, section 4).

    Args:
        pictures: the dataset.
        number: the task, from 1.
        classes_per_task: how many classes it has.
        order: of the list: "sorted" as the dataset has its classes, "random" shuffled by
            `numpy.random.default_rng(seed).permutation`. Within a task the classes keep the dataset's order.
        seed: of the shuffle, 0 or more.

    Raises:
        InputError: a dataset whose categories are not known beforehand, an option out of range, or a task without a picture.
    """

    categories: NDArray[np.int64]

    def __init__(
        self,
        pictures: ImageDataset,
        *,
        number: int,
        classes_per_task: int,
        order: Literal["sorted", "random"] = "sorted",
        seed: int = 0,
    ) -> None:
        if (categories := pictures.categories) is None:
            raise InputError(
                f"got {pictures.name!r} to split by class: expected a dataset that knows the class of every picture beforehand; "
                "give for instance a folder of pictures by class"
            )
        count = len(pictures.classes)
        if not 1 <= classes_per_task <= count:
            raise InputError(f"got classes_per_task={classes_per_task}: expected 1..{count}, the classes of {pictures.name!r}")
        if not 1 <= number <= count // classes_per_task:
            raise InputError(
                f"got the task number {number}: expected 1..{count // classes_per_task}, since {pictures.name!r} has {count} "
                f"classes and a task {classes_per_task}"
            )
        if order not in ("sorted", "random") or seed < 0:
            raise InputError(f"got order={order!r}, seed={seed}: expected 'sorted' or 'random' and 0 or more; correct it")
        ordered = np.arange(count) if order == "sorted" else np.random.default_rng(seed).permutation(count)
        chosen = np.sort(ordered[(number - 1) * classes_per_task : number * classes_per_task])
        self._pictures = pictures
        self._positions = np.flatnonzero(np.isin(categories, chosen))
        if not len(self._positions):
            raise InputError(
                f"{pictures.name!r} has no picture of the classes of task {number}, {[pictures.classes[c] for c in chosen]}: "
                "expected some; choose another task or check the data"
            )
        self.categories = np.searchsorted(chosen, categories[self._positions]).astype(np.int64)
        self.classes = tuple(pictures.classes[c] for c in chosen)
        self.name = f"{pictures.name}-{number}"

    def __len__(self) -> int:
        return len(self.categories)

    def __getitem__(self, index: int) -> Sample:
        return replace(self._pictures[int(self._positions[index])], category=int(self.categories[index]))

    def files(self, index: int) -> Sequence[tuple[str, Path]]:
        """Those of the whole dataset's sample."""
        return self._pictures.files(int(self._positions[index]))

    def common_files(self) -> Sequence[tuple[str, Path]]:
        """Those of the whole dataset."""
        return self._pictures.common_files()

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """The task's rows of the whole dataset's."""
        whole = self._pictures.arrays()
        return None if whole is None else (whole[0][self._positions], self.categories.copy())
