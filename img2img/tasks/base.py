"""What a task is: what it feeds the network, its loss, its metrics, its baseline, and how a result is shown."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from img2img.data.base import Batch, ImageDataset
from img2img.errors import InputError
from img2img.metrics.names import joined
from img2img.registry import Registry
from img2img.tasks.adversary import Adversary

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """A batch as one task sees it.

    Attributes:
        input: (N, 3, H, W) float in [0, 1], what the network is fed.
        target: what the loss and the metrics compare with, in the task's own form.
    """

    input: Tensor
    target: Tensor


class Metrics(Protocol):
    """Metrics over a whole set."""

    def update(self, prediction: Tensor, example: Example) -> None:
        """Measure a batch."""

    def compute(self) -> dict[str, float]:
        """The values by name; the task's primary metric is among them."""


class Task(ABC):
    """One image task. A new kind of task is a subclass that `TASKS.register` makes known to configs and bundles.

    Attributes:
        kind: the kind's name, the config's `kind`, set when the class is registered.
        metric: the primary metric, a key of what `metrics()` computes; its baseline must not be the best value.
        higher_is_better: its direction, set in the same class.
        baseline_name: what the baseline is called in reports.
        has_classes: its constructor takes the data's `classes`.
        compares_images: predictions and targets, made images by `to_image`, should look alike: perceptual metrics compare them.
        image_level: one answer for a whole image, in place of one for each pixel.
        at_measured_side: by default a larger image is brought to the size of those that it was measured on before the network
            sees it, and the result is enlarged: for tasks about large shapes, not about fine lines.
        has_square: its constructor takes `square`, whether the data's images were made squares.
        square: it learned from images that were made squares, whatever their proportions, and is shown such when it is used.
        in_parts: each pixel of a prediction, and of what is shown of it, depends on that pixel of the raw output alone, on pixels
            of the input no further than `input_reach` away, and the input of an image on pixels no further than `reach` away:
            large images are then made part by part, in little memory. False, where nothing is known of a task: they are made
            as a whole.
        reach: see `in_parts`; None for an input that depends on the whole image.
        input_reach: see `in_parts`.
        mirrored: its network is given an image with its edges mirrored outside. Convolutions pad with zeros, which look like a
            black frame: paintings get a rim. Such a task shares no batch with tasks that see the image alone.
        enlarges: how many times larger each way a result is than the user's image, which is enlarged by bicubic interpolation
            before the task is given it.
        original_pixels: its targets are the photos as they are, fine detail and all: training crops are not scaled, which would
            blur them, unless its options say so.
        smallest_crop: the side in pixels of the smallest images that it can be trained on.
        forms: what `show` can make of a prediction, the usual one first: "labels" are class indices (N, H, W), "scores"
            probabilities (N, classes), all others images (N, 3, H, W) in [0, 1].
        keeps_transparency: its images are the user's photo made anew: of a transparent one they get the transparency back. Not
            where colours are classes, or something is written on the image.
        defaults_of_files: values of the options that files of earlier versions lack.
        out_channels: channels of the head.
    """

    kind: ClassVar[str]
    metric: str
    higher_is_better: bool
    baseline_name: ClassVar[str]
    has_classes: ClassVar[bool] = False
    compares_images: ClassVar[bool] = False
    image_level: ClassVar[bool] = False
    at_measured_side: ClassVar[bool] = False
    has_square: ClassVar[bool] = False
    square: bool = False
    in_parts: ClassVar[bool] = False
    reach: int | None = 0
    input_reach: int = 0
    mirrored: ClassVar[bool] = False
    enlarges: int = 1
    original_pixels: ClassVar[bool] = False
    smallest_crop: int = 1
    forms: ClassVar[tuple[str, ...]] = ("image",)
    keeps_transparency: ClassVar[bool] = True
    defaults_of_files: ClassVar[Mapping[str, Any]] = {}
    out_channels: int

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a primary metric whose direction would be that of the metric of the class that it derives from.

        Raises:
            InputError: a class sets another `metric` without `higher_is_better`.
        """
        super().__init_subclass__(**kwargs)
        own, inherited = vars(cls).get("metric"), getattr(super(cls, cls), "metric", None)
        if own not in (None, inherited) and "higher_is_better" not in vars(cls):
            raise InputError(
                f"the task class {cls.__name__} sets metric = {own!r} and no higher_is_better: expected both, or the state "
                "that is kept may be the worst; write higher_is_better = True for a score, False for an error"
            )

    @abstractmethod
    def input(self, batch: Batch) -> Tensor:
        """What the network is fed: (N, 3, H, W) float in [0, 1]."""

    def served_input(self, batch: Batch) -> Tensor:
        """What the network is fed when the task is put to use: by default the same; another where training spoils images."""
        return self.input(batch)

    @abstractmethod
    def target(self, batch: Batch) -> Tensor:
        """What the prediction is compared with.

        Raises:
            InputError: the batch lacks what the task learns from, or holds what it cannot (a label out of range).
        """

    def example(self, batch: Batch) -> Example:
        """Input and target of a batch; override where the two share work."""
        return Example(self.input(batch), self.target(batch))

    @property
    def compact_channels(self) -> int:
        """The channels of what `compact` gives."""
        return self.out_channels

    def compact(self, raw: Tensor, input: Tensor) -> Tensor:
        """What of the head's raw output is cut, blended and resized where whole images are run: by default all of it.

        Of a head with hundreds of channels it saves gigabytes, and what looks at neighbouring pixels is computed here, at the
        size at which the network sees an image. `prediction` takes what it gives in the place of the raw output.

        Args:
            raw: (N, out_channels, H, W).
            input: (N, 3, H, W) as the network saw it.

        Returns:
            (N, compact_channels, H, W).
        """
        return raw

    @abstractmethod
    def prediction(self, raw: Tensor, input: Tensor) -> Tensor:
        """The prediction, in the target's form, from the head's raw output (N, out_channels, H, W) and its input.

        Of whole images' tasks, such as classification, the raw output is (N, out_channels). See also `compact`.
        """

    @abstractmethod
    def loss(self, raw: Tensor, example: Example) -> Tensor:
        """The scalar training loss of the head's raw output, a mean over as many terms as `loss_count` says."""

    def loss_count(self, example: Example) -> Tensor | int:
        """How many terms the loss is a mean over, for processes that share a batch out: the images, unless overridden.

        What is the same for every image, such as the pixels of a crop, need not be counted.
        """
        return len(example.input)

    def adversary(self) -> Adversary | None:
        """A new discriminator for a training run, whose term is added to `loss`; None for none."""
        return None

    def distillation(self, raw: Tensor, target: Tensor, *, temperature: float) -> Tensor:
        """How far the head's raw output is from an earlier network's, both (N, out_channels, H, W): a scalar, for LwF.

        For outputs that are images the mean squared error, which knows no `temperature`.
        """
        return torch.nn.functional.mse_loss(raw, target)

    @abstractmethod
    def metrics(self) -> Metrics:
        """Fresh metrics to be updated over a set, by one process even of several: `torchmetrics` want `sync_on_compute=False`."""

    def primary_metrics(self) -> Metrics:
        """Fresh metrics for validations, with `metric` among them: all, unless a task leaves out what takes long."""
        return self.metrics()

    @abstractmethod
    def baseline(self, example: Example) -> Tensor:
        """The trivial prediction that the network has to beat; `fit` has been called on the training set."""

    @abstractmethod
    def to_image(self, prediction: Tensor, input: Tensor) -> Tensor:
        """A prediction or a target as images (N, 3, H, W) float in [0, 1]."""

    def show(self, prediction: Tensor, input: Tensor, form: str) -> Tensor:
        """A prediction in one of the task's `forms`."""
        return self.to_image(prediction, input)

    def show_rows(self, prediction: Tensor, input: Tensor, form: str, *, first: int, height: int) -> Tensor:
        """The rows of `show` that belong to the rows of an image from `first` on, of a task whose results come `in_parts`.

        Args:
            prediction: of those rows; of a task of whole images the one prediction that there is.
            input: of those rows.
            form: one of `forms`.
            first: their first in the image.
            height: of the image.
        """
        return self.show(prediction, input, form)

    def reference(self, example: Example) -> Tensor:
        """What stands beside an output in reports, (N, 3, H, W) in [0, 1]: the target, by default."""
        return self.to_image(example.target, example.input)

    def fit(self, images: ImageDataset) -> None:
        """Gather what the baseline or the loss needs from the training set. By default nothing."""

    def options(self) -> dict[str, Any]:
        """Plain JSON options that rebuild the task for inference, with `build_task`; the bundle stores them."""
        return {"kind": self.kind}


