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
        tile: pictures with a longer side than this many pixels are run in tiles of no longer sides; None: always whole.
        overlap: pixels that neighbouring tiles share; their outputs fade into each other there.

    Returns:
        (N, C, H, W), or (N, C).
    """
    height, width = input.shape[-2:]
    if tile is None or max(height, width) <= tile:
        return evaluator.raw(network, input)
    stride = evaluator.stride
    # Tiles begin and end at multiples of the stride, so that the network sees the same grid in all of them.
    padded = [_up(max(n, evaluator.min_size), stride) for n in (height, width)]
    input = F.pad(input, (0, padded[1] - width, 0, padded[0] - height), mode="replicate")
    most, shared = max(_up(evaluator.min_size, stride), _up(tile, stride)), _up(overlap, stride)
    sides = [_side(n, most, shared, stride) for n in padded]
    rows, columns = (_starts(n, side, shared, stride) for n, side in zip(padded, sides, strict=True))
    weights = [_ramp(side, shared) for side in sides]
    total: Tensor | None = None
    for top, left in itertools.product(rows, columns):
        window = (..., slice(top, top + sides[0]), slice(left, left + sides[1]))
        raw = evaluator.run(network, input[window]).float()
        if total is None:
            total = raw.new_zeros(*raw.shape[:2], *padded)
        total[window] += raw * (weights[0][:, None] * weights[1]).to(raw.device)
    assert total is not None
    for axis, (starts, weight) in enumerate(zip((rows, columns), weights, strict=True)):
        sums = torch.zeros(padded[axis], dtype=torch.float32)
        for start in starts:
            sums[start : start + len(weight)] += weight
        total /= (sums[:, None] if axis == 0 else sums).to(total.device)
    return total[..., :height, :width]


def _up(length: int, stride: int) -> int:
    """The next multiple of the stride."""
    return math.ceil(length / stride) * stride


def _side(length: int, most: int, overlap: int, stride: int) -> int:
    """How long tiles are: as few as there must be share the length out evenly, so that little is seen twice."""
    if length <= most:
        return length
    count = math.ceil((length - overlap) / max(stride, most - overlap))
    return min(most, _up(math.ceil((length + (count - 1) * overlap) / count), stride))


def _starts(length: int, side: int, overlap: int, stride: int) -> list[int]:
    """Where tiles begin: the overlap before the last one's end, and the last one at the end."""
    last = length - side
    return [*range(0, last, max(stride, side - overlap)), last]


def _ramp(length: int, overlap: int) -> Tensor:
    """(length,) weights that rise over `overlap` pixels to 1 and fall again."""
    distance = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(distance, distance.flip(0)).div(overlap + 1).clamp(max=1)
