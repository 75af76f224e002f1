"""ImpressLearn: linear combinations of masks that tasks share ("Continual learning via combined task impressions", 2022)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.masks.base import METHODS, Mask, MaskMethod, check_parts
from img2img.masks.basis import Basis
from img2img.masks.layers import Layer
from img2img.masks.methods.supsup import SupSup


class ImpressMask(Mask):
    """The coefficients `α` of one weight, (K,) float32, before and after freezing; the masks are the basis's."""

    def __init__(self, weight_name: str, basis: Basis, alpha: Tensor, *, frozen: bool) -> None:
        super().__init__()
        self.weight_name = weight_name
        self._basis = (basis,)  # in a tuple, so that it is not registered: its masks are not the task's own
        self.alpha = nn.Parameter(alpha, requires_grad=not frozen)
        self.frozen = frozen

    @property
    def basis(self) -> Basis:
        """The masks that `α` combines, shared with all tasks that use them."""
        return self._basis[0]

    def effective(self, weight: Tensor) -> Tensor:
        """`W ∘ Σ_i α_i M_i`, with the gradient `∂L/∂α_i = Σ M_i ∘ W ∘ ∂L/∂Weff`."""
        return self.basis.combine(self.weight_name, self.alpha, weight)

    def decode(self, weight: Tensor) -> tuple[Tensor, ...]:
        """`Σ_i α_i M_i`, float32."""
        multiplier = self.basis.multiplier(self.weight_name, self.alpha.detach())
        if multiplier.stride() == weight.stride():
            return (multiplier,)
        return (torch.empty_like(weight, dtype=torch.float32, requires_grad=False).copy_(multiplier),)

    def write(self, weight: Tensor, decoded: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """`W ∘ Σ_i α_i M_i`."""
        return torch.mul(weight, decoded[0], out=out)

    def freeze(self) -> None:
        """Train no further; the coefficients are few and stay as they are."""
        self.alpha.requires_grad_(False)
        self.frozen = True

    def stored(self) -> dict[str, Tensor]:
        """`{"alpha": (K,) float32}`; a task's file names the basis for all of them."""
        self.freeze()
        return {"alpha": self.alpha.detach().clone()}

    def binary(self) -> None:
        """None: the combined mask is real-valued."""
        return None

    def values(self) -> dict[str, Tensor]:
        """`{"alpha": (K,)}`."""
        return {"alpha": self.alpha.detach()}

    @torch.no_grad()
    def start_from(self, other: Mask) -> None:
        """The coefficients of another combination of the same basis."""
        if not isinstance(other, ImpressMask):
            raise InputError(
                f"a {type(other).__name__} has no coefficients to start from: choose a task of impresslearn, or none "
                "(start_from=None)"
            )
        if other.basis.sha256 != self.basis.sha256:
            raise InputError(
                f"the coefficients are of the basis {other.basis.sha256[:12]}…, this task's is {self.basis.sha256[:12]}…: "
                "choose a task of the same basis to start from, or none (start_from=None)"
            )
        self.alpha = nn.Parameter(other.alpha.detach().clone())
        self.frozen = False


@METHODS.register("impresslearn")
@dataclass(frozen=True, kw_only=True)
class ImpressLearn(MaskMethod):
    """Effective weight `Σ_i α_i (M_i ∘ W)` with one `α` for each mask of a basis and each weight (equation 1).

    `α = 1 / K` at the start, "a uniform prior on the distribution of the α-coefficients per layer". A task adds `K` numbers a
    weight; the masks are the network's, see `Basis` and `MaskedNetwork.add_basis`: of different tasks (heterogeneous), of one
    task from several seeds (homogeneous), or random.

    Attributes:
        basis: the name under which the network has the basis.
        penalty_weight: λ of `λ Σ_layers (Σ_i |α_i| - 1)²`, which the loss gets (equation 2); the paper has 0 for MNIST and 0.005
            for CIFAR and ImageNet.
        hybrid: the last masked weight, in the order of the backbone, gets an edge-popup mask of the task's own in place of
            coefficients (appendix A.5).
        hybrid_density: the fraction of ones of that mask, see `SupSup`; not used otherwise.
    """

    basis: str
    penalty_weight: float = 0.0
    hybrid: bool = False
    hybrid_density: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.penalty_weight < math.inf:
            raise InputError(f"impresslearn penalty_weight={self.penalty_weight}: expected 0, for none, or above, such as 0.005")
        if not 0 < self.hybrid_density <= 1:
            raise InputError(
                f"impresslearn hybrid_density={self.hybrid_density}: expected a fraction of ones above 0 and up to 1, such as 0.1"
            )

    def basis_name(self) -> str:
        """The name of the basis."""
        return self.basis

    def create(self, layers: Mapping[str, Layer], bases: Mapping[str, Basis]) -> dict[str, Mask]:
        """One trainable mask a weight."""
        basis = self._find(bases, layers)
        combined, last = self._split(layers)
        masks: dict[str, Mask] = {}
        for name, layer in combined.items():
            alpha = torch.full((basis.count,), 1 / basis.count, dtype=torch.float32, device=layer.weight.device)
            masks[name] = ImpressMask(name, basis, alpha, frozen=False)
        return masks | (self._supsup().create(last, bases) if last else {})

    def restore(
        self, stored: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, Layer], bases: Mapping[str, Basis]
    ) -> dict[str, Mask]:
        """Frozen masks from their coefficients.

        Raises:
            InputError: also when the network's basis is missing or does not fit. That it is the one that the task was trained
                with is checked by what reads the task's file, which has the basis's SHA-256.
        """
        basis = self._find(bases, layers)
        combined, last = self._split(layers)
        rest = {name: parts for name, parts in stored.items() if name not in last}
        check_parts(rest, {name: {"alpha": (torch.float32, (basis.count,))} for name in combined})
        masks: dict[str, Mask] = {}
        for name, layer in combined.items():
            alpha = stored[name]["alpha"].to(layer.weight.device, copy=True)
            masks[name] = ImpressMask(name, basis, alpha, frozen=True)
        of_last = {name: parts for name, parts in stored.items() if name in last}
        return masks | (self._supsup().restore(of_last, last, bases) if last else {})

    def penalty(self, masks: Mapping[str, Mask]) -> Tensor | None:
        """`λ Σ_layers (Σ_i |α_i| - 1)²` (equation 2); None when λ is 0."""
        alphas: list[Tensor] = [mask.alpha for mask in masks.values() if isinstance(mask, ImpressMask)]
        if self.penalty_weight == 0 or not alphas:
            return None
        return self.penalty_weight * (torch.stack(alphas).abs().sum(1) - 1).square().sum()

    def _split(self, layers: Mapping[str, Layer]) -> tuple[dict[str, Layer], dict[str, Layer]]:
        """The weights with coefficients, and the last one if it has an edge-popup mask in their place."""
        names = list(layers)
        last = names[-1:] if self.hybrid else []
        return {n: layers[n] for n in names if n not in last}, {n: layers[n] for n in last}

    def _supsup(self) -> SupSup:
        return SupSup(density=self.hybrid_density)

    def _find(self, bases: Mapping[str, Basis], layers: Mapping[str, Layer]) -> Basis:
        if self.basis not in bases:
            raise InputError(
                f"impresslearn basis={self.basis!r}: this network has {sorted(bases) or 'none'}; add_basis it first, made by "
                "basis_of_tasks, Basis.random or Basis.load"
            )
        basis = bases[self.basis]
        for name, layer in layers.items():
            if basis.shape(name) != layer.weight.shape:
                raise InputError(
                    f"impresslearn basis={self.basis!r} has masks of shape {tuple(basis.shape(name))} for {name}, which is "
                    f"{tuple(layer.weight.shape)}: make the basis from the network it is used in"
                )
        return basis
