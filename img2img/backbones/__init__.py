"""Encoder-decoders, where their pre-trained weights come from, and frozen networks for perceptual losses.

A backbone is described by plain JSON, so that a bundle on disk can rebuild it:

    backbone = build_backbone({"kind": "smp", "arch": "unet", "encoder": "resnet18", "out_channels": 8})
    again = build_backbone(backbone.spec)           # the same shape, random weights
    again.load_state_dict(backbone.state_dict())
"""

from collections.abc import Callable, Mapping
from typing import Any

from img2img.backbones.encoder_decoder import EncoderDecoder
from img2img.errors import InputError
from img2img.options import call_with

__all__ = ["EncoderDecoder", "build_backbone"]


def _builder(kind: Any) -> Callable[..., EncoderDecoder]:
    # Imported on demand: segmentation-models-pytorch alone takes seconds.
    if kind == "smp":
        from img2img.backbones.smp import smp_backbone

        return smp_backbone
    if kind == "image_transformer":
        from img2img.backbones.transformer import ImageTransformer

        return ImageTransformer
    if kind == "fcn32s":
        from img2img.backbones.fcn32s import FCN32s

        return FCN32s
    raise InputError(f"backbone kind {kind!r} is unknown: choose one of 'smp', 'image_transformer', 'fcn32s'")


def build_backbone(spec: Mapping[str, Any]) -> EncoderDecoder:
    """Build the encoder-decoder that `spec` describes.

    Args:
        spec: "kind" is "smp", "image_transformer" or "fcn32s"; the other keys are the arguments of
            `img2img.backbones.smp.smp_backbone`, `img2img.backbones.transformer.ImageTransformer` or
            `img2img.backbones.fcn32s.FCN32s`. "out_channels" is required; without "weights" they are random. An
            `EncoderDecoder.spec` is such a mapping.

    Raises:
        InputError: an unknown kind or key, a missing key, or a value of another type or that cannot be used.
    """
    arguments = dict(spec)
    kind = arguments.pop("kind", None)
    build = _builder(kind)
    backbone: EncoderDecoder = call_with(build, arguments, what=f"backbone {kind!r}")
    return backbone
