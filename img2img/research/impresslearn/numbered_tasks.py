"""Families of numbered tasks on small grey images, held in memory as bytes: permuted or rotated MNIST, or made ones."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from img2img.backbones.lenet import MNIST_MEAN, MNIST_STD
from img2img.data.arrays import ArrayDataset
from img2img.data.datasets.mnist import ANGLES, permuted, permuted_task, rotated_task
from img2img.errors import InputError
from img2img.research.impresslearn.options import CLASSES
from img2img.research.impresslearn.stacked_training import Batch
from img2img.validation import call_with

Part = Literal["train", "test"]
Source = Callable[[int, Part], ArrayDataset]
"""`source(task number, part) -> its images`, numbers from 1 on."""

_KEPT = {"train": 12, "test": 64}
"""Tasks whose images stay in memory: MNIST's training part has 47 MB for each, its test part 8 MB."""


class NumberedTasks:
    """Tasks by number, each with training and test images of ten classes.

    Args:
        name: what a task is called before its number, such as "permutation".
        source: gives a task's images.
        number_of_tasks: how many there are; None for no bound.
        label: what distinguishes a task, for results, such as its angle.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        *,
        number_of_tasks: int | None = None,
        label: Callable[[int], int] = lambda number: number,
    ) -> None:
        self.name = name
        self.number_of_tasks = number_of_tasks
        self.label = label
        self._source = source
        self._kept: dict[str, OrderedDict[int, Batch]] = {part: OrderedDict() for part in _KEPT}

    def pixels(self, number: int, part: Part) -> Batch:
        """The images of a task, (N, 1, H, W) uint8, and their classes, (N,) int64; those used last are kept."""
        kept = self._kept[part]
        if number not in kept:
            while len(kept) >= _KEPT[part]:
                kept.popitem(last=False)
            images, categories = self._source(number, part).arrays()
            kept[number] = torch.from_numpy(images).unsqueeze(1), torch.from_numpy(categories)
        kept.move_to_end(number)
        return kept[number]

    def sets(self) -> dict[str, ArrayDataset]:
        """The parts of the first task, which are read from the same files as those of all others."""
        return {part: self._source(1, part) for part in ("train", "test")}

    def test(self, number: int) -> Batch:
        """The test images of a task, (N, 1, H, W) float, standardised, and their classes."""
        pixels, classes = self.pixels(number, "test")
        return standardised(pixels), classes

    def steps(self, batch_size: int) -> int:
        """Batches in a pass over the training images; those left over at its end are not used.

        Raises:
            InputError: there are fewer images than one batch has.
        """
        count = len(self.pixels(1, "train")[1])
        if count < batch_size:
            raise InputError(f"train.batch_size={batch_size}: there are {count} training images; lower it")
        return count // batch_size

    def batches(self, numbers: Sequence[int], seeds: Sequence[int], *, epochs: int, batch_size: int) -> Iterator[Batch]:
        """Batches of several tasks for `train_stacked`, each task's in an order of its own.

        Args:
            numbers: the tasks'.
            seeds: of each task's order.
            epochs: passes over the training images.
            batch_size: images of each task.
        """
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        parts = [self.pixels(number, "train") for number in numbers]
        for _ in range(epochs):
            orders = [torch.randperm(len(y), generator=g) for (_, y), g in zip(parts, generators, strict=True)]
            for step in range(self.steps(batch_size)):
                chosen = [order[step * batch_size : (step + 1) * batch_size] for order in orders]
                pixels = torch.stack([x[rows] for (x, _), rows in zip(parts, chosen, strict=True)])
                classes = torch.stack([y[rows] for (_, y), rows in zip(parts, chosen, strict=True)])
                yield standardised(pixels), classes


def standardised(pixels: Tensor) -> Tensor:
    """uint8 in [0, 255] as float of mean 0 and standard deviation 1 over MNIST's pixels."""
    return pixels.float().sub_(255 * MNIST_MEAN).div_(255 * MNIST_STD)


def build_numbered_tasks(options: Mapping[str, Any]) -> NumberedTasks:
    """The tasks that a config describes.

    Args:
        options: `kind`: "permuted_mnist" or "rotated_mnist" with `root`, the folder of `MNIST/raw`; or "made" with
            `synthetic_tasks`'s options.

    Raises:
        InputError: the kind or an option is unknown, or the files are not there.
    """
    rest = dict(options)
    kind = rest.pop("kind", None)
    kinds: dict[Any, Callable[..., NumberedTasks]]
    kinds = {"permuted_mnist": permuted_mnist, "rotated_mnist": rotated_mnist, "made": synthetic_tasks}
    if kind not in kinds:
        raise InputError(f"data.kind={kind!r}: expected one of {', '.join(kinds)}")
    family: NumberedTasks = call_with(kinds[kind], rest, what=f"data of kind {kind!r}")
    return family


def permuted_mnist(*, root: str) -> NumberedTasks:
    """MNIST with its pixels permuted, see `mnist.permuted_task`."""
    return NumberedTasks("permutation", lambda number, part: permuted_task(part, root=root, number=number))


def rotated_mnist(*, root: str) -> NumberedTasks:
    """MNIST rotated by whole degrees, see `mnist.rotated_task`."""
    return NumberedTasks(
        "rotation",
        lambda number, part: rotated_task(part, root=root, number=number),
        number_of_tasks=len(ANGLES),
        label=lambda number: ANGLES[number - 1],
    )


def synthetic_tasks(*, size: int = 8, train: int = 2000, test: int = 500, noise: float = 0.3) -> NumberedTasks:
    """Images that need no files: one of ten fixed random images with noise, its pixels permuted as the task says.

    A pixel is black three times in four and of any value else, about as dark as MNIST's on average.

    Args:
        size: side in pixels.
        train: training images, the same for each task but for the permutation.
        test: test images.
        noise: the fraction of pixels, 0 to 1, that are drawn anew in each image.
    """
    if min(size, train, test) < 1 or not 0 <= noise <= 1:
        raise InputError(
            f"made images of size={size}, train={train}, test={test}, noise={noise}: expected 1 or more of each, and a "
            "share of noise from 0 to 1"
        )
    prototypes = _speckled(np.random.default_rng(0), CLASSES, size)
    drawn = {}
    for index, (part, count) in enumerate((("train", train), ("test", test))):
        rng = np.random.default_rng((0, index + 1))
        classes = np.arange(count) % CLASSES
        anew = rng.random((count, size, size)) < noise
        drawn[part] = np.where(anew, _speckled(rng, count, size), prototypes[classes]), classes.astype(np.int64)

    def source(number: int, part: Part) -> ArrayDataset:
        images, classes = drawn[part]
        names, change = [str(c) for c in range(CLASSES)], partial(permuted, number=number)
        return ArrayDataset(images, classes, classes=names, name=f"made-{number}-{part}", change=change)

    return NumberedTasks("permutation", source)


def _speckled(rng: np.random.Generator, count: int, size: int) -> NDArray[np.uint8]:
    values = rng.integers(0, 256, (count, size, size), dtype=np.uint8)
    return np.where(rng.random(values.shape) < 0.25, values, np.uint8(0))
