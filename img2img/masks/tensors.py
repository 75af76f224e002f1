"""Small helpers for tensors and for dicts of tensors by name."""

import hashlib
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn


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
