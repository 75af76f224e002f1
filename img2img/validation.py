"""What a user gives, checked: options against the class that takes them, by pydantic, and the arguments of a call.

The options of a kind (of task, data, backbone, mask method, strategy) are the keywords of its class or function: a pydantic model
is made of that signature, once. Nothing is coerced, but that a whole number is a number and a list a tuple: text stays text, and
true is no 1.
"""

import collections.abc
import datetime
import difflib
import functools
import inspect
import operator
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, PlainValidator, Strict, ValidationError, create_model
from pydantic_core import PydanticCustomError

from img2img.errors import InputError
from img2img.files.paths import expanded
from img2img.registry import Registry

Built = TypeVar("Built")
Model = TypeVar("Model", bound=BaseModel)

_LISTS = (collections.abc.Sequence, collections.abc.Collection, collections.abc.Iterable)
"""Annotations that a list of a config may stand for."""


class Options(BaseModel):
    """A group of options: frozen, no other keys, nothing coerced; a field's docstring says what it is for."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Spec(Generic[Built]):
    """A kind with its options, checked: what builds it, and how a config, a bundle or a fingerprint writes it.

    Attributes:
        what: what messages call it, such as "task 'style'".
        kind: its name.
        builder: the class or function of that kind.
        options: by name, those that were given.
        key: the key that holds the name where it is written, "kind" or "name".
    """

    what: str
    kind: str
    builder: Any
    options: Mapping[str, Any]
    key: str = "kind"

    @classmethod
    def of(
        cls,
        registry: Registry[Any],
        given: Mapping[str, Any],
        *,
        what: str,
        key: str = "kind",
        later: Collection[str] = (),
        others: Sequence[str] = (),
    ) -> "Spec[Any]":
        """The kind that `given` names under `key`, with the other keys as its options.

        Args:
            registry: the `Registry` of the kinds.
            given: from a config or a file.
            what: what messages call such a thing, such as "task".
            key: see `Spec`.
            later: options that `build` may be given, so that they may be missing here.
            others: options that the caller has taken already, for messages.

        Raises:
            InputError: the kind or an option is unknown, one is missing, or a value is of another type.
        """
        options = dict(given)
        kind = options.pop(key, None)
        builder = registry.find(kind)
        what = f"{what} {kind!r}"
        return cls(what, kind, builder, parsed(builder, options, what=what, others=others, later=later), key)

    def build(self, **more: Any) -> Built:
        """Build it, with `more` options, which go before its own."""
        return call_with(self.builder, {**self.options, **more}, what=self.what)

    def plain(self) -> dict[str, Any]:
        """As a config has it: the kind under its key, and the options."""
        return {self.key: self.kind, **self.options}


def call_with(build: Callable[..., Built], options: Mapping[str, Any], *, what: str, others: Sequence[str] = ()) -> Built:
    """`build(**options)`, after a check of the names and of the values, see `parsed`."""
    return build(**parsed(build, options, what=what, others=others))


def parsed(
    build: Callable[..., Any],
    options: Mapping[str, Any],
    *,
    what: str,
    others: Sequence[str] = (),
    later: Collection[str] = (),
) -> dict[str, Any]:
    """The options of a class or function, checked against its signature; of those that are not given none.

    Args:
        build: a class or a function that takes keywords with annotations.
        options: a config's keys and values.
        what: what the config calls it, for messages, such as "task 'style'".
        others: options that the caller has taken from the config already, for messages.
        later: options that may be missing though `build` needs them.

    Raises:
        InputError: a key is unknown (the nearest known one is named), a needed one is missing, or a value is of another type than
            the annotation says.
    """
    model = _model_of(build, frozenset(later))
    try:
        made = model.model_validate(dict(options))
    except ValidationError as error:
        raise input_error(error, model, options, what=what, others=others) from None
    return {str(field.alias): getattr(made, name) for name, field in model.model_fields.items() if name in made.model_fields_set}


def checked(model: type[Model], given: Any, *, what: str) -> Model:
    """`given` as an instance of a model.

    Raises:
        InputError: it does not fit.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"{what} got {_repr(given)}: expected a mapping with {_known(model)}; correct it")
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        raise input_error(error, model, given, what=what) from None


@functools.lru_cache(maxsize=512)
def _model_of(build: Callable[..., Any], later: frozenset[str]) -> type[BaseModel]:
    """A pydantic model with a field for each keyword of a class or function."""
    hints = typing.get_type_hints(build.__init__ if inspect.isclass(build) else build)
    fields: dict[str, Any] = {}
    # By position, with the keyword as alias: a keyword may be called as a method of pydantic's models is, such as `copy`.
    for number, (name, parameter) in enumerate(inspect.signature(build).parameters.items()):
        default = parameter.default
        needed = default is inspect.Parameter.empty and name not in later
        told = Field(... if needed else None, alias=name, title=_spelled(parameter.annotation))
        fields[f"option_{number}"] = (_strict(hints.get(name, Any)), told)
    return create_model(f"options of {getattr(build, '__name__', build)}", __config__=_SIGNATURE, **fields)


_SIGNATURE = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("number", "expected a number")
    return value  # 1 stays 1: a file that it is written to keeps its bytes


