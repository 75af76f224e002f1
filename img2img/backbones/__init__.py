"""Encoder-decoders and classifiers, where their pre-trained weights come from, and frozen networks for perceptual losses.

A backbone is described by plain JSON, so that a bundle on disk can rebuild it:

    backbone = build_backbone({"kind": "smp", "arch": "unet", "encoder": "resnet18", "out_channels": 8})
    again = build_backbone(backbone.spec)           # the same shape, random weights
    again.load_state_dict(backbone.state_dict())
"""

from collections.abc import Callable, Mapping
from typing import Any

from img2img.backbones.base import Backbone
from img2img.backbones.classifier import Classifier
from img2img.backbones.encoder_decoder import EncoderDecoder
from img2img.errors import InputError
from img2img.options import call_with

__all__ = ["Backbone", "Classifier", "EncoderDecoder", "build_backbone"]

KINDS = ("smp", "image_transformer", "fcn32s", "torchvision", "wide_resnet", "vgg_small", "lenet")
"""The kinds of backbone: three of encoder-decoders, four of classifiers."""


def _builder(kind: Any) -> Callable[..., Backbone]:
    # Imported on demand: segmentation-models-pytorch alone takes seconds.
    match kind:
        case "smp":
            from img2img.backbones.smp import smp_backbone

            return smp_backbone
        case "image_transformer":
            from img2img.backbones.transformer import ImageTransformer

            return ImageTransformer
        case "fcn32s":
            from img2img.backbones.fcn32s import FCN32s

            return FCN32s
        case "torchvision":
            from img2img.backbones.torchvision_classifiers import torchvision_classifier

            return torchvision_classifier
        case "wide_resnet":
            from img2img.backbones.wide_resnet import WideResNet

            return WideResNet
        case "vgg_small":
            from img2img.backbones.vgg_small import VGGSmall

            return VGGSmall
        case "lenet":
            from img2img.backbones.lenet import LeNet

            return LeNet
    raise InputError(f"backbone kind {kind!r} is unknown: choose one of {', '.join(map(repr, KINDS))}")


def build_backbone(spec: Mapping[str, Any]) -> Backbone:
    """Build the encoder-decoder or the classifier that `spec` describes.

    Args:
        spec: "kind" says what builds it; the other keys are that one's arguments. Encoder-decoders: "smp"
            (`img2img.backbones.smp.smp_backbone`), "image_transformer" (`transformer.ImageTransformer`), "fcn32s"
            (`fcn32s.FCN32s`). Classifiers: "torchvision" (`torchvision_classifiers.torchvision_classifier`), "wide_resnet"
            (`wide_resnet.WideResNet`), "vgg_small" (`vgg_small.VGGSmall`), "lenet" (`lenet.LeNet`). "out_channels" is
            required: the head's channels, or the classes; without "weights" they are random. A `Backbone.spec` is
            such a mapping.

    Raises:
        InputError: an unknown kind or key, a missing key, or a value of another type or that cannot be used.
    """
    arguments = dict(spec)
    kind = arguments.pop("kind", None)
    build = _builder(kind)
    backbone: Backbone = call_with(build, arguments, what=f"backbone {kind!r}")
    return backbone
