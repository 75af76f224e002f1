"""Colourisation: lightness in, the two colour channels out, in CIE Lab."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from kornia.color import lab_to_rgb, rgb_to_lab
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from img2img import metrics as measures
from img2img.data.base import Batch, ImageDataset
from img2img.metrics.names import joined
from img2img.tasks.base import TASKS, Example, Metrics, Task, combine, unit
from img2img.tasks.colour_bins import BinOptions, ColourBins
from img2img.tasks.guided_filter import GuidedFilterOptions, guided, guided_coefficients
from img2img.tasks.image_output import PerceptualTerm
from img2img.validation import Options, checked

AB = 110.0
"""sRGB colours have a and b within about ±110 Lab units."""
_COUNTED = 1000
"""Training images whose colours are counted at most, evenly spread."""


class ColourLossOptions(Options):
    """What is added to the loss of a colouring."""

    perceptual: float = Field(default=1.0, gt=0)
    """Weight of the distance of deep features of the RGB images, see `metrics.style.perceptual_distance`."""
    network: Mapping[str, Any] | None = None
    """`name`, `weights`, and optionally `preprocessing` and `layers`, of the perceptual network, see `feature_network`."""


@TASKS.register("colourisation")
class Colourisation(Task):
    """L in, ab out. The primary metric is the squared ab error, since a grey copy already scores 0.92 on SSIM.

    The loss is the mean squared error of ab, in units of `AB / 4`, about the spread of colours in photographs. With `bins` the
    head gives a distribution over bins of ab in place of ab, and the loss is its rebalanced cross entropy (Zhang, Isola and
    Efros, ECCV 2016): more saturated colours, at a larger ab error. A grey copy can win by that error over bold colours, of which
    a wrong one costs twice what no colour costs; so the primary metric of `bins` is "balanced AuC", see `ColourAccuracy`.

    Args:
        bins: see `BinOptions`; an empty mapping for the paper's, None for none.
        guided_filter: filters the colours, led by the lightness, which takes blotches off and lets colours of large images end
            at their edges, see `GuidedFilterOptions`; an empty mapping for its defaults, None for none.
        loss: a perceptual term that is added, see `ColourLossOptions`; None for none.
    """

    metric: str = "ab error"
    higher_is_better: bool = False
    baseline_name: ClassVar[str] = "grey copy"
    compares_images: ClassVar[bool] = True
    at_measured_side: ClassVar[bool] = True
    in_parts: ClassVar[bool] = True
    out_channels = 2

    def __init__(
        self,
        *,
        bins: Mapping[str, Any] | None = None,
        guided_filter: Mapping[str, Any] | None = None,
        loss: Mapping[str, Any] | None = None,
    ) -> None:
        self.bins = None if bins is None else ColourBins(checked(BinOptions, bins, what="bins of the colourisation task"))
        if self.bins is not None:
            self.out_channels = len(self.bins)
            if not self._own_metric():
                self.metric, self.higher_is_better = "balanced AuC", True
        self._filter = None
        if guided_filter is not None:
            what = "guided_filter of the colourisation task"
            self._filter = checked(GuidedFilterOptions, guided_filter, what=what)
        self._loss = None if loss is None else checked(ColourLossOptions, loss, what="loss of the colourisation task")
        what = "loss.perceptual of the colourisation task"
        self._perceptual = None if self._loss is None else PerceptualTerm(self._loss.network, what=what)

    def fit(self, images: ImageDataset) -> None:
        """Count the training images' colours for the weights of bins, and read the perceptual network of the loss."""
        if self._perceptual is not None:
            _ = self._perceptual.network
        if self.bins is None:
            return
        read = min(len(images), _COUNTED)
        counts = torch.zeros(len(self.bins), dtype=torch.int64)
        for i in range(read):
            image = torch.from_numpy(images[i * len(images) // read].image[::2, ::2].copy()).permute(2, 0, 1)[None]
            counts += self.bins.counts(rgb_to_lab(unit(image))[0, 1:].flatten(1).T)
        self.bins.fit(counts)

    def input(self, batch: Batch) -> Tensor:
        """L / 100, repeated to three channels."""
        return self.example(batch).input

    def target(self, batch: Batch) -> Tensor:
        """ab, (N, 2, H, W) in Lab units."""
        return self.example(batch).target

    def example(self, batch: Batch) -> Example:
        """Both from one conversion."""
        lab = rgb_to_lab(unit(batch.image))
        return Example((lab[:, :1] / 100).clamp(0, 1).repeat(1, 3, 1, 1), lab[:, 1:])

    @property
    def compact_channels(self) -> int:
        """a and b, or with a filter two coefficients of each."""
        return 2 if self._filter is None else 4

    def compact(self, raw: Tensor, input: Tensor) -> Tensor:
        """ab of a distribution over bins, or the raw output without; with a filter its coefficients, which are smooth."""
        if self._filter is not None:
            return guided_coefficients(input[:, :1].float(), self._colours(raw), self._filter)
        return raw if self.bins is None else self.bins.annealed_mean(raw)

    def prediction(self, raw: Tensor, input: Tensor) -> Tensor:
        """ab in Lab units, within ±`AB`; of bins their annealed mean; with a filter these filtered."""
        if self._filter is not None:
            coefficients = raw if raw.shape[1] == self.compact_channels else self.compact(raw, input)
            return guided(coefficients, input[:, :1].float()).clamp(-AB, AB)
        is_compact = self.bins is not None and raw.shape[1] == self.compact_channels
        return raw.float() if is_compact else self._colours(raw)

    def _colours(self, raw: Tensor) -> Tensor:
        """ab in Lab units of the head's raw output, pixel by pixel."""
        return AB * torch.tanh(raw.float() / 4) if self.bins is None else self.bins.annealed_mean(raw)

    def loss(self, raw: Tensor, example: Example) -> Tensor:
        """Mean squared error of ab / (AB / 4), or the cross entropy of bins; with the perceptual term where there is one."""
        scale, prediction = AB / 4, None
        if self.bins is not None:
            loss = self.bins.loss(raw, example.target)
        else:
            prediction = self.prediction(raw, example.input)
            loss = F.mse_loss(prediction / scale, example.target / scale)
        if self._loss is None or self._perceptual is None:
            return loss
        prediction = self.prediction(raw, example.input) if prediction is None else prediction
        shown = [self.to_image(ab, example.input) for ab in (prediction, example.target)]
        return loss + self._loss.perceptual * self._perceptual(*shown)

    def distillation(self, raw: Tensor, target: Tensor, *, temperature: float) -> Tensor:
        """The mean squared error, or the cross entropy of the distributions over bins, softened by T (Li and Hoiem 2016)."""
        if self.bins is None:
            return super().distillation(raw, target, temperature=temperature)
        soft = F.softmax(target.float() / temperature, dim=1)
        return -(soft * F.log_softmax(raw.float() / temperature, dim=1)).sum(1).mean()

    def metrics(self) -> Metrics:
        """ab error, delta E, AuC and balanced AuC; of the RGB images SSIM, MSE, PSNR, CIEDE2000 and the colourfulness ratio."""
        return _ColourMetrics(self)

    def primary_metrics(self) -> Metrics:
        """ab error, delta E, AuC and balanced AuC."""
        if self._own_metric():
            return self.metrics()
        return combine(lab=measures.LabMetrics(), accuracy=measures.ColourAccuracy())

    def _own_metric(self) -> bool:
        """Whether a subclass says what its primary metric is."""
        return type(self).metric != Colourisation.metric

    def baseline(self, example: Example) -> Tensor:
        """No colour at all."""
        return torch.zeros_like(example.target)

    def to_image(self, prediction: Tensor, input: Tensor) -> Tensor:
        """The input's lightness with the predicted colours, clipped to sRGB."""
        return lab_to_rgb(torch.cat([input[:, :1] * 100, prediction], 1)).clamp(0, 1)

    def options(self) -> dict[str, Any]:
        """The kind, and the bins and the filter where there are some."""
        bins = {} if self.bins is None else {"bins": self.bins.stored()}
        filtered = {} if self._filter is None else {"guided_filter": self._filter.model_dump()}
        return super().options() | bins | filtered


class _ColourMetrics(Metrics):
    def __init__(self, task: Colourisation) -> None:
        self._task, self._ab = task, (measures.LabMetrics(), measures.ColourAccuracy())
        self._images = (measures.ImageQualityMetrics(), measures.ColourMetrics())

    def update(self, prediction: Tensor, example: Example) -> None:
        rgb = [self._task.to_image(ab, example.input) for ab in (prediction, example.target)]
        for of_ab in self._ab:
            of_ab.update(prediction, example.target)
        for of_images in self._images:
            of_images.update(*rgb)

    def compute(self) -> dict[str, Any]:
        return joined(metrics.compute() for metrics in (*self._ab, *self._images))