TASKS: Registry[type[Task]] = Registry(
    "task kind",
    Task,
    attribute="kind",
    own={
        "classification": "img2img.tasks.classification",
        "colourisation": "img2img.tasks.colourisation",
        "denoising": "img2img.tasks.denoising",
        "edges": "img2img.tasks.edges",
        "segmentation": "img2img.tasks.segmentation",
        "style": "img2img.tasks.style",
        "super_resolution": "img2img.tasks.super_resolution",
        "translation": "img2img.tasks.translation",
    },
)
"""The kinds of task by the names that configs and task files use."""


class _Combined(Metrics):
    def __init__(self, **parts: Any) -> None:
        self.parts = parts

    def update(self, prediction: Tensor, example: Example) -> None:
        for part in self.parts.values():
            part.update(prediction, example.target)

    def compute(self) -> dict[str, float]:
        return joined(part.compute() for part in self.parts.values())


def combine(**parts: Any) -> Metrics:
    """Several metric objects with `update(prediction, target)` and `compute() -> dict` as one.

    Raises:
        InputError: at `compute`, two of them give a value of one name.
    """
    return _Combined(**parts)


def unit(images: Tensor) -> Tensor:
    """Images in [0, 255], usually 8-bit, as float32 in [0, 1]; a new tensor, made in one pass."""
    if images.is_floating_point():
        return torch.div(images, 255)
    # Of whole numbers the quotient would be of PyTorch's default type.
    return torch.div(images, 255, out=torch.empty_like(images, dtype=torch.float32))


def pixels(image: Tensor) -> NDArray[np.uint8]:
    """An image (3, H, W) in [0, 1] as (H, W, 3) uint8; the way back of `unit`."""
    return image.mul(255).round_().byte().permute(1, 2, 0).cpu().numpy()


def mean_colour(images: ImageDataset) -> Tensor:
    """The mean RGB colour, (3,) in [0, 1], of the images of a set (of 200 of them, evenly spread, each counting once)."""
    count = min(len(images), 200)
    means = [torch.from_numpy(images[i * len(images) // count].image.mean((0, 1))) for i in range(count)]
    return torch.stack(means).mean(0).float() / 255


def need(value: T | None, what: str, kind: str) -> T:
    """`value`, or an `InputError` that says which data the task needs."""
    if value is None:
        raise InputError(f"a {kind} task needs {what} with every image, and the data has none: choose another data config")
    return value
