"""The shape of backbones for image to image: normalised image -> encoder -> decoder -> head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from img2img.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Backbone


@dataclass(frozen=True)
class HeadShape:
    """What all heads of one backbone have in common; they differ in their output channels alone.

    Attributes:
        in_channels: channels of the decoder's output.
        kernel_size: of the convolution, in pixels; odd. The image keeps its size.
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


class EncoderDecoder(Backbone):
    """A network from images to maps of the same height and width: `head(decoder(encoder((x - mean) / std)))`.

    Its children are `encoder`, `decoder` and `head`.

    Raises:
        InputError: `spec` is not plain JSON.

    Attributes:
        head_channels: channels that the head gets from the decoder.
    """

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
        super().__init__(stride=stride, min_size=min_size, spec=spec, mean=mean, std=std)
        self.encoder = encoder
        self.decoder = decoder
        self.head = head_shape.build(out_channels)
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
        y: Tensor = self.head(self.decoder(self.encoder(self.normalised(x))))
        return y
