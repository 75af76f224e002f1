"""Images of any size through a network: padded to what it takes, large ones in overlapping tiles."""

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from img2img.inference.evaluator import Evaluator, Network

_ROWS = 128
"""Rows of the raw output that are made at a time, of those that a row of tiles completes."""

Window = Callable[[int, int, int, int], Tensor]
"""(first row, row after the last, first column, column after the last) to the input there, (N, 3, rows, columns)."""


def run_any_size(
    network: Network, input: Tensor, evaluator: Evaluator, *, tile: int | None, overlap: int, border: int = 0
) -> Tensor:
    """The raw output for images of any size.

    Args:
        network: from images to the head's raw output, of their height and width, or (N, C) for whole images.
        input: (N, 3, H, W) float in [0, 1].
        evaluator: knows which sizes the network takes.
        tile: images with a longer side than this many pixels are run in tiles of no longer sides; None: always whole.
        overlap: pixels that neighbouring tiles share; their outputs fade into each other there.
        border: pixels that are mirrored at the image's edges, fewer than H and W.

    Returns:
        (N, C, H, W), or (N, C).
    """
    height, width = input.shape[-2:]
    if tile is None or max(height, width) <= tile:
        return evaluator.raw(network, input, border=border)

    def window(top: int, bottom: int, left: int, right: int) -> Tensor:
        return input[..., top:bottom, left:right]

    rows = raw_rows(network, window, (height, width), evaluator, tile=tile, overlap=overlap, border=border)
    return torch.cat(list(rows), -2)


def raw_rows(
    network: Network, window: Window, size: tuple[int, int], evaluator: Evaluator, *, tile: int, overlap: int, border: int = 0
) -> Iterator[Tensor]:
    """The raw output of a large image from top to bottom, (N, C, rows, W), a few rows at a time.

    Args:
        network: as of `run_any_size`, as are `evaluator`, `tile`, `overlap` and `border`.
        window: gives the input of parts of the image, of which there need be no more at a time.
        size: (height, width) of the image.
        evaluator: see above.
        tile: see above.
        overlap: see above.
        border: see above.
    """
    height, width = size
    if not border:
        yield from _unmirrored_rows(network, window, size, evaluator, tile=tile, overlap=overlap)
        return
    wider = (height + 2 * border, width + 2 * border)
    tile = tile + 2 * border if tile >= max(size) else tile  # what is to be seen at once still is
    first = -border
    for rows in _unmirrored_rows(network, _mirrored(window, size, border), wider, evaluator, tile=tile, overlap=overlap):
        low, high = max(0, -first), min(rows.shape[-2], height - first)
        first += rows.shape[-2]
        if low < high:
            yield rows[..., low:high, border : border + width]


def _mirrored(window: Window, size: tuple[int, int], border: int) -> Window:
    """The input with a mirrored border, in whose top left corner (0, 0) is."""

    def part(first: int, last: int, length: int) -> tuple[int, int, Tensor]:
        """The rows, or columns, that are needed, from one to another, and for each of the wider ones which of these it is."""
        places = torch.arange(first - border, last - border).abs()
        places = torch.where(places >= length, 2 * (length - 1) - places, places)
        low = int(places.min())
        return low, int(places.max()) + 1, places - low

    def mirrored(top: int, bottom: int, left: int, right: int) -> Tensor:
        (low, high, rows), (near, far, columns) = part(top, bottom, size[0]), part(left, right, size[1])
        input = window(low, high, near, far)
        return input.index_select(-2, rows.to(input.device)).index_select(-1, columns.to(input.device))

    return mirrored


def _unmirrored_rows(
    network: Network, window: Window, size: tuple[int, int], evaluator: Evaluator, *, tile: int, overlap: int
) -> Iterator[Tensor]:
    height, width = size
    stride = evaluator.stride
    # Tiles begin and end at multiples of the stride, so that the network sees the same grid in all of them.
    padded = [_up(max(n, evaluator.min_size), stride) for n in size]
    most, shared = max(_up(evaluator.min_size, stride), _up(tile, stride)), _up(overlap, stride)
    sides = [_side(n, most, shared, stride) for n in padded]
    rows, columns = (_starts(n, side, shared, stride) for n, side in zip(padded, sides, strict=True))
    weights = [_ramp(side, shared) for side in sides]
    sums = []
    for length, starts, weight in zip(padded, (rows, columns), weights, strict=True):
        sums.append(torch.zeros(length, dtype=torch.float32))
        for start in starts:
            sums[-1][start : start + len(weight)] += weight
    band: Tensor | None = None  # what the tiles from `top` on have come to
    for top, below in itertools.zip_longest(rows, rows[1:], fillvalue=padded[0]):
        for left in columns:
            bottom, right = min(height, top + sides[0]), min(width, left + sides[1])
            input = window(top, bottom, left, right)
            beyond = (0, left + sides[1] - right, 0, top + sides[0] - bottom)
            raw = evaluator.run(network, F.pad(input, beyond, mode="replicate") if any(beyond) else input).float()
            if band is None:
                band = raw.new_zeros(*raw.shape[:2], sides[0], padded[1])
            band[..., left : left + sides[1]] += raw * (weights[0][:, None] * weights[1]).to(raw.device)
        assert band is not None
        done = below - top
        for first in range(top, min(below, height), _ROWS):
            last = min(below, height, first + _ROWS)
            ready = band[..., first - top : last - top, :width] / sums[0][first:last, None].to(band.device)
            ready /= sums[1][:width].to(band.device)
            yield ready
        begun = band[..., done:, :].clone()
        band.zero_()[..., : sides[0] - done, :] = begun


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
