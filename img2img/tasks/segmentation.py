"""Semantic segmentation: an image in, a class for each pixel out."""

import colorsys
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from img2img.data.base import VOID, Batch, ImageDataset
from img2img.errors import InputError
from img2img.metrics.segmentation import SegmentationMetrics, majority_class
from img2img.tasks.base import TASKS, Metrics, Task, combine, need, unit


@TASKS.register("segmentation")
class Segmentation(Task):
    """Cross entropy over the pixels that are not void. The primary metric is mIoU.

    Args:
        classes: the class names by index.
    """

    metric: ClassVar[str] = "mIoU"
    higher_is_better: ClassVar[bool] = True
    baseline_name: ClassVar[str] = "majority class"
    has_classes: ClassVar[bool] = True
    in_parts: ClassVar[bool] = True
    forms: ClassVar[tuple[str, ...]] = ("colours", "labels", "overlay")

    def __init__(self, *, classes: Sequence[str]) -> None:
        if len(classes) < 2:
            raise InputError(f"segmentation needs two classes or more, got {list(classes)}: name them in the data config")
        self.classes = tuple(classes)
        self.out_channels = len(self.classes)
        self.majority = 0

    def fit(self, images: ImageDataset) -> None:
        """Find the majority class of the training set, from a thousand of its images at most, evenly spread."""
        counts, read = np.zeros(VOID + 1, np.int64), min(len(images), 1000)
        for i in range(read):
            label = need(images[i * len(images) // read].label, "a label", self.kind)
            counts += np.bincount(label.ravel(), minlength=VOID + 1)
        self.majority = majority_class(torch.from_numpy(counts[:VOID]))

    def input(self, batch: Batch) -> Tensor:
        """The image."""
        return unit(batch.image)

    def target(self, batch: Batch) -> Tensor:
        """(N, H, W) int64 class indices with void.

        Raises:
            InputError: no labels, or a label that is neither a class nor void.
        """
        label = need(batch.label, "a label", self.kind)
        wrong = (label != VOID) & ((label < 0) | (label >= self.out_channels))
        if wrong.any():
            found = label[wrong].unique().tolist()[:10]
            where = [n for n, w in zip(batch.names, wrong.flatten(1).any(1).tolist(), strict=False) if w][:3]
            raise InputError(
                f"labels {found} in {where}: expected 0..{self.out_channels - 1} ({self.out_channels} classes) or {VOID} for "
                "void; correct the classes, or list the other values as void"
            )
        return label

    def prediction(self, raw: Tensor, input: Tensor) -> Tensor:
        """(N, H, W) int64 class indices."""
        return raw.argmax(1)

    def loss(self, raw: Tensor, example: Any) -> Tensor:
        """Mean cross entropy over the pixels that are not void; zero for a batch of void alone."""
        total = F.cross_entropy(raw.float(), example.target, ignore_index=VOID, reduction="sum")
        return total / self.loss_count(example).clamp(min=1)

    def loss_count(self, example: Any) -> Tensor:
        """The pixels that are not void."""
        return (example.target != VOID).sum()

    def distillation(self, raw: Tensor, target: Tensor, *, temperature: float) -> Tensor:
        """The cross entropy of class probabilities softened by T, mean over pixels (Li and Hoiem 2016, equations 2 to 4).

        The paper's `y_i^(1/T) / Σ_j y_j^(1/T)` of probabilities y is the softmax of the raw outputs over T.
        """
        soft = F.softmax(target.float() / temperature, dim=1)
        return -(soft * F.log_softmax(raw.float() / temperature, dim=1)).sum(1).mean()

    def metrics(self) -> Metrics:
        """mIoU, pixel accuracy and IoU of each class."""
        return combine(segmentation=SegmentationMetrics(self.classes))

    def baseline(self, example: Any) -> Tensor:
        """The training set's most frequent class everywhere."""
        return torch.full(example.input[:, 0].shape, self.majority, device=example.input.device)

    def to_image(self, prediction: Tensor, input: Tensor) -> Tensor:
        """A colour a class; void is black."""
        return palette(self.out_channels).to(prediction.device)[prediction].permute(0, 3, 1, 2)

    def show(self, prediction: Tensor, input: Tensor, form: str) -> Tensor:
        """The classes' colours, the labels themselves, or the colours half transparent over the image."""
        if form == "labels":
            return prediction
        colours = self.to_image(prediction, input)
        return colours if form == "colours" else torch.lerp(input.expand_as(colours), colours, 0.5)

    def options(self) -> dict[str, Any]:
        """The kind and the classes."""
        return {"kind": self.kind, "classes": list(self.classes)}


def palette(classes: int) -> Tensor:
    """Colours (256, 3) in [0, 1] by label: hues a golden section apart, so that neighbours differ; 0 is dark grey, void black."""
    colours = torch.zeros(VOID + 1, 3, dtype=torch.float32)
    for i in range(classes):
        hue, light = (i * 0.618034) % 1, (0.55, 0.7, 0.42)[i % 3]
        colours[i] = torch.tensor(colorsys.hls_to_rgb(hue, light, 0.75) if i else (0.25, 0.25, 0.25))
    return colours
