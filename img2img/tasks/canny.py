"""Canny's edges of images of any size, in little memory."""

import torch
from kornia.filters import canny
from torch import Tensor

from img2img.tasks.base import unit

WHOLE = 1 << 20
"""Pixels of an image that kornia takes as a whole; it needs some 250 bytes for each."""

_REACH = 4
"""How far a pixel's strength depends on others: 2 of the blur, 1 of the gradient, 1 of its neighbours along it."""


def canny_edges(images: Tensor) -> Tensor:
    """kornia's `canny` with its own thresholds: (N, 3, H, W) in [0, 255] to (N, 1, H, W), 1 on edges and 0 elsewhere.

    Of large images the strengths are found strip by strip, and weak pixels that hang together with strong ones afterwards, over
    the whole image as before.
    """
    if torch.compiler.is_exporting() or images.shape[-2] * images.shape[-1] <= WHOLE:
        edges: Tensor = canny(unit(images))[1]
        return edges
    return torch.stack([_of_large(image) for image in images])


def _of_large(image: Tensor) -> Tensor:
    """(3, H, W) to (1, H, W)."""
    from skimage.measure import label

    height, width = image.shape[-2:]
    strength = torch.empty(height, width, dtype=torch.uint8)  # 0, 1 for weak, 2 for strong
    # Strips along the shorter side, so that the few rows seen twice weigh little.
    turned = width > height
    long, rows = max(height, width), max(1, WHOLE // min(height, width))
    for first in range(0, long, rows):
        last = min(long, first + rows)
        low, high = max(0, first - _REACH), min(long, last + _REACH)
        seen = image[..., low:high] if turned else image[..., low:high, :]
        found = canny(unit(seen)[None], hysteresis=False)[1][0, 0].mul(2).byte()
        part = strength.T if turned else strength
        part[first:last] = (found.T if turned else found)[first - low : last - low]
    values = strength.numpy()
    groups = label(values > 0, connectivity=2)  # any of 8 neighbours, as kornia's hysteresis goes
    kept = torch.zeros(int(groups.max()) + 1, dtype=torch.bool).numpy()
    kept[groups[values == 2]] = True
    kept[0] = False
    return torch.from_numpy(kept[groups])[None].to(image.device, torch.float32)
