"""Sparse signs: `W + s ∘ T` with `T` in {-1, 0, 1}, trained from T = 0 (the form of ComPEFT; Yadav et al. 2023)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from img2img.errors import InputError
from img2img.masks.base import METHODS, Mask
from img2img.masks.basis import Basis
from img2img.masks.layers import Layer, number_of_ones
from img2img.masks.methods.piggyback import below
from img2img.masks.methods.signs import Signs, SignsMask, SignsMethod
from img2img.masks.methods.supsup import Cut, above, cuts_at, in_memory
from img2img.masks.ternary import TernaryMask
from img2img.validation import one_of

ShareOf = Literal["network", "layer"]


def sparse_signs(score: Tensor, cut: Cut) -> Tensor:
    """`1[R >= τ] - 1[R <= -τ]`, float32, τ the cut's score; of scores of exactly that size no more than its `ties`.

    By PyTorch's vectorised `x if |x| > t else 0`, for the float32 number `t` next below `τ`.
    """
    signs = torch.ops.aten.hardshrink(score, below(cut.score)).sign_()
    return signs if cut.ties is None else signs.mul_(above(score.abs(), cut))


class SparseSignsMask(SignsMask, TernaryMask):
    """The signs `1[R >= τ] - 1[R <= -τ]` of one weight.

    Attributes:
        cut: τ, or the higher one that leaves the method's `share`, as the method last set it.
    """

    effect = "moved"

    def __init__(
        self,
        layer: Layer,
        scale: Tensor,
        method: "SparseSigns",
        score: Tensor | None,
        mask: Tensor | None = None,
        negative: Tensor | None = None,
    ) -> None:
        super().__init__(layer, scale, score=score, mask=mask, negative=negative)
        self.threshold = method.threshold
        self.limited = method.share is not None
        self.cut = Cut(method.threshold)

    def signs(self) -> Signs:
        """`1[R >= τ] - 1[R <= -τ]`."""
        return partial(sparse_signs, cut=self.cut)

    def codes(self, score: Tensor) -> Tensor:
        """`T`, float32."""
        return sparse_signs(score, self.cut)

    def scores_for(self, mask: Tensor) -> Tensor:
        """As far above τ as fresh scores, which are 0, are below it.

        Under a `share` they differ by a thousandth at random: of more moved weights than it allows a random choice is kept.
        """
        size = torch.full(mask.shape, 2 * self.threshold, dtype=torch.float32, device=mask.device)
        if self.limited:
            size.mul_(torch.rand(mask.shape, dtype=torch.float32, device=mask.device).mul_(1e-3).add_(1))
        return torch.where(mask, size, 0.0)

    def set_signs(self, signs: Tensor, scale: Tensor) -> None:
        """See `SignsMask.set_signs`."""
        super().set_signs(signs, scale)
        self.negative, self.cut = None, Cut(self.threshold)


@METHODS.register("sparse_signs")
@dataclass(frozen=True, kw_only=True)
class SparseSigns(SignsMethod):
    """Effective weight `W + s ∘ T`, `T = 1[R >= τ] - 1[R <= -τ]`, with `∂R = s ∘ G` (straight through) and `∂s = Σ G ∘ T`.

    Scores start at 0, so T = 0 and training starts at the backbone exactly. s is trained at the rate of the scores.

    Attributes:
        threshold: τ, above 0. Over the learning rate it is the number of Adam steps of one sign that move a weight.
        scale: the start of s, in units of the mean `|W|` of what it scales.
        scale_per: one s an output "channel", or one a "layer".
        penalty_weight: λ of `λ mean(|R|) / τ` over all masked weights of the network, which the loss gets. It is never less than
            λ times the share of weights that move, and pulls every score towards 0 at the same rate. 0 for none.
        share: the largest share of the weights that may move, those with the largest `|R| >= τ`, or None for no bound. The
            number is `round(share * n)`, at least one; of equal scores the first in the order of the layers, and in row-major
            order within one, count as larger.
        share_of: what `share` is of: the "network", whose layers then compete by their scores as they are, or each "layer".
    """

    threshold: float = 5e-3
    scale: float = 0.3
    penalty_weight: float = 0.0
    share: float | None = None
    share_of: ShareOf = "network"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(f"{self.name} share_of", self.share_of, ("network", "layer"))
        if not 0 < self.threshold < math.inf:
            raise InputError(
                f"{self.name} threshold={self.threshold}: expected a finite number above 0, such as 5e-3; scores start at 0 and "
                "move their weights from there on"
            )
        if not 0 <= self.penalty_weight < math.inf:
            raise InputError(f"{self.name} penalty_weight={self.penalty_weight}: expected 0, for none, or above, such as 0.1")
        if self.share is not None and not 0 < self.share <= 1:
            raise InputError(
                f"{self.name} share={self.share}: expected a fraction above 0 and up to 1, such as 0.05, or None for no bound"
            )

    def create(self, layers: Mapping[str, Layer], bases: Mapping[str, Basis]) -> dict[str, Mask]:
        """One trainable mask a weight; scores and scales are float32, scores in the weight's memory format."""
        return {name: SparseSignsMask(x, self.scales(x), self, x.empty_scores().zero_()) for name, x in layers.items()}

    def restore(
        self, stored: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, Layer], bases: Mapping[str, Basis]
    ) -> dict[str, Mask]:
        """Frozen masks from their signs and scales, one for each weight."""
        self.check(stored, layers, signs=True)
        masks: dict[str, Mask] = {}
        for name, layer in layers.items():
            parts = {part: tensor.to(layer.weight.device) for part, tensor in stored[name].items()}
            masks[name] = SparseSignsMask(layer, parts["scale"], self, None, parts["mask"], parts["negative"])
        return masks

    def prepare(self, masks: Mapping[str, Mask]) -> None:
        """Set the cuts: τ, or the score that leaves `share`."""
        trained = [m for m in masks.values() if isinstance(m, SparseSignsMask) and m.score is not None]
        if self.share is None or not trained:
            return
        for group in [trained] if self.share_of == "network" else [[mask] for mask in trained]:
            cuts = self._cuts([in_memory(mask.score.detach()) for mask in group if mask.score is not None])
            for mask, cut in zip(group, cuts, strict=True):
                mask.cut = cut

    def _cuts(self, scores: list[Tensor]) -> list[Cut]:
        """The cut of each of several vectors of scores. Those below τ, which are most, are not sorted."""
        assert self.share is not None
        allowed, lowest = number_of_ones(self.share, sum(map(len, scores))), below(self.threshold)
        moving: list[Tensor] = []
        if scores[0].device.type == "cpu":
            values = [vector.numpy() for vector in scores]  # three times as fast as PyTorch's comparisons
            reach = [(vector > lowest) | (vector < -lowest) for vector in values]
            if sum(map(np.count_nonzero, reach)) >= allowed:
                moving = [torch.from_numpy(np.abs(vector[at])) for vector, at in zip(values, reach, strict=True)]
        else:
            sizes = [vector.abs() for vector in scores]
            moving = [vector[vector > lowest] for vector in sizes]
        fewer = sum(map(len, moving)) < allowed
        return [Cut(self.threshold)] * len(scores) if fewer else cuts_at(moving, allowed)

    def penalty(self, masks: Mapping[str, Mask]) -> Tensor | None:
        """`λ mean(|R|) / τ`; None when λ is 0."""
        scores = [mask.score for mask in masks.values() if isinstance(mask, SparseSignsMask) and mask.score is not None]
        if self.penalty_weight == 0 or not scores:
            return None
        total = torch.stack([torch.linalg.vector_norm(score, 1) for score in scores]).sum()
        return total * (self.penalty_weight / (self.threshold * sum(score.numel() for score in scores)))
