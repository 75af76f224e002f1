"""Classification networks of torchvision: VGG, ResNet (wide ones and ResNeXt too) and DenseNet.

Each computes exactly what torchvision's network computes with the same weights: the trunk is that network with an `nn.Identity`
in place of its last linear layer, which every task's head replaces. So VGG's two other linear layers, with ReLU and dropout of
0.5, belong to the trunk and are masked (Mallya et al., "Piggyback", ECCV 2018, section 4), and parameters keep torchvision's
names: `trunk.layer1.0.conv1.weight`.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from img2img.backbones.base import BACKBONES, IMAGENET_MEAN, IMAGENET_STD
from img2img.backbones.classifier import Classifier, Output
from img2img.backbones.pretrained import IMAGENET, load_matching, read_tensors, torchvision_tensors
from img2img.errors import InputError


@dataclass(frozen=True)
class _Family:
    last: str  # the name of the last linear layer
    min_size: int = 1


_RESNET = _Family("fc")
# VGG halves an image five times, DenseNet five times too, of which the first two round up.
_FAMILIES = {
    "vgg": _Family("classifier.6", min_size=32),
    "resnet": _RESNET,
    "wide_resnet": _RESNET,
    "resnext": _RESNET,
    "densenet": _Family("classifier", min_size=29),
}


@BACKBONES.register("torchvision")
def torchvision_classifier(
    name: str,
    *,
    out_channels: int,
    weights: str | os.PathLike[str] | None = None,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    norm_affine: bool = True,
    width: float = 1.0,
    output: Output = "head",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Classifier:
    """Build a classifier of torchvision, whose own initialisation random weights have.

    Args:
        name: as torchvision has it: vgg16, vgg16_bn, resnet18, resnet50, densenet121, ...
        out_channels: classes.
        weights: of the trunk: a file with torchvision's names, of which the last layer is left out; "imagenet" (torchvision's,
            cached or online); or None for random weights.
        stem: of a ResNet. "cifar" for images of 32 pixels: a 3x3 convolution of stride 1 without the pooling that follows
            (He et al. 2016, section 4.2), instead of 7x7 and stride 2.
        norm_affine: whether batch normalisation has a scale and a shift. Without them masks are all that a task learns on
            a random backbone (Wortsman et al., "Supermasks in superposition", 2020).
        width: multiplies all channels of a ResNet without weights: 0.75 is the narrow ResNet-18 of 6.28 million parameters, 48 to
            384 channels, of the size that ImpressLearn's table 2 has for split CIFAR-100.
        output: where the last linear layer stands, see `Classifier`.
        mean: see `Backbone`.
        std: see `Backbone`.

    Raises:
        InputError: an unknown name, options that do not go together, or weights that are not there or do not fit.
    """
    family = _family(name)
    if stem not in ("imagenet", "cifar") or (stem == "cifar" and family is not _RESNET):
        raise InputError(
            f"torchvision's {name} got stem {stem!r}: expected 'imagenet', or 'cifar' of a ResNet; choose another network for "
            "small images, such as vgg_small"
        )
    if weights is not None and not norm_affine:
        raise InputError(
            f"torchvision's {name} got norm_affine: false with the weights {str(weights)!r}: expected one of them, since trained "
            "weights rely on the scale and shift of their normalisation; set norm_affine: true or weights: null"
        )
    if not 0 < width < math.inf or (width != 1 and (family is not _RESNET or weights is not None)):
        raise InputError(
            f"torchvision's {name} got width {width} and the weights {str(weights)!r}: expected a factor above 0, and 1 but "
            "for a ResNet whose weights are null"
        )
    # Weights that a file overwrites are not drawn first: of VGG-16 that takes seconds.
    with nullcontext() if weights is None else torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None)
    features = network.get_submodule(family.last).in_features
    network.set_submodule(family.last, nn.Identity())
    if stem == "cifar":
        _set_small_stem(network)
    if width != 1:
        if any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules()):
            raise InputError(
                f"torchvision's {name} got width {width}: expected 1, since its convolutions have groups; choose a ResNet"
            )
        if round(network.conv1.out_channels * width) < 1:
            raise InputError(f"torchvision's {name} got width {width}: expected one that leaves a channel everywhere; raise it")
        _scale_channels(network, width)
    if not norm_affine:
        _drop_affine(network, name)
    if weights is not None:
        _load(network, weights, name, family.last)
    spec: dict[str, Any] = {"kind": "torchvision", "name": name, "out_channels": out_channels, "stem": stem}
    spec |= {"norm_affine": norm_affine, "output": output, "mean": mean, "std": std}
    spec |= {} if width == 1 else {"width": width}
    return Classifier(
        network,
        features if width == 1 else round(features * width),
        out_channels=out_channels,
        min_size=family.min_size,
        spec=spec,
        output=output,
        mean=mean,
        std=std,
    )


def _family(name: str) -> _Family:
    known = {n: _FAMILIES.get(re.split(r"\d", n)[0]) for n in torchvision.models.list_models(torchvision.models)}
    family = known.get(name)
    if family is None:
        raise InputError(
            f"torchvision's classifier {name!r} is unknown here: choose one of {', '.join(n for n, f in known.items() if f)}"
        )
    return family


def _set_small_stem(network: Any) -> None:
    conv = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False, device=network.conv1.weight.device)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's
    network.conv1 = conv
    network.maxpool = nn.Identity()


def _scale_channels(network: Any, width: float) -> None:
    """Replace each convolution and normalisation of a ResNet by one of `width` times the channels, drawn as torchvision does."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d):
            inputs = module.in_channels if module is network.conv1 else round(module.in_channels * width)
            new = nn.Conv2d(
                inputs, round(module.out_channels * width), module.kernel_size, module.stride, module.padding,  # type: ignore[arg-type]
                module.dilation, module.groups, bias=module.bias is not None,  # type: ignore[arg-type]
            )  # fmt: skip
            nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
            network.set_submodule(name, new)
        elif isinstance(module, _BatchNorm):
            network.set_submodule(name, type(module)(round(module.num_features * width)))


def _drop_affine(network: nn.Module, name: str) -> None:
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        raise InputError(
            f"torchvision's {name} got norm_affine: false: expected a network with batch normalisation; leave it out, or take "
            f"{name}_bn"
        )
    for norm in norms:
        norm.affine = False
        norm.register_parameter("weight", None)
        norm.register_parameter("bias", None)


def _load(network: nn.Module, weights: str | os.PathLike[str], name: str, last: str) -> None:
    """Give the network, which is on the meta device, memory and the weights asked for, less those of the layer `last`."""
    tensors = torchvision_tensors(name) if weights == IMAGENET else read_tensors(weights)
    network.to_empty(device="cpu")
    for buffer in network.buffers():
        buffer.zero_()  # the counters of batches, which a file may lack
    load_matching(network, _without(tensors, last), origin=str(weights), child="trunk")


def _without(tensors: Mapping[str, Tensor], layer: str) -> dict[str, Tensor]:
    owners = {name: name.rpartition(".")[0] for name in tensors}
    return {name: t for name, t in tensors.items() if owners[name] != layer and not owners[name].endswith(f".{layer}")}
