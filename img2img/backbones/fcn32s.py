"""FCN-32s: VGG-16 as a fully convolutional network, and one transposed convolution back to the image's size.

Sources: Long, Shelhamer and Darrell, "Fully convolutional networks for semantic segmentation" (CVPR 2015), section 4.1, and
Mallya et al., "Piggyback" (ECCV 2018), section 6 and figure 4, which masks the whole of VGG-16 and trains the new layers
(`score` and `upscore`) from scratch.

Difference from the published network: it pads the image by 100 pixels, gives `fc6` no padding and crops the result by an
offset that depends on the image's size. Here `fc6` pads its 7x7 kernel by 3 cells of 32 pixels, which is as much context, and
`upscore` ends exactly at the image's edge. So a training crop of 96 pixels is not run as one of 296, which takes nine
times as long, and no crop follows the head, so that a task can replace it.
"""

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import vgg

from img2img.backbones.base import BACKBONES
from img2img.backbones.encoder_decoder import EncoderDecoder, HeadShape
from img2img.backbones.pretrained import IMAGENET, encoder_tensors, load_matching, torchvision_tensors
from img2img.errors import InputError

FEATURES = 512
"""Channels of VGG-16's last convolution."""
WIDTH = 4096
"""Channels of VGG-16's fully connected layers."""
STRIDE = 32

# torchvision's names of the two fully connected layers, which become convolutions here.
_FC = {"classifier.0": "fc6", "classifier.3": "fc7"}


