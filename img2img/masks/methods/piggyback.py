"""Piggyback: binary masks learned through thresholded scores (Mallya, Davis and Lazebnik, ECCV 2018)."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from img2img.errors import InputError
from img2img.masks.base import METHODS, Mask, MaskMethod, check_parts
from img2img.masks.basis import Basis
from img2img.masks.binary import BinaryMask
from img2img.masks.layers import Layer, kernel_sum
from img2img.masks.tensors import as_factor, widened
from img2img.masks.ternary import TernaryMask, check_signs
from img2img.validation import one_of

Scaling = Literal["none", "average", "individual"]


class _ThresholdedWeight(torch.autograd.Function):
    """`W ∘ 1[R >= τ]` with the straight-through gradient `∂L/∂R := ∂L/∂M = ∂L/∂(W ∘ M) ∘ W` (equations 4 and 7).

    A function of its own because it saves nothing but `W`, which exists anyway, and because the usual idiom
    `hard + R - R.detach()` is not exact in floating point.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, score: Tensor, threshold: float, kernel_dims: int, scaling: Scaling, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.kernel_dims, ctx.scaling = kernel_dims, scaling
        return select(weight, score, threshold).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        gradient, own = widened(grads[0], weight.dtype)
        factor = weight.sign() if ctx.scaling == "individual" else weight
        gradient = gradient.mul_(factor) if own and ctx.kernel_dims == 0 else kernel_sum(gradient, factor, ctx.kernel_dims)
        gradient = gradient.float()
        if ctx.scaling == "average":
            gradient = gradient.div_(weight.abs().mean().float())
        return None, gradient, None, None, None, None


def select(weight: Tensor, score: Tensor, threshold: float) -> Tensor:
    """`W ∘ 1[R >= τ]`, exactly, in one pass where the shapes and types allow.

    PyTorch has a vectorised kernel for `where(x > t, y, 0)`, the gradient of its threshold function; `R >= τ` is `R > t` for
    the float32 number `t` next below `τ`. It is ten times as fast on a CPU as `torch.where` with a scalar.
    """
    # Only where the strides agree, or the result would take the score's.
    alike = score.shape == weight.shape and score.stride() == weight.stride()
    if alike and score.dtype == weight.dtype == torch.float32:
        return torch.ops.aten.threshold_backward(weight, score, below(threshold))
    return weight * as_factor(score >= threshold)


@functools.cache
def below(threshold: float) -> float:
    """The float32 number next below `threshold` rounded to float32."""
    return torch.nextafter(*torch.tensor([threshold, -math.inf], dtype=torch.float32)).item()


def _mean_magnitude(layers: Mapping[str, Layer]) -> float:
    """The mean of |W| over all weights; above 0, so that weights that are all zero have scores as well."""
    weights = [layer.weight for layer in layers.values()]
    total = sum(w.abs().sum(dtype=torch.float32).item() for w in weights)
    return max(total / max(1, sum(w.numel() for w in weights)), torch.finfo(torch.float32).tiny)


