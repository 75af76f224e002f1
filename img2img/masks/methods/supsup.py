"""SupSup: binary masks of a fixed density, the top scores (edge-popup; Ramanujan et al. 2020, Wortsman et al. 2020)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from img2img.errors import InputError
from img2img.masks.base import METHODS, Mask, MaskMethod, check_parts
from img2img.masks.basis import Basis
from img2img.masks.binary import BinaryMask
from img2img.masks.layers import Layer, erdos_renyi, number_of_ones
from img2img.masks.tensors import as_factor
from img2img.validation import one_of

Allocation = Literal["layer", "global", "erdos_renyi"]
_SAMPLE = 1 << 14  # values that say where about a cut lies


class Cut(NamedTuple):
    """Where the scores are cut: ones are above `score`; of those that equal it the first `ties` in row-major order, or all."""

    score: float
    ties: int | None = None


def cut_at(scores: Tensor, count: int) -> Cut:
    """The cut that leaves exactly `count` ones among `scores`, a vector; 1 <= count <= its length."""
    rest = len(scores) - count
    if scores.device.type == "cpu":
        # Partitioned by NumPy: ten times as fast as PyTorch's kthvalue and topk.
        near, left = _around(scores.numpy(), rest)
        parted = np.partition(near, left)
        lowest = parted[left]
        tied = left > 0 and bool(parted[:left].max() == lowest)
        return Cut(float(lowest), int((parted[left:] == lowest).sum()) if tied else None)
    top = scores.topk(count, sorted=False).values
    smallest = top.min()
    tied = int((scores >= smallest).sum()) > count
    return Cut(smallest.item(), int((top == smallest).sum()) if tied else None)


def _around(values: np.ndarray, rank: int) -> tuple[np.ndarray, int]:
    """Values among which the one of `rank` in ascending order is, with all that equal it, and its rank among them.

    A sample says between which values it almost certainly lies (Floyd and Rivest 1975), so that only a few per cent are left
    to be partitioned. Where the sample misleads, as an order in the values can make it, all values are returned.
    """
    every = len(values) // _SAMPLE
    if every < 8:
        return values, rank
    sample = np.sort(values[::every])
    share = rank / len(values)
    middle, error = share * len(sample), 4 * math.sqrt(len(sample) * share * (1 - share)) + 1
    low = sample[int(middle - error)] if middle >= error else -np.inf
    high = sample[int(middle + error)] if middle + error < len(sample) else np.inf
    below = int(np.count_nonzero(values < low))
    near = values[(values >= low) & (values <= high)]
    return (near, rank - below) if below <= rank < below + len(near) else (values, rank)


def cuts_at(scores: Sequence[Tensor], count: int) -> list[Cut]:
    """The cut of each of several vectors, all at one score, that leaves `count` ones together. Ties count in their order."""
    cut = cut_at(torch.cat(list(scores)), count)
    if cut.ties is None:
        return [cut] * len(scores)
    left, cuts = cut.ties, []
    for values in scores:
        tied = int((values == cut.score).sum())
        here = min(left, tied)
        cuts.append(Cut(cut.score, None if here == tied else here))  # None is found faster
        left -= here
    return cuts


def above(scores: Tensor, cut: Cut) -> Tensor:
    """The mask that `cut` makes of `scores`: bool, in their shape and memory format."""
    if cut.ties is None:
        return scores >= cut.score
    mask = scores > cut.score
    # nonzero lists in the order of the indices, whatever the strides.
    first = (scores == cut.score).nonzero()[: cut.ties]
    mask[tuple(first.unbind(1))] = True
    return mask


def in_memory(scores: Tensor) -> Tensor:
    """The values as a vector in the order in which they lie in memory: no copy, in any memory format."""
    axes = sorted(range(scores.ndim), key=scores.stride, reverse=True)
    return scores.permute(axes).reshape(-1)


class _TopWeight(torch.autograd.Function):
    """`W ∘ M`, with the straight-through gradient `∂L/∂R := ∂L/∂M = ∂L/∂(W ∘ M) ∘ W`; nothing but `W` is saved for it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, score: Tensor, cut: Cut) -> Tensor:
        ctx.save_for_backward(weight)
        plain = score.dtype == weight.dtype == torch.float32 and score.stride() == weight.stride()
        if plain and cut.ties is None:
            # where(R > t, W, 0) in one vectorised pass, for the t next below the lowest score kept.
            below = np.nextafter(np.float32(cut.score), np.float32(-math.inf)).item()
            return torch.ops.aten.threshold_backward(weight, score, below)
        return weight * as_factor(above(score, cut))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        (weight,) = ctx.saved_tensors
        return None, (grads[0] * weight).float(), None


