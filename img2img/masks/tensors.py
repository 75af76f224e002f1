"""Small helpers for tensors, for dicts of tensors by name, and for packed bits: a bool tensor at one bit an element."""

import hashlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Bits = npt.NDArray[np.uint8]
"""Packed bits as numpy has them."""

_ONES_IN_A_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)


def detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same storage without autograd history."""
    return {name: tensor.detach() for name, tensor in tensors.items()}


def total_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that the tensors' values take."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


def all_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a tied one once, under its first name."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


@torch.no_grad()
def copy_into(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write `values` into the tensors of `module` of the same names."""
    tensors = all_tensors(module)
    for name, value in values.items():
        tensors[name].copy_(value)


def widened(gradient: Tensor, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """A gradient in `dtype`, and whether it is a copy: only that may be written into, others may use what autograd gives."""
    wide = gradient.to(dtype)
    return wide, wide is not gradient


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over the names, shapes and float32 values of `tensors`, sorted by name.

    The same on any device, in any memory format and after a cast to a wider type.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def without_cast(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn` of `Module._apply` without its change of type: moves and memory formats apply, casts do not."""

    def apply(tensor: Tensor) -> Tensor:
        new = fn(tensor)
        return new if new.dtype == tensor.dtype else torch.empty_like(new, dtype=tensor.dtype).copy_(tensor)

    return apply


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no value is NaN or infinite; one look at the device."""
    found = [tensor.isfinite().all() for tensor in tensors]
    return not found or bool(torch.stack(found).all())


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
