"""Rows of a resized image, made of the rows of the image that they need: no more of it has to be held as floats."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_AT_ONCE = 1 << 22
"""Values of the image that are floats at a time."""


def resized_rows(image: Tensor, size: tuple[int, int], first: int, last: int) -> Tensor:
    """Rows of `F.interpolate(image.float(), size, mode="bilinear", antialias=True)`, equal up to rounding.

    Args:
        image: (N, C, H, W), of any type.
        size: (height, width) of the resized image.
        first: the first of its rows that is made.
        last: the row after the last.

    Returns:
        (N, C, last - first, width) float32.
    """
    height = image.shape[-2]
    if height == size[0]:
        return _wide(image[..., first:last, :], width=size[1])
    scale = height / size[0]
    support = max(1.0, scale)
    at_once = max(1, int(512 / scale))
    made = []
    for start in range(first, last, at_once):
        stop = min(last, start + at_once)
        centre = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * scale
        low = max(0, math.floor(centre[0].item() - support))
        high = min(height, math.ceil(centre[-1].item() + support))
        # A triangle around each centre, over what there is of it.
        distance = (torch.arange(low, high, dtype=torch.float64) + 0.5 - centre[:, None]).abs() / support
        weights = (1 - distance).clamp(min=0)
        weights /= weights.sum(1, keepdim=True)
        made.append(weights.to(image.device, torch.float32) @ _wide(image[..., low:high, :], width=size[1]))
    return torch.cat(made, -2)


def _wide(rows: Tensor, *, width: int) -> Tensor:
    """The same rows with another number of columns, as floats."""
    if rows.shape[-1] == width:
        return rows.float()
    step = max(1, _AT_ONCE // (rows.shape[-1] * rows.shape[1]))
    strips = rows.split(step, -2)

    def resized(strip: Tensor) -> Tensor:
        size = (strip.shape[-2], width)
        return F.interpolate(strip.float(), size, mode="bilinear", antialias=True, align_corners=False)

    return torch.cat([resized(strip) for strip in strips], -2)


def brought_back(rows: Tensor, above: int, view: tuple[int, int], size: tuple[int, int], first: int, last: int) -> Tensor:
    """Rows of `F.interpolate(raw, size, mode="bilinear")`, equal up to rounding, for a raw output of which some rows are here.

    Args:
        rows: (N, C, h, width of the view): those rows.
        above: how many rows of the raw output lie above them.
        view: (height, width) of the whole raw output.
        size: (height, width) of the image.
        first: the first row that is made.
        last: the row after the last; `rows_needed` says which rows must be here.
    """
    source = _sources(view[0], size[0], first, last)
    low = source.floor().long()
    share = (source - low).to(rows.device, torch.float32)[:, None]
    high = (low + 1).clamp(max=view[0] - 1)
    low, high = (low - above).to(rows.device), (high - above).to(rows.device)
    made = torch.lerp(rows.index_select(-2, low).float(), rows.index_select(-2, high).float(), share)
    if view[1] == size[1]:
        return made
    return F.interpolate(made, (last - first, size[1]), mode="bilinear", align_corners=False)


def rows_needed(view: int, height: int, first: int, last: int) -> tuple[int, int]:
    """The first row of a raw output of `view` rows, and the one after the last, that rows of the image are made of."""
    low, high = _sources(view, height, first, first + 1), _sources(view, height, last - 1, last)
    return int(low.item()), min(view, int(high.item()) + 2)


def _sources(view: int, height: int, first: int, last: int) -> Tensor:
    """Where rows of an image lie in a raw output of `view` rows."""
    rows = torch.arange(first, last, dtype=torch.float64)
    return ((rows + 0.5) * (view / height) - 0.5).clamp(0, view - 1)
