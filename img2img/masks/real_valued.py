"""What masks made of real values share: float32 parameters while they are trained, half precision once frozen."""

import fnmatch
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.masks.base import Mask, MaskMethod, Parts, check_parts
from img2img.masks.basis import Basis
from img2img.masks.layers import Layer


class RealValuedMask(Mask):
    """A change of one weight by a few real-valued tensors, which are the mask's parameters, by their names.

    They are trained in float32 whatever the weight's type, and rounded to float16 once, when the mask is frozen: by less than
    0.05 %, where bfloat16 would move them by up to 0.4 %. Subclasses say how they change the weight. Training and a frozen mask
    compute in the same way: in float32 for a weight in half precision (the result is rounded once), in no autocast region.
    """

    exact = False

    def __init__(self, layer: Layer, values: Mapping[str, Tensor], *, frozen: bool, scale: float = 1.0) -> None:
        """`values` by name, to be trained or `frozen`; `scale` multiplies a product of them, see `RealValuedMethod.scale`."""
        super().__init__()
        # Of the layer the shape alone is used; the weight itself would be kept from moving, or from being freed.
        self.layer = replace(layer, weight=layer.weight.to("meta"))
        self.scale = scale
        self._hold(values, frozen=frozen)

    def _hold(self, values: Mapping[str, Tensor], *, frozen: bool) -> None:
        dtype = torch.float16 if frozen else torch.float32
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(value.to(dtype), requires_grad=not frozen))
        self.frozen = frozen

    @abstractmethod
    def change(self, weight: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """The changed weight.

        Args:
            weight: float32 or float64.
            values: the parameters in float32, through which the result is differentiable.
        """

    def effective(self, weight: Tensor) -> Tensor:
        """The changed weight."""
        with torch.autocast(weight.device.type, enabled=False):
            wide = weight if weight.dtype in (torch.float32, torch.float64) else weight.float()
            changed = self.change(wide, {name: value.float() for name, value in self.named_parameters()})
        if changed.dtype == weight.dtype and changed.stride() == weight.stride():
            return changed
        return torch.empty_like(weight, requires_grad=False).copy_(changed)

    @torch.no_grad()
    def decode(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The changed weight, so that a switch of tasks only copies it."""
        return (self.effective(weight),)

    def write(self, weight: Tensor, decoded: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """The changed weight."""
        return out.copy_(decoded[0])

    def freeze(self) -> None:
        """Round to float16; values beyond its range, which are not reached in practice, are clamped."""
        if not self.frozen:
            end = torch.finfo(torch.float16).max
            self._hold({name: value.detach().clamp(-end, end) for name, value in self.named_parameters()}, frozen=True)

    def stored(self) -> dict[str, Tensor]:
        """The values by name: float16."""
        self.freeze()
        return {name: value.detach() for name, value in self.named_parameters()}

    def binary(self) -> None:
        """None: values are real."""
        return

    @torch.no_grad()
    def start_from(self, other: Mask) -> None:
        """The values of another mask of this kind."""
        mine = {name: value.shape for name, value in self.named_parameters()}
        same = type(other) is type(self) and isinstance(other, RealValuedMask) and other.scale == self.scale
        if not same or {name: value.shape for name, value in other.named_parameters()} != mine:
            raise InputError(
                f"a {type(other).__name__} has no values that a {type(self).__name__} of these options could start from: choose "
                "a task of the same method with the same options, or none (start_from=None)"
            )
        values = dict(other.named_parameters())
        copies = {n: torch.empty_like(p, dtype=torch.float32).copy_(values[n]) for n, p in self.named_parameters()}
        self._hold(copies, frozen=False)


@dataclass(frozen=True, kw_only=True)
class RealValuedMethod(MaskMethod):
    """A method whose masks are all `kind`, each with the values that `start` says.

    Attributes:
        target_weights: shell patterns of the names of the weights that get a mask, such as `"decoder.*"`; each must fit a weight.
            The others stay the backbone's and take no bytes. None is all weights.
    """

    kind: ClassVar[type[RealValuedMask]]
    target_weights: Sequence[str] | None = None

    def __post_init__(self) -> None:
        patterns = self.target_weights
        if patterns is None:
            return
        if isinstance(patterns, str) or not patterns or not all(isinstance(p, str) for p in patterns):
            raise InputError(
                f"{self.name} target_weights={patterns!r}: expected a list of patterns of weight names, or null for all of them"
            )
        object.__setattr__(self, "target_weights", tuple(patterns))

    def targets(self, layers: Mapping[str, Layer]) -> dict[str, Layer]:
        """Those of the layers that get a mask.

        Raises:
            InputError: a pattern fits none.
        """
        if self.target_weights is None:
            return dict(layers)
        for pattern in self.target_weights:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in layers):
                some = ", ".join(list(layers)[-4:])
                raise InputError(
                    f"{self.name} target_weights={pattern!r} fits no weight that is masked: name some of this network, such "
                    f"as {some}"
                )
        return {n: layer for n, layer in layers.items() if any(fnmatch.fnmatchcase(n, p) for p in self.target_weights)}

    @abstractmethod
    def start(self, layer: Layer) -> dict[str, Tensor]:
        """The fresh values of a weight's mask, by name: float32, on the weight's device."""

    def scale(self, layer: Layer) -> float:
        """A number of the options that multiplies a product of the values."""
        return 1.0

    def create(self, layers: Mapping[str, Layer], bases: Mapping[str, Basis]) -> dict[str, Mask]:
        """One trainable mask for each target weight."""
        return {name: self._mask(layer, self.start(layer), frozen=False) for name, layer in self.targets(layers).items()}

    def restore(
        self, stored: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, Layer], bases: Mapping[str, Basis]
    ) -> dict[str, Mask]:
        """Frozen masks from their values, one for each target weight."""
        expected = {}
        layers = self.targets(layers)
        for name, layer in layers.items():
            fresh = self.start(replace(layer, weight=layer.weight.to("meta")))
            expected[name] = {part: (torch.float16, tuple(value.shape)) for part, value in fresh.items()}
        check_values(stored, expected)
        masks: dict[str, Mask] = {}
        for name, layer in layers.items():
            values = {part: value.to(layer.weight.device, copy=True) for part, value in stored[name].items()}
            masks[name] = self._mask(layer, values, frozen=True)
        return masks

    def _mask(self, layer: Layer, values: Mapping[str, Tensor], *, frozen: bool) -> RealValuedMask:
        return self.kind(layer, values, frozen=frozen, scale=self.scale(layer))


def check_values(stored: Mapping[str, Mapping[str, Tensor]], expected: Mapping[str, Parts]) -> None:
    """Check the values of frozen masks as they were read: names, types, shapes, and that all are finite.

    Raises:
        InputError: anything differs.
    """
    check_parts(stored, expected)
    for name, parts in stored.items():
        for part, value in parts.items():
            if not value.isfinite().all():
                raise InputError(f"mask of {name}: part {part!r} has values that are no finite numbers: the task file is damaged")
