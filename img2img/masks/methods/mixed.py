"""Mixed training: of some weights the task trains a copy, the others are masked (Piggyback, section 6)."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.masks.base import METHODS, Mask, MaskMethod, Parts, build_method
from img2img.masks.basis import Basis
from img2img.masks.layers import Layer
from img2img.masks.real_valued import RealValuedMask, check_values

_LEVELS = 127
"""A frozen change is a whole number of steps from -127 to 127: one byte a weight, and about seven bits once it is coded."""


class TrainableCopy(RealValuedMask):
    """No mask: a weight of the task's own, `W + Δ`, trained from `Δ = 0` in float32.

    Freezing rounds Δ once to 8 bits, `Δ = step * (code - 128)` with one step an output channel: by 0.4 % of the channel's largest
    change at most. A file of an earlier version has the weight itself in half precision (`weight`), and its copy keeps that form.
    """

    trained_as: ClassVar[Literal["scores", "weight"]] = "weight"
    delta: nn.Parameter

    def __init__(self, layer: Layer, stored: Mapping[str, Tensor] | None = None) -> None:
        """`stored`, frozen; or no change of the backbone's weight, to be trained."""
        fresh = {"delta": torch.zeros_like(layer.weight, dtype=torch.float32, requires_grad=False)}
        super().__init__(layer, fresh if stored is None else stored, frozen=stored is not None)

    def _hold(self, values: Mapping[str, Tensor], *, frozen: bool) -> None:
        for name in ("delta", "code", "step", "weight"):
            self.register_parameter(name, None)
        for name, value in values.items():
            if value.shape == self.layer.weight.shape:  # into the backbone's memory format
                value = torch.empty_like(self.layer.weight, dtype=value.dtype, device=value.device).copy_(value)
            self.register_parameter(name, nn.Parameter(value, requires_grad=not frozen))
        self.frozen = frozen

    def change(self, weight: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """The task's weight."""
        return values["weight"] if "weight" in values else weight + self._delta(values)

    def _delta(self, values: Mapping[str, Tensor]) -> Tensor:
        """`Δ` of float32 values."""
        if "delta" in values:
            return values["delta"]
        return (values["code"] - (_LEVELS + 1)) * self.layer.per_channel(values["step"])

    @torch.no_grad()
    def freeze(self) -> None:
        """Round to 8 bits; the weight of an earlier version's file to half precision."""
        if self.frozen:
            return
        values = {name: value.detach() for name, value in self.named_parameters()}
        if "weight" in values:
            end = torch.finfo(torch.float16).max
            self._hold({"weight": values["weight"].clamp(-end, end).half()}, frozen=True)
            return
        delta = values["delta"]
        step = self.layer.as_matrix(delta.abs()).amax(1) / _LEVELS
        code = delta / self.layer.per_channel(torch.where(step > 0, step, 1))
        code = code.round_().clamp_(-_LEVELS, _LEVELS).add_(_LEVELS + 1).to(torch.uint8)
        self._hold({"code": code, "step": step}, frozen=True)

    @torch.no_grad()
    def start_from(self, other: Mask) -> None:
        """Another task's copy of the weight, where it has one."""
        if isinstance(other, TrainableCopy):
            values = {name: value.detach().float() for name, value in other.named_parameters()}
            own = "weight" if "weight" in values else "delta"
            self._hold({own: values[own] if own in values else other._delta(values)}, frozen=False)

    @staticmethod
    def parts(layer: Layer, stored: Mapping[str, Tensor]) -> Parts:
        """The type and shape of each part that a file should have."""
        shape = tuple(layer.weight.shape)
        if "weight" in stored:
            return {"weight": (torch.float16, shape)}
        return {"code": (torch.uint8, shape), "step": (torch.float32, (layer.out_channels,))}


@METHODS.register("mixed")
@dataclass(frozen=True, kw_only=True)
class Mixed(MaskMethod):
    """`method` on all weights but those that fit the patterns `trainable_copies`, of which the task has a trained copy.

    The paper has it for FCN-32s (figure 4): new layers are learned from scratch, those below are masked. Here it also serves
    small weights near the pixels of an encoder-decoder, where a mask has little to choose from and a copy costs little. Such
    weights learn at the rate of a network that is trained itself (`TrainOptions.lr`).

    Attributes:
        method: how the others are masked; or its name and options as a config has them.
        trainable_copies: shell patterns for whole weight names, such as `"decoder.blocks.4.*"`, each of which must fit a weight;
            or a share of all weights, such as 0.01, which the smallest ones fill as far as they fit, of equal ones the last
            first. In an encoder-decoder the smallest are those nearest to the pixels, at its input and at its output.
    """

    stored_names: ClassVar[Mapping[str, str]] = {"trainable_copies": "own"}
    method: MaskMethod | Mapping[str, Any]
    trainable_copies: Sequence[str] | float

    def __post_init__(self) -> None:
        if isinstance(self.method, Mapping):
            options = dict(self.method)
            name = options.pop("name", None)
            if name == self.name:  # a forged file could nest without end
                raise InputError("mixed of mixed: name all patterns in one")
            object.__setattr__(self, "method", build_method(name, options))
        elif isinstance(self.method, Mixed):
            raise InputError("mixed of mixed: a mixed method beside an experiment's trainable copies; name all patterns in one")
        copies = self.trainable_copies
        if isinstance(copies, int | float):
            if isinstance(copies, bool) or not 0 < copies < 1:
                raise InputError(
                    f"mixed trainable_copies={copies}: expected a share of the weights between 0 and 1, such as 0.01"
                )
            return
        if isinstance(copies, str) or not copies or not all(isinstance(p, str) for p in copies):
            raise InputError(
                f"mixed trainable_copies={copies!r}: expected a list of patterns of weight names, one or more, or a share of the "
                "weights, such as 0.01"
            )
        object.__setattr__(self, "trainable_copies", tuple(copies))

    def options(self) -> dict[str, Any]:
        """The options as plain JSON values."""
        copies = self.trainable_copies
        copies = list(copies) if isinstance(copies, Sequence) else copies
        return {"method": {"name": self.inner.name, **self.inner.options()}, "trainable_copies": copies}

    @property
    def inner(self) -> MaskMethod:
        """How the others are masked."""
        assert isinstance(self.method, MaskMethod)
        return self.method

    @property
    def label(self) -> str:
        """Such as "piggyback, some weights trained"."""
        return f"{self.inner.label}, some weights trained"

    def basis_name(self) -> str | None:
        """Of the masked weights' method."""
        return self.inner.basis_name()

    def create(self, layers: Mapping[str, Layer], bases: Mapping[str, Basis]) -> dict[str, Mask]:
        """Copies of the backbone's weights, and fresh masks for the others."""
        copied, others = self._split(layers)
        copies = {name: TrainableCopy(layer) for name, layer in copied.items()}
        return self._in_order(layers, copies, self.inner.create(others, bases))

    def restore(
        self, stored: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, Layer], bases: Mapping[str, Basis]
    ) -> dict[str, Mask]:
        """Frozen weights and masks from their compact parts."""
        copied, others = self._split(layers)
        found = {name: parts for name, parts in stored.items() if name in copied}
        check_values(found, {name: TrainableCopy.parts(layer, found.get(name, {})) for name, layer in copied.items()})
        copies: dict[str, Mask] = {}
        for name, layer in copied.items():
            copies[name] = TrainableCopy(layer, {p: value.to(layer.weight.device) for p, value in found[name].items()})
        rest = {name: parts for name, parts in stored.items() if name not in copied}
        return self._in_order(layers, copies, self.inner.restore(rest, others, bases))

    def prepare(self, masks: Mapping[str, Mask]) -> None:
        """Of the masked weights' method."""
        self.inner.prepare(_masked(masks))

    def penalty(self, masks: Mapping[str, Mask]) -> Tensor | None:
        """Of the masked weights' method."""
        return self.inner.penalty(_masked(masks))

    def _split(self, layers: Mapping[str, Layer]) -> tuple[dict[str, Layer], dict[str, Layer]]:
        copied = {
            name: layers[name]
            for name in names_of_copies(self.trainable_copies, {name: layer.weight for name, layer in layers.items()})
        }
        return copied, {name: layer for name, layer in layers.items() if name not in copied}

    @staticmethod
    def _in_order(layers: Mapping[str, Layer], *parts: Mapping[str, Mask]) -> dict[str, Mask]:
        return {name: part[name] for name in layers for part in parts if name in part}


def names_of_copies(copies: Sequence[str] | float, weights: Mapping[str, Tensor]) -> list[str]:
    """The names of the weights that are copied, in their order.

    Args:
        copies: patterns or a share, see `Mixed`.
        weights: all that are masked, by name.

    Raises:
        InputError: a pattern fits none.
    """
    if isinstance(copies, int | float):
        sizes = [weight.numel() for weight in weights.values()]
        room, found, names = copies * sum(sizes), set(), list(weights)
        for size, index in sorted((size, -index) for index, size in enumerate(sizes)):
            room -= size
            if room < 0:
                break
            found.add(names[-index])
        return [name for name in names if name in found]
    for pattern in copies:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in weights):
            some = ", ".join(list(weights)[-4:])
            raise InputError(
                f"trainable_copies={pattern!r} fits no weight that is masked; name some of this network, such as {some}, or none"
            )
    return [name for name in weights if any(fnmatch.fnmatchcase(name, pattern) for pattern in copies)]


def _masked(masks: Mapping[str, Mask]) -> dict[str, Mask]:
    return {name: mask for name, mask in masks.items() if not isinstance(mask, TrainableCopy)}