class PiggybackMask(BinaryMask):
    """The binary mask of one weight."""

    def __init__(self, layer: Layer, score: Tensor | None, mask: Tensor | None, method: "Piggyback") -> None:
        super().__init__(layer, score, mask, kernel_wise=method.granularity == "kernel")
        self.threshold = method.threshold
        self.start = method.start_score
        self.scaling = method.gradient_scaling

    def ones(self, score: Tensor) -> Tensor:
        """`1[R >= τ]`."""
        return score >= self.threshold

    def scores_for(self, mask: Tensor) -> Tensor:
        """The start value for ones, and as far below the threshold for zeros."""
        return torch.where(mask, self.start, 2 * self.threshold - self.start)

    def effective(self, weight: Tensor) -> Tensor:
        """`W ∘ M`; the gradient of the loss by the score is the one by the effective weight, times `W`, scaled."""
        return self.effective_as(weight, weight.dtype)

    def effective_as(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """`W ∘ M`, rounded."""
        assert self.score is not None
        out: Tensor = _ThresholdedWeight.apply(weight, self.score, self.threshold, self.kernel_dims, self.scaling, dtype)
        return out

    def write(self, weight: Tensor, decoded: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """`W ∘ M`."""
        return torch.mul(weight, as_factor(decoded[0]), out=out)


class _TernaryWeight(torch.autograd.Function):
    """`W ∘ T`, `T = 1[R >= τ] - 1[R <= -τ]`, with the straight-through gradient of the binary mask."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, score: Tensor, threshold: float, kernel_dims: int, scaling: Scaling, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.kernel_dims, ctx.scaling = kernel_dims, scaling
        return (weight * ternary(score, threshold)).to(dtype)

    backward = _ThresholdedWeight.backward


def ternary(score: Tensor, threshold: float) -> Tensor:
    """`1[R >= τ] - 1[R <= -τ]`, int8."""
    return (score >= threshold).to(torch.int8) - (score <= -threshold).to(torch.int8)


class TernaryPiggybackMask(TernaryMask):
    """A mask in {-1, 0, 1} that multiplies the weight."""

    def __init__(
        self, layer: Layer, score: Tensor | None, mask: Tensor | None, method: "Piggyback", negative: Tensor | None = None
    ) -> None:
        super().__init__(layer, score, mask, negative, kernel_wise=method.granularity == "kernel")
        self.threshold = method.threshold
        self.start = method.start_score
        self.scaling = method.gradient_scaling

    def codes(self, score: Tensor) -> Tensor:
        """`1[R >= τ] - 1[R <= -τ]`."""
        return ternary(score, self.threshold)

    def scores_for(self, mask: Tensor) -> Tensor:
        """The start value for ones; 0, in the middle between the thresholds, for zeros."""
        return torch.where(mask, self.start, 0.0)

    def effective(self, weight: Tensor) -> Tensor:
        """`W ∘ T`."""
        return self.effective_as(weight, weight.dtype)

    def effective_as(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """`W ∘ T`, rounded."""
        assert self.score is not None
        out: Tensor = _TernaryWeight.apply(weight, self.score, self.threshold, self.kernel_dims, self.scaling, dtype)
        return out

    def write(self, weight: Tensor, decoded: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """`W ∘ T`."""
        return torch.mul(weight, decoded[0], out=out)


@METHODS.register("piggyback")
@dataclass(frozen=True, kw_only=True)
class Piggyback(MaskMethod):
    """Effective weight `W ∘ M`, `M = 1[R >= τ]`, straight-through gradient (Piggyback, equations 4 and 7).

    Attributes:
        threshold: τ. The paper's 5e-3.
        init: the starting score, 1e-2 in the paper. `init - threshold` over the learning rate is about the number of Adam
            steps of one sign that flip a bit: fifty for 1e-4, five for 1e-3.
        margin: the same said in steps: when given, the starting score is `threshold + margin * step`, and `init` is not used.
        step: the score's step that `margin` counts, the learning rate of the scores.
        start: "ones" gives every score the starting value (the paper: every weight is kept at the start); "uniform" draws
            from `U(2τ - init, init)`, symmetric around τ, so that about half the weights are kept (what the poster's mask
            similarities near 0.5 imply); ternary masks from `U(-3 τ, 3 τ)`, a third each. "proportional" is the paper's
            first alternative, in the proportion of the weight: the paper names no threshold for it, and one between the
            scores would start with small weights masked out. Here the *margin* is proportional, `R = τ + (init - τ) |W| / mean
            |W|`, the mean over all masked weights of the network: every weight is kept at the start as the paper wants it,
            `|∂R| / |R - τ|` is alike in all layers, and the mean margin is that of "ones".
        gradient_scaling: "average" divides the gradient by the layer's mean `|W|` (the paper's second alternative, for SGD),
            "individual" by each `|W|`, which leaves the sign of `W`. Adam is indifferent to either; see `train.optimiser.mask`.
        granularity: a mask value for each "element", or one for each k x k "kernel".
        ternary: masks in {-1, 0, 1}, with the cut-offs τ and -τ (the paper's variant "with two cut-off thresholds").
    """

    threshold: float = 5e-3
    init: float = 1e-2
    margin: float | None = None
    step: float = 1e-4
    start: Literal["ones", "uniform", "proportional"] = "ones"
    gradient_scaling: Scaling = "none"
    granularity: Literal["element", "kernel"] = "element"
    ternary: bool = False

    def __post_init__(self) -> None:
        one_of(f"{self.name} start", self.start, ("ones", "uniform", "proportional"))
        one_of(f"{self.name} gradient_scaling", self.gradient_scaling, ("none", "average", "individual"))
        one_of(f"{self.name} granularity", self.granularity, ("element", "kernel"))
        for option in ("threshold", "init"):
            if not math.isfinite(getattr(self, option)):
                raise InputError(f"{self.name} {option}={getattr(self, option)}: expected a finite number, such as 0.01")
        if self.ternary and not self.threshold > 0:
            raise InputError(f"piggyback threshold={self.threshold}: ternary masks cut at τ and -τ, so it must be above 0")
        if not self.start_score > self.threshold:
            raise InputError(
                f"piggyback init={self.start_score} is not above threshold={self.threshold}: every weight would start masked; "
                "raise init, or give a positive margin"
            )

    @property
    def start_score(self) -> float:
        """The score of a fresh one."""
        return self.init if self.margin is None else self.threshold + self.margin * self.step

    def create(self, layers: Mapping[str, Layer], bases: Mapping[str, Basis]) -> dict[str, Mask]:
        """One trainable mask a weight; scores are float32 whatever the weight's dtype, in the weight's memory format."""
        kind = TernaryPiggybackMask if self.ternary else PiggybackMask
        magnitude = _mean_magnitude(layers) if self.start == "proportional" else 0.0
        return {name: kind(layer, self._start(layer, magnitude), None, self) for name, layer in layers.items()}

    def _start(self, layer: Layer, magnitude: float) -> Tensor:
        kernel_wise = self.granularity == "kernel"
        if self.start == "uniform":
            bound = 3 * self.threshold
            low, high = (-bound, bound) if self.ternary else (2 * self.threshold - self.start_score, self.start_score)
            return layer.uniform_scores(low, high, kernel_wise=kernel_wise)
        score = layer.empty_scores(kernel_wise=kernel_wise)
        if self.start == "ones":
            return score.fill_(self.start_score)
        size = layer.weight.abs().float()
        if size.shape != score.shape:
            size = size.mean(tuple(range(-layer.kernel_dims, 0)), keepdim=True)
        return score.copy_(self.threshold + (self.start_score - self.threshold) / magnitude * size)

    def restore(
        self, stored: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, Layer], bases: Mapping[str, Basis]
    ) -> dict[str, Mask]:
        """Frozen masks from their bits, one for each weight."""
        shapes = {n: x.mask_shape(kernel_wise=self.granularity == "kernel") for n, x in layers.items()}
        signs: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"negative": (torch.bool, (-1,))} if self.ternary else {}
        check_parts(stored, {name: {"mask": (torch.bool, tuple(shape)), **signs} for name, shape in shapes.items()})
        masks: dict[str, Mask] = {}
        for name, layer in layers.items():
            parts = {part: tensor.to(layer.weight.device) for part, tensor in stored[name].items()}
            if not self.ternary:
                masks[name] = PiggybackMask(layer, None, parts["mask"], self)
                continue
            check_signs(name, parts)
            masks[name] = TernaryPiggybackMask(layer, None, parts["mask"], self, parts["negative"])
        return masks
