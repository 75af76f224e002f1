"""The arguments of a call, checked one by one."""

import operator
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from img2img.errors import InputError
from img2img.files.paths import expanded


def whole_number(name: str, value: Any, *, of: str = "") -> int | None:
    """`value`, of Python's or numpy's whole numbers from 1 on, or None.

    Args:
        name: the argument's, for the message.
        value: what was given.
        of: what is counted, for the message, such as "pixels".

    Raises:
        InputError: it is something else (True, 2.0 and "2" too), or smaller.
    """
    if value is None:
        return None
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # of an array or a tensor of several
        number = None
    if number is None or number < 1:
        raise InputError(f"{name}={shown(value)}: expected 1{f' {of}' * bool(of)} or more, a whole number, or None")
    return number


def one_of(name: str, value: Any, known: Collection[str]) -> str:
    """`value`, if it is one of the known names.

    Args:
        name: the argument's, or the option's with what has it before, such as "piggyback start".
        value: what was given.
        known: the names.

    Raises:
        InputError: it is another, or no text.
    """
    if isinstance(value, str) and value in known:
        return value
    raise InputError(f"{name}={shown(value)}: expected one of {', '.join(map(repr, known))}")


def flag(name: str, value: Any) -> bool:
    """`value`, if it is true or false.

    Raises:
        InputError: it is something else, such as 1 or "no".
    """
    if isinstance(value, bool):
        return value
    raise InputError(f"{name}={shown(value)}: expected True or False")


def text(name: str, value: Any, example: str) -> str:
    """`value`, if it is text that is not empty.

    Raises:
        InputError: it is something else.
    """
    if isinstance(value, str) and value:
        return value
    raise InputError(f"{name}={shown(value)}: expected text, such as {example!r}")


def mapping(name: str, value: Any, example: Mapping[str, Any]) -> dict[str, Any]:
    """`value` as a dict, if it is a mapping with text as keys.

    Raises:
        InputError: it is something else.
    """
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    raise InputError(f"{name}={shown(value)}: expected a mapping of options, such as {example}")


def path(name: str, value: Any) -> Path:
    """`value`, text or a path, with `~` expanded.

    Raises:
        InputError: it is something else, or empty, or has a zero byte.
    """
    if isinstance(value, str | os.PathLike):
        found = os.fspath(value)
        if isinstance(found, str) and found and "\0" not in found:
            return expanded(found)
    raise InputError(f"{name}={shown(value)}: expected a path, as text or a Path")


def shown(value: Any) -> str:
    """What was given, short: a large array must not fill the message."""
    try:
        found = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # a whole number of thousands of digits, lists in lists in lists
        return f"a {type(value).__name__}"
    return found if len(found) <= 80 else f"{found[:60]}... ({type(value).__name__})"
