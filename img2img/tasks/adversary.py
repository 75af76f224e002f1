"""A PatchGAN discriminator, against which a task with image output may be trained (pix2pix: Isola et al., CVPR 2017).

It belongs to a training alone: no task, bundle or task file has anything of it.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from img2img.errors import InputError
from img2img.validation import Options

GanMode = Literal["lsgan", "vanilla"]

_STRIDED = {16: 1, 34: 2, 70: 3}
"""Receptive fields in pixels, and the convolutions of stride 2 that make them, with two of stride 1 behind (all 4 x 4)."""


class GanOptions(Options):
    """The adversarial part of an image loss."""

    weight: float = Field(default=0.01, gt=0)
    """Of the adversarial term, where L1 has 1; pix2pix has 1 to 100."""
    mode: GanMode = "lsgan"
    """The objective. "lsgan": least squares (Mao et al. 2017), whose gradient does not fade where the discriminator is sure.
    "vanilla": the cross entropy of pix2pix.
    """
    receptive_field: Literal[16, 34, 70] = 70
    """Side in pixels of the patches that are judged, each by itself; crops need three eighths of it at least."""
    channels: int = Field(default=64, ge=1)
    """Of the first convolution; each one after it has twice as many, 512 at most where this is 64."""
    lr: float = Field(default=2e-4, gt=0)
    """Learning rate of the discriminator, before the schedule, which is the task's."""

    @property
    def smallest_crop(self) -> int:
        """The side of the smallest images that it can judge."""
        return 3 << _STRIDED[self.receptive_field]


class PatchDiscriminator(nn.Module):
    """Judges each patch of an image, given the input that the image belongs to.

    pix2pix's network, with instance normalisation in place of batch normalisation: an image is judged alike in every batch, and
    there are no running statistics. At pix2pix's batch size of 1 the two are the same.

    Args:
        receptive_field: 16, 34 or 70.
        channels: of the first convolution.
    """

    def __init__(self, *, receptive_field: int, channels: int) -> None:
        super().__init__()
        widths = [channels << min(i, 3) for i in range(_STRIDED[receptive_field] + 1)]
        layers: list[nn.Module] = [nn.Conv2d(6, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (before, after) in enumerate(pairwise(widths), start=1):
            stride = 2 if i < _STRIDED[receptive_field] else 1
            # No bias: the normalisation would take it away again.
            layers += [nn.Conv2d(before, after, 4, stride, 1, bias=False), nn.InstanceNorm2d(after), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.layers = nn.Sequential(*layers)
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, input: Tensor, image: Tensor) -> Tensor:
        """Logits (N, 1, H', W') float32 of patches, high where the image looks true.

        Args:
            input: (N, 3, H, W) in [0, 1], what the image was made from.
            image: (N, 3, H, W) in [0, 1].
        """
        logits: Tensor = self.layers(2 * torch.cat([input, image], 1) - 1)
        return logits.float()


def discriminator_loss(true: Tensor, made: Tensor, mode: GanMode) -> Tensor:
    """What the discriminator minimises, a scalar: half the sum of its losses on true and on made images.

    LSGAN: `(mean (true - 1)^2 + mean made^2) / 2`. Vanilla: `-(mean log s(true) + mean log(1 - s(made))) / 2` with s the logistic
    function. Half, as pix2pix slows the discriminator down.

    Args:
        true: logits of patches of true images.
        made: those of the network's images.
        mode: the objective.
    """
    if mode == "lsgan":
        return ((true - 1).square().mean() + made.square().mean()) / 2
    return (F.softplus(-true).mean() + F.softplus(made).mean()) / 2


def generator_loss(made: Tensor, mode: GanMode) -> Tensor:
    """What the network minimises, a scalar: LSGAN `mean (made - 1)^2`, vanilla `-mean log s(made)`; see `discriminator_loss`."""
    return (made - 1).square().mean() if mode == "lsgan" else F.softplus(-made).mean()


class Adversary(nn.Module):
    """A discriminator with its losses, made anew for each training.

    Args:
        options: see `GanOptions`.
        images: `images(raw, example)`: the network's images and the true ones, both (N, 3, H, W) in [0, 1].

    Attributes:
        lr: its learning rate.
    """

    def __init__(self, options: GanOptions, images: Callable[[Tensor, Any], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.discriminator = PatchDiscriminator(receptive_field=options.receptive_field, channels=options.channels)
        self.lr = options.lr
        self._options, self._images = options, images

    def discriminator_loss(self, raw: Tensor, example: Any) -> Tensor:
        """The discriminator's own loss on a batch; no gradient reaches `raw`.

        Raises:
            InputError: the images are smaller than it can judge.
        """
        made, true = self._images(raw.detach(), example)
        least = self._options.smallest_crop
        if min(made.shape[-2:]) < least:
            raise InputError(
                f"a discriminator with receptive_field={self._options.receptive_field} got crops of {made.shape[-1]} x "
                f"{made.shape[-2]} px: expected {least} at least; raise train.augmentation.crop, or lower "
                "loss.gan.receptive_field"
            )
        # In one pass: with instance normalisation no image depends on the others.
        logits = self.discriminator(example.input.repeat(2, 1, 1, 1), torch.cat([true, made]))
        on_true, on_made = logits.chunk(2)
        return discriminator_loss(on_true, on_made, self._options.mode)

    def generator_loss(self, raw: Tensor, example: Any) -> Tensor:
        """What is added to the task's loss, its weight in."""
        made, _ = self._images(raw, example)
        return self._options.weight * generator_loss(self.discriminator(example.input, made), self._options.mode)
