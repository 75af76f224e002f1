"""The values of adapters' files turned into those of a mask method: one rank and scale for all layers, where files have many."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from img2img.errors import InputError
from img2img.masks.layers import Layer
from img2img.masks.methods.channel import IA3
from img2img.masks.methods.lora import DoRA, LoKr, LoRA, factorise
from img2img.masks.real_valued import RealValuedMethod

_SAME = 1e-6
"""Scales that differ by less than this share are one: files round them to float32."""
_LOKR = [{first, second} for first in ("w1", "w1_a w1_b") for second in ("w2", "w2_a w2_b")]


def mixes_groups(convolution: _ConvNd) -> bool:
    """Whether PEFT's LoRA and DoRA of this convolution add up inputs of other groups, which no weight of it does."""
    return convolution.groups > 1


def ignores_how_it_runs(convolution: _ConvNd, layer: Layer) -> bool:
    """Whether PEFT's LoRA and DoRA run their factors without this convolution's dilation or padding mode."""
    return layer.taps > 1 and (convolution.padding_mode != "zeros" or {*convolution.dilation} != {1})


@dataclass(frozen=True)
class Part:
    """What a file has for one weight.

    Attributes:
        key: one of its tensors' names in the file, for messages.
        weight: the weight's name.
        layer: what is known of it.
        module: the layer that has it.
        form: "peft" or "lycoris".
        values: the file's tensors by part: `A`, `B`, `m` of LoRA and DoRA, `g` of (IA)³, `w1`, `w2`, `w1_a` ... of LoKr.
        scale: what multiplies the change of the weight.
    """

    key: str
    weight: str
    layer: Layer
    module: nn.Module
    form: str
    values: Mapping[str, Tensor]
    scale: float = 1.0

    @property
    def kind(self) -> str:
        """The method, from the parts there are.

        Raises:
            InputError: a part is missing, or one too many.
        """
        parts = set(self.values)
        kinds = {frozenset("AB"): "lora", frozenset("ABm"): "dora", frozenset("g"): "ia3"}
        kinds |= {frozenset(" ".join(names).split()): "lokr" for names in _LOKR}
        if (kind := kinds.get(frozenset(parts))) is None:
            raise InputError(f"{self.key}: a part of this layer is missing, or one too many; it has {', '.join(sorted(parts))}")
        return kind

    @property
    def rank(self) -> int | None:
        """The number of columns of a factor; None where there is no product."""
        factors = [("A", 0), ("w2_b", 0), ("w1_b", 0)]
        found = {self.values[n].shape[axis] for n, axis in factors if n in self.values and self.values[n].ndim > 1}
        return found.pop() if len(found) == 1 else None

    def scaled(self, scale: float) -> "Part":
        """The same with that scale."""
        if not math.isfinite(scale):
            raise InputError(f"{self.key}: its scale is {scale}, expected a finite number")
        return replace(self, scale=scale)

    def check_bias(self) -> None:
        """Refuse factors of PEFT's (IA)³, which multiply a layer's bias too, where that would change it."""
        bias = getattr(self.module, "bias", None)
        g = self.values["g"].flatten().double()
        if bias is not None and (len(g) != len(bias) or ((g - 1) * bias.detach().double().cpu()).any()):
            self._refuse("PEFT's (IA)³ scales this layer's bias too, and a task's bias is the backbone's")

    def matrix(self, name: str, rows: int | None, columns: int | None) -> Tensor:
        """A value as a matrix, float32; None is any number."""
        value = self.values[name]
        shape = tuple(value.shape)
        # A convolution's factor has the axes of a kernel: those of the weight, or of length 1.
        fits = value.ndim == 2 or (value.ndim == self.layer.weight.ndim and self.layer.kernel_dims > 0)
        if fits and value.ndim > 2 and name in ("A", "w2"):
            fits = shape[2:] == tuple(self.layer.weight.shape[2:])
        elif fits and value.ndim > 2:
            fits = {*shape[2:]} == {1}
        if fits:
            value = value.flatten(1)
            fits = rows in (None, len(value)) and columns in (None, value.shape[1]) and value.numel() > 0
        if not fits:
            weight = tuple(self.layer.weight.shape)
            self._refuse(
                f"the part {name} has the shape {shape}, which does not fit a weight of the shape {weight}; the adapter is for "
                "another network"
            )
        return value.float()

    def per_output(self, name: str) -> Tensor:
        """A value for each output channel, float32."""
        value, outputs, dims = self.values[name], self.layer.out_channels, self.layer.weight.ndim
        kernel = [1] * (dims - 2)
        # Both libraries have one axis for the outputs, and others of length 1 so that it multiplies what they want it to.
        known = [(outputs,), (1, outputs, *kernel), (outputs, 1, *kernel)] if dims > 2 else [(outputs,), (outputs, 1)]
        if self.form == "lycoris" and name == "m":
            known = [(outputs, *[1] * (dims - 1))]  # (1, inputs, ...) is a norm of inputs
        if tuple(value.shape) not in known:
            self._refuse(f"the part {name} has the shape {tuple(value.shape)}, expected {known[0]}: one value for each output")
        return value.flatten().float()

    def _refuse(self, why: str) -> NoReturn:
        raise InputError(f"{self.key}: {why}")


