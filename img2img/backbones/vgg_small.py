"""VGG16-BN for images of 32 pixels, which PackNet, Piggyback, CPG and KSM learn the twenty tasks of CIFAR-100 with.

Source: Hung et al., "Compacting, picking and growing for unforgetting continual learning" (NeurIPS 2019), whose repository
calls the network `custom_vgg_cifar100`: the thirteen convolutions of Simonyan and Zisserman's network D without biases, each with
batch normalisation, pooled five times to one pixel, then two hidden layers of 4096 with ReLU and without dropout ("we need
dropout for 224 x 224"). The initialisation is its too: Kaiming-normal over the fan out, linear layers N(0, 0.01²).

Difference: an average over the remaining pixels stands before the linear layers. Of 32 pixels one is left, and nothing
changes; larger images are taken as well.
"""

import math
import os
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from img2img.backbones.base import BACKBONES
from img2img.backbones.classifier import CIFAR_MEAN, CIFAR_STD, Classifier, check_widths
from img2img.errors import InputError

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the convolutions of each stage, at a width of 1."""


@BACKBONES.register("vgg_small")
class VGGSmall(Classifier):
    """Convolutions (`features` of the trunk), hidden linear layers (`hidden`), and the head.

    With the defaults the trunk has 33.6 million parameters, 14.7 of them in convolutions. `hidden`: [] leaves those 14.7.

    Args:
        out_channels: classes.
        width: multiplies all channels and hidden widths, rounded down; CPG grows it to 1.5.
        hidden: widths of the hidden linear layers before multiplication; an empty list for none.
        weights: a file with the tensors of an earlier network of this shape, or None for random weights.
        mean: see `Backbone`; CIFAR's.
        std: see `Backbone`; CIFAR's.

    Raises:
        InputError: an option that cannot be used, or weights that are not there or do not fit.
    """

    def __init__(
        self,
        *,
        out_channels: int,
        width: float = 1.0,
        hidden: Sequence[int] = (4096, 4096),
        weights: str | os.PathLike[str] | None = None,
        mean: Sequence[float] = CIFAR_MEAN,
        std: Sequence[float] = CIFAR_STD,
    ) -> None:
        check_widths("vgg_small", hidden)
        if not math.isfinite(width) or any(int(n * width) < 1 for n in (*hidden, STAGES[0][0])):
            raise InputError(
                f"vgg_small got width {width}, hidden {list(hidden)}: expected a width that leaves a channel everywhere, of "
                f"{STAGES[0][0]} and of each hidden layer; raise it"
            )
        features: list[nn.Module] = []
        channels = 3
        for stage in STAGES:
            for n in stage:
                features += _convolution(channels, int(n * width))
                channels = int(n * width)
            features.append(nn.MaxPool2d(2))
        linear: list[nn.Module] = []
        for n in hidden:
            linear += _linear(channels, int(n * width))
            channels = int(n * width)
        trunk: OrderedDict[str, nn.Module] = OrderedDict(features=nn.Sequential(*features))
        trunk |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "hidden": nn.Sequential(*linear)}
        super().__init__(
            nn.Sequential(trunk),
            channels,
            out_channels=out_channels,
            min_size=2 ** len(STAGES),
            spec={
                "kind": "vgg_small",
                "out_channels": out_channels,
                "width": width,
                "hidden": hidden,
                "mean": mean,
                "std": std,
            },
            mean=mean,
            std=std,
        )
        self.load_trunk(weights)


def _convolution(in_channels: int, out_channels: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def _linear(in_features: int, out_features: int) -> list[nn.Module]:
    linear = nn.Linear(in_features, out_features)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return [linear, nn.ReLU(inplace=True)]
