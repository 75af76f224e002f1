"""What was read from a file, as a pydantic model: one short message for whatever does not fit, with the place in the file.

The file may be a stranger's. Nothing is converted: true is no number, "1" is none, and 1.0 is no whole number. Every number is
finite.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from img2img.errors import InputError
from img2img.validation.arguments import shown
from img2img.validation.messages import bound_of

Model = TypeVar("Model", bound=BaseModel)


class Stored(BaseModel):
    """A JSON object of a file; keys that it does not know are left out."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Exact(Stored):
    """A JSON object of a file that has these keys and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Whole = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
"""A whole number of 64 bits."""
Number = Whole | float
"""A finite number; a whole one stays whole, so that it is written as it was read."""
Size = Annotated[int, Field(ge=0, lt=1 << 63)]
"""A number of bytes, or of other things that are counted."""

_WORDS = {
    "string_type": "text", "bool_type": "true or false", "dict_type": "an object", "model_type": "an object",
    "mapping_type": "an object", "list_type": "a list", "tuple_type": "a list", "int_type": "a whole number",
    "float_type": "a number", "finite_number": "a finite number",
}  # fmt: skip


def as_model(model: type[Model], value: Any, where: str, *, remedy: str) -> Model:
    """A JSON value as a model.

    Args:
        model: what it should be; it derives from `Stored`.
        value: as read.
        where: what messages call it, mostly the file.
        remedy: what messages end with.

    Raises:
        InputError: it is something else; names the place, what was expected and what was got, in few words whatever `value` is.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InputError(f"{_reason(error, model, value, where)}; {remedy}") from None


def _reason(error: ValidationError, model: type[BaseModel], value: Any, where: str) -> str:
    found = error.errors(include_url=False)
    first = next((each for each in found if each["type"] == "missing"), found[0])
    steps = _within(value, first["loc"])
    place = _place(where, steps)
    if first["type"] == "missing":
        return f"{place} lacks {first['loc'][-1]}"
    if first["type"] == "extra_forbidden":
        return f"{_place(where, steps[:-1])} has the unknown key {shown(steps[-1])}: expected only those that img2img writes"
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, ValueError):
        return f"{place}: {raised}"
    same = [each for each in found if _within(value, each["loc"]) == steps]  # one for each type that it might have been
    words = dict.fromkeys(_WORDS.get(each["type"]) or bound_of(each) or each["msg"][:300] for each in same)
    if "a number" in words:
        words.pop("a whole number", None)
    return f"{place}: expected {' or '.join(words)}, got {shown(first['input'])}"


def _within(value: Any, steps: Sequence[Any]) -> list[Any]:
    """The steps that lead to a place in a value, without those that name the type that pydantic tried there."""
    taken: list[Any] = []
    for step in steps:
        there = value.keys() if isinstance(value, Mapping) else range(len(value)) if isinstance(value, list | tuple) else ()
        if step not in there:
            break
        value = value[step]
        taken.append(step)
    return taken


def _place(where: str, steps: Sequence[Any]) -> str:
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step:.60}" for step in steps)
    return f"{where}: {path.removeprefix('.')}" if path else where


def finite(value: Any) -> Any:
    """A JSON value with null in the place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
