"""The options that a user gives, checked by pydantic against the class that takes them.

The options of a kind (of task, data, backbone, mask method, strategy) are the keywords of its class or function: a pydantic model
is made of that signature, once. Nothing is coerced, but that a whole number is a number and a list a tuple: text stays text, and
true is no 1.
"""

import collections.abc
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, PlainValidator, Strict, ValidationError, create_model
from pydantic_core import PydanticCustomError

from img2img.errors import InputError
from img2img.registry import Registry
from img2img.validation.arguments import shown
from img2img.validation.messages import input_error, known_options, spelled

Built = TypeVar("Built")
Model = TypeVar("Model", bound=BaseModel)

_LISTS = (collections.abc.Sequence, collections.abc.Collection, collections.abc.Iterable)
"""Annotations that a list of a config may stand for."""


class Options(BaseModel):
    """A group of options: frozen, no other keys, nothing coerced; a field's docstring says what it is for."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


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
    ) -> "Spec[Any]":
        """The kind that `given` names under `key`, with the other keys as its options.

        Args:
            registry: the `Registry` of the kinds.
            given: from a config or a file.
            what: what messages call such a thing, such as "task".
            key: see `Spec`.
            later: options that `build` may be given, so that they may be missing here.

        Raises:
            InputError: the kind or an option is unknown, one is missing, or a value is of another type.
        """
        options = dict(given)
        kind = options.pop(key, None)
        builder = registry.find(kind)
        what = f"{what} {kind!r}"
        return cls(what, kind, builder, parsed(builder, options, what=what, later=later), key)

    def build(self, **more: Any) -> Built:
        """Build it, with `more` options, which go before its own."""
        return call_with(self.builder, {**self.options, **more}, what=self.what)

    def plain(self) -> dict[str, Any]:
        """As a config has it: the kind under its key, and the options."""
        return {self.key: self.kind, **self.options}


def call_with(build: Callable[..., Built], options: Mapping[str, Any], *, what: str) -> Built:
    """`build(**options)`, after a check of the names and of the values, see `parsed`."""
    return build(**parsed(build, options, what=what))


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
        raise InputError(f"{what} got {shown(given)}: expected a mapping with {known_options(model)}; correct it")
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
        told = Field(... if needed else None, alias=name, title=spelled(parameter.annotation))
        fields[f"option_{number}"] = (_strict(hints.get(name, Any)), told)
    return create_model(f"options of {getattr(build, '__name__', build)}", __config__=_SIGNATURE, **fields)


_SIGNATURE = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("number", "expected a number")
    if not math.isfinite(value):
        raise PydanticCustomError("finite_number", "expected a finite number")
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
