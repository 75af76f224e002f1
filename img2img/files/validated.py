"""Values of a file against a pydantic model, with one short message where they do not fit."""

import reprlib
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from img2img.errors import InputError

M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], value: Any, what: str, *, root: str = "", remedy: str) -> M:
    """`value` as a model.

    Args:
        model: the model; give it `ConfigDict(strict=True)`, so that "1" is no number and true is not 1.
        value: what was read, such as the value of JSON.
        what: names the file, for the message.
        root: what the value is called in the file, where it is a part of it.
        remedy: what the user can do, for the message.

    Raises:
        InputError: names the first field that does not fit, what was expected and what was got; bounded, whatever `value` is.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join([root] * bool(root) + [f"{part:.60}" if isinstance(part, str) else str(part) for part in first["loc"]])
        expected = first["msg"][:1].lower() + first["msg"][1:]
        where = f"{place}: " if place else ""
        raise InputError(f"{what}: {where}{expected:.300}, got {reprlib.repr(first['input'])}; {remedy}") from None