def method_of(parts: Sequence[Part]) -> tuple[RealValuedMethod, dict[str, dict[str, Tensor]]]:
    """The mask method of adapters of one kind, and its values by weight, in the order of the parts.

    The scale that most layers have becomes the method's; where another differs, a factor takes up the quotient.

    Raises:
        InputError: a shape does not fit its weight, or no options fit all layers.
    """
    kind = parts[0].kind
    if kind == "ia3":
        shift = 1.0 if parts[0].form == "lycoris" else 0.0  # LyCORIS has what is added to 1
        method: RealValuedMethod = IA3()
        values = {part.weight: {"g": part.per_output("g") + shift} for part in parts}
    elif kind == "lokr":
        method, values = _lokr(parts)
    else:
        method, values = _lora(parts, with_norms=kind == "dora")
    for part in parts:
        for name, value in values[part.weight].items():
            if not value.isfinite().all() or value.abs().max() > torch.finfo(torch.float16).max:
                raise InputError(
                    f"{part.key}: {name} is beyond half precision, in which tasks are stored: scale the adapter down"
                )
    return method, values


def _lora(parts: Sequence[Part], *, with_norms: bool) -> tuple[RealValuedMethod, dict[str, dict[str, Tensor]]]:
    factors = {}
    for part in parts:
        A = part.matrix("A", None, part.layer.inputs * part.layer.taps)
        factors[part.weight] = A, part.matrix("B", part.layer.out_channels, len(A))
    rank = max(len(A) for A, _ in factors.values())
    scale = _common([part.scale for part in parts])
    values = {}
    for part in parts:
        layer = part.layer
        A, B = _of_rank(*factors[part.weight], min(rank, layer.out_channels, layer.inputs * layer.taps))
        values[part.weight] = {"A": A, "B": B * _quotient(part.scale, scale)}
        if with_norms:
            values[part.weight]["m"] = part.per_output("m")
    return (DoRA if with_norms else LoRA)(rank=rank, alpha=scale * rank), values


