"""What every dataset format gives: samples of 8-bit images, and batches of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from img2img.errors import InputError
from img2img.registry import Registry

VOID = 255
"""The label of a pixel that counts nowhere: not in the loss, not in a metric, not in the range check."""

PARTS = ("train", "val", "test")
"""The parts of a dataset: to train on, to choose the model by, to report on."""


def check_part(part: str) -> None:
    """Raise an `InputError` unless `part` is "train", "val" or "test"."""
    if part not in PARTS:
        raise InputError(f"part={part!r}: expected one of {', '.join(PARTS)}; correct the data configuration")


@dataclass(frozen=True)
class Sample:
    """One decoded item of a dataset.

    Attributes:
        image: (H, W, 3) uint8 RGB in [0, 255]: the image; of an A|B pair, B.
        label: (H, W) uint8 class indices with `VOID` = 255, or None.
        source: (H, W, 3) uint8 RGB: A of an A|B pair, or None.
        category: the class index of the whole image, or None.
        name: what reports and error messages call it, usually the file's name.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None = None
    source: NDArray[np.uint8] | None = None
    category: int | None = None
    name: str = ""


def check_sample(sample: object, dataset: str) -> None:
    """Check that what a dataset gave for an index is a `Sample` as it should be.

    Args:
        sample: what it gave.
        dataset: its name, for messages.

    Raises:
        InputError: an array is of another type or shape, or the class is no whole number.
    """
    if not isinstance(sample, Sample):
        raise InputError(f"the dataset {dataset!r} gave a {type(sample).__name__}: expected a Sample; return Sample(image=...)")
    what = f"the sample {sample.name!r} of the dataset {dataset!r}"
    for part, given, colours in (
        ("image", sample.image, True),
        ("source", sample.source, True),
        ("label", sample.label, False),
    ):
        if given is None and part != "image":
            continue
        form = "(height, width, 3) uint8 RGB in 0..255" if colours else "(height, width) uint8 class indices"
        if not isinstance(given, np.ndarray):
            raise InputError(f"{what} has a {type(given).__name__} as its {part}: expected a NumPy array {form}; convert it")
        fits = given.ndim == 3 and given.shape[2] == 3 if colours else given.ndim == 2
        if given.dtype != np.uint8 or not fits or not given.size:
            remedy = "correct its shape"
            if given.dtype != np.uint8:
                of_colours = "scale it to 0..255, round it and convert it by .astype(numpy.uint8)"
                remedy = of_colours if colours else "number the classes from 0 on, and convert them by .astype(numpy.uint8)"
            elif colours and given.ndim == 2:
                remedy = "repeat a grey image three times, for instance by numpy.stack([grey] * 3, axis=-1)"
            raise InputError(f"the {part} of {what} has the form {given.shape} {given.dtype}: expected {form}; {remedy}")
        if given.shape[:2] != sample.image.shape[:2]:
            raise InputError(
                f"{what} has an image of {sample.image.shape[:2]} and a {part} of {given.shape[:2]} pixels (height, width): "
                "expected one size; resize one of them"
            )
    if sample.category is not None and (isinstance(sample.category, bool) or not isinstance(sample.category, int | np.integer)):
        raise InputError(f"{what} has the category {sample.category!r}: expected the index of its class, a whole number, or None")


class ImageDataset(ABC):
    """A dataset of images, read by index and never changed: `len(set)`, `set[i] -> Sample`.

    Attributes:
        classes: class names by index when samples carry labels or categories, else an empty tuple.
        categories: (N,) class index of every image, where the set knows them without decoding one, else None.
        name: a short name for messages and reports.
    """

    classes: tuple[str, ...] = ()
    categories: NDArray[np.int64] | None = None
    name: str = ""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """All images, (N, H, W) or (N, H, W, 3), with their categories, (N,), of a set that has them in memory; else None."""
        return None

    def files(self, index: int) -> Sequence[tuple[str, Path]]:
        """The files that one sample is read from, each with a name in the set that does not say where the set lies.

        A run keeps what its tasks were learned from by them, see `training.record`; a set that is made, or that does not say it,
        has none.
        """
        return ()

    def common_files(self) -> Sequence[tuple[str, Path]]:
        """Likewise the files that all samples are read from, such as a list of labels or an array of all images."""
        return ()

    def preload(self) -> None:
        """Read now what would be read at the first access, before worker processes fork; by default there is nothing."""
        return None


