"""Denoising: a noisy photo in, the clean one out. A kind of task is one file; this one shows it."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from img2img.data.base import Batch
from img2img.errors import InputError
from img2img.tasks.base import TASKS, Example, unit
from img2img.tasks.image_output import ImageOutput, filtered, mixed

_TOP = 255.0
_LARGEST_KERNEL = 15


@TASKS.register("denoising")
class Denoising(ImageOutput):
    """Gaussian noise is added to each image and the network estimates the clean one. The primary metric is MSE (0..255).

    The network gives each pixel a filter of its own, which is applied to the noisy image (kernel prediction; Bako et al. 2017):
    an average of neighbours, so that colours stay, and sharp although most decoders work at half the resolution.

    Args:
        sigma: the noise's standard deviation on the 0..255 scale; of two, each image's own lies between them, evenly spread.
        correlation: of the noise of two colour channels: 0 for colour noise, each channel has its own; 1 for luminance noise,
            the same in all, as that of grey photographs is. Of two, each image's own lies between them, and that of a quarter
            of the images at either end. A network that learns from colour noise alone takes luminance noise for detail. 0 in
            tasks of earlier files.
        kernel: the side of the filters, an odd number of pixels; None: a mix of the image and a painted one, see `mixed`,
            as tasks of earlier files have it.
        loss: as of `ImageOutput`.
    """

    baseline_name: ClassVar[str] = "noisy copy"
    in_parts: ClassVar[bool] = True
    original_pixels: ClassVar[bool] = True
    defaults_of_files: ClassVar[Mapping[str, Any]] = {"kernel": None, "correlation": 0.0}

    def __init__(
        self,
        *,
        sigma: float | Sequence[float] = 25.0,
        correlation: float | Sequence[float] = (0.0, 1.0),
        kernel: int | None = 5,
        loss: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(loss=loss)
        ends, alike = ([each, each] if isinstance(each, int | float) else list(each) for each in (sigma, correlation))
        if len(ends) != 2 or not 0 <= ends[0] <= ends[1] <= _TOP or not ends[1]:
            raise InputError(
                f"denoising sigma={sigma}: expected more than 0 and at most 255, on the 0..255 scale, or two numbers, the lower "
                "one first, such as [5, 50]"
            )
        if len(alike) != 2 or not 0 <= alike[0] <= alike[1] <= 1:
            raise InputError(
                f"denoising correlation={correlation}: expected a number from 0 (colour noise) to 1 (luminance noise), or two, "
                "the lower one first, such as [0, 1]"
            )
        if kernel is not None and (kernel % 2 == 0 or not 3 <= kernel <= _LARGEST_KERNEL):
            raise InputError(f"denoising kernel={kernel}: expected an odd number of pixels from 3 to {_LARGEST_KERNEL}, or null")
        self.sigma = sigma if isinstance(sigma, int | float) else ends
        self.correlation = correlation if isinstance(correlation, int | float) else alike
        self.kernel = kernel
        self._low, self._high = ends
        self._least, self._most = alike
        self.out_channels = 4 if kernel is None else kernel * kernel
        self.input_reach = 0 if kernel is None else kernel // 2

    def input(self, batch: Batch) -> Tensor:
        """The image plus noise, clipped to [0, 1]. An image's noise depends on its pixels alone, so metrics repeat."""
        clean = unit(batch.image)
        noise = torch.empty_like(clean, device="cpu")
        for i, image in enumerate(batch.image):
            seed = int(image.sum(dtype=torch.int64)) + 7919 * int(image[0, 0].sum(dtype=torch.int64))
            generator = torch.Generator().manual_seed(seed)
            noise[i].normal_(generator=generator)
            scale = self._low + (self._high - self._low) * torch.rand((), generator=generator)
            if self._most:
                place = (2 * torch.rand((), generator=generator) - 0.5).clamp(0, 1)
                shared = self._least + (self._most - self._least) * place
                own = noise[i].mul_((1 - shared).sqrt())
                own += shared.sqrt() * torch.randn(1, *own.shape[1:], generator=generator)
            noise[i] *= scale
        return (clean + noise.to(clean.device) / _TOP).clamp(0, 1)

    def served_input(self, batch: Batch) -> Tensor:
        """The image as it is: a user's own has its noise already."""
        return unit(batch.image)

    def target(self, batch: Batch) -> Tensor:
        """The clean image, (N, 3, H, W) in [0, 1]."""
        return unit(batch.image)

    def prediction(self, raw: Tensor, input: Tensor) -> Tensor:
        """RGB in [0, 1]: the filtered image, see `filtered`."""
        return mixed(raw, input) if self.kernel is None else filtered(raw, input, self.kernel)

    def own_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean squared error in units of the noise's mean variance."""
        variance = (self._low**2 + self._low * self._high + self._high**2) / 3  # of deviations spread evenly
        return F.mse_loss(prediction, target) * (_TOP**2 / variance)

    def baseline(self, example: Example) -> Tensor:
        """The noisy input."""
        return example.input

    def options(self) -> dict[str, Any]:
        """The kind, the noise and the filters."""
        return {"kind": self.kind, "sigma": self.sigma, "correlation": self.correlation, "kernel": self.kernel}
