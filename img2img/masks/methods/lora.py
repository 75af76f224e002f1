"""Low-rank changes of a weight: LoRA (Hu et al. 2022), DoRA (Liu et al. 2024) and LoKr (Yeh et al. 2024, LyCORIS).

A weight is read as a matrix, a row for each output channel (`Layer.as_matrix`): a convolution's kernel is (outputs, inputs of a
group x taps), a transposed one's likewise on its own axes, an embedding's (dimensions, entries); attention's packed projections
are one matrix. A bias, which a selection may name, is a matrix of one column.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from img2img.errors import InputError
from img2img.masks.base import METHODS
from img2img.masks.layers import Layer
from img2img.masks.real_valued import RealValuedMask, RealValuedMethod


class AddedMask(RealValuedMask):
    """`W + Δ`, Δ made of the values."""

    @abstractmethod
    def delta(self, values: Mapping[str, Tensor]) -> Tensor:
        """Δ as a matrix, see `Layer.as_matrix`."""

    def change(self, weight: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """`W + Δ`."""
        return weight + self.layer.from_matrix(self.delta(values))

    @torch.no_grad()
    def values(self) -> dict[str, Tensor]:
        """`{"delta": ()}`, the root mean square of Δ."""
        delta = self.delta({name: value.float() for name, value in self.named_parameters()})
        return {"delta": delta.square().mean().sqrt()}


class LoRAMask(AddedMask):
    """The factors of one weight: `A` (rank, columns) and `B` (out_channels, rank)."""

    def delta(self, values: Mapping[str, Tensor]) -> Tensor:
        """`(a / r) B A`."""
        return (values["B"] * self.scale) @ values["A"]


class DoRAMask(LoRAMask):
    """LoRA's factors, and the norm `m` (out_channels,) that each output channel gets."""

    def change(self, weight: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """`m ∘ V / ‖V‖`, `V = W + (a / r) B A`, no gradient through the norm."""
        direction = super().change(weight, values)
        return direction * self.layer.per_channel(values["m"] / channel_norms(self.layer, direction.detach()))

    def values(self) -> dict[str, Tensor]:
        """`delta`, and the norms `m`."""
        return super().values() | {"m": self.get_parameter("m").detach().float()}


def channel_norms(layer: Layer, weight: Tensor) -> Tensor:
    """The Euclidean norm of each output channel, (out_channels,) float32; above 0, so that a channel of zeros divides."""
    return layer.channel_sums(weight.square()).sqrt().clamp(min=torch.finfo(torch.float32).tiny)


class LoKrMask(AddedMask):
    """The factors of one weight: `w1`, and `w2` or `w2_a` and `w2_b`, see `LoKr`."""

    def delta(self, values: Mapping[str, Tensor]) -> Tensor:
        """`s (w1 ⊗ w2)`; the product of Kronecker is over outputs and inputs, tap by tap."""
        w2 = values["w2"] if "w2" in values else values["w2_a"] @ values["w2_b"]
        return torch.kron(values["w1"][..., None] * self.scale, w2.unflatten(1, (-1, self.layer.taps))).flatten(1)


@dataclass(frozen=True, kw_only=True)
class _LowRank(RealValuedMethod):
    rank: int = 8
    alpha: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rank >= 1:
            raise InputError(f"{self.name} rank={self.rank!r}: expected a whole number of at least 1, such as 8")
        if not 0 < self.alpha < math.inf:
            raise InputError(f"{self.name} alpha={self.alpha!r}: expected a number above 0; rank gives a scale of 1")


@METHODS.register("lora")
@dataclass(frozen=True, kw_only=True)
class LoRA(_LowRank):
    """Effective weight `W + (alpha / rank) B A` (Hu et al., ICLR 2022, equation 3), of the weight's matrix, see this module.

    `A` is Kaiming-uniform as in PEFT, `U(-1, 1) / sqrt(inputs that an output sums over)`, and `B = 0`: training starts at the
    backbone exactly. A grouped convolution's groups share `A`, as in LyCORIS.

    Attributes:
        rank: r. A matrix with fewer rows or columns gets as many as it has of them, and the same scale.
        alpha: a; the scale is `alpha / rank`. `alpha = a sqrt(rank)` is the rank-stabilised scale `a / sqrt(rank)`.
    """

    kind = LoRAMask

    def start(self, layer: Layer) -> dict[str, Tensor]:
        """`A` (r, columns) and `B` (out_channels, r), r the rank or the smaller side."""
        rows, columns = layer.out_channels, layer.inputs * layer.taps
        rank = min(self.rank, rows, columns)
        down = torch.empty(rank, columns, dtype=torch.float32, device=layer.weight.device)
        bound = 1 / math.sqrt(layer.fan_in)
        return {"A": down.uniform_(-bound, bound), "B": down.new_zeros(rows, rank)}

    def scale(self, layer: Layer) -> float:
        """`alpha / rank`."""
        return self.alpha / self.rank


@METHODS.register("dora")
@dataclass(frozen=True, kw_only=True)
class DoRA(LoRA):
    """Effective weight `m ∘ V / ‖V‖`, `V = W + (alpha / rank) B A`, norms of output channels (Liu et al., ICML 2024, equation 5).

    `m` starts as the norms of W, so that training starts at the backbone. No gradient goes through `‖V‖`, as in the paper
    (section 4.3) and in PEFT. The options are LoRA's.
    """

    kind = DoRAMask

    def start(self, layer: Layer) -> dict[str, Tensor]:
        """LoRA's values, and `m` (out_channels,)."""
        return super().start(layer) | {"m": channel_norms(layer, layer.weight.float())}


@METHODS.register("lokr")
@dataclass(frozen=True, kw_only=True)
class LoKr(_LowRank):
    """Effective weight `W + s (w1 ⊗ w2)`, a Kronecker product in LyCORIS's form (Yeh et al., ICLR 2024).

    The numbers of outputs and inputs are each split in two factors, see `factorise`: `o1 o2` and `i1 i2`. `w1` is (o1, i1). `w2`
    is (o2, i2 x taps): the product of `w2_a` (o2, rank) and `w2_b` (rank, i2 x taps), or whole where `rank >= max(o2, i2) / 2`.
    `s` is `alpha / rank`, and 1 where `w2` is whole. `w2_b`, or `w2`, starts at 0, the others Kaiming-uniform. LyCORIS's variants
    with a product in place of `w1` and with Tucker's decomposition are left out.

    Attributes:
        rank: r of `w2`.
        alpha: a of its scale.
        factor: the first factor of outputs and inputs at most; -1 splits them as evenly as they can be.
    """

    kind = LoKrMask
    factor: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 1 and self.factor != -1:
            raise InputError(f"lokr factor={self.factor!r}: expected a whole number of at least 1, or -1 for an even split")

    def start(self, layer: Layer) -> dict[str, Tensor]:
        """`w1`, and `w2` or `w2_a` and `w2_b`."""
        (o1, o2), (i1, i2) = self._split(layer)
        w1 = torch.empty(o1, i1, dtype=torch.float32, device=layer.weight.device)
        values = {"w1": _kaiming(w1)}
        if self._whole(layer):
            return values | {"w2": w1.new_zeros(o2, i2 * layer.taps)}
        return values | {"w2_a": _kaiming(w1.new_empty(o2, self.rank)), "w2_b": w1.new_zeros(self.rank, i2 * layer.taps)}

    def scale(self, layer: Layer) -> float:
        """`alpha / rank`, 1 where no factor has a rank."""
        return 1.0 if self._whole(layer) else self.alpha / self.rank

    def _split(self, layer: Layer) -> tuple[tuple[int, int], tuple[int, int]]:
        return factorise(layer.out_channels, self.factor), factorise(layer.inputs, self.factor)

    def _whole(self, layer: Layer) -> bool:
        (_, o2), (_, i2) = self._split(layer)
        return 2 * self.rank >= max(o2, i2)


def factorise(number: int, factor: int) -> tuple[int, int]:
    """LyCORIS's split of `number` in a smaller and a larger factor.

    `factor` and its cofactor where `factor` divides; else, as for -1, the pair of the smallest sum whose smaller one is at most
    `factor`.
    """
    if factor > 0 and number % factor == 0:
        return min(factor, number // factor), max(factor, number // factor)
    most = math.isqrt(number) if factor < 0 else min(factor, math.isqrt(number))
    small = max(d for d in range(1, most + 1) if number % d == 0)
    return small, number // small


def _kaiming(values: Tensor) -> Tensor:
    """PyTorch's own start of a linear layer, with `a = sqrt(5)`."""
    bound = 1 / math.sqrt(values.shape[1])
    return values.uniform_(-bound, bound)
