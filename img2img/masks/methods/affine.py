"""Affine masks: a weighted sum of weight, constant, mask and masked weight (Mancini, Ricci, Caputo and Rota Bulò, 2018)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.masks.base import METHODS, Mask, MaskMethod, check_parts
from img2img.masks.basis import Basis
from img2img.masks.binary import BinaryMask
from img2img.masks.layers import Layer
from img2img.masks.methods.piggyback import below, select
from img2img.masks.tensors import as_factor, widened
from img2img.validation import one_of

Surrogate = Literal["identity", "sigmoid"]
K = ("k0", "k1", "k2", "k3")
"""The names of the four coefficients, in the order in which they are stored."""

_BELOW_ZERO = below(0.0)

START = (1.0, -0.03, 0.03, 0.0)
"""Start values of k0 to k3, k1 and k2 in units of the layer's mean `|W|`; the paper gives none for k1 to k3.

Masks start with ones, so with k1 = -k2 and k3 = 0 training starts at the backbone exactly. k2 is by how much a flipped bit
moves its weight, and with the paper's scores about half the bits flip within the first steps: too large, and that is a jump; too
small, and the scores' gradient `k2 G` nears Adam's epsilon until k2 has grown. At 0 the scores get none before k2 has moved.

Chosen by validation, the paper's scores, the full form: an ImageNet ResNet-18 on four domains of PACS (mean accuracy in %) and a
U-Net on clothes (mIoU) and street edges (MSE), means of three seeds, `suite/pacs` and `suite/ablation`, rows `affine_start_*`:

| k2 / mean abs W | 0.3 | 0.1 | 0.03 | 0.01 |
| --- | --- | --- | --- | --- |
| PACS | 77.6 | 87.0 | 87.3 | 87.0 |
| clothes | 0.304 | 0.318 | 0.331 | 0.328 |
| street edges | 917 | 966 | 961 | 993 |

It goes with the paper's scores. Scores that start 14 steps from flipping flip a tenth of the bits, and want larger coefficients:
0.3 against 0.03 gives 80.1 and 78.2 on PACS, 0.338 and 0.306 on clothes (test data, one seed).

