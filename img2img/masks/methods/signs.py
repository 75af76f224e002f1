"""Deltas of signs, `W + s ∘ T`: what they share, and dense ones, `T` in {-1, 1} (BitDelta; Liu et al., NeurIPS 2024).

Sparse ones, `T` in {-1, 0, 1}, are in `sparse_signs`. Both are trained from a task's loss here; `delta_from_finetuned` starts
them from a network that was fine-tuned.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.masks.base import METHODS, Mask, MaskMethod, check_parts
from img2img.masks.basis import Basis
from img2img.masks.binary import BinaryMask
from img2img.masks.layers import Layer
from img2img.masks.tensors import widened
from img2img.masks.ternary import check_signs
from img2img.validation import one_of

ScalePer = Literal["channel", "layer"]
Signs = Callable[[Tensor], Tensor]

_HALF = torch.finfo(torch.float16).max


def dense_signs(score: Tensor) -> Tensor:
    """1 where R >= 0, else -1, float32. -0.0 counts as below 0; no score gets there."""
    return torch.copysign(score.new_ones(()), score)


def shift(weight: Tensor, signs: Tensor, scale: Tensor, out: Tensor) -> Tensor:
    """Write `W + s ∘ T` into `out`, which is not `weight`, and return it.

    Each product is exact, so training, which has `T` in float32, and a frozen mask, which has it in int8, give the same bits;
    and `W` exactly where T = 0.

    Args:
        weight: `W`. Half precision is computed in float32 and rounded once.
        signs: `T`, of W's shape.
        scale: `s`, float32, which multiplies W by broadcasting.
        out: of W's shape and dtype.
    """
    if weight.dtype not in (torch.float32, torch.float64):
        wide = weight.float()
        return out.copy_(shift(wide, signs, scale, torch.empty_like(wide)))
    scale = scale.to(weight.dtype)
    if signs.dtype == torch.int8:  # converted on the way, a fourth of the memory to read
        return torch.mul(signs, scale, out=out).add_(weight)
    return torch.addcmul(weight, signs.to(weight.dtype), scale, out=out)


def to_half(scale: Tensor) -> Tensor:
    """The scale as it is stored: float16; what is beyond its range, which no scale reaches in practice, is clamped."""
    return scale.detach().clamp(-_HALF, _HALF).half()


def broadcast(layer: Layer, scale: Tensor) -> Tensor:
    """A scale, the layer's or one an output channel, as what multiplies the weight."""
    return layer.per_channel(scale) if len(scale) == layer.out_channels else scale


