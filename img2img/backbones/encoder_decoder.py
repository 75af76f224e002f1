"""The shape that every backbone has: normalised picture -> encoder -> decoder -> head."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from img2img.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class HeadShape:
    """What all heads of one backbone have in common; they differ in their output channels alone.

    Attributes:
        in_channels: channels of the decoder's output.
        kernel_size: of the convolution, in pixels; odd. The picture keeps its size.
        upsampling: bilinear factor after the convolution (align_corners, as segmentation-models-pytorch has it).
        padding_mode: of the convolution, "zeros" or "reflect".
    """

    in_channels: int
    kernel_size: int
    upsampling: int = 1
    padding_mode: Literal["zeros", "reflect"] = "zeros"

    def build(self, out_channels: int) -> nn.Module:
        """A fresh head of plain `torch.nn` classes: Glorot-uniform weights and zero biases."""
        conv = nn.Conv2d(
            self.in_channels,
            out_channels,
            self.kernel_size,
            padding=self.kernel_size // 2,
            padding_mode=self.padding_mode,
        )
        nn.init.xavier_uniform_(conv.weight)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        if self.upsampling == 1:
            return conv
        return nn.Sequential(conv, nn.Upsample(scale_factor=self.upsampling, mode="bilinear", align_corners=True))


class EncoderDecoder(nn.Module):
    """A network from pictures to maps of the same height and width: `head(decoder(encoder((x - mean) / std)))`.

    Its children are `encoder`, `decoder` and `head`; the head is the last operation, so that tasks can replace it.

    Raises:
        InputError: `spec` is not plain JSON.

    Attributes:
        stride: height and width of a picture must be multiples of it.
        min_size: height and width must be at least this.
        head_channels: channels that the head gets from the decoder.
        spec: plain JSON that `img2img.backbones.build_backbone` rebuilds this network from, without its weights:
            those come from a state dict (normalisation buffers included).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        head_shape: HeadShape,
        *,
        out_channels: int,
        stride: int,
        min_size: int,
        spec: Mapping[str, Any],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = head_shape.build(out_channels)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.stride = stride
        self.min_size = min_size
        try:
            self.spec: dict[str, Any] = json.loads(json.dumps(spec))
        except TypeError as error:
            raise InputError(
                f"the backbone's options {dict(spec)} are not plain values ({error}): expected what JSON can hold; write "
                "them as text, numbers, true, false, null, lists and mappings"
            ) from error
        self._head_shape = head_shape

    @property
    def head_channels(self) -> int:
        """Channels that the head gets from the decoder."""
        return self._head_shape.in_channels

    def make_head(self, out_channels: int) -> nn.Module:
        """A fresh head for `out_channels`, of plain `torch.nn` classes and the same shape as `head`."""
        return self._head_shape.build(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network.

        Args:
            x: (N, 3, H, W) or (N, 1, H, W) float in [0, 1]; one channel is repeated to three. H and W are multiples of
                `stride` and at least `min_size`.

        Returns:
            (N, out_channels, H, W) float.

        Raises:
            InputError: the batch has another form (not checked while compiling or tracing).
        """
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            self._check(x)
        # A fresh tensor, so that in-place operations of an encoder never reach the caller's; it broadcasts grey to three.
        y: Tensor = self.head(self.decoder(self.encoder((x - self.mean) / self.std)))
        return y

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.is_floating_point():
            raise InputError(
                f"the network got {tuple(x.shape)} {x.dtype}: expected (N, 3, H, W) or (N, 1, H, W) float in [0, 1]; "
                "convert the pictures first"
            )
        height, width = x.shape[-2:]
        sizes = [max(self.min_size, math.ceil(n / self.stride) * self.stride) for n in (height, width)]
        if sizes != [height, width]:
            raise InputError(
                f"the network got pictures of {height} x {width} pixels (height x width): expected multiples of "
                f"{self.stride}, at least {self.min_size}; pad or resize them to {sizes[0]} x {sizes[1]}"
            )
