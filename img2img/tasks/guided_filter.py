"""The guided filter of He, Sun and Tang (PAMI 2013): colours that end where the lightness does.

In each window the filtered values are a linear function of the guide, q = a I + b. The coefficients are smooth, so they may be
found on a small image and enlarged: the values then follow the edges of the large guide (He and Sun, "Fast guided filter", 2015).
kornia's `guided_blur` gives the filtered image alone, which cannot be enlarged so; the tests compare with it.
"""

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from img2img.validation import Options


class GuidedFilterOptions(Options):
    """How predicted colours are filtered."""

    window: int = Field(default=33, ge=3, le=255)
    """Side of the square windows, 2r + 1, in pixels of the image that the network sees."""
    epsilon: float = Field(default=0.003, gt=0, le=1)
    """The variance of the guide, whose values lie in [0, 1], below which a window counts as flat and is averaged."""

    @field_validator("window")
    @classmethod
    def _odd(cls, window: int) -> int:
        if window % 2 == 0:
            raise ValueError(f"got {window}: expected an odd number of pixels, as a window has its pixel in the middle")
        return window


def guided_coefficients(guide: Tensor, values: Tensor, options: GuidedFilterOptions) -> Tensor:
    """Equations 5, 6 and 8: the coefficients a and b of each pixel, means over the windows that hold it.

    At the edges windows end with the image, as in the paper.

    Args:
        guide: (N, 1, H, W) float32 in [0, 1].
        values: (N, C, H, W) float32.
        options: window and epsilon.

    Returns:
        (N, 2C, H, W): all a, then all b.
    """
    mean, mean_values, square, product = _box(torch.cat([guide, values, guide * guide, guide * values], 1), options.window).split(
        [1, values.shape[1], 1, values.shape[1]], dim=1
    )
    a = (product - mean * mean_values) / (square - mean * mean + options.epsilon)
    return _box(torch.cat([a, mean_values - a * mean], 1), options.window)


def guided(coefficients: Tensor, guide: Tensor) -> Tensor:
    """The filtered values (N, C, H, W) of coefficients (N, 2C, H, W) and a guide (N, 1, H, W) of the same size."""
    a, b = coefficients.chunk(2, dim=1)
    return a * guide + b


def _box(x: Tensor, window: int) -> Tensor:
    """The mean of the pixels of each window that lie in the image."""
    reach = window // 2
    rows = F.avg_pool2d(x, (window, 1), stride=1, padding=(reach, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, window), stride=1, padding=(0, reach), count_include_pad=False)
