"""Heads as a known kind with options, so that a task file can rebuild them without running anything from the file.

Every option has a range, which all sensible heads are far inside of: what a file says may be forged, and a head of some bytes
could otherwise take hours and all memory.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from img2img.errors import InputError

MAX_LAYERS = 64
"""Layers of a head, at most; those in a Sequential inside another count too."""
MAX_ENLARGEMENT = 64
"""How many times as high and wide a head's output is as what it gets, at most."""


class _Values:
    """The values that an option may have: whole numbers or numbers in a range, one or a fixed number of them."""

    def __init__(self, low: float, high: float, *, counts: tuple[int, ...] = (), whole: bool = True, none: bool = False) -> None:
        self._low, self._high, self._counts, self._whole, self._none = low, high, counts, whole, none

    def __call__(self, value: Any) -> bool:
        if isinstance(value, tuple):
            return len(value) in self._counts and all(map(self._one, value))
        return self._one(value)

    def _one(self, value: Any) -> bool:
        if value is None:
            return self._none
        kinds = int if self._whole else int | float
        return isinstance(value, kinds) and not isinstance(value, bool) and self._low <= value <= self._high

    def __str__(self) -> str:
        several = f", or {' or '.join(map(str, self._counts))} of them" * bool(self._counts)
        return f"{'a whole number' if self._whole else 'a number'} from {self._low:g} to {self._high:g}{several}"


class _OneOf:
    """A fixed set of values."""

    def __init__(self, *values: Any) -> None:
        self._values = values

    def __call__(self, value: Any) -> bool:
        return any(type(value) is type(known) and value == known for known in self._values)

    def __str__(self) -> str:
        return "one of " + ", ".join(map(repr, self._values))


class _Either:
    """What one of two allows."""

    def __init__(self, *parts: Callable[[Any], bool]) -> None:
        self._parts = parts

    def __call__(self, value: Any) -> bool:
        return any(part(value) for part in self._parts)

    def __str__(self) -> str:
        return ", or ".join(map(str, self._parts))


_CHANNELS = _Values(1, 1 << 20)
_KERNEL, _STRIDE, _DILATION = _Values(1, 128, counts=(2,)), _Values(1, MAX_ENLARGEMENT, counts=(2,)), _Values(1, 64, counts=(2,))
_PADDING, _SIDES = _Values(0, 256, counts=(2,)), _Values(0, 256, counts=(4,))

# Of each kind: the constructor's options, which are attributes of the same names, and what each may be.
_OPTIONS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "Linear": {"in_features": _CHANNELS, "out_features": _CHANNELS},
    "Conv2d": {
        "in_channels": _CHANNELS, "out_channels": _CHANNELS, "kernel_size": _KERNEL, "stride": _STRIDE,
        "padding": _Either(_PADDING, _OneOf("same", "valid")), "dilation": _DILATION, "groups": _CHANNELS,
        "padding_mode": _OneOf("zeros", "reflect", "replicate", "circular"),
    },
    "ConvTranspose2d": {
        "in_channels": _CHANNELS, "out_channels": _CHANNELS, "kernel_size": _KERNEL, "stride": _STRIDE, "padding": _PADDING,
        "output_padding": _PADDING, "groups": _CHANNELS, "dilation": _DILATION, "padding_mode": _OneOf("zeros"),
    },
    "Upsample": {
        "scale_factor": _Values(1 / MAX_ENLARGEMENT, MAX_ENLARGEMENT, counts=(2,), whole=False),
        "mode": _OneOf("nearest", "nearest-exact", "bilinear", "bicubic", "area"),
        "align_corners": _OneOf(None, False, True),
    },
    "ReflectionPad2d": {"padding": _SIDES},
    "ReplicationPad2d": {"padding": _SIDES},
    "AdaptiveAvgPool2d": {"output_size": _Values(1, 64, counts=(2,), none=True)},
    "Flatten": {"start_dim": _Values(-4, 4), "end_dim": _Values(-4, 4)},
    "Dropout": {"p": _Values(0, 1, whole=False)},
    "ReLU": {},
    "Identity": {},
}  # fmt: skip
_BIAS: Callable[[Any], bool] = _OneOf(False, True)


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
        InputError: the kind is custom or unknown, or an option is, or is beyond its range; or there are too many layers.
    """
    count = _count(description)
    if count > MAX_LAYERS:
        raise InputError(f"the head has more than {MAX_LAYERS} layers: {_FORGED}")
    head = _build(description)
    enlargement = 1.0
    for layer in head.modules():
        if isinstance(layer, nn.Upsample | nn.ConvTranspose2d):
            factor: Any = layer.scale_factor if isinstance(layer, nn.Upsample) else layer.stride
            enlargement *= max(1.0, *factor) if isinstance(factor, tuple) else max(1.0, factor)
    if enlargement > MAX_ENLARGEMENT:
        raise InputError(f"the head enlarges what it gets {enlargement:g} times, expected at most {MAX_ENLARGEMENT}: {_FORGED}")
    return head


_FORGED = "the file is damaged or forged; get it again from whoever made it"


def _count(description: Mapping[str, Any]) -> int:
    """Layers, counted until they are too many."""
    count, open_ = 0, [description]
    while open_ and count <= MAX_LAYERS:
        count += 1
        layer = open_.pop()
        inner = layer.get("layers", ()) if isinstance(layer, Mapping) else ()
        open_ += inner[: MAX_LAYERS + 1] if isinstance(inner, list | tuple) else ()
    return count


def _build(description: Mapping[str, Any]) -> nn.Module:
    kind = description.get("kind")
    if kind == "Sequential":
        return nn.Sequential(*(_build(layer) for layer in description["layers"]))
    if kind == "custom":
        raise InputError(
            f"the task's head is of the class {description.get('class')!r:.200}, which a file cannot rebuild: pass one to "
            "load_task(..., head=...)"
        )
    if kind not in _OPTIONS:
        raise InputError(f"head kind {kind!r:.200} is unknown; known: {sorted([*_OPTIONS, 'Sequential'])}")
    known = _OPTIONS[kind] | ({"bias": _BIAS} if hasattr(getattr(nn, kind), "reset_parameters") else {})
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in description["options"].items()}
    unknown = options.keys() - known.keys()
    if unknown:
        raise InputError(f"head option {sorted(unknown)[:5]} of {kind} is unknown; known: {[*known]}")
    for name, value in options.items():
        if not known[name](value):
            raise InputError(f"head option {name}={value!r:.200} of {kind}: expected {known[name]}; {_FORGED}")
    module: nn.Module = getattr(nn, kind)(**options)
    return module
