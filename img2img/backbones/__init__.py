"""Encoder-decoders and classifiers, where their pre-trained weights come from, and frozen networks for perceptual losses.

A backbone is described by plain JSON, so that a bundle on disk can rebuild it:

    backbone = build_backbone({"kind": "smp", "arch": "unet", "encoder": "resnet18", "out_channels": 8})
    again = build_backbone(backbone.spec)           # the same shape, random weights
    again.load_state_dict(backbone.state_dict())
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from img2img.backbones.base import Backbone
from img2img.backbones.classifier import Classifier
from img2img.backbones.encoder_decoder import EncoderDecoder
from img2img.errors import InputError
from img2img.registry import Registry
from img2img.validation import call_with

__all__ = ["Backbone", "Classifier", "EncoderDecoder", "build_backbone", "register_backbone"]

KINDS: Registry[Callable[..., Backbone]] = Registry(
    "backbone kind",
    {
        "smp": "img2img.backbones.smp:smp_backbone",
        "image_transformer": "img2img.backbones.transformer:ImageTransformer",
        "fcn32s": "img2img.backbones.fcn32s:FCN32s",
        "torchvision": "img2img.backbones.torchvision_classifiers:torchvision_classifier",
        "wide_resnet": "img2img.backbones.wide_resnet:WideResNet",
        "vgg_small": "img2img.backbones.vgg_small:VGGSmall",
        "lenet": "img2img.backbones.lenet:LeNet",
    },
)
"""The kinds of backbone: three of encoder-decoders, four of classifiers, and those of users."""

Builder = TypeVar("Builder", bound=Callable[..., Backbone])


def register_backbone(kind: str) -> Callable[[Builder], Builder]:
    """Make a class or a function that builds a backbone known to configs and bundles as `kind`: a decorator.

    Its keyword options, with plain JSON values and annotated types, are those of a config. `out_channels` is among them, and so
    is `weights`, None for random ones, if it can take weights from elsewhere. The `spec` of what it builds has that `kind` and
    all options but `weights`. A bundle of somebody else may name the kind with any values of them: no option but `weights`, which
    bundles do not get to say, may be opened or fetched.

    Raises:
        InputError: another class or function has that name.
    """

    def enter(build: Builder) -> Builder:
        KINDS.add(kind, build)
        return build

    return enter


def build_backbone(spec: Mapping[str, Any]) -> Backbone:
    """Build the encoder-decoder or the classifier that `spec` describes.

    Args:
        spec: "kind" says what builds it; the other keys are that one's arguments. Encoder-decoders: "smp"
            (`img2img.backbones.smp.smp_backbone`), "image_transformer" (`transformer.ImageTransformer`), "fcn32s"
            (`fcn32s.FCN32s`). Classifiers: "torchvision" (`torchvision_classifiers.torchvision_classifier`), "wide_resnet"
            (`wide_resnet.WideResNet`), "vgg_small" (`vgg_small.VGGSmall`), "lenet" (`lenet.LeNet`). Or a kind of the user's own,
            see `register_backbone`. "out_channels" is required: the head's channels, or the classes; without "weights" they are
            random. A `Backbone.spec` is such a mapping.

    Raises:
        InputError: an unknown kind or key, a missing key, or a value of another type or that cannot be used.
    """
    arguments = dict(spec)
    kind = arguments.pop("kind", None)
    build = KINDS.find(kind)
    if arguments.get("weights") is None and "weights" not in inspect.signature(build).parameters:
        arguments.pop("weights", None)  # bundles and fresh networks ask for no weights, which a kind need not know of
    backbone = call_with(build, arguments, what=f"backbone {kind!r}")
    if not isinstance(backbone, Backbone) or backbone.spec.get("kind") != kind:
        got = f"spec={backbone.spec}" if isinstance(backbone, Backbone) else f"a {type(backbone).__name__}"
        raise InputError(
            f"the backbone kind {kind!r} built {got}: expected a Backbone whose spec has that kind, so that a bundle can rebuild "
            "it; correct the class"
        )
    # Pictures are float32 whatever torch.set_default_dtype says.
    return backbone if torch.get_default_dtype() == torch.float32 else backbone.float()
