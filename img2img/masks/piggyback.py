"""Piggyback: binary masks learned through thresholded scores (Mallya, Davis and Lazebnik, ECCV 2018)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.masks.base import Mask, MaskMethod, pack_bits, unpack_bits


class _ThresholdedWeight(torch.autograd.Function):
    """`W ∘ 1[R >= τ]` with the straight-through gradient `∂L/∂R := ∂L/∂M = ∂L/∂(W ∘ M) ∘ W` (equations 4 and 7).

    A function of its own because it saves nothing but `W`, which exists anyway, and because the usual idiom
    `hard + R - R.detach()` is not exact in floating point.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, score: Tensor, threshold: float) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.score_dtype = score.dtype
        return torch.where(score >= threshold, weight, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        (weight,) = ctx.saved_tensors
        return None, (grads[0] * weight).to(ctx.score_dtype), None


class PiggybackMask(Mask):
    """The mask of one weight: `score` (float32, the weight's shape) while training, `bits` (packed uint8) once frozen."""

    bits: Tensor | None

    def __init__(self, score: Tensor | None, bits: Tensor | None, shape: torch.Size, threshold: float) -> None:
        super().__init__()
        self.shape = shape
        self.threshold = threshold
        self.score = None if score is None else nn.Parameter(score)
        self.register_buffer("bits", bits)

    def forward(self, weight: Tensor) -> Tensor:
        """`W ∘ M`; the gradient of the loss by the score is the one by the effective weight, times `W`."""
        if self.score is None:
            # In the weight's own memory format, or the result's strides, and with them the kernels, would differ from training's.
            mask = torch.empty_like(weight, dtype=torch.bool, requires_grad=False).copy_(self.binary())
            return torch.where(mask, weight, 0.0)
        return _ThresholdedWeight.apply(weight, self.score, self.threshold)

    def freeze(self) -> None:
        """Keep `1[R >= τ]`, one bit a weight, and drop the scores."""
        if self.score is not None:
            self.bits = pack_bits(self.binary())
            self.score = None

    def stored(self) -> dict[str, Tensor]:
        """`{"bits": (ceil(n / 8),) uint8}`, row-major, first bit lowest."""
        self.freeze()
        assert self.bits is not None
        return {"bits": self.bits}

    def binary(self) -> Tensor:
        """`M`, bool."""
        if self.score is not None:
            return self.score.detach() >= self.threshold
        assert self.bits is not None
        return unpack_bits(self.bits, self.shape)


@dataclass(frozen=True, kw_only=True)
class Piggyback(MaskMethod):
    """Effective weight `W ∘ M`, `M = 1[R >= τ]`, straight-through gradient (Piggyback, equations 4 and 7).

    Attributes:
        threshold: τ. The paper's 5e-3.
        init: the starting score, 1e-2 in the paper. `init - threshold` over the learning rate is about the number of Adam
            steps of one sign that flip a bit: fifty for 1e-4, five for 1e-3.
        start: "ones" gives every score `init` (the paper: every weight is kept at the start); "uniform" draws from
            `U(2τ - init, init)`, symmetric around τ, so that about half the weights are kept (what the poster's mask
            similarities near 0.5 imply).
    """

    name: ClassVar[str] = "piggyback"
    threshold: float = 5e-3
    init: float = 1e-2
    start: Literal["ones", "uniform"] = "ones"

    def __post_init__(self) -> None:
        if self.start not in ("ones", "uniform"):
            raise InputError(f"piggyback start={self.start!r}: expected 'ones' or 'uniform'")
        if not self.init > self.threshold:
            raise InputError(
                f"piggyback init={self.init} is not above threshold={self.threshold}: every weight would start masked out "
                "and get no gradient; raise init"
            )

    def create(self, weights: Mapping[str, Tensor]) -> dict[str, Mask]:
        """One trainable mask a weight; scores are float32 whatever the weight's dtype, in the weight's memory format."""
        return {name: PiggybackMask(self._start(w), None, w.shape, self.threshold) for name, w in weights.items()}

    def _start(self, weight: Tensor) -> Tensor:
        score = torch.empty_like(weight, dtype=torch.float32, requires_grad=False)
        if self.start == "ones":
            return score.fill_(self.init)
        return score.uniform_(2 * self.threshold - self.init, self.init)

    def restore(self, stored: Mapping[str, Mapping[str, Tensor]], weights: Mapping[str, Tensor]) -> dict[str, Mask]:
        """Frozen masks from packed bits, one for each of `weights`."""
        if stored.keys() != weights.keys():
            odd = sorted(stored.keys() ^ weights.keys())
            raise InputError(f"masks do not match the backbone's weights: {odd[:3]} are on one side only")
        for name, weight in weights.items():
            bits = stored[name].get("bits")
            expected = (weight.numel() + 7) // 8
            if bits is None or len(stored[name]) != 1 or bits.dtype != torch.uint8 or bits.shape != (expected,):
                raise InputError(f"mask of {name}: expected {expected} bytes of packed bits, got {dict(stored[name]).keys()}")
        return {
            name: PiggybackMask(None, stored[name]["bits"].to(w.device), w.shape, self.threshold) for name, w in weights.items()
        }
