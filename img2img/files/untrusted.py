"""Bounds on the values in a file that anybody may have written."""

import os
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from img2img.errors import InputError

_MAX_TEXT = 1000

MAX_NAME = 200
"""Letters of the longest name: of a task or a basis, which name files, and of a tensor's part of a description."""


def check_plain(value: Any, what: str, *, depth: int = 5, most: int = 10_000, largest: float = 1e9) -> None:
    """Refuse a value of JSON that is larger than anything that img2img writes in its place.

    Args:
        value: text, number, true, false, null, list or mapping.
        what: what it is, for the message.
        depth: of lists and mappings in each other.
        most: entries of a list or mapping.
        largest: absolute value of a number.

    Raises:
        InputError: it is larger, or no such value.
    """
    why = _excess(value, depth, most, largest)
    if why:
        raise InputError(f"{what} has {why}: the file is damaged or forged; get it again from whoever made it")


def _excess(value: Any, depth: int, most: int, largest: float) -> str:
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, int | float):
        return "" if abs(value) <= largest else f"the number {reprlib.repr(value)}, beyond {largest:g}"
    if isinstance(value, str):
        return "" if len(value) <= _MAX_TEXT else f"a text of {len(value)} letters, more than {_MAX_TEXT}"
    if not isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__}"
    if depth == 0:
        return "lists or mappings that are nested too deep"
    if len(value) > most:
        return f"{len(value)} entries, more than {most}"
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    return next((why for part in parts if (why := _excess(part, depth - 1, most, largest))), "")


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
