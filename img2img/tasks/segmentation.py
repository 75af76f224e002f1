"""Semantic segmentation: an image in, a class for each pixel out."""

import colorsys
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from img2img import metrics as measures
from img2img.data.base import VOID, Batch, ImageDataset
from img2img.errors import InputError
from img2img.tasks.base import TASKS, Metrics, Task, combine, need, unit
from img2img.validation import mapping, one_of
from img2img.validation.arguments import shown

LOSSES = ("cross_entropy", "dice", "lovasz")
"""The terms of the loss."""
SUGGESTED_LOSS = {"cross_entropy": 1.0, "dice": 1.0}
"""What `add-task` and `absorb` with labels, and the page's Teach, train by: cross entropy alone, a mean over pixels, leaves small
classes behind, which count in the mIoU as much as large ones (docs/findings/losses.md). Not the default, since with Dice several
processes would not learn what one learns, see `Segmentation`.
"""
CLASS_WEIGHTS = ("median_frequency",)
"""How classes may be weighted in the cross entropy."""


@TASKS.register("segmentation")
class Segmentation(Task):
    """Cross entropy over the pixels that are not void, or a weighted sum of losses. The primary metric is mIoU.

    Void pixels have no part in any term. Dice and Lovász are the classes of segmentation-models-pytorch in their multiclass mode,
    over all pixels of a batch as one image:

    - `dice`: 1 - 2 Σ min(p, y) / Σ (p + y) of each class, with probabilities p and truth y; the mean over all classes. Those that
      do not occur in the batch count as 0, so its size depends on how many occur.
    - `lovasz`: the Lovász extension of the Jaccard loss (Berman, Rannen Triki and Blaschko, CVPR 2018), the mean over the classes
      that occur in the batch.

    Neither is a mean over pixels: with several processes each is that of a process's part of the batch.

    Args:
        classes: the class names by index.
        loss: the weight of each term, by its name among `LOSSES`; None is `{"cross_entropy": 1.0}`.
        class_weights: "median_frequency" weights the cross entropy of each pixel by its class, `w_c = median(f) / f_c`, where f_c
            is the share of the class among the pixels of those training images in which it occurs (Eigen and Fergus, ICCV 2015;
            SegNet has it for CamVid). The mean is over the weights, as in `torch.nn.CrossEntropyLoss(weight=...)`. Classes that
            do not occur weigh 1. None: all weigh 1.

    Raises:
        InputError: fewer than two classes, an unknown loss or kind of class weights, a weight that is no number of 0 or more, or
            no weight above 0.
    """

    metric: str = "mIoU"
    higher_is_better: bool = True
    baseline_name: ClassVar[str] = "majority class"
    has_classes: ClassVar[bool] = True
    at_measured_side: ClassVar[bool] = True
    in_parts: ClassVar[bool] = True
    keeps_transparency: ClassVar[bool] = False
    forms: ClassVar[tuple[str, ...]] = ("colours", "labels", "overlay")

    def __init__(
        self, *, classes: Sequence[str], loss: Mapping[str, float] | None = None, class_weights: str | None = None
    ) -> None:
        if len(classes) < 2:
            raise InputError(f"segmentation needs two classes or more, got {list(classes)}: name them in the data config")
        if len(classes) > VOID:
            raise InputError(
                f"segmentation got {len(classes)} classes: expected {VOID} at most, since labels are 8-bit and {VOID} is void"
            )
        self.classes = tuple(classes)
        self.out_channels = len(self.classes)
        self.majority = 0
        self.loss_weights = _loss_weights(loss)
        if class_weights is not None:
            one_of("segmentation class_weights", class_weights, CLASS_WEIGHTS)
            if "cross_entropy" not in self.loss_weights:
                raise InputError(
                    f"segmentation class_weights={class_weights!r} with loss={shown(dict(loss or {}))}: they weight the cross "
                    "entropy alone; give loss a cross_entropy above 0, or leave class_weights out"
                )
        self._weighted = class_weights is not None
        self._weights = torch.ones(VOID + 1)
        self._weights[VOID] = 0

    def fit(self, images: ImageDataset) -> None:
        """Find the majority class and the class weights, from a thousand training images at most, evenly spread."""
        counts, read = np.zeros(VOID + 1, np.int64), min(len(images), 1000)
        together = np.zeros(VOID + 1, np.int64)  # pixels of the images that have the class
        for i in range(read):
            label = need(images[i * len(images) // read].label, "a label", self.kind)
            found = np.bincount(label.ravel(), minlength=VOID + 1)
            counts += found
            together += np.where(found > 0, found[:VOID].sum(), 0)
        self.majority = measures.majority_class(torch.from_numpy(counts[:VOID]))
        if self._weighted:
            weights = median_frequency(counts[: self.out_channels], together[: self.out_channels])
            self._weights[: self.out_channels] = torch.from_numpy(weights).float()

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
        """The sum of the terms, of the pixels that are not void; zero for a batch of void alone."""
        raw = raw.float()
        terms = [weight * self._term(name, raw, example) for name, weight in self.loss_weights.items()]
        return torch.stack(terms).sum() if len(terms) > 1 else terms[0]

    def _term(self, name: str, raw: Tensor, example: Any) -> Tensor:
        if name != "cross_entropy":
            # Of no pixel SMP's Lovász is an empty tensor, no scalar.
            counted = bool((example.target != VOID).any())
            term: Tensor = self._smp_losses[name](raw, example.target) if counted else raw.sum() * 0
            return term
        if self._weighted:
            weight = self._weights[: self.out_channels].to(raw.device)
            total = F.cross_entropy(raw, example.target, weight=weight, ignore_index=VOID, reduction="sum")
            return total / self.loss_count(example).clamp(min=torch.finfo(torch.float32).tiny)
        total = F.cross_entropy(raw, example.target, ignore_index=VOID, reduction="sum")
        return total / self.loss_count(example).clamp(min=1)

    @cached_property
    def _smp_losses(self) -> Mapping[str, Any]:
        from segmentation_models_pytorch import losses  # with its encoders, so only where it trains

        return {
            "dice": losses.DiceLoss("multiclass", ignore_index=VOID),
            "lovasz": losses.LovaszLoss("multiclass", ignore_index=VOID),
        }

    def loss_count(self, example: Any) -> Tensor:
        """The pixels that are not void, or the sum of their classes' weights."""
        if self._weighted:
            return self._weights.to(example.target.device)[example.target].sum()
        return (example.target != VOID).sum()

    def distillation(self, raw: Tensor, target: Tensor, *, temperature: float) -> Tensor:
        """The cross entropy of class probabilities softened by T, mean over pixels (Li and Hoiem 2016, equations 2 to 4).

        The paper's `y_i^(1/T) / Σ_j y_j^(1/T)` of probabilities y is the softmax of the raw outputs over T.
        """
        soft = F.softmax(target.float() / temperature, dim=1)
        return -(soft * F.log_softmax(raw.float() / temperature, dim=1)).sum(1).mean()

    def metrics(self) -> Metrics:
        """mIoU, pixel accuracy, boundary F1 and IoU of each class."""
        return combine(segmentation=measures.SegmentationMetrics(self.classes))

    def primary_metrics(self) -> Metrics:
        """Without boundary F1, which takes as long as a small network."""
        if self.metric != Segmentation.metric:  # a subclass's own
            return self.metrics()
        return combine(segmentation=measures.SegmentationMetrics(self.classes, boundary=False))

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


def median_frequency(pixels: NDArray[np.int64], together: NDArray[np.int64]) -> NDArray[np.float64]:
    """The weight of each class, (C,): the median of the classes' frequencies over its own, 1 for a class that does not occur.

    Args:
        pixels: (C,), how many each class has.
        together: (C,), how many with any class the images have in which it occurs.
    """
    occurs = pixels > 0
    frequency = pixels[occurs] / together[occurs]
    weights = np.ones(len(pixels))
    weights[occurs] = np.median(frequency) / frequency
    return weights


def _loss_weights(given: Any) -> dict[str, float]:
    """The terms of a loss that weigh more than 0, in a fixed order."""
    found = {"cross_entropy": 1.0} if given is None else mapping("segmentation loss", given, SUGGESTED_LOSS)
    for name, value in found.items():
        one_of("segmentation loss", name, LOSSES)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise InputError(f"segmentation loss.{name}={shown(value)}: expected a weight, a number of 0 or more")
    if not any(found.values()):
        raise InputError(f"segmentation loss={shown(found)}: expected a weight above 0 for one of {', '.join(LOSSES)}, or more")
    return {name: found[name] for name in LOSSES if found.get(name)}


def palette(classes: int) -> Tensor:
    """Colours (256, 3) in [0, 1] by label: hues a golden section apart, so that neighbours differ; 0 is dark grey, void black."""
    colours = torch.zeros(VOID + 1, 3, dtype=torch.float32)
    for i in range(classes):
        hue, light = (i * 0.618034) % 1, (0.55, 0.7, 0.42)[i % 3]
        colours[i] = torch.tensor(colorsys.hls_to_rgb(hue, light, 0.75) if i else (0.25, 0.25, 0.25))
    return colours
