"""Colourisation: lightness in, the two colour channels out, in CIE Lab."""

from typing import Any, ClassVar

import torch
from kornia.color import lab_to_rgb, rgb_to_lab
from torch import Tensor
from torch.nn import functional as F

from img2img.data.base import Batch
from img2img.metrics.image_quality import ImageQualityMetrics
from img2img.metrics.colour import ColourMetrics, LabMetrics
from img2img.tasks.base import TASKS, Example, Metrics, Task, unit

AB = 110.0
"""sRGB colours have a and b within about ±110 Lab units."""


@TASKS.register("colourisation")
class Colourisation(Task):
    """L in, ab out. The primary metric is the squared ab error, since a grey copy already scores 0.92 on SSIM.

    The loss is the mean squared error of ab, in units of `AB / 4`, about the spread of colours in photographs.
    """

    metric: ClassVar[str] = "ab error"
    higher_is_better: ClassVar[bool] = False
    baseline_name: ClassVar[str] = "grey copy"
    compares_images: ClassVar[bool] = True
    in_parts: ClassVar[bool] = True
    out_channels = 2

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

    def prediction(self, raw: Tensor, input: Tensor) -> Tensor:
        """ab in Lab units, within ±`AB`."""
        return AB * torch.tanh(raw.float() / 4)

    def loss(self, raw: Tensor, example: Example) -> Tensor:
        """Mean squared error of ab / (AB / 4)."""
        scale = AB / 4
        return F.mse_loss(self.prediction(raw, example.input) / scale, example.target / scale)

    def metrics(self) -> Metrics:
        """ab error and delta E; of the RGB images SSIM, MSE, PSNR, CIEDE2000 and the colourfulness ratio."""
        return _ColourMetrics(self)

    def baseline(self, example: Example) -> Tensor:
        """No colour at all."""
        return torch.zeros_like(example.target)

    def to_image(self, prediction: Tensor, input: Tensor) -> Tensor:
        """The input's lightness with the predicted colours, clipped to sRGB."""
        return lab_to_rgb(torch.cat([input[:, :1] * 100, prediction], 1)).clamp(0, 1)


class _ColourMetrics(Metrics):
    def __init__(self, task: Colourisation) -> None:
        self._task, self._lab, self._images = task, LabMetrics(), (ImageQualityMetrics(), ColourMetrics())

    def update(self, prediction: Tensor, example: Example) -> None:
        self._lab.update(prediction, example.target)
        rgb = [self._task.to_image(ab, example.input) for ab in (prediction, example.target)]
        for metrics in self._images:
            metrics.update(*rgb)

    def compute(self) -> dict[str, Any]:
        return self._lab.compute() | self._images[0].compute() | self._images[1].compute()