def _strict(hint: Any) -> Any:
    """The annotation with nothing coerced but a list to a tuple."""
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint is float:
        return Annotated[float, PlainValidator(_number)]
    if kind is typing.Annotated or kind is typing.Literal or hint is Any or hint is None or hint is type(None):
        return hint
    if kind is types.UnionType or kind is typing.Union:
        return typing.Union[tuple(map(_strict, inner))]  # noqa: UP007  # of parts that are known when this runs
    if kind is tuple:
        parts: Any = tuple(part if part is ... else _strict(part) for part in inner)
        return tuple[parts] if inner else tuple
    if kind in _LISTS:
        of: Any = _strict(inner[0]) if inner else Any
        return Sequence[of]
    if kind in (dict, collections.abc.Mapping):
        whole: Any = Mapping
        return whole[tuple(map(_strict, inner))] if inner else Mapping
    if hint is str or hint is int or hint is bool:
        return Annotated[hint, Strict()]
    return Annotated[kind, InstanceOf()] if isinstance(kind, type) else Any


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
    kinds = [each["type"] for each in found]
    first = next((found[kinds.index(kind)] for kind in ("extra_forbidden", "missing") if kind in kinds), found[0])
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
        title = "a mapping" if _group_of(here) else "" if field is None else field.title or _spelled(field.annotation)
        last = group or named or last
    if first["type"] == "extra_forbidden":
        known = f"its options are {_known(last, others)}"
        return InputError(f"{place} has no option {key!r}: {_nearest(key, last, others)}{known}")
    if first["type"] == "missing":
        return InputError(f"{place} needs the option {key!r}: add it to the config; its options are {_known(last, others)}")
    if isinstance(raised := first.get("ctx", {}).get("error"), ValueError):
        where = place if not key else key if place == WHOLE else f"{place}.{key}"
        return InputError(f"{where}: {raised}")
    strays = [e["input"] for e in found if e["type"] == "string_type" and isinstance(e["input"], _YAML_TAKES)]
    return InputError(f"{place} got {key}: {_repr(value)}: expected {_wanted(first) or title}; {_remedy(_distinct(strays))}")


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


def _wanted(error: Any) -> str:
    """What pydantic expected beyond a type; nothing where it was a type."""
    context = error.get("ctx", {})
    bounds = {"greater_than": "more than {gt:g}", "greater_than_equal": "{ge:g} or more", "less_than": "less than {lt:g}"}
    bounds |= {"less_than_equal": "{le:g} or less", "literal_error": "{expected}", "too_short": "{min_length} or more entries"}
    known = bounds.get(error["type"])
    return "" if known is None else known.format(**context)


def paths_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all options of a model, groups of options entered."""
    for name, field in _fields(model).items():
        if group := _group_of(field.annotation):
            yield from paths_of(group, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def check_key(model: type[BaseModel], path: Sequence[str], *, what: str) -> None:
    """Refuse a dotted key below a group of options that has no such option; other keys pass.

    Raises:
        InputError: with the nearest known key.
    """
    at, place = model, what
    for key in path:
        fields = _fields(at)
        if key not in fields:
            if at is not model:
                raise InputError(f"{place} has no option {key!r}: {_nearest(key, at, ())}its options are {_known(at)}")
            return
        place = key if place == WHOLE else f"{place}.{key}"
        below = _group_of(fields[key].annotation)
        if below is None:
            return
        at = below


def _nearest(key: str, model: type[BaseModel], others: Sequence[str]) -> str:
    paths = [*paths_of(model), *others]
    same = [path for path in paths if path.rpartition(".")[2] == key]
    near = same or difflib.get_close_matches(key, [*_fields(model), *paths], n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def _known(model: type[BaseModel], others: Sequence[str] = ()) -> str:
    return ", ".join([*_fields(model), *others])


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


def whole_number(name: str, value: Any, *, least: int = 1, of: str = "") -> int | None:
    """`value`, of Python's or numpy's whole numbers, or None.

    Args:
        name: the argument's, for the message.
        value: what was given.
        least: the smallest that may be.
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
    if number is None or number < least:
        raise InputError(f"{name}={_repr(value)}: expected {least}{f' {of}' * bool(of)} or more, a whole number, or None")
    return number


def one_of(name: str, value: Any, known: Collection[str]) -> str:
    """`value`, if it is one of the known names.

    Raises:
        InputError: it is another, or no text.
    """
    if isinstance(value, str) and value in known:
        return value
    raise InputError(f"{name}={_repr(value)}: expected one of {', '.join(known)}")


def flag(name: str, value: Any) -> bool:
    """`value`, if it is true or false.

    Raises:
        InputError: it is something else, such as 1 or "no".
    """
    if isinstance(value, bool):
        return value
    raise InputError(f"{name}={_repr(value)}: expected True or False")


def text(name: str, value: Any, example: str) -> str:
    """`value`, if it is text that is not empty.

    Raises:
        InputError: it is something else.
    """
    if isinstance(value, str) and value:
        return value
    raise InputError(f"{name}={_repr(value)}: expected text, such as {example!r}")


def mapping(name: str, value: Any, example: Mapping[str, Any]) -> dict[str, Any]:
    """`value` as a dict, if it is a mapping with text as keys.

    Raises:
        InputError: it is something else.
    """
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    raise InputError(f"{name}={_repr(value)}: expected a mapping of options, such as {example}")


def path(name: str, value: Any) -> Path:
    """`value`, text or a path, with `~` expanded.

    Raises:
        InputError: it is something else, or empty, or has a zero byte.
    """
    if isinstance(value, str | os.PathLike):
        found = os.fspath(value)
        if isinstance(found, str) and found and "\0" not in found:
            return expanded(found)
    raise InputError(f"{name}={_repr(value)}: expected a path, as text or a Path")


def _repr(value: Any) -> str:
    """What was given, short: a large array must not fill the message."""
    found = " ".join(repr(value).split())
    return found if len(found) <= 80 else f"{found[:60]}... ({type(value).__name__})"