def _of_rank(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the same product with `rank` rows and columns. `rank` is that of the factors, more, or a side of the product."""
    used = A.any(1) & B.any(0)
    if len(A) > rank and not used[rank:].any():
        return A[:rank], B[:, :rank]
    if len(A) > rank and used.sum() <= rank:
        A, B = A[used], B[:, used]
    if len(A) > rank:
        delta = B @ A
        eye = torch.eye(rank)
        return (delta, eye) if rank == len(delta) else (eye, delta)
    missing = rank - len(A)
    return torch.cat([A, A.new_zeros(missing, A.shape[1])]), torch.cat([B, B.new_zeros(len(B), missing)], 1)


def _lokr(parts: Sequence[Part]) -> tuple[RealValuedMethod, dict[str, dict[str, Tensor]]]:
    made: dict[str, tuple[Tensor, Tensor | tuple[Tensor, Tensor]]] = {}
    for part in parts:
        w1 = part.matrix("w1", None, None) if "w1" in part.values else _product(part, "w1")
        if "w2" in part.values:
            w2 = part.matrix("w2", None, None)
            made[part.weight] = w1, w2
        else:
            a = part.matrix("w2_a", None, None)
            made[part.weight] = w1, (a, part.matrix("w2_b", a.shape[1], None))
    splits = {}
    for part in parts:
        w1, second = made[part.weight]
        o2, i2 = second.shape if isinstance(second, Tensor) else (len(second[0]), second[1].shape[1])
        splits[part.weight] = (w1.shape[0], o2), (w1.shape[1], i2 // part.layer.taps)
        if (w1.shape[0] * o2, w1.shape[1] * i2) != (part.layer.out_channels, part.layer.inputs * part.layer.taps):
            raise InputError(f"{part.key}: the factors are those of another shape of weight; the adapter is for another network")
    factor = _factor(parts, splits)
    # Whole is whole in all layers of so small a side: where the file has products there, they are multiplied.
    ranks = [w2[0].shape[1] for _, w2 in made.values() if not isinstance(w2, Tensor)]
    whole = [math.ceil(max(o[1], i[1]) / 2) for name, (o, i) in splits.items() if isinstance(made[name][1], Tensor)]
    rank = max(ranks + whole)
    low = [p.scale for p in parts if 2 * rank < max(splits[p.weight][0][1], splits[p.weight][1][1])]
    scale = _common(low)
    method = LoKr(rank=rank, alpha=scale * rank, factor=factor)
    values = {}
    for part in parts:
        w1, second = made[part.weight]
        w1 = w1 * _quotient(part.scale, method.scale(part.layer))
        if method.start(replace(part.layer, weight=part.layer.weight.to("meta"))).keys() == {"w1", "w2"}:
            values[part.weight] = {"w1": w1, "w2": second if isinstance(second, Tensor) else second[0] @ second[1]}
        else:
            assert not isinstance(second, Tensor)  # the rank is large enough for those
            b, a = _of_rank(second[1], second[0], rank)
            values[part.weight] = {"w1": w1, "w2_a": a, "w2_b": b}
    return method, values


def _product(part: Part, name: str) -> Tensor:
    a = part.matrix(f"{name}_a", None, None)
    b = part.matrix(f"{name}_b", a.shape[1], None)
    if len(a) > part.layer.out_channels or b.shape[1] > part.layer.inputs:  # before they are multiplied
        raise InputError(f"{part.key}: the factors are those of another shape of weight; the adapter is for another network")
    return a @ b


def _factor(parts: Sequence[Part], splits: Mapping[str, tuple[tuple[int, int], tuple[int, int]]]) -> int:
    """The factor that splits every layer as the file does."""
    numbers = {number: pair for split in splits.values() for pair in split for number in [math.prod(pair)]}
    for split in splits.values():
        for pair in split:
            if numbers[math.prod(pair)] != pair:
                raise InputError(
                    f"{parts[0].key}: layers of {math.prod(pair)} channels are split in two ways, and a method has one"
                )
    candidates = sorted({side for pair in numbers.values() for side in pair})
    for factor in (-1, *candidates):
        if all(factorise(number, factor) == pair for number, pair in numbers.items()):
            return factor
    odd = next((p for p in parts for n, m in splits[p.weight] if n > m), parts[0])
    raise InputError(
        f"{odd.key}: outputs and inputs are split as {splits[odd.weight]}; expected the split of one factor for all layers, the "
        "smaller number first, as LyCORIS makes it"
    )


def _common(scales: Sequence[float]) -> float:
    """The scale that most have, above 0; 1 without any."""
    counts = Counter(scale for scale in scales if scale > 0)
    return counts.most_common(1)[0][0] if counts else 1.0


def _quotient(scale: float, common: float) -> float:
    return 1.0 if math.isclose(scale, common, rel_tol=_SAME) else scale / common
