"""Pictures of any size through a network: padded to what it takes, large ones in overlapping tiles."""

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from img2img.training.evaluate import Evaluator, Network


def run_any_size(network: Network, input: Tensor, evaluator: Evaluator, *, tile: int | None, overlap: int) -> Tensor:
    """The raw output for pictures of any size.

    Args:
        network: from pictures to the head's raw output, of their height and width, or (N, C) for whole pictures.
        input: (N, 3, H, W) float in [0, 1].
        evaluator: knows which sizes the network takes.
        tile: pictures with a longer side than this many pixels are run in square tiles of it; None: always whole.
        overlap: pixels that neighbouring tiles share; their outputs fade into each other there.

    Returns:
        (N, C, H, W), or (N, C).
    """
    height, width = input.shape[-2:]
    if tile is None or max(height, width) <= tile:
        return evaluator.raw(network, input)
    stride = evaluator.stride
    tile = max(evaluator.min_size, math.ceil(tile / stride) * stride)
    step = max(stride, tile - math.ceil(overlap / stride) * stride)
    # Tiles begin at multiples of the stride, so that the network sees the same grid in all of them.
    padded = [math.ceil(max(n, evaluator.min_size) / stride) * stride for n in (height, width)]
    input = F.pad(input, (0, padded[1] - width, 0, padded[0] - height), mode="replicate")
    rows, columns = (_starts(n, tile, step) for n in padded)
    weights = [_ramp(min(tile, n), tile - step) for n in padded]
    total: Tensor | None = None
    for top, left in itertools.product(rows, columns):
        window = (..., slice(top, top + tile), slice(left, left + tile))
        raw = evaluator.run(network, input[window]).float()
        if total is None:
            total = raw.new_zeros(*raw.shape[:2], *padded)
        total[window] += raw * (weights[0][:, None] * weights[1]).to(raw.device)
    assert total is not None
    for axis, (starts, weight) in enumerate(zip((rows, columns), weights, strict=True)):
        sums = torch.zeros(padded[axis])
        for start in starts:
            sums[start : start + tile] += weight
        total /= (sums[:, None] if axis == 0 else sums).to(total.device)
    return total[..., :height, :width]


def _starts(length: int, tile: int, step: int) -> list[int]:
    """Where tiles begin: `step` apart, the last one at the end."""
    last = max(0, length - tile)
    return [*range(0, last, step), last]


def _ramp(length: int, overlap: int) -> Tensor:
    """(length,) weights that rise over `overlap` pixels to 1 and fall again."""
    distance = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(distance, distance.flip(0)).div(overlap + 1).clamp(max=1)
