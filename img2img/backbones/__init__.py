"""Encoder-decoders and classifiers, where their pre-trained weights come from, and frozen networks for perceptual losses.

A backbone is described by plain JSON, so that a bundle on disk can rebuild it:

    backbone = build_backbone({"kind": "smp", "arch": "unet", "encoder": "resnet18", "out_channels": 8})
    again = build_backbone(backbone.spec)           # the same shape, random weights
    again.load_state_dict(backbone.state_dict())
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from img2img.backbones.base import BACKBONES, Backbone
from img2img.backbones.classifier import Classifier
from img2img.backbones.encoder_decoder import EncoderDecoder
from img2img.errors import InputError
from img2img.validation import call_with

__all__ = ["BACKBONES", "Backbone", "Classifier", "EncoderDecoder", "build_backbone"]


def build_backbone(spec: Mapping[str, Any]) -> Backbone:
    """Build the encoder-decoder or the classifier that `spec` describes.

    Args:
        spec: "kind" says what builds it; the other keys are that one's arguments. Encoder-decoders: "smp"
            (`img2img.backbones.smp.smp_backbone`), "image_transformer" (`transformer.ImageTransformer`), "fcn32s"
            (`fcn32s.FCN32s`). Classifiers: "torchvision" (`torchvision_classifiers.torchvision_classifier`), "wide_resnet"
            (`wide_resnet.WideResNet`), "vgg_small" (`vgg_small.VGGSmall`), "lenet" (`lenet.LeNet`). Or a kind of the user's own,
            see `BACKBONES`. "out_channels" is required: the head's channels, or the classes; without "weights" they are
            random. A `Backbone.spec` is such a mapping.

    Raises:
        InputError: an unknown kind or key, a missing key, or a value of another type or that cannot be used.
    """
    arguments = dict(spec)
    kind = arguments.pop("kind", None)
    build = BACKBONES.find(kind)
    channels = arguments.get("out_channels")
    if isinstance(channels, int) and channels < 1:
        raise InputError(f"backbone {kind!r} got out_channels {channels}: expected 1 channel or class, or more")
    if arguments.get("weights") is None and "weights" not in inspect.signature(build).parameters:
        arguments.pop("weights", None)  # bundles and fresh networks ask for no weights, which a kind need not know of
    backbone = call_with(build, arguments, what=f"backbone {kind!r}")
    if not isinstance(backbone, Backbone) or backbone.spec.get("kind") != kind:
        got = f"spec={backbone.spec}" if isinstance(backbone, Backbone) else f"a {type(backbone).__name__}"
        raise InputError(
            f"the backbone kind {kind!r} built {got}: expected a Backbone whose spec has that kind, so that a bundle can rebuild "
            "it; correct the class"
        )
    # Images are float32 whatever torch.set_default_dtype says.
    return backbone if torch.get_default_dtype() == torch.float32 else backbone.float()
