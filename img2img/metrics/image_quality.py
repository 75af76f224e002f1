"""Full-reference image quality: SSIM, MSE, PSNR and light-matched MSE, each the mean over images of one value an image."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from img2img.errors import InputError
from img2img.metrics.per_image import PerImageMean, check_images, precise

SSIM_WINDOW = 11
"""Side of SSIM's Gaussian window in pixels (Wang et al. 2004: 11 x 11, standard deviation 1.5)."""

PSNR_CEILING = 100.0
"""The PSNR in dB given to (almost) identical images, whose own would be infinite and make every mean infinite."""


class ImageQualityMetrics(PerImageMean):
    """The metrics "SSIM" (at most 1), "MSE" (on the 0..255 scale; lower is better) and "PSNR" (dB).

    Each is the mean over images, so images of different sizes can be mixed in one set, in batches of one size each.

    Args:
        names: which of them.
    """

    def __init__(self, names: Sequence[str] = ("SSIM", "MSE", "PSNR")) -> None:
        super().__init__(names)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Measure a batch of images, both (N, 3, H, W) float RGB in [0, 1], H and W at least 11.

        Raises:
            InputError: another shape, type or range, or an image smaller than SSIM's window, whatever is measured.
        """
        check_images(prediction, target)
        check_window(target)
        functions = {"SSIM": ssim, "MSE": mse, "PSNR": psnr}
        self.add({name: functions[name](prediction, target) for name in self.names})


class LightMatchedMetrics(PerImageMean):
    """The metric "light-matched MSE": the mean over images of `light_matched_mse`; lower is better."""

    def __init__(self) -> None:
        super().__init__(("light-matched MSE",))

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Measure a batch of images, both (N, 3, H, W) float RGB in [0, 1].

        Raises:
            InputError: another shape, type or range.
        """
        check_images(prediction, target)
        self.add({"light-matched MSE": light_matched_mse(prediction, target)})


def check_window(images: Tensor) -> None:
    """Refuse images (N, C, H, W) that are smaller than SSIM's window.

    Raises:
        InputError: H or W below 11.
    """
    height, width = images.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise InputError(
            f"got an image of {height} x {width} pixels: SSIM expects {SSIM_WINDOW} x {SSIM_WINDOW} at least, "
            "its window; use a higher resolution"
        )


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each image, (N,), in [-1, 1] (Wang et al. 2004, eq. 13, mean over pixels and channels).

    Gaussian window of 11 x 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, range 1. Only windows that lie inside the
    image count: torchmetrics pads by reflection and averages over the borders too; here they are cut off, 5 pixels on
    each side, so that the value is Wang's and that of `skimage.metrics.structural_similarity` with
    `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=0`.

    Args:
        prediction: (N, C, H, W) float in [0, 1].
        target: (N, C, H, W) float in [0, 1].

    Raises:
        InputError: H or W below 11.
    """
    check_window(target)
    border = SSIM_WINDOW // 2
    # In float32 the variances of flat, bright regions are differences of numbers that are equal but for rounding: an image
    # would be 0.998 similar to itself.
    exact = precise if target.device.type == "mps" else Tensor.double
    with torch.autocast(target.device.type, enabled=False):
        _, similarity = structural_similarity_index_measure(
            exact(prediction), exact(target), sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
        )
    return similarity[..., border:-border, border:-border].mean(dim=(1, 2, 3)).to(precise(target).dtype)


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each image, (N,), on the 0..255 scale: mean over channels and pixels of (255 (p - t))^2.

    Args:
        prediction: (N, C, H, W) float in [0, 1].
        target: (N, C, H, W) float in [0, 1].
    """
    return (255 * (precise(prediction) - precise(target))).square().mean(dim=(1, 2, 3))


def light_matched_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """MSE of each image, (N,), after its prediction was given the gain (at least 0) and the offset that fit the target best.

    One gain and one offset an image, for all its values, by least squares: the scale- and shift-invariant mean squared error
    that Ranftl et al. 2020 (MiDaS) use for depth. What an input cannot tell, such as how bright the day was and how strong its
    contrast, does not count; structure and the relations of the colours do.

    Args:
        prediction: (N, C, H, W) float in [0, 1].
        target: (N, C, H, W) float in [0, 1].
    """
    given, wanted = (255 * precise(x).flatten(1) for x in (prediction, target))
    given, wanted = (x - x.mean(dim=1, keepdim=True) for x in (given, wanted))
    variance = given.square().mean(dim=1)
    gain = ((given * wanted).mean(dim=1) / variance.clamp_min(1e-12)).clamp_min(0)
    return (gain.unsqueeze(1) * given - wanted).square().mean(dim=1)


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, (N,), in dB: 10 log10(1 / MSE) with the MSE on [0, 1], at most 100.

    The ceiling stands in for the infinite value of identical images. It is far above the 59 dB of rounding to 8 bits:
    no two different 8-bit images of fewer than 150,000 values reach it.

    Args:
        prediction: (N, C, H, W) float in [0, 1].
        target: (N, C, H, W) float in [0, 1].
    """
    values = peak_signal_noise_ratio(precise(prediction), precise(target), data_range=1.0, reduction="none", dim=(1, 2, 3))
    return values.clamp(max=PSNR_CEILING)
