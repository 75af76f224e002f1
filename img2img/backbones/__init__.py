"""Encoder-decoders, where their pre-trained weights come from, and frozen networks for perceptual losses.

A backbone is described by plain JSON, so that a bundle on disk can rebuild it:

    backbone = build_backbone({"kind": "smp", "arch": "unet", "encoder": "resnet18", "out_channels": 8})
    again = build_backbone(backbone.spec)           # the same shape, random weights
    again.load_state_dict(backbone.state_dict())
"""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from img2img.backbones.encoder_decoder import EncoderDecoder
from img2img.errors import InputError

__all__ = ["EncoderDecoder", "build_backbone"]


def _builder(kind: Any) -> Callable[..., EncoderDecoder]:
    # Imported on demand: segmentation-models-pytorch alone takes seconds.
    if kind == "smp":
        from img2img.backbones.smp import smp_backbone

        return smp_backbone
    if kind == "image_transformer":
        from img2img.backbones.transformer import ImageTransformer

        return ImageTransformer
    raise InputError(f"backbone kind {kind!r} is unknown: choose one of 'smp', 'image_transformer'")


def build_backbone(spec: Mapping[str, Any]) -> EncoderDecoder:
    """Build the encoder-decoder that `spec` describes.

    Args:
        spec: "kind" is "smp" or "image_transformer"; the other keys are the arguments of
            `img2img.backbones.smp.smp_backbone` or `img2img.backbones.transformer.ImageTransformer`. "out_channels" is
            required; without "weights" they are random. An `EncoderDecoder.spec` is such a mapping.

    Raises:
        InputError: an unknown kind or key, a missing key, or a value of another type or that cannot be used.
    """
    arguments = dict(spec)
    kind = arguments.pop("kind", None)
    build = _builder(kind)
    parameters = inspect.signature(build).parameters
    unknown = arguments.keys() - parameters.keys()
    if unknown:
        raise InputError(
            f"backbone {kind!r} has no option {', '.join(map(repr, sorted(unknown)))}: known options are {[*parameters]}"
        )
    missing = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in arguments]
    if missing:
        raise InputError(f"backbone {kind!r} needs {', '.join(map(repr, missing))}: add it to the backbone's config")
    hints = typing.get_type_hints(build.__init__ if inspect.isclass(build) else build)
    for name, value in arguments.items():
        if not _is_a(value, hints[name]):
            raise InputError(f"backbone {kind!r} got {name}: {value!r}: expected {parameters[name].annotation}; correct it")
    return build(**arguments)


def _is_a(value: Any, hint: Any) -> bool:
    """Whether `value` has the type `hint`: a class, a union, or a container whose contents are left unchecked."""
    if isinstance(hint, types.UnionType):
        return any(_is_a(value, part) for part in typing.get_args(hint))
    kind = typing.get_origin(hint) or hint
    if isinstance(value, bool | str):  # True is an int and text is a sequence, but neither is meant as one
        return kind is type(value)
    return isinstance(value, kind)
