"""Checks of options."""

from typing import Any

from img2img.errors import InputError


def one_of(method: str, option: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise an `InputError` that names the allowed values unless `value` is one of them."""
    if value not in allowed:
        raise InputError(f"{method} {option}={value!r}: expected one of {', '.join(map(repr, allowed))}")
