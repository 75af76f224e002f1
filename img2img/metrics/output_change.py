"""Has an output changed at all? The measure behind "no forgetting"."""

import math

import torch
from torch import Tensor

from img2img.errors import InputError


def max_abs_difference(before: Tensor, after: Tensor) -> float:
    """The largest absolute difference of two outputs of one task, in the output's own units; 0.0 only if `torch.equal`.

    Args:
        before: the outputs on the same inputs, any shape, on any device.
        after: the same later.

    Returns:
        0.0 if every value is equal (0.0 and -0.0 are), infinity if either holds a NaN, even at the same place: a NaN output
        proves nothing.

    Raises:
        InputError: different shapes or types, or no values.
    """
    before, after = before.detach().cpu(), after.detach().cpu()
    if before.shape != after.shape or before.dtype != after.dtype or before.numel() == 0:
        raise InputError(
            f"got outputs of {tuple(before.shape)} {before.dtype} before and {tuple(after.shape)} {after.dtype} after: "
            "expected one shape and type, with values; run the same inputs at the same precision"
        )
    if bool(before.isnan().any()) or bool(after.isnan().any()):
        return math.inf
    if torch.equal(before, after):
        return 0.0
    # Equal infinities differ by 0, not by inf - inf = NaN.
    difference = torch.where(before == after, 0.0, (before.double() - after.double()).abs())
    # Large integers and flushed denormals can still cancel in float64; a difference stays one.
    return max(difference.max().item(), math.ulp(0.0))
