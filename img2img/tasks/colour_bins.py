"""Colourisation as a classification of ab bins (Zhang, Isola and Efros, ECCV 2016): bins, soft targets, weights, annealed mean.

A squared error asks for the mean of the colours that a thing may have, which is sepia. A distribution over bins can hold several
colours, weights bring the rare, saturated ones to bear, and the annealed mean picks near the likeliest.
"""

from typing import Annotated, Any

import torch
from pydantic import Field, Strict, model_validator
from torch import Tensor
from torch.nn import functional as F

from img2img.metrics.colour_classes import class_weights, gamut_bins, smoothed_prior
from img2img.validation import Options

NEIGHBOURS = 5
"""Bins that a pixel's colour is shared out to (section 2.2 of the paper)."""
MOST_BINS = 4096
_AT_ONCE = 1 << 24
"""Values of distances, or of a distribution, that are there at a time."""

Centre = Annotated[tuple[Annotated[int, Field(ge=-128, le=128)], Annotated[int, Field(ge=-128, le=128)]], Strict(False)]


class BinOptions(Options):
    """Bins of ab, and how a network is trained and read with them. The defaults are the paper's."""

    grid: float = Field(default=10.0, ge=4, le=60)
    """Side of a bin in Lab units."""
    sigma: float | None = Field(default=None, gt=0, le=200)
    """Deviation of the Gaussians in Lab units: of soft targets, and of the smoothing of the bins' frequencies. None: half of
    `grid`.
    """
    rebalance: float = Field(default=0.5, ge=0, le=1)
    """Share λ of the uniform distribution in the one whose inverse weighs the pixels: 0 weighs by rarity alone, 1 not at all."""
    temperature: float = Field(default=0.38, gt=0, le=1)
    """Of the annealed mean: 1 is the mean, towards 0 the likeliest bin."""
    centres: Annotated[tuple[Centre, ...], Strict(False)] | None = None
    """Of the bins, in units of `grid`, a channel of the head each; None: of all bins that an sRGB colour lies in. Task files
    have them, so that what runs is what was trained.
    """

    @model_validator(mode="after")
    def _enough(self) -> "BinOptions":
        count = NEIGHBOURS if self.centres is None else len(self.centres)
        if not NEIGHBOURS <= count <= MOST_BINS or (self.centres and len(set(self.centres)) < count):
            raise ValueError(
                f"got {count} centres: expected {NEIGHBOURS} to {MOST_BINS}, each once; leave centres out for all bins"
            )
        return self


class ColourBins:
    """The bins of ab, and what a loss and a prediction need of them.

    Args:
        options: see `BinOptions`.

    Attributes:
        options: likewise.
        index: (Q, 2) the centres in units of the grid, a and b, sorted.
        centres: (Q, 2) likewise in Lab units.
        sigma: deviation of the Gaussians in Lab units.
        weights: (Q,) of pixels by their nearest bin, see `class_weights`; ones until `fit`.
    """

    def __init__(self, options: BinOptions) -> None:
        self.options = options
        self.index = gamut_bins(options.grid) if options.centres is None else torch.tensor(options.centres)
        self.centres = options.grid * self.index.float()  # now: one first made while a graph is traced would be a part of it
        self.sigma = options.grid / 2 if options.sigma is None else options.sigma
        self.weights = torch.ones(len(self.index), dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.index)

    def stored(self) -> dict[str, Any]:
        """What running needs, as plain JSON values."""
        options = self.options
        return {"grid": options.grid, "temperature": options.temperature, "centres": self.index.tolist()}

    def nearest(self, ab: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
        """The nearest bins of colours, the nearest first.

        Args:
            ab: (P, 2) float a and b in Lab units.
            count: how many bins.

        Returns:
            Their squared distances in Lab units, (P, count), and their numbers, (P, count) int64.
        """
        centres = self.centres.to(ab)
        found = [
            ((part[:, :1] - centres[:, 0]).square_() + (part[:, 1:] - centres[:, 1]).square_()).topk(count, dim=1, largest=False)
            for part in ab.split(max(1, _AT_ONCE // len(self)))
        ]
        return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])

    def counts(self, ab: Tensor) -> Tensor:
        """(Q,) int64, how many of the colours (P, 2) are nearest to each bin."""
        return torch.bincount(self.nearest(ab)[1][:, 0], minlength=len(self))

    def fit(self, counts: Tensor) -> None:
        """Set `weights` from `counts` of the training images' colours."""
        prior = smoothed_prior(counts, self.centres, sigma=self.sigma)
        self.weights = class_weights(prior, rebalance=self.options.rebalance).float()

    def soft_target(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution over bins that stands for a colour: its five nearest bins, by a Gaussian of their distance.

        Args:
            ab: (N, 2, H, W) a and b in Lab units.

        Returns:
            The numbers of the bins, (N, 5, H, W) int64, the nearest first, and their shares, (N, 5, H, W), which sum to 1.
        """
        n, _, height, width = ab.shape
        squared, number = self.nearest(ab.float().permute(0, 2, 3, 1).reshape(-1, 2), NEIGHBOURS)
        # Of the difference to the nearest, so that a narrow Gaussian does not vanish everywhere.
        share = torch.softmax(-(squared - squared[:, :1]) / (2 * self.sigma**2), dim=1)
        return tuple(x.reshape(n, height, width, NEIGHBOURS).permute(0, 3, 1, 2) for x in (number, share))  # type: ignore[return-value]

    def loss(self, raw: Tensor, ab: Tensor) -> Tensor:
        """Equation 2: the cross entropy with the soft target, weighted by the weight of the nearest bin, a mean over pixels.

        Args:
            raw: (N, Q, H, W) the logits of the bins.
            ab: (N, 2, H, W) the true colours in Lab units.
        """
        number, share = self.soft_target(ab)
        likely = F.log_softmax(raw.float(), dim=1).gather(1, number)
        weight = self.weights.to(raw.device)[number[:, 0]]
        return -(weight * (share * likely).sum(1)).mean()

    def annealed_mean(self, raw: Tensor) -> Tensor:
        """Equation 5: the mean of the bins under softmax(log p / T), which is softmax(raw / T); (N, 2, H, W) in Lab units.

        Args:
            raw: (N, Q, H, W) the logits of the bins. Large images are read a few rows at a time.
        """
        rows = max(1, _AT_ONCE // (raw.shape[0] * raw.shape[1] * raw.shape[3])) if not torch.compiler.is_exporting() else 0
        if not rows or raw.shape[2] <= rows:
            return self._mean(raw)
        return torch.cat([self._mean(part) for part in raw.split(rows, dim=2)], dim=2)

    def _mean(self, raw: Tensor) -> Tensor:
        likely = torch.softmax(raw.float() / self.options.temperature, dim=1)
        return (likely.permute(0, 2, 3, 1) @ self.centres.to(raw.device)).permute(0, 3, 1, 2)
