"""No mask at all: the task runs on the backbone's own weights, with a norm state and a head of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from img2img.errors import InputError
from img2img.masks.base import Mask, MaskMethod


@dataclass(frozen=True, kw_only=True)
class Identity(MaskMethod):
    """Effective weight = `W`. What the task that trained the backbone uses, and the "head and norm only" baseline."""

    name: ClassVar[str] = "identity"

    def create(self, weights: Mapping[str, Tensor]) -> dict[str, Mask]:
        """No masks."""
        return {}

    def restore(self, stored: Mapping[str, Mapping[str, Tensor]], weights: Mapping[str, Tensor]) -> dict[str, Mask]:
        """No masks; any stored part is an error."""
        if stored:
            raise InputError(f"identity masks store nothing, got parts for {sorted(stored)[:3]}: the task file is damaged")
        return {}
