"""How many colours of a colouring are about right, over all pixels and with each colour counting alike (Zhang et al. 2016)."""

from functools import cache

import torch
from torch import Tensor
from torchmetrics import Metric

from img2img.errors import InputError
from img2img.metrics.colour_classes import class_weights, gamut_bins, smoothed_prior
from img2img.metrics.per_image import check_pair

FARTHEST = 150.0
"""The largest threshold in Lab units."""
GRID, SIGMA = 10, 5.0
"""Side of a class of colours, and deviation of the Gaussian that smooths their frequencies, in Lab units: the paper's."""
_CELLS = 27  # a side: ab up to ±130, beyond which no colour of sRGB lies


class ColourAccuracy(Metric):
    """The metrics "AuC" and "balanced AuC" of a colouring, fractions in [0, 1]; higher is better.

    Zhang, Isola and Efros (ECCV 2016, section 3.1 and table 1): the share of pixels whose ab is within a threshold of the true
    one, by Euclidean distance, as the area under its curve over thresholds from 0 to 150, normalised. A pixel at the distance d
    has the area 1 - min(d, 150) / 150, so that "AuC" is the mean of that over all pixels of the set. "balanced AuC" weighs each
    pixel by how rare its true colour is, `1 / p̃` of its class (equation 4 with λ = 0): grey, which most pixels nearly are,
    does not win it. (The paper sums over whole thresholds, and has p̃ from ImageNet. Here p̃ is of the measured images, so that
    the metric needs no other file, and it means the same of a method whatever that has learned from.)
    """

    full_state_update = False
    area: Tensor
    pixels: Tensor

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        bins = len(_bins()[0])
        self.add_state("area", torch.zeros(bins, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pixels", torch.zeros(bins, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Measure a batch: both (N, 2, H, W) float a and b in Lab units.

        Raises:
            InputError: another shape or type, or NaN.
        """
        check_pair(prediction, target, channels=(2,))
        centres, number = _bins()
        distance = torch.linalg.vector_norm((prediction - target).double(), dim=1)
        area = 1 - distance.clamp_max(FARTHEST) / FARTHEST
        half = _CELLS // 2
        cell = (target / GRID).round().long().clamp(-half, half) + half
        classes = number.to(target.device)[cell[:, 0] * _CELLS + cell[:, 1]].flatten()
        self.area += torch.bincount(classes, area.flatten(), minlength=len(centres)).to(self.area.device)
        self.pixels += torch.bincount(classes, minlength=len(centres)).to(self.pixels.device)

    def compute(self) -> dict[str, float]:
        """The two metrics since the last `reset`.

        Raises:
            InputError: no image has been seen.
        """
        area, pixels = self.area.cpu(), self.pixels.cpu()
        if int(pixels.sum()) == 0:
            raise InputError(
                "ColourAccuracy was asked for a result before any image: expected one update at least; is the set empty?"
            )
        weights = class_weights(smoothed_prior(pixels, _bins()[0], sigma=SIGMA), rebalance=0)
        return {
            "AuC": float(area.sum() / pixels.sum()),
            "balanced AuC": float((weights * area).sum() / (weights * pixels).sum()),
        }


@cache
def _bins() -> tuple[Tensor, Tensor]:
    """The classes' centres in Lab units, (Q, 2), and the number of the class nearest to each cell of the plane of ab."""
    index = gamut_bins(GRID)
    half = torch.arange(_CELLS) - _CELLS // 2
    cells = torch.cartesian_prod(half, half)
    return GRID * index.double(), torch.cdist(cells.double(), index.double()).argmin(dim=1)
