"""Options from a config checked against what a class or function takes, with errors that help."""

import collections.abc
import datetime
import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from img2img.errors import InputError

_LISTS = (tuple, collections.abc.Sequence, collections.abc.Collection, collections.abc.Iterable)


def call_with(build: Callable[..., Any], options: Mapping[str, Any], *, what: str, others: Sequence[str] = ()) -> Any:
    """`build(**options)`, after a check of the names and of the values' types.

    Args:
        build: a class or a function that takes keywords.
        options: a config's keys and values.
        what: what the config calls it, for messages, such as "task 'style'".
        others: options that the caller has taken from the config already, for messages.

    Raises:
        InputError: a key is unknown (the closest known one is named), a required one is missing, or a value is of another
            type than the annotation says.
    """
    parameters = inspect.signature(build).parameters
    known = [*parameters, *others]
    for key in options:
        if key not in parameters:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(f"{what} has no option {key!r}: {hint}its options are {', '.join(known)}")
    missing = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in options]
    if missing:
        raise InputError(f"{what} needs the option {missing[0]!r}: add it to the config; its options are {', '.join(known)}")
    hints = typing.get_type_hints(build.__init__ if inspect.isclass(build) else build)
    for name, value in options.items():
        if not _is_a(value, hints.get(name, Any)):
            raise InputError(
                f"{what} got {name}: {value!r}: expected {_spelled(parameters[name].annotation)}; "
                f"{_remedy(_strays(value, hints[name]))}"
            )
    return build(**options)


def _is_a(value: Any, hint: Any) -> bool:
    """Whether `value` has the type `hint`: a class, a union, or a container, whose contents are looked at too."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(_is_a(value, part) for part in typing.get_args(hint))
    kind, inner = typing.get_origin(hint) or hint, [part for part in typing.get_args(hint) if part is not ...]
    if kind is Any or kind is typing.Literal:  # a class names the values that it allows better than this could
        return True
    if kind is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if kind in _LISTS:
        return isinstance(value, list | tuple) and all(any(_is_a(v, part) for part in inner or [Any]) for v in value)  # no text
    if kind in (dict, collections.abc.Mapping) and inner:
        of_keys, of_values = inner
        return isinstance(value, Mapping) and all(_is_a(k, of_keys) and _is_a(v, of_values) for k, v in value.items())
    if isinstance(value, bool | str):  # True is an int, but is not meant as one
        return kind is type(value)
    return isinstance(value, kind)


def _strays(value: Any, hint: Any) -> list[Any]:
    """The values that stand where `hint` wants text, and that YAML has taken for something else."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    found: list[Any] = []
    for part in typing.get_args(hint) if union else (hint,):
        inner = [each for each in typing.get_args(part) if each is not ...]
        if part is str and (value is None or isinstance(value, bool | int | float | datetime.date)):
            found.append(value)
        elif isinstance(value, list | tuple) and inner and typing.get_origin(part) in _LISTS:
            found += [stray for v in value if not _is_a(v, inner[0]) for stray in _strays(v, inner[0])]
        elif isinstance(value, Mapping) and len(inner) == 2:
            pairs = [(each, kind) for item in value.items() for each, kind in zip(item, inner, strict=True)]
            found += [stray for each, kind in pairs if not _is_a(each, kind) for stray in _strays(each, kind)]
    return found


def _remedy(strays: Sequence[Any]) -> str:
    if not strays:
        return "correct it"
    return (
        f"{', '.join(map(repr, strays[:3]))} is no text: YAML takes words such as no, yes, on, off and null, numbers and dates "
        "for values of their own; put quotes around it, such as 'no'"
    )


def _spelled(annotation: Any) -> str:
    whole = annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)
    return re.sub(r"\b(?:collections\.abc|os|typing)\.", "", whole)
