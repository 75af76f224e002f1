"""Encoder-decoders of segmentation-models-pytorch (SMP): any encoder with any of its decoders.

Each computes exactly what `smp.create_model` computes with the same weights. Two things differ in form: the head is made of
plain `torch.nn` classes, and parameters that no output depends on (the last stages of a shallow encoder, the classifier
neck of some) are dropped, since a mask over them could never learn.
"""

import inspect
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

from img2img.backbones.base import BACKBONES
from img2img.backbones.efficientnet_lite0 import LITE_MEAN, LITE_STD, make_tensorflow_like
from img2img.backbones.encoder_decoder import IMAGENET_MEAN, IMAGENET_STD, EncoderDecoder, HeadShape
from img2img.backbones.pretrained import encoder_tensors, load_matching
from img2img.errors import InputError
from img2img.masks.meta import meta_device

ARCHITECTURES: dict[str, type[nn.Module]] = smp.MODEL_ARCHITECTURES_MAPPING

# What this project fixes itself: three channels in, and a head that ends the network.
_RESERVED = {
    "self", "kwargs", "encoder_name", "encoder_weights", "encoder_depth", "in_channels", "classes", "activation",
    "aux_params", "decoder_channels",
}  # fmt: skip
_TOO_SMALL = (RuntimeError, AssertionError, ValueError)  # what layers raise on a size that they cannot take
# Names that timm finds in its own tables. Others it takes for places: `hf-hub:owner/name`, `local-dir:path`.
_TIMM_NAME = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_]+)?")
# Of `timm.create_model`, beside the decoder's own: what shapes a network. None of them is a file, an address or a source of
# weights (`checkpoint_path`, `pretrained_cfg`, `cache_dir`, ...), since bundles of other people carry them.
_TIMM_OPTIONS = frozenset({
    "act_layer", "always_partition", "attn_drop_rate", "aux_head", "block_size", "drop_block_rate", "drop_path_rate",
    "drop_rate", "dynamic_img_pad", "dynamic_img_size", "global_pool", "img_size", "norm_layer", "output_stride", "pad_type",
    "patch_drop_rate", "pos_drop_rate", "proj_drop_rate", "strict_img_size", "window_ratio", "window_size",
})  # fmt: skip
MAX_SIDE = 1024
"""Pixels of the largest `img_size`: the network runs once on an image of it while it is built."""
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# Encoders of SMP's own whose weights were not trained on ImageNet's mean and deviation, by how their names begin.
_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "timm-tf_efficientnet_lite": (LITE_MEAN, LITE_STD),
    "tu-tf_efficientnet_lite": (LITE_MEAN, LITE_STD),
    "inceptionv4": _HALF,
    "inceptionresnetv2": _HALF,
    "xception": _HALF,
    "dpn": ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3),
}


