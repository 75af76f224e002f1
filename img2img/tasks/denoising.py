"""Denoising: a noisy photo in, the clean one out. A kind of task is one file; this one shows it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from img2img.data.base import Batch
from img2img.errors import InputError
from img2img.tasks.base import TASKS, Example, unit
from img2img.tasks.image_output import ImageOutput, mixed


@TASKS.register("denoising")
class Denoising(ImageOutput):
    """Gaussian noise is added to each image and the network estimates the clean one. The primary metric is MSE (0..255).

    Args:
        sigma: the noise's standard deviation on the 0..255 scale.
        loss: as of `ImageOutput`.
    """

    baseline_name: ClassVar[str] = "noisy copy"
    in_parts: ClassVar[bool] = True
    out_channels = 4

    def __init__(self, *, sigma: float = 25.0, loss: Mapping[str, Any] | None = None) -> None:
        super().__init__(loss=loss)
        if not 0 < sigma <= 255:
            raise InputError(f"denoising sigma={sigma}: expected more than 0 and at most 255, on the 0..255 scale")
        self.sigma = sigma

    def input(self, batch: Batch) -> Tensor:
        """The image plus noise, clipped to [0, 1]. An image's noise depends on its pixels alone, so metrics repeat."""
        clean = unit(batch.image)
        noise = torch.empty_like(clean, device="cpu")
        for i, image in enumerate(batch.image):
            seed = int(image.sum(dtype=torch.int64)) + 7919 * int(image[0, 0].sum(dtype=torch.int64))
            noise[i].normal_(generator=torch.Generator().manual_seed(seed))
        return (clean + noise.to(clean.device) * (self.sigma / 255)).clamp(0, 1)

    def served_input(self, batch: Batch) -> Tensor:
        """The image as it is: a user's own has its noise already."""
        return unit(batch.image)

    def target(self, batch: Batch) -> Tensor:
        """The clean image, (N, 3, H, W) in [0, 1]."""
        return unit(batch.image)

    def prediction(self, raw: Tensor, input: Tensor) -> Tensor:
        """RGB in [0, 1], see `mixed`."""
        return mixed(raw, input)

    def own_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean squared error in units of the noise's variance."""
        return F.mse_loss(prediction, target) * (255 / self.sigma) ** 2

    def baseline(self, example: Example) -> Tensor:
        """The noisy input."""
        return example.input

    def options(self) -> dict[str, Any]:
        """The kind and the noise."""
        return {"kind": self.kind, "sigma": self.sigma}
