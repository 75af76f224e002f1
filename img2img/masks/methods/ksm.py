"""KSM: kernel-wise soft masks (Yang, He, Zhang and Fan, "KSM: Fast Multiple Task Adaption", 2020)."""

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
from img2img.masks.layers import Layer, fill_uniform, kernel_sum
from img2img.masks.methods.piggyback import below, select
from img2img.masks.tensors import as_factor
from img2img.validation import one_of

Normal = Literal["max", "minmax"]
_CODES = 255  # the highest code of a byte


class _MaskedWeight(torch.autograd.Function):
    """`W ∘ (M + A)` with the gradient of equations 9 and 10, `∂L/∂R = kernel sum of (∂L/∂W' ∘ W), times ∂M/∂R`.

    Saves nothing but `W` and `R`, which exist anyway: what it needs of the scores is small when masks are kernel-wise.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, score: Tensor, method: "KSM", kernel_dims: int) -> Tensor:
        ctx.save_for_backward(weight, score)
        ctx.method, ctx.kernel_dims = method, kernel_dims
        if not method.soft:
            return select(weight, score, method.threshold)
        return weight * soft_mask(score, method).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None]:
        weight, score = ctx.saved_tensors
        method: KSM = ctx.method
        gradient = kernel_sum(grads[0], weight, ctx.kernel_dims).float()
        if method.gradient == "softmax":
            # p (1 - p) is even in R - τ. From the negative side p is small and 1 - p near 1, so that the product does not
            # round to zero, as it does where p rounds to 1.
            p = (score - method.threshold).abs_().mul_(-method.steepness).sigmoid_()
            gradient = torch.ops.aten.sigmoid_backward(gradient, p).mul_(method.steepness)
        if method.through_scale:
            gradient = gradient.mul_(1 - normalise(score, method.normal))
        return None, gradient, None, None


def normalise(score: Tensor, how: Normal) -> Tensor:
    """`normal(R)` of equation 5 over one layer: `R / max |R|` or `(R - min R) / (max R - min R)`; 0 where that is 0 / 0."""
    low, high = torch.aminmax(score)
    tiny = torch.finfo(score.dtype).tiny
    if how == "max":
        return score / torch.maximum(-low, high).clamp_min(tiny)
    return (score - low).div_((high - low).clamp_min(tiny))


def soft_mask(score: Tensor, method: "KSM") -> Tensor:
    """`M + A`, `A = (1 - M) ∘ normal(R)` (equations 4 and 5), float32, of the scores' shape."""
    return normalise(score, method.normal).mul_(score < method.threshold).add_(score >= method.threshold)


def quantise(values: Tensor) -> tuple[Tensor, Tensor]:
    """Eight-bit codes of some real values, spread evenly from the lowest to the highest.

    Returns:
        The codes, uint8 of the same shape, and the lowest value and the step from code to code, (2,) float32. What
        `dequantise` gives is at most half a step (and a rounding error) off.
    """
    if values.numel() == 0:
        return values.to(torch.uint8), values.new_zeros(2)
    low, high = torch.aminmax(values)
    step = (high - low) / _CODES
    codes = (values - low).div_(step.clamp_min(torch.finfo(values.dtype).tiny)).round_().clamp_(0, _CODES)
    return codes.to(torch.uint8), torch.stack((low, step))


def dequantise(codes: Tensor, steps: Tensor) -> Tensor:
    """The values of `quantise`'s codes, float32.

    One product and one sum, each rounded: the same on every device, which a division on a GPU would not be.
    """
    return codes.float().mul_(steps[1]).add_(steps[0])


