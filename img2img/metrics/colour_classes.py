"""The classes of colours of Zhang, Isola and Efros (ECCV 2016): bins of ab, their smoothed frequencies, weights of rare ones."""

from collections.abc import Sequence

import torch
from kornia.color import rgb_to_lab
from torch import Tensor


def gamut_bins(grid: float) -> Tensor:
    """The cells of a grid of ab that hold a colour of sRGB, (Q, 2) int64 in units of the grid, sorted by a, then b.

    261 with a grid of 10. The paper counts 313 in gamut, by a list of its own; here each bin can be seen, and each colour of an
    image lies in one.

    Args:
        grid: side of a cell in Lab units; centres lie at its multiples.
    """
    # Colours of 8 bits on the faces of the RGB cube: seen along L, the cube is no larger than its surface.
    level = torch.arange(256, dtype=torch.float64) / 255
    u, v = torch.meshgrid(level, level, indexing="ij")
    ends = [torch.full_like(u, end) for end in (0.0, 1.0)]
    faces = [face for end in ends for face in ([end, u, v], [u, end, v], [u, v, end])]
    ab = rgb_to_lab(torch.stack([torch.stack(face) for face in faces]))[:, 1:].permute(0, 2, 3, 1).reshape(-1, 2)
    return torch.unique((ab / grid).round().long(), dim=0)


def smoothed_prior(counts: Tensor | Sequence[int], centres: Tensor, *, sigma: float) -> Tensor:
    """The bins' frequencies p̃, (Q,) float64 with the sum 1: the empirical ones smoothed by a Gaussian over the bins in gamut.

    Args:
        counts: (Q,) colours by their nearest bin.
        centres: (Q, 2) of the bins in Lab units.
        sigma: deviation of the Gaussian in Lab units.
    """
    counts = torch.as_tensor(counts, dtype=torch.float64)
    kernel = torch.exp(-torch.cdist(centres.double(), centres.double()).square() / (2 * sigma**2))
    smoothed = kernel @ (counts / counts.sum())
    return smoothed / smoothed.sum()


def class_weights(prior: Tensor, *, rebalance: float) -> Tensor:
    """Equation 4: the weights of the bins, (Q,), proportional to 1 / ((1 - λ) p̃ + λ / Q), with the mean Σ p̃ w = 1.

    Args:
        prior: (Q,) the frequencies p̃.
        rebalance: λ.
    """
    weights = 1 / ((1 - rebalance) * prior + rebalance / len(prior)).clamp_min(1e-12)
    return weights / (prior * weights).sum()
