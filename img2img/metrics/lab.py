"""Colour error in CIE Lab, through kornia.

kornia's `rgb_to_lab` is a port of scikit-image's `rgb2lab`: sRGB in [0, 1], illuminant D65, 2 degree observer, white point
(0.95047, 1, 1.08883). The two agree to 1e-4 Lab units in float32. The white point is that of the rounded matrix, so greys get an
a and b of up to 0.005 rather than 0.
"""

import torch
from kornia.color import rgb_to_lab
from torch import Tensor

from img2img.metrics.per_image import PerImageMean, check_images, check_pair, precise


class LabMetrics(PerImageMean):
    """The metrics "ab error" (squared Lab units) and "delta E" (Lab units) of a colouring, means over images; lower is better.

    A grey copy (a = b = 0) of natural photographs at 96 px has an ab error of 220 to 290, by the choice of photographs.
    """

    def __init__(self) -> None:
        super().__init__(("ab error", "delta E"))

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Measure a batch, both tensors of one kind.

        Args:
            prediction: (N, 2, H, W) float a and b in Lab units (about -110..110), or (N, 3, H, W) float RGB in [0, 1].
            target: the same kind and shape. From ab alone, delta E takes the lightness of both as equal.

        Raises:
            InputError: another shape or type, NaN, or RGB outside [0, 1].
        """
        check_pair(prediction, target, channels=(2, 3))
        prediction, target = precise(prediction), precise(target)
        if target.shape[1] == 3:
            check_images(prediction, target)
            with torch.autocast(target.device.type, enabled=False):
                prediction, target = rgb_to_lab(prediction), rgb_to_lab(target)
        self.add({"ab error": ab_error(prediction[:, -2:], target[:, -2:]), "delta E": delta_e(prediction, target)})


def ab_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared ab error of each image, (N,), in squared Lab units: the mean over pixels of ((a - a')^2 + (b - b')^2) / 2.

    It is the mean over pixels AND both channels, as `F.mse_loss` on ab; the squared distance in the ab plane is twice it.

    Args:
        prediction: (N, 2, H, W) a and b in Lab units.
        target: (N, 2, H, W) a and b in Lab units.
    """
    return (prediction - target).square().mean(dim=(1, 2, 3))


def delta_e(prediction: Tensor, target: Tensor) -> Tensor:
    """CIE76 delta E of each image, (N,), in Lab units: the mean over pixels of the Euclidean distance in Lab.

    Args:
        prediction: (N, 3, H, W) Lab, or (N, 2, H, W) ab where the lightness is shared.
        target: the same kind and shape.
    """
    return torch.linalg.vector_norm(prediction - target, dim=1).mean(dim=(1, 2))