As in the paper's figure 4 about half the weights end as ones, k1 and k2 differ in sign, and both grow with depth.
"""


def combine(weight: Tensor, mask: Tensor, k: Sequence[Tensor | float], out: Tensor) -> Tensor:
    """Write `k0 W + k1 1 + k2 M + k3 W∘M` (equation 2) into `out`, which is not `weight`, and return it.

    Training passes the scores and a frozen mask `M`; the arithmetic is the same, so that both give the same bits. `k1` is
    added before `k0 W`: where `k1 = -k2` and `k3 = 0` the ones of the mask give `W` exactly.

    Args:
        weight: `W`. Half precision is computed in float32 and rounded once.
        mask: `M`, bool, or the scores `R`, floating, for `M = 1[R >= 0]`; of W's shape.
        k: four coefficients that multiply W by broadcasting. Those that are numbers, 0 or 1, cost nothing.
        out: of W's shape and dtype.
    """
    if weight.dtype not in (torch.float32, torch.float64):
        wide = weight.float()
        return out.copy_(combine(wide, mask, k, torch.empty_like(wide)))
    k0, k1, k2, k3 = k
    if _is(k3, 0) and mask.dtype == out.dtype == torch.float32:  # see `piggyback.select`
        out.copy_(k2) if isinstance(k2, Tensor) else out.fill_(k2)
        torch.ops.aten.threshold_backward.grad_input(out, mask, _BELOW_ZERO, grad_input=out)
    elif _is(k3, 0):
        out = out.copy_(mask) if mask.dtype == torch.bool else torch.ge(mask, 0, out=out)
        out.mul_(k2)
    else:
        masked = weight if _is(k3, 1) else torch.mul(weight, k3, out=out)
        masked = masked if _is(k2, 0) else torch.add(masked, k2, out=out)
        if mask.dtype == out.dtype == torch.float32:  # see `piggyback.select`
            torch.ops.aten.threshold_backward.grad_input(masked, mask, _BELOW_ZERO, grad_input=out)
        else:
            torch.mul(masked, as_factor(mask if mask.dtype == torch.bool else mask >= 0), out=out)
    if not _is(k1, 0):
        out.add_(k1)
    if not _is(k0, 0):
        out.add_(weight if _is(k0, 1) else weight * k0)
    return out


def _is(k: Tensor | float, number: int) -> bool:
    return not isinstance(k, Tensor) and k == number


class _AffineWeight(torch.autograd.Function):
    """`combine` with the gradients `∂R = (k2 + k3 W) ∘ G ∘ h~'(R)` (section 3.2), `∂k0 = Σ G∘W`, `∂k1 = Σ G`, `∂k2 = Σ G∘M`
    and `∂k3 = Σ G∘W∘M`, summed over all that a coefficient multiplies. Of the weight's size, only W and R are saved.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        score: Tensor,
        layer: Layer,
        channel_wise: bool,
        sigmoid: bool,
        dtype: torch.dtype,
        *k: Tensor | float,
    ) -> Tensor:
        k = tuple(broadcast(layer, x) if isinstance(x, Tensor) else x for x in k)
        ctx.save_for_backward(weight, score, *(x if isinstance(x, Tensor) else None for x in k[2:]))
        ctx.layer, ctx.channel_wise, ctx.sigmoid = layer, channel_wise, sigmoid
        ctx.numbers = [None if isinstance(x, Tensor) else x for x in k[2:]]
        return combine(weight, score, k, torch.empty_like(weight, requires_grad=False)).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, score, *saved = ctx.saved_tensors
        k2, k3 = (number if tensor is None else tensor for tensor, number in zip(saved, ctx.numbers, strict=True))
        if weight.dtype not in (torch.float32, torch.float64):
            weight = weight.float()
        gradient, own = widened(grads[0], weight.dtype)

        def total(x: Tensor) -> Tensor:
            return ctx.layer.channel_sums(x) if ctx.channel_wise else x.sum().float()

        _, by_score, _, _, _, _, *by_k = ctx.needs_input_grad
        found: list[Tensor | None] = [None] * 4
        if by_k[0]:
            found[0] = total(gradient * weight)
        if by_k[1]:
            found[1] = total(gradient)
        room: Tensor | None = None  # a large tensor that is free to be written into; a fresh one costs more than the arithmetic
        if by_k[2] or by_k[3]:
            room = select(gradient, score, 0.0)
            found[2] = total(room) if by_k[2] else None
            found[3] = total(room.mul_(weight)) if by_k[3] else None
        if not by_score:
            return None, None, None, None, None, None, *found
        if _is(k3, 0):
            gradient = torch.mul(gradient, k2, out=gradient if own else room)
        elif _is(k3, 1) and _is(k2, 0):
            gradient = torch.mul(gradient, weight, out=gradient if own else room)
        else:
            gradient = torch.mul(weight, k3, out=room).add_(k2).mul_(gradient)
        gradient = gradient.float()
        if ctx.sigmoid:
            gradient = torch.ops.aten.sigmoid_backward(gradient, torch.sigmoid(score))
        return None, gradient, None, None, None, None, *found


def broadcast(layer: Layer, k: Tensor) -> Tensor:
    """A coefficient, the layer's or one an output channel, as what multiplies the weight."""
    return layer.per_channel(k) if k.ndim else k