class _ShiftedWeight(torch.autograd.Function):
    """`W + s ∘ T` with the gradients `∂R = s ∘ G`, straight through and of all weights, and `∂s = Σ G ∘ T` over what s scales.

    `s` is rounded to float16 here, and its gradient passes that by: what is validated while it is trained is what is stored,
    and freezing changes nothing. Of the weight's size only R is saved, which exists anyway, and T is computed again. Where the
    result is rounded to half precision, T is saved: memory that the result would take otherwise.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, score: Tensor, scale: Tensor, layer: Layer, signs: Signs, dtype: torch.dtype) -> Tensor:
        factor = broadcast(layer, to_half(scale).float())
        of_score = signs(score)
        saved = of_score if dtype != weight.dtype else None
        ctx.save_for_backward(score, factor, saved)
        ctx.layer, ctx.signs, ctx.scales = layer, signs, len(scale)
        # Into the memory of T where that fits and is free: new memory costs as much as the arithmetic.
        fits = saved is None and of_score.dtype == weight.dtype and of_score.stride() == weight.stride()
        room = of_score if fits else torch.empty_like(weight, requires_grad=False)
        return shift(weight, of_score, factor, room).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        score, factor, saved = ctx.saved_tensors
        gradient, own = widened(grads[0], torch.float32)
        by_score = by_scale = None
        if ctx.needs_input_grad[2]:
            moved = ctx.signs(score).mul_(gradient) if saved is None else saved * gradient
            by_scale = ctx.layer.channel_sums(moved) if ctx.scales > 1 else moved.sum().view(1)
        if ctx.needs_input_grad[1]:
            by_score = gradient.mul_(factor) if own else gradient * factor
        return None, by_score, by_scale, None, None, None


class SignsMask(BinaryMask):
    """The signs `T` of one weight and their scale `s`.

    Attributes:
        scale: `s`, (out_channels,) or, one a layer, (1,): float32 while it is trained, float16 once frozen.
    """

    def __init__(self, layer: Layer, scale: Tensor, **codes: Any) -> None:
        """`codes`: what the kind of code is made from."""
        super().__init__(layer, **codes)
        # Of the layer the shape alone is used; the weight itself would be kept from moving, or from being freed.
        self.layer = replace(layer, weight=layer.weight.to("meta"))
        self.scale = nn.Parameter(scale, requires_grad=not self.frozen)

    @abstractmethod
    def signs(self) -> Signs:
        """The function that makes `T`, float32, from the scores."""

    def keeps(self) -> None:
        """None: every weight is kept, and some are moved."""
        return

    def values(self) -> dict[str, Tensor]:
        """`{"scale": s}`, as it acts."""
        return {"scale": to_half(self.scale).float()}

    def effective(self, weight: Tensor) -> Tensor:
        """`W + s ∘ T`; see `_ShiftedWeight` for the gradients."""
        return self.effective_as(weight, weight.dtype)

    def effective_as(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """`W + s ∘ T`, rounded."""
        out: Tensor = _ShiftedWeight.apply(weight, self.score, self.scale, self.layer, self.signs(), dtype)
        return out

    def decode(self, weight: Tensor) -> tuple[Tensor, ...]:
        """`T`, int8, and the scale as what multiplies the weight."""
        signs = self.signed()
        assert signs is not None
        signs = torch.empty_like(weight, dtype=torch.int8, requires_grad=False).copy_(signs)
        return signs, broadcast(self.layer, self.values()["scale"])

    def write(self, weight: Tensor, decoded: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """`W + s ∘ T`."""
        return shift(weight, decoded[0], decoded[1], out)

    def freeze(self) -> None:
        """Keep the signs and the scales, which are the ones of the last step."""
        if self.score is not None:
            self.scale = nn.Parameter(to_half(self.scale), requires_grad=False)
        super().freeze()

    def stored(self) -> dict[str, Tensor]:
        """What the code of the signs stores, and `{"scale": (out_channels,) or (1,) float16}`."""
        return super().stored() | {"scale": self.scale.detach()}

    @torch.no_grad()
    def start_from(self, other: Mask) -> None:
        """The signs and the scales of another mask of the same kind; a scale a layer from the mean of those of the channels."""
        if not isinstance(other, type(self)):
            raise InputError(
                f"a {type(other).__name__} has no signs that a {type(self).__name__} could start from: choose a task of the same "
                "method, or none (start_from=None)"
            )
        signs = other.signed()
        assert signs is not None
        self.set_signs(signs, other.values()["scale"])

    @torch.no_grad()
    def set_signs(self, signs: Tensor, scale: Tensor) -> None:
        """Start the training with these signs, each as far from flipping as a fresh one, and these scales.

        Args:
            signs: `T`, int8, of the weight's shape.
            scale: `s`, (out_channels,) or (1,).
        """
        score = signs.new_empty(self.mask_shape, dtype=torch.float32) if self.score is None else self.score.detach()
        size = self.scores_for(signs != 0)
        self.score = nn.Parameter(score.copy_(torch.where(signs < 0, -size, size)))
        self.bits, self.frozen = None, False
        scale = scale if len(self.scale) > 1 else scale.mean().view(1)
        self.scale = nn.Parameter(scale.float().expand(self.scale.shape).clone())


class DenseSignsMask(SignsMask):
    """The signs of one weight's scores: 1 where R >= 0, else -1. Its binary mask says where they are 1."""

    effect = "raised"

    def __init__(
        self, layer: Layer, scale: Tensor, method: "DenseSigns", score: Tensor | None, mask: Tensor | None = None
    ) -> None:
        super().__init__(layer, scale, score=score, mask=mask)
        self.start = method.start

    def signs(self) -> Signs:
        """1 where R >= 0, else -1."""
        return dense_signs

    def ones(self, score: Tensor) -> Tensor:
        """Where `T` is 1."""
        return dense_signs(score) > 0

    def signed(self) -> Tensor:
        """`T`, int8."""
        return self.hard().to(torch.int8).mul_(2).sub_(1)

    def scores_for(self, mask: Tensor) -> Tensor:
        """The size of a fresh score, negative where `mask` is zero."""
        return torch.where(mask, self.start, -self.start)


