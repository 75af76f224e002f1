"""Wide residual networks for 64 pixels: WRN-28-4, the backbone of the Visual Decathlon.

Sources: Zagoruyko and Komodakis, "Wide residual networks" (BMVC 2016), and their PyTorch code; Rebuffi, Bilen and Vedaldi,
"Learning multiple visual domains with residual adapters" (NeurIPS 2017). Piggyback (section 6) takes "a Wide Residual Network
with a depth of 28, widening factor of 4, and a stride of 2 in the first convolutional layer of each block", and the affine masks
(section 4) the same, with 64, 128 and 256 channels.

Two networks answer to this. Rebuffi et al. publish one that they call ResNet-26: a stem of 32 channels, normalisation after each
convolution, and shortcuts that pool by 2 x 2 and fill up with zeros; 25 convolutions. Here is the other, which the words above
describe: normalisation and ReLU *before* each convolution, a stem of 16 channels, and a 1x1 convolution as the shortcut where a
group starts; 28 convolutions. In size they are as good as equal (5.81 and 5.85 million). What is taken from Rebuffi et al. is
the stride of 2 in the first group too, since their images have 64 pixels instead of 32.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from img2img.backbones.base import BACKBONES, IMAGENET_MEAN, IMAGENET_STD
from img2img.backbones.classifier import Classifier
from img2img.errors import InputError

STEM = 16
"""Channels of the first convolution, and, times the width, of the first group."""


@BACKBONES.register("wide_resnet")
class WideResNet(Classifier):
    """A convolution (`conv` of the trunk), three groups of blocks (`group1` to `group3`), and their average (`bn` to `flatten`).

    Depth 28 and width 4 have 5.85 million parameters without the head. Convolutions start Kaiming-normal over the fan out, as in
    both sources.

    Args:
        out_channels: classes.
        depth: 6 n + 4 for n blocks a group; it counts the convolutions, shortcuts and the stem included.
        width: the groups have 16, 32 and 64 times as many channels.
        weights: a file with the tensors of an earlier network of this shape, or None for random weights.
        mean: see `Backbone`; ImageNet's.
        std: see `Backbone`; ImageNet's.

    Raises:
        InputError: an option that cannot be used, or weights that are not there or do not fit.
    """

    def __init__(
        self,
        *,
        out_channels: int,
        depth: int = 28,
        width: int = 4,
        weights: str | os.PathLike[str] | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        if width < 1 or depth < 10 or depth % 6 != 4:
            raise InputError(
                f"wide_resnet got depth {depth}, width {width}: expected a depth of 6 n + 4 (10, 16, 22, 28, ...) and a width of "
                "at least 1; correct the backbone's config"
            )
        trunk: OrderedDict[str, nn.Module] = OrderedDict(conv=_conv(3, STEM))
        channels = STEM
        for i, out in enumerate((STEM * width, 2 * STEM * width, 4 * STEM * width), 1):
            blocks = [Block(channels if j == 0 else out, out, stride=2 if j == 0 else 1) for j in range((depth - 4) // 6)]
            trunk[f"group{i}"] = nn.Sequential(*blocks)
            channels = out
        trunk |= {"bn": nn.BatchNorm2d(channels), "relu": nn.ReLU(inplace=True)}
        trunk |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
        super().__init__(
            nn.Sequential(trunk),
            channels,
            out_channels=out_channels,
            min_size=1,
            spec={
                "kind": "wide_resnet",
                "out_channels": out_channels,
                "depth": depth,
                "width": width,
                "mean": mean,
                "std": std,
            },
            mean=mean,
            std=std,
        )
        self.load_trunk(weights)


class Block(nn.Module):
    """`shortcut + conv2(relu(bn2(conv1(relu(bn1(x))))))`, (N, C, H, W) to (N, out, H / stride, W / stride).

    The shortcut is `x`, or, in the first block of a group, a 1x1 convolution of `relu(bn1(x))`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv(in_channels, out_channels, stride=stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv(out_channels, out_channels)
        # A stride alone needs one too: at width 1 the first group has as many channels as the stem.
        new = stride > 1 or in_channels != out_channels
        self.shortcut = _conv(in_channels, out_channels, kernel_size=1, stride=stride) if new else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float to (N, out, ceil(H / stride), ceil(W / stride))."""
        active = self.bn1(x).relu_()
        y: Tensor = self.conv2(self.bn2(self.conv1(active)).relu_())
        return y + (x if self.shortcut is None else self.shortcut(active))


def _conv(in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
