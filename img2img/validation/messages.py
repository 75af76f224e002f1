"""What pydantic found wrong with options, as our errors: what was got, what was expected, the nearest known key."""

import collections.abc
import datetime
import difflib
import re
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from img2img.errors import InputError
from img2img.validation.arguments import shown


def input_error(
    error: ValidationError, model: type[BaseModel], given: Mapping[str, Any], *, what: str, others: Sequence[str] = ()
) -> InputError:
    """The first thing that pydantic found wrong as an `InputError`: what was got, what was expected, the nearest known key.

    Args:
        error: pydantic's.
        model: what was validated against.
        given: what was validated.
        what: what messages call it.
        others: keys that are known besides the model's.
    """
    found = error.errors(include_url=False)
    # A list that is too short misses an entry by its number, which is a wrong value.
    missing = [each for each in found if each["type"] == "missing" and isinstance(each["loc"][-1], str)]
    first = next(iter([*(each for each in found if each["type"] == "extra_forbidden"), *missing, *found]))
    place, key, title, last = what, "", "", model
    value: Any = given
    here: Any = model  # the annotation at this point of the walk: a group of options, or a mapping of them
    steps = first["loc"][: first["loc"].index("[key]") - 1] if "[key]" in first["loc"] else first["loc"]
    for step in steps:
        group, named = _group_of(here), _group_of(here, mapping=True)
        if group is None and named is None:
            break
        if key:  # the walk goes on below it
            place = key if place == WHOLE else f"{place}.{key}"
        key, field = str(step), None if group is None else _fields(group).get(str(step))
        value = value.get(step) if isinstance(value, Mapping) else getattr(value, key, None)
        here = named if group is None else None if field is None else field.annotation
        mapping = _group_of(here) or _group_of(here, mapping=True)
        title = "a mapping" if mapping else "" if field is None else field.title or spelled(field.annotation)
        last = group or named or last
    known = f"its options are {known_options(last, others)}"
    if first["type"] == "extra_forbidden":
        return InputError(f"{place} has no option {key!r}: {_nearest(key, last, others)}{known}")
    if first in missing:
        return InputError(f"{place} needs the option {key!r}: add it to the config; {known}")
    if isinstance(raised := first.get("ctx", {}).get("error"), ValueError):
        where = place if not key else key if place == WHOLE else f"{place}.{key}"
        return InputError(f"{where}: {raised}")
    strays = [e["input"] for e in found if e["type"] == "string_type" and isinstance(e["input"], _YAML_TAKES)]
    return InputError(f"{place} got {key}: {shown(value)}: expected {bound_of(first) or title}; {_remedy(_distinct(strays))}")


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    """The fields of a model by the names that a config has for them."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _group_of(annotation: Any, *, mapping: bool = False) -> type[BaseModel] | None:
    """The group of options that an annotation is, or with `mapping` that it maps names to; None where it is none."""
    if mapping:
        inner = typing.get_args(annotation)
        return _group_of(inner[1]) if typing.get_origin(annotation) is collections.abc.Mapping and len(inner) == 2 else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _distinct(values: Sequence[Any]) -> list[Any]:
    """Each once: pydantic names one for each type that it might have been."""
    return list({(type(value), value): value for value in values}.values())


WHOLE = "the config"
"""What messages call the whole of an experiment's config: its keys are named without it."""
_YAML_TAKES = (type(None), bool, int, float, datetime.date)


_BOUNDS = {
    "greater_than": "more than {gt:g}", "greater_than_equal": "{ge:g} or more", "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less", "literal_error": "{expected}", "too_short": "{min_length} or more entries",
    "too_long": "{max_length} entries or fewer", "string_too_long": "{max_length} letters or fewer",
    "finite_number": "a finite number",
}  # fmt: skip


def bound_of(error: Any) -> str:
    """What pydantic expected beyond a type, in words; nothing where it was a type."""
    known = _BOUNDS.get(error["type"])
    return "" if known is None else known.format(**error.get("ctx", {}))


def paths_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all options of a model, groups of options entered."""
    for name, field in _fields(model).items():
        if group := _group_of(field.annotation):
            yield from paths_of(group, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def check_key(model: type[BaseModel], path: Sequence[str], *, what: str, others: Sequence[str] = ()) -> None:
    """Refuse a dotted key that a model and its groups of options do not have; what is below other options passes.

    Args:
        model: the options.
        path: the parts of the key.
        what: what messages call the model.
        others: keys that are known besides the model's.

    Raises:
        InputError: with the nearest known key.
    """
    at, place = model, what
    for depth, key in enumerate(path):
        fields = _fields(at)
        if key not in fields:
            if key not in others:
                near = _nearest(".".join(path[depth:]), at, others)
                raise InputError(f"{place} has no option {key!r}: {near}its options are {known_options(at, others)}")
            return
        others = ()
        place = key if place == WHOLE else f"{place}.{key}"
        below = _group_of(fields[key].annotation)
        if below is None:
            return
        at = below


def _nearest(key: str, model: type[BaseModel], others: Sequence[str]) -> str:
    paths = [*paths_of(model), *others]
    last = key.rpartition(".")[2]
    same = [path for path in paths if path.rpartition(".")[2] == last]
    return did_you_mean(key, same) or did_you_mean(key, [*_fields(model), *paths])


def did_you_mean(given: str, known: Collection[str]) -> str:
    """A question that names the known word nearest to what was given, with a space after it; nothing where none is near."""
    near = difflib.get_close_matches(given, known, n=1) or [word for word in known if word.rpartition(".")[2] == given][:1]
    return f"did you mean {near[0]!r}? " if near else ""


def known_options(model: type[BaseModel], others: Sequence[str] = ()) -> str:
    """The names of a model's options, and others, for a message."""
    return ", ".join(dict.fromkeys([*_fields(model), *others]))


def _remedy(strays: Sequence[Any]) -> str:
    if not strays:
        return "correct it"
    return (
        f"{', '.join(map(repr, strays[:3]))} is no text: YAML takes words such as no, yes, on, off and null, numbers and dates "
        "for values of their own; put quotes around it, such as 'no'"
    )


def spelled(annotation: Any) -> str:
    """An annotation as a message spells it, without modules."""
    whole = annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)
    return re.sub(r"\b(?:collections\.abc|os|typing)\.", "", whole)
