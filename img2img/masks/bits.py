"""Packed bits: a bool tensor at one bit an element."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bits = npt.NDArray[np.uint8]
"""Packed bits as numpy has them."""

_ONES_IN_A_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool tensor, in row-major order of its shape, into uint8, eight to a byte, first bit lowest."""
    flat = mask.detach().cpu().contiguous().view(-1).numpy()
    return torch.from_numpy(np.packbits(flat, bitorder="little")).to(mask.device)


def as_factor(mask: Tensor) -> Tensor:
    """A bool tensor as one of int8 zeros and ones, without a copy: multiplying by it is half as fast again on a CPU."""
    return mask.view(torch.int8)


def unpack_bits(bits: Tensor, shape: torch.Size) -> Tensor:
    """The bool tensor of `shape` that `pack_bits` packed."""
    if bits.device.type == "cpu":
        flat = np.unpackbits(bits.numpy(), count=shape.numel(), bitorder="little")
        return torch.from_numpy(flat).view(torch.bool).view(shape)
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.unsqueeze(1) >> shifts & 1).view(-1)[: shape.numel()].view(shape).bool()


def count_ones(bits: Bits) -> int:
    """How many bits are one."""
    return int(_ONES_IN_A_BYTE[bits].sum(dtype=np.int64))
