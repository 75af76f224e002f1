"""Changes of a weight by channels: (IA)³, deep adaptation networks and residual adapters.

A bias, which a selection may name, is a weight of one column, see `Layer.as_matrix`; otherwise it is the backbone's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from img2img.masks.base import METHODS
from img2img.masks.layers import Layer
from img2img.masks.methods.lora import AddedMask
from img2img.masks.real_valued import RealValuedMask, RealValuedMethod
from img2img.validation import one_of


class IA3Mask(RealValuedMask):
    """The factors `g` (out_channels,) of one weight."""

    def change(self, weight: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """`g ∘ W`."""
        return weight * self.layer.per_channel(values["g"])

    def values(self) -> dict[str, Tensor]:
        """`{"g": (out_channels,)}`."""
        return {"g": self.get_parameter("g").detach().float()}


class MixingMask(RealValuedMask):
    """How one weight's output filters are mixed: `A` (groups, outputs of a group, outputs of a group)."""

    def change(self, weight: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """`W + A W`, group by group. Where A is 0 the result is W exactly, however coarse the device multiplies."""
        filters = self.layer.as_matrix(weight).unflatten(0, (self.layer.groups, -1))
        return weight + self.layer.from_matrix((values["A"].to(filters.dtype) @ filters).flatten(0, 1))

    def values(self) -> dict[str, Tensor]:
        """`{"A": ()}`, the root mean square of A."""
        return {"A": self.get_parameter("A").detach().float().square().mean().sqrt()}


class CentreMask(AddedMask):
    """What one weight gets at the middle tap of its kernel: `A` (out_channels, inputs of a group)."""

    def delta(self, values: Mapping[str, Tensor]) -> Tensor:
        """`A` at the middle tap, 0 at the others."""
        kernel = self.layer.weight.shape[self.layer.weight.ndim - self.layer.kernel_dims :]
        middle = 0
        for size in kernel:
            middle = middle * size + (size - 1) // 2
        delta = values["A"].new_zeros(*values["A"].shape, self.layer.taps)
        delta[..., middle] = values["A"]
        return delta.flatten(1)


@METHODS.register("ia3")
@dataclass(frozen=True, kw_only=True)
class IA3(RealValuedMethod):
    """Effective weight `g ∘ W`, a factor for each output channel, 1 at the start ((IA)³, Liu et al., NeurIPS 2022).

    Biases are not scaled unless they are selected, as in LyCORIS; PEFT scales a layer's output with its bias. Where a batch
    normalisation follows, a factor has no effect while it is trained.
    """

    kind = IA3Mask

    def start(self, layer: Layer) -> dict[str, Tensor]:
        """`g` (out_channels,)."""
        return {"g": torch.ones(layer.out_channels, dtype=torch.float32, device=layer.weight.device)}


def _mixing(layer: Layer) -> dict[str, Tensor]:
    outputs = layer.out_channels // layer.groups
    return {"A": torch.zeros(layer.groups, outputs, outputs, dtype=torch.float32, device=layer.weight.device)}


@METHODS.register("dan")
@dataclass(frozen=True, kw_only=True)
class DAN(RealValuedMethod):
    """Effective weight `D W`, D square over the output filters, identity at the start (Rosenfeld and Tsotsos, TPAMI 2018).

    A grouped convolution mixes filters within each group, or the result would be no grouped convolution. What is trained and
    stored is `A = D - I`: training starts at the backbone exactly, and half precision is finer near 0 than near 1.

    The paper gives each task biases of its own, too. Here they are the backbone's, unless the selection names them:
    `Mixed(method=DAN(), trainable_copies=["*.bias"])` then is the paper's form. A normalisation that follows, the task's own, has
    such a bias already.
    """

    kind = MixingMask

    def start(self, layer: Layer) -> dict[str, Tensor]:
        """`A` (groups, outputs of a group, outputs of a group)."""
        return _mixing(layer)


@METHODS.register("residual_adapter")
@dataclass(frozen=True, kw_only=True)
class ResidualAdapter(RealValuedMethod):
    """A convolution of 1 x 1 beside each layer's own or after it (Rebuffi, Bilen and Vedaldi, NeurIPS 2017 and CVPR 2018).

    Parallel: `y = W * x + A * x` is a layer of the weight `W + centre(A)`, A (outputs, inputs of a group) added at the middle tap
    of the kernel. Of n taps along an axis that is tap `(n - 1) // 2`, the first of the middle two where n is even. With as much
    padding it reads the position that a convolution of 1 x 1 of the same stride reads; in a transposed one it writes it. A layer
    of one tap, or without a kernel, gets an A of the weight's size: `target_weights` leaves such layers out.

    Series: `y = (I + A) (W * x)` is a layer of the weight `(I + A) W`, within each group of a grouped convolution. It is `DAN`'s
    map. A normalisation between the two, as the 2017 paper has it, is no map of a weight.

    A is 0 at the start, so that training starts at the backbone exactly.

    Attributes:
        form: "parallel" or "series".
    """

    form: Literal["parallel", "series"] = "parallel"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(f"{self.name} form", self.form, ("parallel", "series"))

    @property
    def kind(self) -> type[RealValuedMask]:  # type: ignore[override]
        """The masks of the form."""
        return CentreMask if self.form == "parallel" else MixingMask

    def start(self, layer: Layer) -> dict[str, Tensor]:
        """`A`."""
        if self.form == "series":
            return _mixing(layer)
        return {"A": torch.zeros(layer.out_channels, layer.inputs, dtype=torch.float32, device=layer.weight.device)}