@dataclass(frozen=True, kw_only=True)
class SignsMethod(MaskMethod):
    """The options of both methods, see there."""

    scale: float
    scale_per: ScalePer = "channel"

    def __post_init__(self) -> None:
        one_of(f"{self.name} scale_per", self.scale_per, ("channel", "layer"))
        if not 0 < self.scale < math.inf:
            raise InputError(
                f"{self.name} scale={self.scale}: expected a finite number above 0, in units of the mean abs weight, such as "
                "0.3; at 0 the signs would get no gradient"
            )

    def scales(self, layer: Layer) -> Tensor:
        """The start of `s`, float32, (out_channels,) or (1,).

        A channel whose weights are all zero starts like the mean of the layer's. A layer of zeros starts like fresh weights of
        the size `1 / sqrt(fan_in)`: from s = 0 the scores would never get a gradient.
        """
        size = layer.channel_sums(layer.weight.abs().float()).div_(layer.weight.numel() // layer.out_channels)
        mean = size.mean()
        mean = torch.where(mean > 0, mean, 1 / math.sqrt(layer.fan_in))
        size = torch.where(size > 0, size, mean) if self.scale_per == "channel" else mean.view(1)
        return size.mul_(self.scale)

    def check(self, stored: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, Layer], *, signs: bool) -> None:
        """Check the stored parts of all masks, with the part `negative` or without."""
        expected: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {}
        for name, layer in layers.items():
            scales = layer.out_channels if self.scale_per == "channel" else 1
            expected[name] = {"mask": (torch.bool, tuple(layer.weight.shape)), "scale": (torch.float16, (scales,))}
            expected[name] |= {"negative": (torch.bool, (-1,))} if signs else {}
        check_parts(stored, expected)
        for name, parts in stored.items():
            if not parts["scale"].isfinite().all():
                raise InputError(f"mask of {name}: a scale is not a finite number: the task file is damaged")
            if signs:
                check_signs(name, parts)


@METHODS.register("dense_signs")
@dataclass(frozen=True, kw_only=True)
class DenseSigns(SignsMethod):
    """Effective weight `W + s ∘ T`, `T = 1` where `R >= 0` and -1 elsewhere, with `∂R = s ∘ G` and `∂s = Σ G ∘ T`.

    This is BitDelta's form. Every weight moves and takes one bit. `masks.delta_from_finetuned` gives it BitDelta's start,
    `T = sign(W_ft - W)` and `s = mean |W_ft - W|`. Trained from scratch, T starts as the sign of W: then all weights of a channel
    grow alike, of which a normalisation takes most out, so that training starts near the backbone.

    Attributes:
        scale: the start of s, in units of the mean `|W|` of what it scales.
        scale_per: one s an output "channel", or one a "layer", as BitDelta has it.
        start: the size of a fresh score. Over the learning rate it is the number of Adam steps that flip a sign.
    """

    scale: float = 0.1
    start: float = 5e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.start < math.inf:
            raise InputError(f"{self.name} start={self.start}: expected a finite number above 0, such as 5e-3")

    def create(self, layers: Mapping[str, Layer], bases: Mapping[str, Basis]) -> dict[str, Mask]:
        """One trainable mask a weight; scores and scales are float32, scores in the weight's memory format."""
        masks: dict[str, Mask] = {}
        for name, layer in layers.items():
            score = layer.empty_scores().copy_(torch.where(layer.weight >= 0, self.start, -self.start))
            masks[name] = DenseSignsMask(layer, self.scales(layer), self, score)
        return masks

    def restore(
        self, stored: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, Layer], bases: Mapping[str, Basis]
    ) -> dict[str, Mask]:
        """Frozen masks from their signs and scales, one for each weight."""
        self.check(stored, layers, signs=False)
        masks: dict[str, Mask] = {}
        for name, layer in layers.items():
            parts = {part: tensor.to(layer.weight.device) for part, tensor in stored[name].items()}
            masks[name] = DenseSignsMask(layer, parts["scale"], self, None, parts["mask"])
        return masks