DATA: Registry[Callable[..., ImageDataset]] = Registry(
    "data kind",
    ImageDataset,
    functions=True,
    own={
        "scenes": "img2img.data.synthetic.scenes",
        "samples": "img2img.data.datasets.sample_photos",
        "patterns": "img2img.data.synthetic.patterns",
        "cifar100": "img2img.data.datasets.cifar100",
        "mnist": "img2img.data.datasets.mnist",
        "permuted_mnist": "img2img.data.datasets.mnist",
        "rotated_mnist": "img2img.data.datasets.mnist",
        "coco": "img2img.data.datasets.coco",
        "voc": "img2img.data.datasets.voc",
        "voc_sbd": "img2img.data.datasets.voc_sbd",
        "image_folder": "img2img.data.datasets.folder",
        "image_label_folder": "img2img.data.datasets.folder",
        "pairs": "img2img.data.datasets.pairs",
        "paired_folders": "img2img.data.datasets.pairs",
        "class_folder": "img2img.data.datasets.class_folder",
        "split_class_folder": "img2img.data.datasets.class_folder",
        "decathlon": "img2img.data.datasets.decathlon",
    },
)
"""The kinds of data, classes or functions, by the names that configs use.

The keyword options of one, with annotated types, are those of a config. One that is marked by `by_part` splits itself. Any other
is a stored set: it is called once and then split, or called for each of a config's `parts` with the options there.
"""

Kind = TypeVar("Kind", bound=Callable[..., ImageDataset])
Given = TypeVar("Given")


def by_part(kind: Kind) -> Kind:
    """A decorator for a kind of data that splits itself: it is called once for each of "train", "val" and "test", as `part`."""
    kind._by_part = True  # type: ignore[attr-defined]
    return kind


def cuts_itself(kind: Callable[..., ImageDataset]) -> bool:
    """Whether a kind of data, or the class that it derives from, is marked by `by_part`."""
    return getattr(kind, "_by_part", False)


@dataclass(frozen=True)
class Batch:
    """Samples of one size, stacked.

    Attributes:
        image: (N, 3, H, W) uint8 in [0, 255]; float in the same range of a user's tensors.
        label: (N, H, W) int64 with `VOID`, or None.
        source: (N, 3, H, W) uint8 in [0, 255], or None.
        category: (N,) int64 class indices of whole images, or None.
        names: N names.
    """

    image: torch.Tensor
    label: torch.Tensor | None = None
    source: torch.Tensor | None = None
    category: torch.Tensor | None = None
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device | str) -> Self:
        """The same batch on `device`."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device, non_blocking=True) for k, v in moved.items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)

    @classmethod
    def stack(cls, samples: list[Sample]) -> Self:
        """Stack samples of one size into a batch; the `collate_fn` of the loaders.

        Raises:
            InputError: some samples have a label, a source or a category, and others do not.
        """

        def stacked(arrays: list[NDArray[np.uint8]]) -> torch.Tensor:
            return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()

        labels = _all_or_none(samples, "label", [s.label for s in samples])
        sources = _all_or_none(samples, "source", [s.source for s in samples])
        categories = _all_or_none(samples, "category", [s.category for s in samples])
        return cls(
            image=stacked([s.image for s in samples]),
            label=torch.from_numpy(np.stack(labels)).long() if labels else None,
            source=stacked(sources) if sources else None,
            category=torch.tensor(categories) if categories else None,
            names=tuple(s.name for s in samples),
        )


def _all_or_none(samples: Sequence[Sample], field: str, given: Sequence[Given | None]) -> list[Given]:
    """What samples have in a field, or nothing where none of them has it: left out of one, the others' would move up."""
    there = [value for value in given if value is not None]
    if there and len(there) < len(given):
        without, with_it = (
            next(s.name for s, value in zip(samples, given, strict=True) if (value is None) is lacks) for lacks in (True, False)
        )
        raise InputError(
            f"the sample {without!r} has no {field}, and {with_it!r} of the same batch has one: expected a {field} of every "
            "sample or of none; complete it, or leave the sample out of the set"
        )
    return there