@BACKBONES.register("fcn32s")
class FCN32s(EncoderDecoder):
    """VGG-16's convolutions (`encoder`), `fc6` and `fc7` as convolutions (`decoder`), `score` and `upscore` (`head`).

    With the defaults 134.2 million weights are pre-trained (a bit for each is 16.8 MB), and a new head of 21 classes has
    1.9 million of its own (7.6 MB). There is no normalisation. Heads of masked tasks are trained at `train.optimiser.head_lr`, or
    `train.optimiser.lr` if that is not given, masks at `train.optimiser.mask_lr`.

    Args:
        out_channels: of the head.
        width: channels of `fc6` and `fc7`; VGG-16 has 4096. Other widths have no ImageNet weights.
        fc: where `fc6` and `fc7` stand. "backbone": in the decoder, with weights of their own in the file, masked like the
            rest. "head": new layers at the start of each task's head, trained from scratch with it, and stored with the task
            (51 MB at a width of 512): for files that have VGG-16's convolutions alone, such as `convert_vgg16` writes, and for
            other widths. The decoder is then empty.
        weights: a file with torchvision's names (`features.*`, and `classifier.0` and `classifier.3` for fc="backbone"),
            "imagenet" (torchvision's, cached or online), or None for random weights.

    Raises:
        InputError: an option that cannot be used, or weights that are not there or do not fit.
    """

    def __init__(
        self,
        *,
        out_channels: int,
        width: int = WIDTH,
        fc: Literal["backbone", "head"] = "backbone",
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        if width < 1 or fc not in ("backbone", "head"):
            raise InputError(
                f"fcn32s got width {width}, fc {fc!r}: expected a width of at least 1 and fc 'backbone' or 'head'; correct the "
                "backbone's config"
            )
        if weights is not None and fc == "backbone" and width != WIDTH:
            raise InputError(
                f"fcn32s got width {width} with the weights {str(weights)!r}: expected {WIDTH}, the width of VGG-16's fc6 and "
                "fc7; set fc: head, so that they are new layers of each task's head, or leave the width out"
            )
        in_backbone = fc == "backbone"
        super().__init__(
            _init(vgg.make_layers(vgg.cfgs["D"])),
            _fc_layers(width) if in_backbone else nn.Identity(),
            _UpscoreHead(width, 1, upsampling=STRIDE) if in_backbone else _UpscoreHead(FEATURES, 1, upsampling=STRIDE, fc=width),
            out_channels=out_channels,
            stride=STRIDE,
            min_size=STRIDE,
            spec={"kind": "fcn32s", "out_channels": out_channels, "width": width, "fc": fc},
        )
        if weights is None:
            return
        tensors = torchvision_tensors("vgg16") if weights == IMAGENET else encoder_tensors(weights, "vgg16")[0]
        load_matching(self.encoder, tensors, origin=str(weights), child="features")
        if in_backbone:
            load_matching(self.decoder, _convolutions_of(tensors, str(weights)), origin=str(weights), child="decoder")


@dataclass(frozen=True)
class _UpscoreHead(HeadShape):
    """`score`, a 1x1 convolution, and `upscore`, a transposed convolution 64x64 of stride 32; `fc`: after new `fc6`, `fc7`."""

    fc: int | None = None

    def build(self, out_channels: int) -> nn.Module:
        """A fresh head of plain `torch.nn` classes: scores of zero, upsampled bilinearly, as Long et al. start them."""
        score = nn.Conv2d(self.in_channels if self.fc is None else self.fc, out_channels, 1)
        nn.init.zeros_(score.weight)
        if score.bias is not None:
            nn.init.zeros_(score.bias)
        # One cell more on each side, of the same values: at the edge too every pixel then lies between cells, so that the
        # bilinear start is `interpolate(..., align_corners=False)` exactly. The padding of `upscore` takes the rest away.
        kernel = 2 * self.upsampling
        upscore = nn.ConvTranspose2d(out_channels, out_channels, kernel, self.upsampling, self.upsampling * 3 // 2, bias=False)
        with torch.no_grad():
            upscore.weight.zero_()
            upscore.weight[range(out_channels), range(out_channels)] = bilinear_kernel(self.upsampling)
        new = () if self.fc is None else _fc_layers(self.fc)
        return nn.Sequential(*new, score, nn.ReplicationPad2d(1), upscore)


def bilinear_kernel(factor: int) -> Tensor:
    """The kernel of a transposed convolution that enlarges `factor` times bilinearly: (2 factor, 2 factor) float.

    1 - |i - c| / factor along each axis, with its centre c between the two middle taps (Caffe's "bilinear" filler).
    """
    taps = torch.arange(2 * factor, dtype=torch.float32)
    tent = 1 - (taps - (factor - 0.5)).abs() / factor
    return tent[:, None] * tent[None, :]


def _fc_layers(width: int) -> nn.Sequential:
    """`fc6` and `fc7` as VGG-16 has them, with ReLU and dropout after each: (N, 512, h, w) to (N, width, h, w)."""
    layers: list[tuple[str, nn.Module]] = [
        ("fc6", nn.Conv2d(FEATURES, width, 7, padding=3)),
        ("relu6", nn.ReLU()),
        ("drop6", nn.Dropout()),
        ("fc7", nn.Conv2d(width, width, 1)),
        ("relu7", nn.ReLU()),
        ("drop7", nn.Dropout()),
    ]
    return _init(nn.Sequential(OrderedDict(layers)))


def _init(layers: nn.Sequential) -> nn.Sequential:
    # Without normalisation torch's own start would shrink the signal a hundred thousand times through the layers.
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return layers


def _convolutions_of(tensors: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The fully connected layers of torchvision's VGG-16 as the convolutions `fc6` and `fc7`.

    `fc6` sees 7 x 7 cells of 512 channels, flattened channels first, so its matrix is a 7x7 kernel as it stands.

    Raises:
        InputError: there are none.
    """
    found = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        for linear, convolution in _FC.items():
            if layer == linear or layer.endswith(f".{linear}"):
                side = 7 if convolution == "fc6" else 1
                square = leaf == "weight" and tensor.ndim == 2 and tensor.shape[1] % (side * side) == 0
                found[f"{convolution}.{leaf}"] = tensor.reshape(len(tensor), -1, side, side) if square else tensor
    if not found:
        raise InputError(
            f"weights from {origin}: they have no fc6 and fc7 (classifier.0 and classifier.3): expected torchvision's whole "
            "VGG-16; give that, or set fc: head, so that fc6 and fc7 are new layers of each task's head, trained from scratch"
        )
    return found
