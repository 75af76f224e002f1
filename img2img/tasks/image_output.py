"""What tasks have in common whose prediction is an image."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from img2img.metrics.colour import ColourMetrics
from img2img.metrics.image_quality import ImageQualityMetrics
from img2img.tasks.base import Example, Metrics, Task, combine


class ImageOutput(Task):
    """RGB out. The primary metric is MSE (0..255)."""

    metric: ClassVar[str] = "MSE"
    higher_is_better: ClassVar[bool] = False
    compares_images: ClassVar[bool] = True

    def loss(self, raw: Tensor, example: Example) -> Tensor:
        """Mean absolute plus twice the mean squared error, in [0, 1] units: the first keeps colours, the second is measured."""
        prediction = self.prediction(raw, example.input)
        return F.l1_loss(prediction, example.target) + 2 * F.mse_loss(prediction, example.target)

    def metrics(self) -> Metrics:
        """SSIM, MSE and PSNR; CIEDE2000 and the colourfulness ratio."""
        return combine(images=ImageQualityMetrics(), colour=ColourMetrics())

    def to_image(self, prediction: Tensor, input: Tensor) -> Tensor:
        """The prediction itself."""
        return prediction


def mixed(raw: Tensor, input: Tensor) -> Tensor:
    """RGB in [0, 1]: a mix of the input and of an image that the network paints, by a share that it chooses for each pixel.

    Most decoders draw at half resolution: what stays as it is keeps its full detail so, and where the input is to be smoothed
    the network need not paint what has to go.

    Args:
        raw: (N, 4, H, W), the painted image and the share.
        input: (N, 3, H, W) in [0, 1].
    """
    painted, share = torch.sigmoid(raw.float()).split([3, 1], 1)
    return share * input + (1 - share) * painted