class TopKMask(BinaryMask):
    """The binary mask of one weight: its `count` highest scores, or those above `cut`, which the method sets, if that is None."""

    def __init__(self, layer: Layer, score: Tensor | None, mask: Tensor | None, count: int | None) -> None:
        super().__init__(layer, score, mask)
        self.bound = 1 / math.sqrt(layer.fan_in)
        self.count = count
        self.cut = Cut(0.0)

    def find_cut(self) -> Cut:
        """The cut of the scores as they are now; of one of the whole network as they were when the method last set it."""
        if self.count is None:
            return self.cut
        assert self.score is not None
        return cut_at(in_memory(self.score.detach()), self.count)

    def ones(self, score: Tensor) -> Tensor:
        """`M`: exactly `count` ones, ties to the first in row-major order."""
        return above(score, self.find_cut())

    def scores_for(self, mask: Tensor) -> Tensor:
        """`±U(0, 1 / sqrt(fan_in)]`, the size of a fresh score, positive for ones and negative for zeros.

        The top scores are `mask` when it has as many ones as this method keeps. Of more ones a random choice is kept, and of
        fewer all, and a random choice of the zeros with them.
        """
        # 1 - [0, 1), since a score of exactly 0 would be neither. Not in mask's memory format: the draw must not depend on it.
        size = torch.rand(mask.shape, dtype=torch.float32, device=mask.device).neg_().add_(1).mul_(self.bound)
        return torch.where(mask, size, -size)

    def start_from(self, other: Mask) -> None:
        """Scores that give `other`'s mask, see `scores_for`."""
        super().start_from(other)
        self.cut = Cut(0.0)

    def effective(self, weight: Tensor) -> Tensor:
        """`W ∘ M`; the gradient of the loss by the score is the one by the effective weight, times `W`."""
        out: Tensor = _TopWeight.apply(weight, self.score, self.find_cut())
        return out

    def write(self, weight: Tensor, decoded: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """`W ∘ M`."""
        return torch.mul(weight, as_factor(decoded[0]), out=out)


@METHODS.register("supsup")
@dataclass(frozen=True, kw_only=True)
class SupSup(MaskMethod):
    """Effective weight `W ∘ M`, `M` one for the highest scores, straight-through gradient `∂L/∂R = ∂L/∂(W ∘ M) ∘ W`.

    Made for a random backbone, see `random_weights.randomise`. Scores start at `U(-1, 1) / sqrt(fan_in)` (Kaiming uniform,
    `a = sqrt 5`). As in the text of SupSup and of ImpressLearn (section 3: "setting the top s fraction of scores in S to 1")
    scores are compared with their sign; the published code of SupSup compares their absolute values instead.

    Attributes:
        density: the fraction of ones in (0, 1], which ImpressLearn and SupSup call sparsity; they use 0.05 to 0.5. The number
            of ones is `round(density * n)`, never less than one, and exact: of equal scores the first in row-major order
            count as higher. (The published code keeps `n - int((1 - density) * n)`, which rounding errors move by one.)
        allocation: where the ones are.
            "layer": the same density in every layer (the papers).
            "erdos_renyi": a density for each layer in proportion to `(sum of its weight's axes) / (their product)`, at most
            1, so that the whole network has `density`: Erdős-Rényi-Kernel (Evci et al. 2020, RigL), which keeps more of
            small layers.
            "global": the highest scores of the whole network, as they are. A fresh score's size is `1 / sqrt(fan_in)`, so
            layers of small fan-in start with up to half their weights kept and those of the largest with few or none; and two
            layers in a row without a single one get no gradient, unless something leads around them.
    """

    density: float = 0.1
    allocation: Allocation = "layer"

    def __post_init__(self) -> None:
        one_of(f"{self.name} allocation", self.allocation, ("layer", "global", "erdos_renyi"))
        if not 0 < self.density <= 1:
            raise InputError(f"supsup density={self.density}: expected a fraction of ones above 0 and up to 1, such as 0.1")

    def counts(self, layers: Mapping[str, Layer]) -> dict[str, int | None]:
        """How many ones each layer's mask has; None where the scores of the whole network decide."""
        sizes = {name: layer.weight.numel() for name, layer in layers.items()}
        if self.allocation == "global":
            return dict.fromkeys(sizes)
        densities = dict.fromkeys(sizes, self.density)
        if self.allocation == "erdos_renyi":
            densities = erdos_renyi({name: layer.weight.shape for name, layer in layers.items()}, self.density)
        return {name: number_of_ones(densities[name], size) for name, size in sizes.items()}

    def create(self, layers: Mapping[str, Layer], bases: Mapping[str, Basis]) -> dict[str, Mask]:
        """One trainable mask a weight; scores are float32 whatever the weight's dtype, in the weight's memory format."""
        counts = self.counts(layers)
        masks: dict[str, Mask] = {}
        for name, layer in layers.items():
            bound = 1 / math.sqrt(layer.fan_in)
            masks[name] = TopKMask(layer, layer.uniform_scores(-bound, bound), None, counts[name])
        self.prepare(masks)
        return masks

    def restore(
        self, stored: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, Layer], bases: Mapping[str, Basis]
    ) -> dict[str, Mask]:
        """Frozen masks from their bits, one for each weight."""
        check_parts(stored, {name: {"mask": (torch.bool, tuple(layer.weight.shape))} for name, layer in layers.items()})
        counts = self.counts(layers)
        return {n: TopKMask(layer, None, stored[n]["mask"].to(layer.weight.device), counts[n]) for n, layer in layers.items()}

    def prepare(self, masks: Mapping[str, Mask]) -> None:
        """Set the cut of "global", one score for all layers. Ties count in the order of the layers."""
        trained = [m for m in masks.values() if isinstance(m, TopKMask) and m.score is not None]
        if self.allocation != "global" or not trained:
            return
        scores = [in_memory(m.score.detach()) for m in trained if m.score is not None]
        cuts = cuts_at(scores, number_of_ones(self.density, sum(map(len, scores))))
        for mask, cut in zip(trained, cuts, strict=True):
            mask.cut = cut