@BACKBONES.register("smp")
def smp_backbone(
    arch: str = "unet",
    encoder: str = "resnet18",
    *,
    out_channels: int,
    weights: str | os.PathLike[str] | None = None,
    decoder_channels: int | Sequence[int] | None = None,
    depth: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> EncoderDecoder:
    """Build an encoder-decoder of SMP.

    Args:
        arch: a decoder of SMP: unet, unetplusplus, manet, linknet, fpn, pspnet, deeplabv3, deeplabv3plus, pan, upernet,
            segformer, dpt.
        encoder: an encoder of SMP, or "tu-" and the name of a network that timm has itself; none of a hub or a folder.
        out_channels: of the head.
        weights: of the encoder; see `img2img.backbones.pretrained`. The decoder is always random.
        decoder_channels: as the decoder takes it (U-Net: one number a stage, deepest first); None: SMP's default.
        depth: stages of the encoder; None: SMP's default (5; PSPNet 3, DPT 4).
        options: further options of the decoder's class in SMP, and, of a "tu-" encoder, some of `timm.create_model`: those that
            shape the network, such as `img_size` and `drop_path_rate`, and none that names a file or a source of weights.

    Raises:
        InputError: an unknown name or option, a combination that SMP cannot build, or weights that do not fit.
    """
    arch = arch.lower()
    options = dict(options or {})
    spec: dict[str, Any] = {"kind": "smp", "arch": arch, "encoder": encoder, "out_channels": out_channels}
    spec |= {"decoder_channels": decoder_channels, "depth": depth, "options": options}
    model = _create(arch, encoder, spec)
    if encoder.startswith("timm-tf_efficientnet_lite"):
        make_tensorflow_like(model.encoder)
    decoder, head_shape = _split_head(model)
    stride, min_size = _probe(model, decoder, head_shape.upsampling, arch, encoder, options)
    if weights is not None:
        tensors, partial = encoder_tensors(weights, encoder)
        load_matching(
            model.encoder, tensors, origin=str(weights), partial=partial, whole=lambda: _names_of_whole(encoder, options)
        )
    mean, std = input_statistics(encoder)
    return EncoderDecoder(
        model.encoder,
        decoder,
        head_shape,
        out_channels=out_channels,
        stride=stride,
        min_size=min_size,
        spec=spec,
        mean=mean,
        std=std,
    )


def input_statistics(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the images, on [0, 1], that the encoder's published weights expect."""
    for start, statistics in _STATISTICS.items():
        if encoder.startswith(start):
            return statistics
    config = timm.models.get_pretrained_cfg(encoder.removeprefix("tu-")) if encoder.startswith("tu-") else None
    return (tuple(config.mean), tuple(config.std)) if config is not None else (IMAGENET_MEAN, IMAGENET_STD)


def _create(arch: str, encoder: str, spec: Mapping[str, Any]) -> Any:
    if arch not in ARCHITECTURES:
        raise InputError(f"backbone arch {arch!r} is unknown to segmentation-models-pytorch: choose one of {[*ARCHITECTURES]}")
    _check_encoder(encoder)
    parameters = inspect.signature(ARCHITECTURES[arch].__init__).parameters
    allowed = (set(parameters) - _RESERVED) | (_TIMM_OPTIONS if encoder.startswith("tu-") else set())
    arguments = dict(spec["options"])
    unknown = arguments.keys() - allowed
    if unknown:
        raise InputError(f"backbone options {sorted(unknown)} are unknown to {arch}: known options are {sorted(allowed)}")
    side = _img_size(arguments)
    if side is not None and not 1 <= side <= MAX_SIDE:
        raise InputError(f"backbone option img_size={arguments['img_size']!r}: expected 1 to {MAX_SIDE} pixels; correct it")
    if spec["decoder_channels"] is not None:
        if "decoder_channels" not in parameters:
            raise InputError(f"{arch} takes no decoder_channels: leave it out, or use its options {sorted(allowed)}")
        arguments["decoder_channels"] = spec["decoder_channels"]
    if spec["depth"] is not None:
        arguments["encoder_depth"] = spec["depth"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of `timm-` encoders, which keep working
            return smp.create_model(arch, encoder, encoder_weights=None, classes=1, **arguments)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"segmentation-models-pytorch cannot build {arch} on {encoder} with {arguments} ({error}): change these options"
        ) from error


def _check_encoder(encoder: str) -> None:
    """Raise `InputError` unless SMP or timm has the encoder in its own tables."""
    known = smp.encoders.get_encoder_names()
    name = encoder.removeprefix("tu-")
    if encoder != name:
        if not _TIMM_NAME.fullmatch(name) or not timm.is_model(name.partition(".")[0]):
            raise InputError(
                f"backbone encoder {encoder!r:.200} is unknown: timm has no network of that name itself, and none of a hub or a "
                "folder is taken; choose one of timm.list_models(), such as tu-tf_efficientnet_lite0, and give trained weights "
                "with weights: PATH"
            )
    elif encoder not in known:
        raise InputError(
            f"backbone encoder {encoder!r:.200} is unknown to segmentation-models-pytorch: choose one of {known}, or tu- and "
            "the name of a network of timm, such as tu-tf_efficientnet_lite0"
        )


def _names_of_whole(encoder: str, options: Mapping[str, Any]) -> list[str]:
    """The names of an encoder's tensors with all of its stages, of which a decoder or a depth may leave some out."""
    with torch.random.fork_rng(devices=[]), meta_device(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if encoder.startswith("tu-"):
            shaping = {key: value for key, value in options.items() if key in _TIMM_OPTIONS}
            whole = timm.create_model(encoder.removeprefix("tu-"), **shaping)
        else:
            whole = smp.encoders.get_encoder(encoder, weights=None)
        return list(whole.state_dict())


def _img_size(options: Mapping[str, Any]) -> int | None:
    """The longer side of the option `img_size`, a number or a pair; None where it is not given."""
    size = options.get("img_size")
    sides = size if isinstance(size, list | tuple) and size else [size]
    if size is None:
        return None
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in sides):
        raise InputError(f"backbone option img_size={size!r}: expected whole numbers of pixels, one or height and width")
    return max(sides)


class _DPTDecoder(nn.Module):
    """The decoder of DPT and the hidden layers of its head, so that its last convolution alone is the head."""

    def __init__(self, decoder: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        self.neck = neck

    def forward(self, features: tuple[list[Tensor], list[Tensor | None]]) -> Tensor:
        """Feature maps and prefix tokens of a vision transformer to (N, C, H / 2, W / 2)."""
        y: Tensor = self.neck(self.decoder(*features))
        return y


def _split_head(model: Any) -> tuple[nn.Module, HeadShape]:
    """The decoder of an SMP model, and the shape of its head."""
    if isinstance(model, smp.DPT):
        *neck, conv = model.segmentation_head.head
        factor = model.segmentation_head.upsampling_factor
        return _DPTDecoder(model.decoder, nn.Sequential(*neck)), HeadShape(conv.in_channels, conv.kernel_size[0], int(factor))
    conv, upsampling, _ = model.segmentation_head
    factor = getattr(upsampling, "scale_factor", 1)
    return model.decoder, HeadShape(conv.in_channels, conv.kernel_size[0], int(factor))


def _probe(
    model: Any, decoder: nn.Module, upsampling: int, arch: str, encoder: str, options: Mapping[str, Any]
) -> tuple[int, int]:
    """Run the network, to find what images it takes and the parameters that it never uses.

    Returns:
        The number that height and width must be multiples of (the encoder's own says too little for some decoders), and the
        smallest height and width. Unused layers have been dropped from `model.encoder` and `decoder`.

    Raises:
        InputError: no size works, or the output has another size than the image.
    """
    stride = model.encoder.output_stride
    fixed = getattr(getattr(model.encoder, "model", None), "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1]
    sizes = [stride * k for k in (1, 2, 4, 8)] + [_img_size(options) or int(fixed)]
    training = model.training
    for part in (model, decoder):
        part.eval()
    failure: Exception | None = None
    for size in sizes:
        try:
            y = decoder(model.encoder(torch.zeros(1, 3, size, size)))
            break
        except _TOO_SMALL as error:
            failure = error
    else:
        raise InputError(
            f"{arch} on {encoder} runs on no image of {sizes} pixels ({failure}): expected one to work; set img_size or "
            "dynamic_img_size in the backbone's options, or choose another encoder"
        ) from failure
    if y.shape[-1] * upsampling != size:
        raise InputError(
            f"{arch} on {encoder} makes {y.shape[-1] * upsampling} pixels of {size}: expected as many as the image has; set "
            "`upsampling` in the backbone's options, or leave its depth and strides alone"
        )
    y.sum().backward()
    for part in (model.encoder, decoder):
        _drop_unused(part)
    width = size + stride
    try:
        with torch.no_grad():
            fits = decoder(model.encoder(torch.zeros(1, 3, size, width))).shape[-1] * upsampling == width
    except _TOO_SMALL:
        fits = False
    for part in (model.encoder, decoder):
        part.train(training)
    # DPT halves its smallest map once more than the encoder's stride says; windows of a fixed size take no other at all.
    return (stride if fits else size), size


def _drop_unused(module: nn.Module) -> None:
    """Replace each child that no output depends on with `nn.Identity`; clear the gradients that told."""
    for name, child in module.named_children():
        parameters = list(child.parameters())
        if parameters and all(p.grad is None for p in parameters):
            setattr(module, name, nn.Identity())
        else:
            _drop_unused(child)
    for parameter in module.parameters(recurse=False):
        parameter.grad = None