class AffineMask(BinaryMask):
    """The binary mask of one weight and its four coefficients.

    Training has a parameter for each learned coefficient; `k` holds the others. Frozen, `k` holds all: float32, (4,), or
    float16, (4, out_channels).
    """

    effect = "selected"
    k: Tensor

    def __init__(self, layer: Layer, score: Tensor | None, mask: Tensor | None, k: Tensor, method: "Affine") -> None:
        super().__init__(layer, score, mask)
        # Of the layer the shape alone is used; the weight itself would be kept from moving, or from being freed.
        self.layer = replace(layer, weight=layer.weight.to("meta"))
        self.learned = method.learned_of(layer)
        self.numbers = method.numbers_of(layer)
        self.channel_wise = method.channel_wise
        self.exact = not method.channel_wise
        self.sigmoid = method.surrogate == "sigmoid"
        self.fresh_score = (method.score_low + method.score_high) / 2
        self.register_buffer("k", k)
        for name in K:
            self.register_parameter(name, None)
        if score is not None:
            self._learn(k)

    def _learn(self, k: Tensor) -> None:
        self.k = k.float()
        for name, value in zip(K, self.k, strict=True):
            if name in self.learned:
                setattr(self, name, nn.Parameter(value.clone(), requires_grad=True))

    def _held(self) -> dict[str, Tensor]:
        pairs = ((name, getattr(self, name), fixed) for name, fixed in zip(K, self.k, strict=True))
        return {name: fixed if learned is None else learned for name, learned, fixed in pairs}

    def values(self) -> dict[str, Tensor]:
        """`k0` to `k3`: float32, () each, or (out_channels,)."""
        return {name: k.detach().float() for name, k in self._held().items()}

    def ones(self, score: Tensor) -> Tensor:
        """`1[R >= 0]`."""
        return score >= 0

    def scores_for(self, mask: Tensor) -> Tensor:
        """The mean fresh score for ones, and its negative for zeros."""
        return torch.where(mask, self.fresh_score, -self.fresh_score)

    def effective(self, weight: Tensor) -> Tensor:
        """`k0 W + k1 1 + k2 M + k3 W∘M`; see `_AffineWeight` for the gradients."""
        return self.effective_as(weight, weight.dtype)

    def effective_as(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """`k0 W + k1 1 + k2 M + k3 W∘M`, rounded."""
        assert self.score is not None
        k = (self._held() | self.numbers).values()
        out: Tensor = _AffineWeight.apply(weight, self.score, self.layer, self.channel_wise, self.sigmoid, dtype, *k)
        return out

    def decode(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The effective weight, so that a switch of tasks only copies it: the sum takes five passes over the weights."""
        k = {name: broadcast(self.layer, k) for name, k in self.values().items()} | self.numbers
        (mask,) = super().decode(weight)
        return (combine(weight, mask, tuple(k.values()), torch.empty_like(weight, requires_grad=False)),)

    def write(self, weight: Tensor, decoded: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """`k0 W + k1 1 + k2 M + k3 W∘M`."""
        return out.copy_(decoded[0])

    def freeze(self) -> None:
        """Keep the mask, one bit each, and the coefficients."""
        if self.score is not None:
            k = torch.stack(list(self.values().values()))
            # float16, not bfloat16: an error of k1 or k2 shifts all the weights of a channel alike, and the sum over the inputs
            # adds it up (outputs moved by 0.1 % of their deviation, and 0.7 %, in a small net). The range is enough:
            # below 6e-5 the error stays at 3e-8, and weights are larger than that.
            self.k = k.half() if self.channel_wise else k
            for name in K:
                setattr(self, name, None)
        super().freeze()

    def stored(self) -> dict[str, Tensor]:
        """`{"mask": bool of the weight's shape, "k": (4,) float32 or (4, out_channels) float16}`."""
        return super().stored() | {"k": self.k}

    @torch.no_grad()
    def start_from(self, other: Mask) -> None:
        """Scores that give `other`'s mask; its coefficients too, where they are affine ones that can be taken over.

        They can when they are as many and those that are fixed here have the same values there: the effective weight is then
        `other`'s. Otherwise, as from a Piggyback mask, the coefficients stay as they are, and the mask acts through them.
        """
        mine = torch.stack(list(self.values().values()))
        if isinstance(other, AffineMask) and other.k.shape == mine.shape:
            theirs = torch.stack(list(other.values().values())).to(mine.device)
            fixed = [i for i, name in enumerate(K) if name not in self.learned]
            if torch.equal(theirs[fixed].half(), mine[fixed].half()):  # a frozen mask's may have been rounded
                mine = theirs
        super().start_from(other)
        self._learn(mine)


@METHODS.register("affine")
@dataclass(frozen=True, kw_only=True)
class Affine(MaskMethod):
    """Effective weight `k0 W + k1 1 + k2 M + k3 W∘M`, `M = 1[R >= 0]` (equation 2). The defaults are the paper's full form.

    The rows of the paper's table 5 are `learned` and `start`: full, all learned; simple (equation 3), `k3` not; simple
    without bias, `k2` alone, `start=(1, 0, 0, 0)`, the scores following once k2 has moved; Piggyback, none, `start=(0, 0, 0,
    1)`, and with `k1` learned.

    Attributes:
        learned: which coefficients are learned; the others keep their start value. `k0` is not learned where a normalisation
            follows (the paper), since the scale of the whole weight has no effect there.
        start: k0, k1, k2, k3; k1 and k2 in units of the layer's mean `|W|`. See `START` for why.
        channel_wise: coefficients of each output channel in place of the layer's; stored in half precision.
        surrogate: `h~` of section 3.2, whose derivative stands for that of the threshold.
        score_low: fresh scores are drawn from `U(score_low, score_high)`, the paper's; every mask starts with ones.
        score_high: see `score_low`.
    """

    learned: Sequence[str] = K
    start: Sequence[float] = START
    channel_wise: bool = False
    surrogate: Surrogate = "identity"
    score_low: float = 1e-4
    score_high: float = 2e-4

    def __post_init__(self) -> None:
        object.__setattr__(self, "learned", tuple(self.learned))  # a config gives lists, which have no hash
        object.__setattr__(self, "start", tuple(self.start))
        for name in self.learned:
            one_of(f"{self.name} learned", name, K)
        if len(set(self.learned)) < len(self.learned):
            raise InputError(f"affine learned={list(self.learned)}: name each coefficient once")
        numbers = [x for x in self.start if isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)]
        if len(self.start) != 4 or len(numbers) != 4:
            raise InputError(f"affine start={list(self.start)}: expected four finite numbers, for k0, k1, k2 and k3")
        if self.start[2] == self.start[3] == 0 and not {"k2", "k3"} & set(self.learned):
            raise InputError(
                f"affine learned={list(self.learned)}, start={list(self.start)}: k2 and k3 stay 0, so the mask has no effect; "
                "learn one of them, or start it elsewhere"
            )
        one_of(f"{self.name} surrogate", self.surrogate, ("identity", "sigmoid"))
        if not 0 < self.score_low <= self.score_high < math.inf:
            raise InputError(
                f"affine score_low={self.score_low}, score_high={self.score_high}: expected 0 < score_low <= score_high; scores "
                "below the threshold 0 would start with weights masked out"
            )

    @classmethod
    def simple(cls, **options: Any) -> Self:
        """Equation 3: no masked weight, `k3 = 0`."""
        return cls(learned=K[:3], **options)

    @classmethod
    def piggyback(cls, **options: Any) -> Self:
        """Equation 1 as a special case: `W ∘ M`."""
        return cls(learned=(), start=(0.0, 0.0, 0.0, 1.0), **options)

    def options(self) -> dict[str, Any]:
        """The options as plain JSON values."""
        return super().options() | {"learned": list(self.learned), "start": list(self.start)}

    def learned_of(self, layer: Layer) -> tuple[str, ...]:
        """The coefficients that are learned of `layer`."""
        return tuple(name for name in self.learned if not (name == "k0" and layer.normalised))

    def numbers_of(self, layer: Layer) -> dict[str, float]:
        """The coefficients of `layer` that stay 0 or 1."""
        learned = self.learned_of(layer)
        allowed = {"k0": (0, 1), "k1": (0,), "k2": (0,), "k3": (0, 1)}  # k1 and k2 have a unit
        return {n: float(x) for n, x in zip(K, self.start, strict=True) if n not in learned and x in allowed[n]}

    def create(self, layers: Mapping[str, Layer], bases: Mapping[str, Basis]) -> dict[str, Mask]:
        """One trainable mask a weight; scores and coefficients are float32, scores in the weight's memory format."""
        masks: dict[str, Mask] = {}
        for name, layer in layers.items():
            score = layer.uniform_scores(self.score_low, self.score_high)
            k = torch.tensor(self.start, dtype=torch.float32, device=score.device)
            k[1:3] *= layer.weight.abs().mean(dtype=torch.float32)
            k = k[:, None].repeat(1, layer.out_channels) if self.channel_wise else k
            masks[name] = AffineMask(layer, score, None, k, self)
        return masks

    def restore(
        self, stored: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, Layer], bases: Mapping[str, Basis]
    ) -> dict[str, Mask]:
        """Frozen masks from their bits and coefficients, one for each weight."""
        expected: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {}
        for name, layer in layers.items():
            numbers = (torch.float16, (4, layer.out_channels)) if self.channel_wise else (torch.float32, (4,))
            expected[name] = {"mask": (torch.bool, tuple(layer.weight.shape)), "k": numbers}
        check_parts(stored, expected)
        masks: dict[str, Mask] = {}
        for name, layer in layers.items():
            k = stored[name]["k"]
            if not k.isfinite().all():
                raise InputError(f"mask of {name}: a coefficient is not a finite number: the task file is damaged")
            for which, number in self.numbers_of(layer).items():
                if (k[K.index(which)] != number).any():
                    raise InputError(f"mask of {name}: {which} is not {number:g}, as the options say: the task file is damaged")
            mask, k = (x.to(layer.weight.device) for x in (stored[name]["mask"], k))
            masks[name] = AffineMask(layer, None, mask, k, self)
        return masks
