"""The header of a task file: JSON whose every field is of a known type before anything relies on it."""

import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch

from img2img.errors import InputError, shortened
from img2img.files.json_files import parse_json

FORMAT = "img2img-task"
VERSION = 2
MAX_HEADER = 1 << 22
"""Bytes of the longest header that is written or read. That of a network with thousands of weights has less than one million."""
CODED = {"bool": torch.bool, "uint8": torch.uint8}
"""The types of tensors that are coded, by the names that the header uses."""

_DAMAGE = (
    safetensors.SafetensorError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever goes wrong with what a file says into an `InputError` that begins with `what`."""
    try:
        yield
    except InputError:
        raise
    except _DAMAGE as error:
        why = shortened(f"{type(error).__name__}: {error}", 500)
        raise InputError(f"{what} ({why}): copy it again from where it came from") from error


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 8 and all(map(_is_int, value))


def _has(**fields: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, dict) and v.keys() == fields.keys() and all(fits(v[key]) for key, fits in fields.items())


def _all(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, dict) and all(map(fits, v.values()))


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: v is None or fits(v)


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "version": _is_int,
    "task": _is_text,
    "method": _has(name=_is_text, options=_is_dict),
    "norm": lambda v: v in ("own", "statistics", "frozen"),
    "head": _or_none(_is_dict),
    "backbone_sha256": _is_text,
    "densities": _all(lambda v: _is_number(v) and v <= 1),
    "info": _is_dict,
    "storage": _has(weights=_is_int, coded_bytes=_is_int, entropy_bits=_is_number, layers=_all(_is_int)),
    "relative_to": _or_none(_has(task=_is_text, sha256=_is_text)),
    "basis": _or_none(_has(name=_is_text, sha256=_is_text)),
    "coded": _all(_has(dtype=lambda v: v in tuple(CODED), shape=_is_shape, entropy_bits=_is_number)),
    "checksum": _is_text,
}


def parse_header(path: Path, file: BinaryIO, size: int) -> dict[str, Any]:
    """The header at the beginning of `file` of `size` bytes; every field of the type that the rest relies on."""
    with refusing(f"{path} is damaged or no task file"):
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(MAX_HEADER, size - 8):
            raise ValueError(f"{size} bytes, of which {length} are to be the header")
        entries = parse_json(file.read(length))
        metadata = entries.pop("__metadata__", {})
        if metadata.get("format") != FORMAT:
            raise InputError(f"{path} is a safetensors file, but no img2img task; expected one that save_task wrote")
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if end != size:
            raise ValueError(f"{size} bytes, expected {end}")
        header: dict[str, Any] = parse_json(metadata["header"])
        version = header["version"]
        if version != VERSION:
            todo = "upgrade it" if _is_int(version) and version > VERSION else "load it with the img2img that wrote it"
            raise InputError(f"{path} has format version {reprlib.repr(version)}, this img2img reads {VERSION}: {todo}")
        if header.keys() != _FIELDS.keys():
            raise ValueError(f"header fields {reprlib.repr(sorted(header.keys() ^ _FIELDS.keys()))} missing or unexpected")
        for field, fits in _FIELDS.items():
            if not fits(header[field]):
                raise ValueError(f"header field {field!r} is {reprlib.repr(header[field])}")
    return header