class KSMMask(BinaryMask):
    """The binary mask of one weight, a value for each kernel or each element: `M` without `A`."""

    def __init__(self, layer: Layer, score: Tensor | None, mask: Tensor | None, method: "KSM") -> None:
        super().__init__(layer, score, mask, kernel_wise=method.granularity == "kernel")
        self.method = method

    def ones(self, score: Tensor) -> Tensor:
        """The one-hot code of equation 8, `1[p >= 1/2]`, which is `1[R >= τ]`."""
        return score >= self.method.threshold

    def scores_for(self, mask: Tensor) -> Tensor:
        """Ones as fresh ones are, zeros as far below the threshold as `init` is above it."""
        return torch.where(mask, self.method.fresh_ones(mask.new_empty(mask.shape, dtype=torch.float32)), self.method.fresh_zero)

    def effective(self, weight: Tensor) -> Tensor:
        """`W ∘ M`, or `W ∘ (M + A)` of a soft mask."""
        assert self.score is not None
        out: Tensor = _MaskedWeight.apply(weight, self.score, self.method, self.kernel_dims)
        return out

    def write(self, weight: Tensor, decoded: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """`W ∘ M`, or `W ∘ (M + A)` of a soft mask."""
        factor = decoded[0]
        return torch.mul(weight, as_factor(factor) if factor.dtype == torch.bool else factor, out=out)


class SoftKSMMask(KSMMask):
    """A soft mask `M + A`. Frozen, `codes` are the values of `A` where `M` is zero, in row-major order, at eight bits.

    Attributes:
        codes: (number of zeros,) uint8.
        range: (2,) float32: the value of code 0, and the step from code to code.
    """

    exact = False
    effect = "kept"  # the others are scaled
    codes: Tensor | None
    range: Tensor | None

    def __init__(
        self,
        layer: Layer,
        score: Tensor | None,
        mask: Tensor | None,
        method: "KSM",
        codes: Tensor | None = None,
        steps: Tensor | None = None,
    ) -> None:
        super().__init__(layer, score, mask, method)
        self.register_buffer("codes", codes)
        self.register_buffer("range", steps)

    def scales(self) -> Tensor:
        """The values of `A` where `M` is zero, in row-major order: (number of zeros,) float32, detached."""
        if self.score is not None:
            return normalise(self.score.detach(), self.method.normal)[~self.hard()]
        assert self.codes is not None
        assert self.range is not None
        return dequantise(self.codes, self.range)

    def values(self) -> dict[str, Tensor]:
        """`{"scale": the values of A}`."""
        return {"scale": self.scales()}

    def decode(self, weight: Tensor) -> tuple[Tensor, ...]:
        """`M + A` in the weight's dtype, and in its memory format when it has the weight's shape."""
        mask = self.hard()
        soft = mask.float().masked_scatter_(~mask, self.scales())
        if soft.shape != weight.shape:
            return (soft.to(weight.dtype),)
        return (torch.empty_like(weight, requires_grad=False).copy_(soft),)

    def freeze(self) -> None:
        """Keep the mask and the codes of `A`, drop the scores."""
        if self.score is not None:
            self.codes, self.range = quantise(self.scales())
            super().freeze()

    def stored(self) -> dict[str, Tensor]:
        """`{"mask": bool of mask_shape, "codes": (number of zeros,) uint8, "range": (2,) float32}`."""
        parts = super().stored()
        assert self.codes is not None
        assert self.range is not None
        return parts | {"codes": self.codes, "range": self.range}

    def scores_for(self, mask: Tensor) -> Tensor:
        """Ones as fresh ones are, zeros where `A` is 0, so that the effective weight is the binary mask's."""
        # With minmax the lowest score of the layer is the one with A = 0, wherever it is.
        zero = 0.0 if self.method.normal == "max" else self.method.fresh_zero
        return torch.where(mask, self.method.fresh_ones(mask.new_empty(mask.shape, dtype=torch.float32)), zero)

    @torch.no_grad()
    def start_from(self, other: Mask) -> None:
        """Scores that give `other`'s `M`, and its `A` if it is a soft mask of the same shape.

        `A` is met as far as `normal` and the threshold allow: ones start as fresh ones do, zeros must stay below the
        threshold. With normal "max" that is up to `threshold / init`, which a trained mask exceeds only where every score of
        the layer fell below `init`; what is above is cut. With "minmax" it is up to 0.999. Values that were made with the
        other `normal` are met approximately.
        """
        theirs = None
        if isinstance(other, SoftKSMMask) and other.mask_shape == self.mask_shape:
            theirs = ~other.hard(), other.scales()
        super().start_from(other)
        self.codes = self.range = None
        if theirs is not None and len(theirs[1]) > 0 and self.score is not None:
            zeros, scales = theirs
            score = self.score.detach()
            score.masked_scatter_(zeros, self._scores_of(scales, None if zeros.all() else score.max()))

    def _scores_of(self, scales: Tensor, top: Tensor | None) -> Tensor:
        """Scores below the threshold whose `normal` is `scales`; `top` is the highest score of all, None without ones."""
        edge = below(self.method.threshold)
        if self.method.normal == "max":
            return (scales * (edge if top is None else top)).clamp_(max=edge)
        scales = scales.clamp(0, 1)
        low = torch.tensor(self.method.fresh_zero, dtype=torch.float32, device=scales.device)
        if top is None:
            return (low + scales * (edge - low)).clamp_(max=edge)
        # The lowest score must be so low that the largest A comes out below the threshold.
        largest = scales.max().clamp_max(0.999)
        low = torch.minimum(low, (edge - largest * top) / (1 - largest))
        return (low + scales * (top - low)).clamp_(max=edge)


@METHODS.register("ksm")
@dataclass(frozen=True, kw_only=True)
class KSM(MaskMethod):
    """Effective weight `W ∘ (M + A)`: `M = 1[R >= τ]`, and `A = (1 - M) ∘ normal(R)` scales what `M` would drop (equations 4, 5).

    Equation 8 as printed is the probability of a *zero* (whence the minus sign in equation 10). Since the logit of σ (equation
    6) is `k (R - τ)`, that of the softmax is `(k/T) (R - τ)`: the probability of a one is `p = sigmoid((k/T) (R - τ))`, and
    the steepness k and the temperature T act only as `k/T`. The forward pass takes the one-hot code of p, the backward pass
    `∂M/∂R := ∂p/∂R = (k/T) p (1 - p)` (equations 7, 9, 10). Nothing is drawn at random.

    The paper gives neither `normal`, k, T, τ nor the start; the choices are explained below. The rows of its table 4:

    - Piggyback: granularity="element", soft=False, gradient="straight_through"
    - Piggyback - Ker-wise: granularity="kernel", soft=False, gradient="straight_through"
    - Piggyback - Soft: granularity="element", soft=True, gradient="straight_through"
    - Ours - Softmax: granularity="element", soft=False, gradient="softmax"
    - Ours - Ele-wise: granularity="element", soft=True, gradient="softmax"
    - Ours - Full: the defaults

    Attributes:
        granularity: a mask value for each k x k "kernel", or one for each "element".
        soft: whether there is an `A`; without it the mask is binary.
        gradient: of M by R: "softmax" as above; "straight_through" takes 1, as Piggyback does.
        through_scale: equations 9 and 10 send no gradient through the (1 - M) of A. Algorithm 1 under automatic
            differentiation does: `∂(M + A)/∂M = 1 - normal(R)`. True takes that factor along. It is 0 for a layer's highest
            score, so it needs scores that differ from the start on.
        normal: "max" is `R / max |R|` over the layer. It keeps sign and zero: a score near zero acts like a masked-out
            kernel, one far below like a kernel turned around, and from a fresh start (init = 2 τ) the first kernels that
            fall below τ jump from 1 to one half. "minmax" is `(R - min R) / (max R - min R)`: A is in [0, 1], never turns a
            kernel around, and the lowest score of a layer, whatever it is, acts like a masked-out kernel.
        steepness: k/T. Per default `(k/T) (init - τ) = 1`: p starts at 0.73, and the slope p (1 - p), 0.20 there, falls to a
            fortieth of its peak once a score is 0.025 from the threshold, so that scores settle on either side, which is
            the point of the softmax. Far smaller, p (1 - p) is constant and the gradient is the straight-through one again;
            far larger, it vanishes before a score gets to move. Adam is indifferent to the scale that the gradient gets
            ((k/T) p (1 - p) is 39 at the start, 50 at the threshold); for SGD divide the learning rate by it.
        threshold: τ, above 0. Piggyback's 5e-3.
        init: the starting score. Piggyback's 1e-2, the size that the paper names for scores.
        start: "ones" gives every score `init`; "uniform" draws from `U(2τ - init, init)`, about half of them ones.
    """

    granularity: Literal["kernel", "element"] = "kernel"
    soft: bool = True
    gradient: Literal["softmax", "straight_through"] = "softmax"
    through_scale: bool = False
    normal: Normal = "max"
    steepness: float = 200.0
    threshold: float = 5e-3
    init: float = 1e-2
    start: Literal["ones", "uniform"] = "ones"

    def __post_init__(self) -> None:
        one_of(f"{self.name} granularity", self.granularity, ("kernel", "element"))
        one_of(f"{self.name} gradient", self.gradient, ("softmax", "straight_through"))
        one_of(f"{self.name} normal", self.normal, ("max", "minmax"))
        one_of(f"{self.name} start", self.start, ("ones", "uniform"))
        for option, value in (("steepness", self.steepness), ("threshold", self.threshold), ("init", self.init)):
            if not 0 < value < math.inf:
                raise InputError(f"ksm {option}={value}: expected a finite number above 0")
        if not self.init > self.threshold:
            raise InputError(
                f"ksm init={self.init} is not above threshold={self.threshold}: every kernel would start scaled down; raise init"
            )
        if self.through_scale and not self.soft:
            raise InputError("ksm through_scale=True with soft=False: there is no scale; choose soft=True or through_scale=False")
        if self.through_scale and self.start == "ones":
            raise InputError(
                "ksm through_scale=True with start='ones': the highest scores of a layer, at first all, are normalised to 1, so"
                " the factor 1 - normal(R) of their gradient is 0 and nothing could be learned; choose start='uniform'"
            )

    @property
    def fresh_zero(self) -> float:
        """A score as far below the threshold as `init` is above."""
        return 2 * self.threshold - self.init

    def fresh_ones(self, score: Tensor) -> Tensor:
        """Fill `score` with what ones start with, and return it."""
        return score.fill_(self.init) if self.start == "ones" else fill_uniform(score, self.threshold, self.init)

    def create(self, layers: Mapping[str, Layer], bases: Mapping[str, Basis]) -> dict[str, Mask]:
        """One trainable mask a weight; scores are float32 whatever the weight's dtype."""
        kind = SoftKSMMask if self.soft else KSMMask
        return {name: kind(layer, self._start(layer), None, self) for name, layer in layers.items()}

    def _start(self, layer: Layer) -> Tensor:
        kernel_wise = self.granularity == "kernel"
        if self.start == "ones":
            return layer.empty_scores(kernel_wise=kernel_wise).fill_(self.init)
        return layer.uniform_scores(self.fresh_zero, self.init, kernel_wise=kernel_wise)

    def restore(
        self, stored: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, Layer], bases: Mapping[str, Basis]
    ) -> dict[str, Mask]:
        """Frozen masks from their bits and, of soft ones, the codes of their scales."""
        shapes = {n: x.mask_shape(kernel_wise=self.granularity == "kernel") for n, x in layers.items()}
        scale: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        if self.soft:
            scale = {"codes": (torch.uint8, (-1,)), "range": (torch.float32, (2,))}
        check_parts(stored, {name: {"mask": (torch.bool, tuple(shape)), **scale} for name, shape in shapes.items()})
        masks: dict[str, Mask] = {}
        for name, layer in layers.items():
            parts = {part: tensor.to(layer.weight.device) for part, tensor in stored[name].items()}
            if not self.soft:
                masks[name] = KSMMask(layer, None, parts["mask"], self)
                continue
            zeros = int((~parts["mask"]).sum())
            if len(parts["codes"]) != zeros:
                raise InputError(f"mask of {name}: {len(parts['codes'])} codes for {zeros} zeros: the task file is damaged")
            if not parts["range"].isfinite().all():
                raise InputError(f"mask of {name}: range {parts['range'].tolist()} is not finite: the task file is damaged")
            masks[name] = SoftKSMMask(layer, None, parts["mask"], self, parts["codes"], parts["range"])
        return masks
