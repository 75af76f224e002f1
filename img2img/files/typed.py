"""What was read from a file as a pydantic model: one message for whatever has the wrong type, with the place in the file.

The file may be a stranger's: numbers are finite and fit into 64 bits, true is no number and text is none.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator, ValidationError
from pydantic_core import PydanticCustomError

from img2img.errors import InputError


class Stored(BaseModel):
    """A JSON object of a file; keys that it does not know are left out."""

    model_config = ConfigDict(strict=True, use_attribute_docstrings=True)


Model = TypeVar("Model", bound=BaseModel)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number of 64 bits."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _number(value: Any) -> Any:
    if not is_number(value):
        raise PydanticCustomError("form", "a number")
    return value


def _number_or_null(value: Any) -> Any:
    if value is not None and not is_number(value):
        raise PydanticCustomError("form", "a number or null")
    return value


def _size(value: Any) -> Any:
    if value is not None and (not is_number(value) or value < 0):
        raise PydanticCustomError("form", "a number of bytes or null")
    return value


def _text_or_null(value: Any) -> Any:
    if value is not None and not isinstance(value, str):
        raise PydanticCustomError("form", "text or null")
    return value


def _scalar(value: Any) -> Any:
    if value is not None and not isinstance(value, str) and not is_number(value):
        raise PydanticCustomError("form", "a number or text or null")
    return value


_AS_IS = PlainSerializer(lambda value: value)
"""Written as it was read: a whole number stays whole."""

Number = Annotated[float, PlainValidator(_number), _AS_IS]
"""A finite number; a whole one stays whole."""
NumberOrNull = Annotated[float | None, PlainValidator(_number_or_null), _AS_IS]
"""A finite number, or null where nothing was measured."""
SizeOrNull = Annotated[float | None, PlainValidator(_size), _AS_IS]
"""A number of bytes, or null."""
TextOrNull = Annotated[str | None, PlainValidator(_text_or_null), _AS_IS]
"""Text, or null."""
Scalar = Annotated[str | float | None, PlainValidator(_scalar), _AS_IS]
"""Text, a number or null."""

_WORDS = {
    "string_type": "text", "bool_type": "true or false", "dict_type": "an object", "model_type": "an object",
    "mapping_type": "an object", "list_type": "a list", "int_type": "a whole number",
}  # fmt: skip


def as_model(model: type[Model], value: Any, where: str, *, remedy: str) -> Model:
    """A JSON value as a model.

    Args:
        model: what it should be.
        value: as read.
        where: what messages call it, mostly the file.
        remedy: what messages end with.

    Raises:
        InputError: it is something else; names the place.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InputError(f"{_said(error, where)}; {remedy}") from None


def _said(error: ValidationError, where: str) -> str:
    found = error.errors(include_url=False)
    first = next((each for each in found if each["type"] == "missing"), found[0])
    *above, last = first["loc"] or ("",)
    if first["type"] == "missing":
        return f"{_place(where, above)} lacks {last}"
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, ValueError):
        return f"{_place(where, first['loc'])}: {raised}"
    expected = _WORDS.get(first["type"], first.get("ctx", {}).get("expected", first["msg"]))
    return f"{_place(where, first['loc'])}: expected {expected}, got {_shown(first['input'])}"


def _place(where: str, steps: Any) -> str:
    for step in steps:
        where += f"[{step}]" if isinstance(step, int) else f", {step:.60}"
    return where


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.60}"
    except (ValueError, RecursionError):  # a whole number of thousands of digits, lists in lists in lists
        return f"a {type(value).__name__}"


def finite(value: Any) -> Any:
    """A JSON value with null in the place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
