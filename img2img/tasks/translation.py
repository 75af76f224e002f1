"""Translation: one picture in, another of the same scene out, learned from pairs: sharpening, retouching, maps, day to night."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from img2img.data.base import Batch
from img2img.metrics.pictures import PictureMetrics
from img2img.tasks.base import Example, Metrics, Task, combine, need, unit


class Translation(Task):
    """A pair's A in, its B out, in RGB; the loss is a mix of absolute and squared error, and MSE (0..255) decides."""

    kind: ClassVar[str] = "translation"
    metric: ClassVar[str] = "MSE"
    higher_is_better: ClassVar[bool] = False
    trivial_name: ClassVar[str] = "copy of the input"
    out_channels = 4

    def input(self, batch: Batch) -> Tensor:
        """A; a user's own picture, which comes without a B, is one."""
        return unit(batch.image if batch.source is None else batch.source)

    def target(self, batch: Batch) -> Tensor:
        """B, (N, 3, H, W) in [0, 1].

        Raises:
            InputError: the data has no pairs.
        """
        need(batch.source, "a picture to start from", self.kind)
        return unit(batch.image)

    def prediction(self, raw: Tensor, input: Tensor) -> Tensor:
        """RGB in [0, 1]: a mix of the input and of a picture that the network paints, by a share that it chooses for each pixel.

        What stays as it is keeps its full detail so; most decoders draw at half resolution.
        """
        painted, share = torch.sigmoid(raw.float()).split([3, 1], 1)
        return share * input + (1 - share) * painted

    def loss(self, raw: Tensor, example: Example) -> Tensor:
        """Mean absolute plus twice the mean squared error, in [0, 1] units, as of edge colouring."""
        prediction = self.prediction(raw, example.input)
        return F.l1_loss(prediction, example.target) + 2 * F.mse_loss(prediction, example.target)

    def metrics(self) -> Metrics:
        """SSIM, MSE and PSNR."""
        return combine(pictures=PictureMetrics())

    def trivial(self, example: Example) -> Tensor:
        """The input as it is."""
        return example.input

    def picture(self, prediction: Tensor, input: Tensor) -> Tensor:
        """The prediction itself."""
        return prediction
