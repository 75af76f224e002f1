"""What a mask method is: one object a task, which makes one mask a weight tensor."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Mask(nn.Module, ABC):
    """The map from one frozen weight `W` to one task's effective weight, of the same shape.

    While it is trained it holds real-valued scores; `freeze` replaces them by the compact form that is stored, and the
    effective weight is the same, bit for bit, before and after.
    """

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight: same shape, dtype and memory format as `weight`. Gradients go to the scores alone."""

    @abstractmethod
    def freeze(self) -> None:
        """Replace the scores by the compact form. Freezing twice changes nothing."""

    @abstractmethod
    def stored(self) -> dict[str, Tensor]:
        """The compact form, by part; what `MaskMethod.restore` reads back. Only a frozen mask has one."""

    @abstractmethod
    def binary(self) -> Tensor | None:
        """The binary mask, bool, of the weight's shape; None for a method that has none."""


class MaskMethod(ABC):
    """One way to mask: its options, and what makes and restores the masks of a task.

    Subclasses are frozen dataclasses with keyword-only options of plain JSON types: the options are the task file's.
    """

    name: ClassVar[str]

    def options(self) -> dict[str, Any]:
        """The options as plain JSON values."""
        return asdict(self)  # type: ignore[call-overload]

    @abstractmethod
    def create(self, weights: Mapping[str, Tensor]) -> dict[str, Mask]:
        """Fresh masks, by weight name. A weight that the method leaves as it is has none."""

    @abstractmethod
    def restore(self, stored: Mapping[str, Mapping[str, Tensor]], weights: Mapping[str, Tensor]) -> dict[str, Mask]:
        """Frozen masks from their compact parts.

        Raises:
            InputError: a part is missing, unexpected, or of the wrong type or length.
        """


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool tensor, in row-major order of its shape, into uint8, eight to a byte, first bit lowest."""
    import numpy as np

    flat = mask.detach().cpu().contiguous().view(-1).numpy()
    return torch.from_numpy(np.packbits(flat, bitorder="little")).to(mask.device)


def unpack_bits(bits: Tensor, shape: torch.Size) -> Tensor:
    """The bool tensor of `shape` that `pack_bits` packed."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.unsqueeze(1) >> shifts & 1).view(-1)[: shape.numel()].view(shape).bool()
