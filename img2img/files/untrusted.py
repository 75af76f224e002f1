"""What other people's files say, read with bounds: JSON of known types and sizes, and what tensors a file holds.

Nothing here allocates more than a small multiple of what is read.
"""

import json
import math
import os
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import safetensors

from img2img.errors import InputError
from img2img.files.paths import expanded

MAX_NAME = 200
"""Letters of the longest name: of a task or a basis, which name files, and of a tensor's part of a description."""
MAX_DIGITS = 40
"""Digits of the longest whole number in JSON."""
MAX_TENSORS_HEADER = 1 << 24
"""Bytes of the longest description of tensors in a `.safetensors` file."""

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""Of each tensor by name its type, as `safetensors` spells it ("F32"), and its shape."""


def parse_json(text: str | bytes) -> Any:
    """The value of JSON text, UTF-8.

    Raises:
        ValueError: it is no JSON, has NaN or infinity (a number beyond the range of floats is one), a whole number of more than
            `MAX_DIGITS` digits, or is nested too deep.
    """
    try:
        text = text if isinstance(text, str) else text.decode()  # strictly: json takes halves of letters in bytes
        return json.loads(text, parse_constant=_no_number, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:MAX_DIGITS]} is too large")
    return value


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def check_plain(value: Any, what: str, *, depth: int = 5, most: int = 10_000, longest: int = 1000, largest: float = 1e9) -> None:
    """Refuse a value of JSON that is larger than anything that img2img writes in its place.

    Args:
        value: text, number, true, false, null, list or mapping.
        what: what it is, for the message.
        depth: of lists and mappings in each other.
        most: entries of a list or mapping.
        longest: letters of a text.
        largest: absolute value of a number.

    Raises:
        InputError: it is larger, or no such value.
    """
    why = _excess(value, depth, most, longest, largest)
    if why:
        raise InputError(f"{what} has {why}: the file is damaged or forged; get it again from whoever made it")


def _excess(value: Any, depth: int, most: int, longest: int, largest: float) -> str:
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, int | float):
        return "" if abs(value) <= largest else f"the number {reprlib.repr(value)}, beyond {largest:g}"
    if isinstance(value, str):
        return "" if len(value) <= longest else f"a text of {len(value)} letters, more than {longest}"
    if not isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__}"
    if depth == 0:
        return "lists or mappings that are nested too deep"
    if len(value) > most:
        return f"{len(value)} entries, more than {most}"
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    return next((why for part in parts if (why := _excess(part, depth - 1, most, longest, largest))), "")


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let an `InputError` that is raised inside begin with the file whose content it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def mapping(value: Any) -> dict[str, Any]:
    """`value` if it is a mapping, else an empty one: for what is only shown, of files that may say anything."""
    return value if isinstance(value, dict) else {}


def tensor_shapes(path: str | os.PathLike[str]) -> Shapes:
    """The tensors that a `.safetensors` file says it holds. None of them is read; the sizes fit the file's own.

    Raises:
        InputError: it is no such file, cut off, or describes more than `MAX_TENSORS_HEADER` bytes of names.
    """
    path = expanded(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > MAX_TENSORS_HEADER:
            raise ValueError(f"its header is to have {length} bytes")
        with safetensors.safe_open(path, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is damaged or no .safetensors file ({error}): copy it again") from error


FLOATS = ("F64", "F32", "F16", "BF16")
"""The types of floating point that networks are stored in. Those of 8 bits and fewer are none that a layer computes with."""


def check_shapes(path: str | os.PathLike[str], got: Shapes, expected: Mapping[str, Any], *, ignored: str = "") -> None:
    """Refuse a file whose tensors are not those of a network.

    Args:
        path: the file, for messages.
        got: what it holds.
        expected: the network's tensors by name, on any device, the meta device too.
        ignored: tensors of the network whose names begin with it need not be there.

    Raises:
        InputError: a tensor is missing or left over, or of another shape or kind of type.
    """
    wanted = {name: tensor for name, tensor in expected.items() if not (ignored and name.startswith(ignored))}
    odd = sorted(got.keys() ^ wanted.keys())
    if odd:
        raise InputError(
            f"{path} does not fit the network that is described beside it: {odd[:3]} missing or unexpected ({len(got)} tensors, "
            f"expected {len(wanted)}); copy both again"
        )
    for name, tensor in wanted.items():
        kind, shape = got[name]
        if shape != tuple(tensor.shape):
            raise InputError(
                f"{path} does not fit the network that is described beside it: {name} has the shape {shape}, expected "
                f"{tuple(tensor.shape)}; copy both again"
            )
        if (kind in FLOATS) != tensor.is_floating_point():
            raise InputError(f"{path}: {name} is of the type {kind}, expected {tensor.dtype}; copy the file again")
