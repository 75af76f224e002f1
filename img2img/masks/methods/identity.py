"""No mask: the backbone's weights as they are."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from img2img.masks.base import METHODS, Mask, MaskMethod, check_parts
from img2img.masks.basis import Basis
from img2img.masks.layers import Layer


@METHODS.register("identity")
@dataclass(frozen=True, kw_only=True)
class Identity(MaskMethod):
    """Effective weight = `W`. What the task that trained the backbone uses, and the "head and norm only" baseline."""

    def create(self, layers: Mapping[str, Layer], bases: Mapping[str, Basis]) -> dict[str, Mask]:
        """No masks."""
        return {}

    def restore(
        self, stored: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, Layer], bases: Mapping[str, Basis]
    ) -> dict[str, Mask]:
        """No masks; any stored part is an error."""
        check_parts(stored, {})
        return {}
