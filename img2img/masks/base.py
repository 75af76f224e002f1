"""What a mask method is: one object a task, which makes one mask a weight tensor."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.masks.layers import Layer
from img2img.registry import Registry

if TYPE_CHECKING:
    from img2img.masks.basis import Basis

METHODS: Registry[type["MaskMethod"]] = Registry("mask method")
"""The mask methods by the name that configs and task files use; a subclass of `MaskMethod` enters itself."""


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

    frozen: bool = False

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight: same shape, dtype and memory format as `weight`. Gradients go to the mask's own parameters."""
        if not self.frozen:
            return self.effective(weight)
        # Into the weight's own memory format, or the result's strides, and with them the kernels, would differ from training's.
        return self.write(weight, self.decode(weight), torch.empty_like(weight, requires_grad=False))

    @abstractmethod
    def effective(self, weight: Tensor) -> Tensor:
        """The effective weight while training, differentiable by the mask's parameters."""

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

    Subclasses are frozen dataclasses with keyword-only options of plain JSON types: the options are the task file's. Defining
    one enters it in `METHODS` under its `name`.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "name"):  # not of a base for several; one that is inherited is another's, and refused
            METHODS.add(cls.name, cls)

    def options(self) -> dict[str, Any]:
        """The options as plain JSON values."""
        return asdict(self)  # type: ignore[call-overload]

    @property
    def inner(self) -> "MaskMethod":
        """The method that masks: this one, unless it wraps another."""
        return self

    def basis_name(self) -> str | None:
        """The name of the basis (see `basis.Basis`) that the masks combine; None for a method that needs none."""
        return None

    @abstractmethod
    def create(self, layers: Mapping[str, Layer], bases: Mapping[str, "Basis"]) -> dict[str, Mask]:
        """Fresh masks, by weight name. A weight that the method leaves as it is has none."""

    @abstractmethod
    def restore(
        self, stored: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, Layer], bases: Mapping[str, "Basis"]
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


def without_cast(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn` of `Module._apply` without its change of type: moves and memory formats apply, casts do not."""

    def apply(tensor: Tensor) -> Tensor:
        new = fn(tensor)
        return new if new.dtype == tensor.dtype else torch.empty_like(new, dtype=tensor.dtype).copy_(tensor)

    return apply


def build_method(name: str, options: Mapping[str, Any]) -> MaskMethod:
    """The mask method of that name with those options, as a config or a task file gives them.

    Raises:
        InputError: the name or an option is unknown, or an option's value is not allowed.
    """
    from img2img.validation import call_with

    method: MaskMethod = call_with(METHODS.find(name), options, what=f"mask method {name!r}")
    return method


def check_parts(
    stored: Mapping[str, Mapping[str, Tensor]], expected: Mapping[str, Mapping[str, tuple[torch.dtype, tuple[int, ...]]]]
) -> None:
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


def one_of(method: str, option: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise an `InputError` that names the allowed values unless `value` is one of them."""
    if value not in allowed:
        raise InputError(f"{method} {option}={value!r}: expected one of {', '.join(map(repr, allowed))}")
