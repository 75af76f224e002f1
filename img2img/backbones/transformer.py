"""The image-transformation network of Johnson, Alahi and Fei-Fei, with strided and *transposed* convolutions.

Source: "Perceptual losses for real-time style transfer and super-resolution" (ECCV 2016) and its supplement, table 1.
As there, no ReLU follows a residual sum. Differences: reflection padding at each convolution instead of 40 pixels once
(the size stays the same), and no tanh at the end, since each task's loss knows the range of its output.
"""

import os
from typing import Any

from torch import Tensor, nn

from img2img.backbones.base import BACKBONES
from img2img.backbones.encoder_decoder import EncoderDecoder, HeadShape
from img2img.backbones.pretrained import IMAGENET, load_matching, read_tensors
from img2img.errors import InputError

_NORMS = {"batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d}


@BACKBONES.register("image_transformer")
class ImageTransformer(EncoderDecoder):
    """Two strided convolutions down, residual blocks, two transposed convolutions up, a convolution as the head.

    Width 32 with 5 blocks has 1.68 million parameters; width 80 with 7 blocks has 14.1 million (56.4 MB as float32),
    the size of the poster's network.

    Args:
        out_channels: of the head.
        width: channels at full resolution; twice at half, four times at a quarter.
        blocks: residual blocks at a quarter of the resolution.
        norm: "batch" or "instance" (with affine parameters, without running statistics).
        head_kernel: kernel size of the head, odd; the paper's is 9.
        weights: a file with the tensors of an earlier network of this shape, or None for random weights.
    """

    def __init__(
        self,
        *,
        out_channels: int,
        width: int = 32,
        blocks: int = 5,
        norm: str = "batch",
        head_kernel: int = 9,
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        if width < 1 or blocks < 0 or head_kernel < 1 or head_kernel % 2 == 0:
            raise InputError(
                f"image_transformer got width {width}, blocks {blocks}, head_kernel {head_kernel}: expected a width of at "
                "least 1, no negative number of blocks and an odd head_kernel; correct the backbone's config"
            )
        if norm not in _NORMS:
            raise InputError(f"image_transformer got norm {norm!r}: expected one of {list(_NORMS)}; choose one of them")
        encoder = nn.Sequential(
            _conv(3, width, norm, kernel_size=9),
            _conv(width, 2 * width, norm, stride=2),
            _conv(2 * width, 4 * width, norm, stride=2),
            *(ResidualBlock(4 * width, norm) for _ in range(blocks)),
        )
        decoder = nn.Sequential(_transposed(4 * width, 2 * width, norm), _transposed(2 * width, width, norm))
        spec: dict[str, Any] = {"kind": "image_transformer", "out_channels": out_channels, "width": width}
        spec |= {"blocks": blocks, "norm": norm, "head_kernel": head_kernel}
        # Reflection needs an image larger than the padding: 4 pixels of the 9x9 convolution, 1 at a quarter.
        super().__init__(
            encoder,
            decoder,
            HeadShape(width, head_kernel, padding_mode="reflect"),
            out_channels=out_channels,
            stride=4,
            min_size=4 * max(2, head_kernel // 8 + 1),
            spec=spec,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        )
        if weights == IMAGENET:
            raise InputError(
                "there are no ImageNet weights of the image transformer: give a file of an earlier training of it, or "
                "weights: null for random weights"
            )
        if weights is not None:
            tensors = read_tensors(weights)
            load_matching(self.encoder, tensors, origin=str(weights))
            load_matching(self.decoder, tensors, origin=str(weights), child="decoder")


class ResidualBlock(nn.Module):
    """`x + norm(conv(relu(norm(conv(x)))))`, (N, C, H, W) to (N, C, H, W)."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels, norm)
        self.conv2 = _conv(channels, channels, norm, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float to the same."""
        y: Tensor = x + self.conv2(self.conv1(x))
        return y


def _norm(channels: int, norm: str) -> nn.Module:
    return _NORMS[norm](channels, affine=True)


def _conv(
    in_channels: int, out_channels: int, norm: str, *, kernel_size: int = 3, stride: int = 1, relu: bool = True
) -> nn.Sequential:
    # No bias: the normalisation that follows takes the mean away.
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, padding_mode="reflect", bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, _norm(out_channels, norm), *([nn.ReLU(inplace=True)] if relu else []))


def _transposed(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    conv = nn.ConvTranspose2d(in_channels, out_channels, 3, 2, 1, output_padding=1, bias=False)
    # A transposed weight is (in, out, kh, kw); each output pixel sees kh * kw / stride^2 of its taps.
    nn.init.normal_(conv.weight, std=(2 / (in_channels * 9 / 4)) ** 0.5)
    return nn.Sequential(conv, _norm(out_channels, norm), nn.ReLU(inplace=True))
