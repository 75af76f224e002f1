"""What a mask method is: one object a task, which makes one mask a weight tensor."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.masks.basis import Basis
from img2img.masks.layers import Layer
from img2img.masks.tensors import without_cast
from img2img.registry import Registry
from img2img.validation import call_with


class Mask(nn.Module, ABC):
    """The map from one frozen weight `W` to one task's effective weight, of the same shape.

    While it is trained it holds real values (scores, coefficients), always float32. `freeze` replaces them by the compact form
    that is stored; from then on the effective weight never changes. Where the compact form is exact (binary masks) it is the
    same before and after; where values are quantised (`exact` is False) it moves once, when it is frozen.

    A trained mask's effective weight is `effective`, with gradients. A frozen one's is `write(weight, decode(weight), out)`:
    `decode` unpacks the compact form once, `write` may then be repeated fast, which is what a hot swap does.
    """

    exact: bool = True
    """Whether freezing keeps the effective weight bit for bit."""

    trained_as: ClassVar[Literal["scores", "weight"]] = "scores"
    """How its parameters are to be trained: "scores" by `train.optimiser.mask`, at `mask_lr`, with `mask_weight_decay`, 0 by
    default; "weight" as a network's weights are, by `name`, at `lr`, with `weight_decay`.
    """

    effect: ClassVar[str] = "zeroed"
    """What a mask does to weights, in the word that tables and figures use, see `affected`."""

    frozen: bool = False

    def forward(self, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The effective weight: same shape, dtype and memory format as `weight`. Gradients go to the mask's own parameters.

        Args:
            weight: `W`.
            dtype: of a mask in training, the type to which autocast would cast the result; None for `weight`'s own.
        """
        if not self.frozen:
            return self.effective(weight) if dtype in (None, weight.dtype) else self.effective_as(weight, dtype)
        # Into the weight's own memory format, or the result's strides, and with them the kernels, would differ from training's.
        return self.write(weight, self.decode(weight), torch.empty_like(weight, requires_grad=False))

    @abstractmethod
    def effective(self, weight: Tensor) -> Tensor:
        """The effective weight while training, differentiable by the mask's parameters."""

    def effective_as(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """`effective`, rounded to `dtype`: bit for bit what autocast makes of it, gradients too.

        A mask may override it where rounding at once saves passes over memory.
        """
        return self.effective(weight).to(dtype)

    @abstractmethod
    def decode(self, weight: Tensor) -> tuple[Tensor, ...]:
        """What `write` needs, unpacked: on `weight`'s device and, for tensors of its shape, in its memory format."""

    @abstractmethod
    def write(self, weight: Tensor, decoded: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """Write a frozen mask's effective weight into `out` (of `weight`'s shape, dtype and format) and return it."""

    @abstractmethod
    def freeze(self) -> None:
        """Replace the trained values by the compact form. Freezing twice changes nothing."""

    @abstractmethod
    def stored(self) -> dict[str, Tensor]:
        """The compact form, by part; what `MaskMethod.restore` reads back. Only a frozen mask has one.

        The type says how a part is coded on disk: bool at its entropy, uint8 codes at theirs, anything else as it is.
        """

    @abstractmethod
    def binary(self) -> Tensor | None:
        """The binary mask, bool, of the weight's shape; None for a method that has none."""

    def signed(self) -> Tensor | None:
        """The mask in {-1, 0, 1}, of the weight's shape; the binary one, unless the method has signs."""
        return self.binary()

    def keeps(self) -> Tensor | None:
        """Where the weight is kept, bool, of its shape: what a mask of another method may start from. None if the
        mask does not select weights to keep.
        """
        return self.binary()

    def scores(self) -> tuple[nn.Parameter, ...]:
        """The trained parameters that the mask is read from by a threshold or a rank, in place of their own values: none here."""
        return ()

    def values(self) -> dict[str, Tensor]:
        """The real values that are a layer's own, detached, by name, for analysis: none here."""
        return {}

    @abstractmethod
    def start_from(self, other: "Mask") -> None:
        """Set the trained values so that training starts from `other`'s mask: warm start, or a task continued.

        `other` is a mask of the same weight, of any method. Values that `other` does not have keep their fresh start.

        Raises:
            InputError: `other` has nothing that this method could start from.
        """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Scores in half precision would stop moving, and double is of no use.
        return super()._apply(without_cast(fn), recurse)


class MaskMethod(ABC):
    """One way to mask: its options, and what makes and restores the masks of a task.

    Subclasses are frozen dataclasses with keyword-only options of plain JSON types: the options are the task file's.
    `METHODS.register` makes one known to configs and task files.
    """

    name: ClassVar[str]
    """The name of the method in configs and task files, set when the class is registered."""
    stored_names: ClassVar[Mapping[str, str]] = {}
    """The names that options have in task files, where they differ: those never change."""

    def options(self) -> dict[str, Any]:
        """The options as plain JSON values."""
        return asdict(self)  # type: ignore[call-overload]

    def stored_options(self) -> dict[str, Any]:
        """The options as a task file has them."""
        return {self.stored_names.get(option, option): value for option, value in self.options().items()}

    @property
    def inner(self) -> "MaskMethod":
        """The method that masks: this one, unless it wraps another."""
        return self

    @property
    def label(self) -> str:
        """What logs and lists call the method: its name, and what it adds to that of an inner one."""
        return self.name

    def basis_name(self) -> str | None:
        """The name of the basis (see `basis.Basis`) that the masks combine; None for a method that needs none."""
        return None

    @abstractmethod
    def create(self, layers: Mapping[str, Layer], bases: Mapping[str, Basis]) -> dict[str, Mask]:
        """Fresh masks, by weight name. A weight that the method leaves as it is has none."""

    @abstractmethod
    def restore(
        self, stored: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, Layer], bases: Mapping[str, Basis]
    ) -> dict[str, Mask]:
        """Frozen masks from their compact parts, on the weights' device.

        Raises:
            InputError: a part is missing, unexpected, or of the wrong type or shape.
        """

    def prepare(self, masks: Mapping[str, Mask]) -> None:
        """Called before the masks of a task in training are used, with all of them: for what spans the network."""

    def penalty(self, masks: Mapping[str, Mask]) -> Tensor | None:
        """What the method adds to the loss, a scalar; None for nothing."""
        return None


METHODS: Registry[type[MaskMethod]] = Registry(
    "mask method",
    MaskMethod,
    attribute="name",
    own={
        "affine": "img2img.masks.methods.affine",
        "dan": "img2img.masks.methods.channel",
        "dora": "img2img.masks.methods.lora",
        "ia3": "img2img.masks.methods.channel",
        "dense_signs": "img2img.masks.methods.signs",
        "identity": "img2img.masks.methods.identity",
        "impresslearn": "img2img.masks.methods.impresslearn",
        "ksm": "img2img.masks.methods.ksm",
        "lokr": "img2img.masks.methods.lora",
        "lora": "img2img.masks.methods.lora",
        "mixed": "img2img.masks.methods.mixed",
        "piggyback": "img2img.masks.methods.piggyback",
        "residual_adapter": "img2img.masks.methods.channel",
        "sparse_signs": "img2img.masks.methods.sparse_signs",
        "supsup": "img2img.masks.methods.supsup",
    },
)
"""The mask methods by the names that configs and task files use."""


def affected(effect: str, density: float | None) -> float | None:
    """The share of the weights to which a binary mask does what `Mask.effect` says.

    Args:
        effect: "zeroed" is what the zeros of a mask are; any other word, such as "moved", is what its ones are.
        density: the share of its ones; None without a binary mask.
    """
    return None if density is None else 1 - density if effect == "zeroed" else density


def build_method(name: str, options: Mapping[str, Any]) -> MaskMethod:
    """The mask method of that name with those options, as a config or a task file gives them.

    Raises:
        InputError: the name or an option is unknown, or an option's value is not allowed.
    """
    method: MaskMethod = call_with(METHODS.find(name), options, what=f"mask method {name!r}")
    return method


def restore_method(name: str, stored_options: Mapping[str, Any]) -> MaskMethod:
    """The mask method of a task file, from its name and `MaskMethod.stored_options`.

    Raises:
        InputError: see `build_method`.
    """
    options = {stored: option for option, stored in METHODS.find(name).stored_names.items()}
    return build_method(name, {options.get(stored, stored): value for stored, value in stored_options.items()})


Parts = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""The type and shape of each compact part of a mask; -1 for a length that is not known."""


def check_parts(stored: Mapping[str, Mapping[str, Tensor]], expected: Mapping[str, Parts]) -> None:
    """Check the compact parts of a task's masks: names, types, shapes.

    Args:
        stored: the parts as read, by weight and part.
        expected: of each weight that has a mask, the type and shape of each part; -1 for a length that is not known.

    Raises:
        InputError: anything differs.
    """
    if stored.keys() != expected.keys():
        odd = sorted(stored.keys() ^ expected.keys())
        raise InputError(f"masks do not match the backbone's weights: {odd[:3]} on one side only; use the task's own backbone")
    for name, parts in expected.items():
        got = stored[name]
        if got.keys() != parts.keys():
            raise InputError(f"mask of {name}: expected the parts {sorted(parts)}, got {sorted(got)}: the task file is damaged")
        for part, (dtype, shape) in parts.items():
            tensor = got[part]
            fits = len(tensor.shape) == len(shape) and all(e in (-1, g) for g, e in zip(tensor.shape, shape, strict=True))
            if tensor.dtype != dtype or not fits:
                raise InputError(
                    f"mask of {name}: part {part!r} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {tuple(shape)}: "
                    "the task file is damaged or of another network"
                )
