"""Super-resolution: a photo with twice or three times the pixels each way, and the detail that enlarging does not bring."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from img2img.data.base import Batch
from img2img.errors import InputError
from img2img.tasks.base import TASKS, Example, unit
from img2img.tasks.image_output import ImageOutput
from img2img.validation import one_of

_RESIDUAL = 0.1
"""By what the raw output is multiplied: detail is small, and so the first predictions are near to the input."""


@TASKS.register("super_resolution")
class SuperResolution(ImageOutput):
    """Each image is made smaller, and enlarged again by bicubic interpolation; the network puts back what was lost.

    Both steps are bicubic, the first with antialiasing, as is usual for single-image super-resolution. The network works at the
    full size and gives what is added to its input (VDSR; Kim et al. 2016). The primary metric is MSE (0..255).

    Args:
        factor: how many times smaller the image is made each way, and how many times larger a user's image becomes: 2 to 4.
        detail: what is added: one "grey" value a pixel, the same for all channels, so that grey photographs stay grey; or one
            for each channel of "rgb", as tasks of earlier files have it.
        loss: as of `ImageOutput`.
    """

    baseline_name: ClassVar[str] = "bicubic copy"
    in_parts: ClassVar[bool] = True
    original_pixels: ClassVar[bool] = True
    defaults_of_files: ClassVar[Mapping[str, Any]] = {"detail": "rgb"}

    def __init__(
        self, *, factor: int = 2, detail: Literal["grey", "rgb"] = "grey", loss: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(loss=loss)
        if factor not in (2, 3, 4):
            raise InputError(f"super_resolution factor={factor!r}: expected 2, 3 or 4")
        one_of("super_resolution detail", detail, ("grey", "rgb"))
        self.detail = detail
        self.out_channels = 1 if detail == "grey" else 3
        self.factor = self.enlarges = factor
        self.smallest_crop = max(self.smallest_crop, 2 * factor)

    def input(self, batch: Batch) -> Tensor:
        """The image without its detail."""
        image = unit(batch.image)
        size = (image.shape[-2], image.shape[-1])
        small = (max(1, round(size[0] / self.factor)), max(1, round(size[1] / self.factor)))
        small_image = F.interpolate(image, small, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return F.interpolate(small_image, size, mode="bicubic", align_corners=False).clamp(0, 1)

    def served_input(self, batch: Batch) -> Tensor:
        """The image as it is: a user's own was enlarged already."""
        return unit(batch.image)

    def target(self, batch: Batch) -> Tensor:
        """The image, (N, 3, H, W) in [0, 1]."""
        return unit(batch.image)

    def prediction(self, raw: Tensor, input: Tensor) -> Tensor:
        """RGB in [0, 1]: the input and what the network adds."""
        return (input + _RESIDUAL * raw.float()).clamp(0, 1)

    def own_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Ten times the mean absolute error, in [0, 1] units, which is near 1 at first."""
        return 10 * F.l1_loss(prediction, target)

    def baseline(self, example: Example) -> Tensor:
        """The image as bicubic interpolation enlarges it."""
        return example.input

    def options(self) -> dict[str, Any]:
        """The kind, the factor and what is added."""
        return {"kind": self.kind, "factor": self.factor, "detail": self.detail}
