"""What masks in {-1, 0, 1} share: one bit says where a value is not zero, a second which of those are negative."""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from img2img.errors import InputError
from img2img.masks.base import Mask
from img2img.masks.binary import BinaryMask
from img2img.masks.layers import Layer
from img2img.masks.tensors import pack_bits, unpack_bits


class TernaryMask(BinaryMask):
    """A mask `T` in {-1, 0, 1} for each weight or each kernel.

    Frozen, `bits` say where it is not zero, and `negative` which of those are -1. Subclasses say which value a score gives
    (`codes`), what score gives a value other than zero (`scores_for`), and how `T` acts on the weight.
    """

    negative: Tensor | None

    def __init__(
        self,
        layer: Layer,
        score: Tensor | None,
        mask: Tensor | None,
        negative: Tensor | None,
        *,
        kernel_wise: bool = False,
    ) -> None:
        """Either `score`, or `mask` (bool: where `T` is not zero) and `negative` (bool: one for each of those, row-major)."""
        super().__init__(layer, score, mask, kernel_wise=kernel_wise)
        self.register_buffer("negative", None if negative is None else pack_bits(negative))

    @abstractmethod
    def codes(self, score: Tensor) -> Tensor:
        """`T` from the scores, of any type, of their shape."""

    def ones(self, score: Tensor) -> Tensor:
        """Where `T` is not zero."""
        return self.codes(score) != 0

    def ternary(self) -> Tensor:
        """`T`, int8, of `mask_shape`."""
        if self.score is not None:
            return self.codes(self.score.detach()).to(torch.int8)
        assert self.negative is not None
        nonzero = self.hard()
        mask = nonzero.to(torch.int8)
        mask[nonzero] -= 2 * unpack_bits(self.negative, torch.Size([int(nonzero.sum())])).to(torch.int8)
        return mask

    def signed(self) -> Tensor:
        """`T`, int8, of the weight's shape."""
        return self.ternary().expand(self.shape)

    def decode(self, weight: Tensor) -> tuple[Tensor, ...]:
        """`T`, int8, in the weight's memory format when it has the weight's shape."""
        mask = self.ternary()
        if mask.shape != weight.shape:
            return (mask,)
        return (torch.empty_like(weight, dtype=torch.int8, requires_grad=False).copy_(mask),)

    def freeze(self) -> None:
        """Keep the mask and its signs, drop the scores."""
        if self.score is not None:
            mask = self.ternary()
            super().freeze()
            self.negative = pack_bits(mask[mask != 0] < 0)

    def stored(self) -> dict[str, Tensor]:
        """`{"mask": bool of mask_shape, "negative": (number of ones,) bool}`, the signs in row-major order."""
        parts = super().stored()
        assert self.negative is not None
        return parts | {"negative": unpack_bits(self.negative, torch.Size([int(parts["mask"].sum())]))}

    @torch.no_grad()
    def start_from(self, other: Mask) -> None:
        """As any binary mask, and with the signs of another ternary one of the same granularity."""
        signs = other.ternary() if isinstance(other, TernaryMask) and other.mask_shape == self.mask_shape else None
        super().start_from(other)
        if signs is not None and self.score is not None:
            self.score.mul_(torch.where(signs < 0, -1.0, 1.0))
        self.negative = None


def check_signs(name: str, parts: Mapping[str, Tensor]) -> None:
    """Check that the stored parts of a ternary mask have a sign for each value that is not zero.

    Raises:
        InputError: they have more or fewer.
    """
    ones = int(parts["mask"].sum())
    if len(parts["negative"]) != ones:
        raise InputError(f"mask of {name}: {len(parts['negative'])} signs for {ones} ones: the task file is damaged")
