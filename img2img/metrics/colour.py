"""How far the colours of an image are from the truth's, and how strong they are.

kornia's `rgb_to_lab` is a port of scikit-image's `rgb2lab`: sRGB in [0, 1], illuminant D65, 2 degree observer, white point
(0.95047, 1, 1.08883). The two agree to 1e-4 Lab units in float32. The white point is that of the rounded matrix, so greys get an
a and b of up to 0.005 rather than 0.
"""

import math

import torch
from kornia.color import rgb_to_lab
from torch import Tensor

from img2img.errors import InputError
from img2img.metrics.per_image import PerImageMean, check_images, check_pair, precise

_25_7 = 25.0**7


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


class ColourMetrics(PerImageMean):
    """The metrics "CIEDE2000" and "colourfulness ratio" of RGB images.

    CIEDE2000 is the mean over images of `ciede2000`; lower is better. The colourfulness ratio is the mean over images of the
    predictions' `colourfulness`, over that of the targets: 1 is as colourful as the truth, less is paler. It is a ratio of means
    and not a mean of ratios, which one almost grey photograph would decide. It has no value (NaN) where all targets are grey.
    """

    _MEANS = ("CIEDE2000", "colourfulness", "colourfulness of the targets")

    def __init__(self) -> None:
        super().__init__(self._MEANS)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Measure a batch of images, both (N, 3, H, W) float RGB in [0, 1].

        Raises:
            InputError: another shape, type or range.
        """
        check_images(prediction, target)
        with torch.autocast(target.device.type, enabled=False):
            # In float64: the formula divides by chromas that are almost 0, and takes the angles of such colours.
            pair = [x.double().clamp(0, 1) for x in (prediction, target)]
            values = (ciede2000(*map(rgb_to_lab, pair)), *map(colourfulness, pair))
        self.add(dict(zip(self._MEANS, values, strict=True)))

    def compute(self) -> dict[str, float]:
        """The two metrics since the last `reset`.

        Raises:
            InputError: no image has been seen.
        """
        difference, predicted, wanted = super().compute().values()
        return {"CIEDE2000": difference, "colourfulness ratio": predicted / wanted if wanted > 1e-9 else math.nan}


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


def ciede2000(prediction: Tensor, target: Tensor) -> Tensor:
    """CIEDE2000 of each image, (N,): the mean over pixels of the colour difference, with k_L = k_C = k_H = 1.

    The formula is that of Sharma, Wu and Dalal 2005, equations 2 to 22; their 34 test pairs are met to the digits printed. Unlike
    CIE76 it counts a step between saturated colours less than one between greys, as eyes do. About 1 is just visible.

    Args:
        prediction: (N, 3, H, W) float Lab.
        target: the same.

    Raises:
        InputError: another shape.
    """
    if prediction.ndim != 4 or prediction.shape[1] != 3 or prediction.shape != target.shape:
        raise InputError(
            f"CIEDE2000 got {tuple(prediction.shape)} and {tuple(target.shape)}: expected Lab images (N, 3, H, W) of one shape; "
            "its weights depend on the lightness, so give it with ab"
        )
    (l1, a1, b1), (l2, a2, b2) = prediction.unbind(1), target.unbind(1)
    c7 = ((torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2) ** 7
    stretch = 1 + 0.5 * (1 - (c7 / (c7 + _25_7)).sqrt())
    a1, a2 = stretch * a1, stretch * a2
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = (torch.atan2(b, a) % (2 * math.pi) for a, b in ((a1, b1), (a2, b2)))
    grey = c1 * c2 == 0  # a hue is missing
    turn = h2 - h1
    turn = torch.where(turn > math.pi, turn - 2 * math.pi, torch.where(turn < -math.pi, turn + 2 * math.pi, turn))
    dh = 2 * (c1 * c2).sqrt() * torch.sin(torch.where(grey, 0, turn) / 2)
    total, far = h1 + h2, (h1 - h2).abs() > math.pi
    mean = torch.where(far, torch.where(total < 2 * math.pi, total + 2 * math.pi, total - 2 * math.pi), total) / 2
    mean = torch.where(grey, total, mean)
    light, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    t = (
        1
        - 0.17 * torch.cos(mean - math.radians(30))
        + 0.24 * torch.cos(2 * mean)
        + 0.32 * torch.cos(3 * mean + math.radians(6))
        - 0.20 * torch.cos(4 * mean - math.radians(63))
    )
    bend = 2 * math.radians(30) * torch.exp(-(((mean - math.radians(275)) / math.radians(25)) ** 2))
    rotation = -2 * (chroma**7 / (chroma**7 + _25_7)).sqrt() * torch.sin(bend)
    around = (light - 50) ** 2
    dl = (l2 - l1) / (1 + 0.015 * around / (20 + around).sqrt())
    dc = (c2 - c1) / (1 + 0.045 * chroma)
    dh = dh / (1 + 0.015 * chroma * t)
    # Rounding alone makes the sum of equal colours negative.
    return (dl**2 + dc**2 + dh**2 + rotation * dc * dh).clamp_min(0).sqrt().mean(dim=(1, 2))


def colourfulness(images: Tensor) -> Tensor:
    """Colourfulness of each image, (N,), of Hasler and Süsstrunk 2003, their M(3), on the 0..255 scale of sRGB.

    With rg = R - G and yb = (R + G) / 2 - B: sqrt(σ_rg² + σ_yb²) + 0.3 sqrt(μ_rg² + μ_yb²), deviations and means over the pixels.
    0 is grey, 15 slightly colourful, 45 averagely, 109 extremely (their table 2).

    Args:
        images: (N, 3, H, W) float RGB in [0, 1].
    """
    red, green, blue = (255 * images.flatten(2)).unbind(1)
    opponent = torch.stack([red - green, (red + green) / 2 - blue])
    deviation = opponent.std(dim=2, correction=0).square().sum(0).sqrt()
    return deviation + 0.3 * opponent.mean(dim=2).square().sum(0).sqrt()
