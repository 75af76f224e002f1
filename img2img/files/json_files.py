"""JSON in files: read within bounds, whoever wrote it, and written atomically."""

import json
import math
import os
from pathlib import Path
from typing import Any

from img2img.errors import InputError
from img2img.files.atomic import write_atomic
from img2img.files.paths import expanded

MAX_DIGITS = 40
"""Digits of the longest whole number."""


def parse_json(text: str | bytes, *, allow_nan: bool = False) -> Any:
    """The value of JSON text, UTF-8. Nothing is allocated beyond a small multiple of the text.

    Args:
        text: the text.
        allow_nan: take NaN and infinity, which Python and other programs write though JSON has neither.

    Raises:
        ValueError: it is no JSON, has NaN or infinity (a number beyond the range of floats is one), a whole number of more than
            `MAX_DIGITS` digits or half of a surrogate pair, or is nested too deep.
    """
    numbers: dict[str, Any] = {} if allow_nan else {"parse_constant": _no_number, "parse_float": _finite}
    try:
        text = text if isinstance(text, str) else text.decode()  # strictly: json takes halves of letters in bytes
        value = json.loads(text, parse_int=_whole, **numbers)
        if "\\ud" in text or "\\uD" in text:  # halves of characters, which nothing could write again
            json.dumps(value, ensure_ascii=False).encode()
        return value
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


def read_json(path: str | os.PathLike[str], *, max_bytes: int | None = None, allow_nan: bool = False) -> Any:
    """The value of a JSON file.

    Args:
        path: the file.
        max_bytes: of the file, if anybody may have written it; None for no bound.
        allow_nan: see `parse_json`.

    Raises:
        InputError: no such file, too many bytes, or what `parse_json` refuses; the message names the file and the line.
    """
    path = expanded(path)
    if not path.is_file():
        raise InputError(f"no file at {path}: expected a JSON file there; check the path")
    if max_bytes is not None and path.stat().st_size > max_bytes:
        raise InputError(f"{path} has {path.stat().st_size} bytes, expected at most {max_bytes}: restore it from a copy")
    try:
        # Windows programs put a byte order mark first.
        return parse_json(path.read_text(encoding="utf-8-sig"), allow_nan=allow_nan)
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): restore it from a copy or write it again") from error


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` as indented UTF-8 JSON, atomically. NaN and infinity are refused, since JSON has neither."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_atomic(path, lambda p: p.write_text(text, encoding="utf-8"))
