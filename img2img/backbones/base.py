"""What every backbone is: a network that normalises its images, ends in a head and can be built again from plain JSON."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.registry import Registry

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module, ABC):
    """A network for images whose child `head` is the last operation, so that tasks can replace it.

    Args:
        stride: height and width of an image must be multiples of it.
        min_size: height and width must be at least this.
        spec: see the attribute.
        mean: of the images that the weights expect, one value for red, green and blue, on [0, 1].
        std: their standard deviation likewise, above 0.

    Raises:
        InputError: `spec` is not plain JSON, or `mean` or `std` are not such values.

    Attributes:
        stride: as given.
        min_size: as given.
        spec: plain JSON that `img2img.backbones.build_backbone` rebuilds this network from, without its weights:
            those come from a state dict (normalisation buffers included).
    """

    head: nn.Module
    mean: Tensor
    std: Tensor

    def __init__(
        self, *, stride: int, min_size: int, spec: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        numbers = [v for v in (*mean, *std) if isinstance(v, int | float) and math.isfinite(v)]
        if not len(mean) == len(std) == len(numbers) / 2 == 3 or min(std) <= 0:
            raise InputError(
                f"the backbone got mean {list(mean)} and std {list(std)}: expected three numbers each, of red, green and blue "
                "on [0, 1], and no std of 0 or less; correct the backbone's config"
            )
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

    @property
    @abstractmethod
    def head_channels(self) -> int:
        """Channels that the head gets."""

    @abstractmethod
    def make_head(self, out_channels: int) -> nn.Module:
        """A fresh head for `out_channels`, of plain `torch.nn` classes and the same shape as `head`."""

    def normalised(self, x: Tensor) -> Tensor:
        """`(x - mean) / std`: (N, 3, H, W) or (N, 1, H, W) float in [0, 1] to (N, 3, H, W); one channel is repeated to three.

        A fresh tensor, so that in-place operations of the network never reach the caller's.

        Raises:
            InputError: the batch has another form (not checked while compiling or tracing).
        """
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            self.check(x)
        return (x - self.mean) / self.std

    def check(self, x: Tensor) -> None:
        """Raise `InputError` if `x` is no batch of images that the network takes."""
        if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.is_floating_point():
            raise InputError(
                f"the network got {tuple(x.shape)} {x.dtype}: expected (N, 3, H, W) or (N, 1, H, W) float in [0, 1]; "
                "convert the images first"
            )
        height, width = x.shape[-2:]
        sizes = [max(self.min_size, math.ceil(n / self.stride) * self.stride) for n in (height, width)]
        if sizes != [height, width]:
            multiples = f"multiples of {self.stride}, " if self.stride > 1 else ""
            raise InputError(
                f"the network got images of {height} x {width} pixels (height x width): expected {multiples}"
                f"at least {self.min_size}; pad or resize them to {sizes[0]} x {sizes[1]}"
            )


BACKBONES: Registry[Callable[..., Backbone]] = Registry(
    "backbone kind",
    Backbone,
    functions=True,
    own={
        "smp": "img2img.backbones.smp",
        "image_transformer": "img2img.backbones.transformer",
        "fcn32s": "img2img.backbones.fcn32s",
        "torchvision": "img2img.backbones.torchvision_classifiers",
        "wide_resnet": "img2img.backbones.wide_resnet",
        "vgg_small": "img2img.backbones.vgg_small",
        "lenet": "img2img.backbones.lenet",
    },
)
"""The kinds of backbone, classes or functions, by the names that configs and bundles use.

The keyword options of one, with plain JSON values and annotated types, are those of a config. `out_channels` is among them, and
so is `weights`, None for random ones, if it can take weights from elsewhere. The `spec` of what it builds has that `kind` and all
options but `weights`. A bundle of somebody else may name the kind with any values of the options. So none of them may name a file
or an address that is then read, but `weights`, which a bundle cannot set.
"""
