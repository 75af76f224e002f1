"""Heads as a known kind with options, so that a task file can rebuild them without running anything from the file."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from img2img.errors import InputError

# Of each kind: the constructor's options, which are attributes of the same names.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "Linear": ("in_features", "out_features"),
    "Conv2d": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    "ConvTranspose2d": (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "groups", "dilation",
        "padding_mode",
    ),
    "Upsample": ("scale_factor", "mode", "align_corners"),
    "ReflectionPad2d": ("padding",),
    "ReplicationPad2d": ("padding",),
    "AdaptiveAvgPool2d": ("output_size",),
    "Flatten": ("start_dim", "end_dim"),
    "Dropout": ("p",),
    "ReLU": (),
    "Identity": (),
}  # fmt: skip


def describe_head(head: nn.Module) -> dict[str, Any]:
    """The kind and options of `head` as JSON values; `{"kind": "custom", "class": name}` for a class not known here."""
    kind = type(head).__name__
    if type(head) is nn.Sequential:
        return {"kind": "Sequential", "layers": [describe_head(layer) for layer in head]}
    if kind not in _OPTIONS or type(head) is not getattr(nn, kind):
        return {"kind": "custom", "class": kind}
    options = {name: getattr(head, name) for name in _OPTIONS[kind]}
    if hasattr(head, "weight"):
        options["bias"] = head.bias is not None
    return {"kind": kind, "options": options}


def build_head(description: Mapping[str, Any]) -> nn.Module:
    """A fresh head of the kind that `describe_head` described.

    Raises:
        InputError: the kind is custom or unknown, or an option is.
    """
    kind = description.get("kind")
    if kind == "Sequential":
        return nn.Sequential(*(build_head(layer) for layer in description["layers"]))
    if kind == "custom":
        raise InputError(
            f"the task's head is of the class {description.get('class')!r}, which a file cannot rebuild: pass one to "
            "load_task(..., head=...)"
        )
    if kind not in _OPTIONS:
        raise InputError(f"head kind {kind!r} is unknown; known: {sorted([*_OPTIONS, 'Sequential'])}")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in description["options"].items()}
    unknown = options.keys() - {*_OPTIONS[kind], "bias"}
    if unknown:
        raise InputError(f"head option {sorted(unknown)} of {kind} is unknown; known: {_OPTIONS[kind]}")
    module: nn.Module = getattr(nn, kind)(**options)
    return module
