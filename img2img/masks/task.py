"""What one task owns: its masks, its normalisation state and its head."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from img2img.masks.base import Mask, MaskMethod

NormMode = Literal["own", "frozen"]


def _key(name: str) -> str:
    # Names of submodules, parameters and buffers may not contain a dot.
    return name.replace(".", "/")


class TaskState(nn.Module):
    """Everything that a task adds to the backbone.

    Attributes:
        masks: a `Mask` a masked weight.
        norm: the task's normalisation parameters and buffers, empty when `norm_mode` is "frozen".
        head: the task's last layers, or None.
        frozen: trained and fixed: masks in compact form, nothing requires grad, always in evaluation mode.
        info: plain JSON values that travel with the task file (metrics, how it was trained).
    """

    def __init__(
        self,
        method: MaskMethod,
        masks: Mapping[str, Mask],
        norm_parameters: Mapping[str, Tensor],
        norm_buffers: Mapping[str, Tensor],
        head: nn.Module | None,
        norm_mode: NormMode,
    ) -> None:
        super().__init__()
        self.method = method
        self.norm_mode = norm_mode
        self.masks = nn.ModuleDict({_key(k): m for k, m in masks.items()})
        self.norm = nn.Module()
        self._names = {_key(k): k for k in (*masks, *norm_parameters, *norm_buffers)}
        for name, value in norm_parameters.items():
            self.norm.register_parameter(_key(name), nn.Parameter(value.detach().clone()))
        for name, value in norm_buffers.items():
            self.norm.register_buffer(_key(name), value.detach().clone())
        self.head = head
        self.frozen = False
        self.info: dict[str, Any] = {}

    def named_masks(self) -> Iterator[tuple[str, Mask]]:
        """`(weight name, mask)`, in the backbone's order."""
        for key, mask in self.masks.items():
            yield self._names[key], mask  # type: ignore[misc]

    def effective(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The effective weight of every masked one of `weights`."""
        return {name: mask(weights[name]) for name, mask in self.named_masks()}

    def norm_tensors(self) -> dict[str, Tensor]:
        """The normalisation parameters and buffers, by their names in the backbone; the tensors themselves."""
        tensors = dict(self.norm.named_parameters()) | dict(self.norm.named_buffers())
        return {self._names[key]: tensor for key, tensor in tensors.items()}

    def densities(self) -> dict[str, float]:
        """The fraction of ones in each binary mask."""
        found = {name: mask.binary() for name, mask in self.named_masks()}
        return {name: m.float().mean().item() for name, m in found.items() if m is not None}

    def density(self) -> float | None:
        """The fraction of ones over all binary masks together; None without any."""
        found = [m for _, mask in self.named_masks() if (m := mask.binary()) is not None]
        if not found:
            return None
        return sum(int(m.sum()) for m in found) / sum(m.numel() for m in found)

    def freeze(self) -> None:
        """End the training: scores become stored bits, nothing requires grad, evaluation mode for good."""
        for _, mask in self.named_masks():
            mask.freeze()
        self.frozen = True
        self.requires_grad_(False)
        self.zero_grad(set_to_none=True)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """As any module's, but a frozen task stays in evaluation mode: its running statistics must not move."""
        return super().train(mode and not self.frozen)

    def versions(self) -> tuple[int, ...]:
        """Counters that change whenever a mask's tensors are written in place or replaced; the cache's key."""
        tensors = (*self.masks.parameters(), *self.masks.buffers())
        return tuple(v for t in tensors if not t.is_inference() for v in (id(t), t._version))


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
