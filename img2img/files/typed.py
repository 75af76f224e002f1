"""What was read from a file, compared with what it should be: one message for whatever has the wrong type."""

import math
from collections.abc import Mapping
from typing import Any

from img2img.errors import InputError

NUMBER = (int, float)
"""A finite number."""
NUMBER_OR_NULL = (int, float, type(None))
"""A finite number, or null where nothing was measured."""

Form = Mapping[str, Any]
"""A type, or a tuple of them, by key."""

_WORDS = {str: "text", bool: "true or false", dict: "an object", list: "a list", type(None): "null"}


def is_a(value: Any, expected: Any) -> bool:
    """Whether a JSON value is of a type or of one of several.

    Numbers are finite and fit into 64 bits, and true is none, which to Python is 1.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return False
    return isinstance(value, expected) and (expected is bool or not isinstance(value, bool))


def check_value(value: Any, where: str, expected: Any, remedy: str) -> None:
    """Raise an `InputError` that names the place unless a value is of the expected type."""
    if not is_a(value, expected):
        raise InputError(f"{where}: expected {_words(expected)}, got {_shown(value)}; {remedy}")


def check_object(value: Any, where: str, needed: Form, more: Form | None = None, *, remedy: str) -> None:
    """Check the types of an object's values.

    Args:
        value: the object.
        where: what messages call it.
        needed: the keys that it has.
        more: keys that it may have.
        remedy: what messages end with.

    Raises:
        InputError: it is no object, a key is missing, or a value is of another type.
    """
    if not isinstance(value, dict):
        keys = f" with {', '.join(needed)}" if needed else ""
        raise InputError(f"{where}: expected an object{keys}, got {_shown(value)}; {remedy}")
    missing = [key for key in needed if key not in value]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}: expected {', '.join(needed)}; {remedy}")
    for key, expected in {**needed, **(more or {})}.items():
        if key in value:
            check_value(value[key], f"{where}, {key}", expected, remedy)


def check_each(values: Mapping[str, Any], where: str, expected: Any, *, remedy: str) -> None:
    """Check that all values of an object are of one type."""
    for key, value in values.items():
        check_value(value, f"{where}, {key:.60}", expected, remedy)


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.60}"
    except (ValueError, RecursionError):  # a whole number of thousands of digits, lists in lists in lists
        return f"a {type(value).__name__}"


def _words(expected: Any) -> str:
    kinds = expected if isinstance(expected, tuple) else (expected,)
    words = ["a number"] if float in kinds else ["a whole number"] if int in kinds else []
    return " or ".join(words + [_WORDS[kind] for kind in kinds if kind in _WORDS])
