import datetime
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pytest

from img2img.errors import InputError
from img2img.validation import call_with


def build(
    *,
    names: Sequence[str] | str = (),
    groups: Mapping[str, Iterable[str]] | None = None,
    numbers: Collection[int] = (),
    free: Mapping[str, Any] | None = None,
    values: Sequence[int] | Mapping[int, str] | None = None,
    title: str = "",
    range: tuple[float, float] = (0, 1),
) -> None:
    """Options of every form that configs have."""


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({"names": [False, "yes"]}, "False"),
        ({"names": [1, 2]}, "1, 2"),
        ({"names": ["a", None]}, "None"),
        ({"names": [datetime.date(2024, 1, 2)]}, r"datetime.date\(2024, 1, 2\)"),
        ({"groups": {False: ["a"]}}, "False"),
        ({"groups": {"a": ["b", 1.5]}}, "1.5"),
        ({"free": {1: "x"}}, "1"),
        ({"values": {0: "a", 1: False}}, "False"),
        ({"title": True}, "True"),
        ({"title": 2024}, "2024"),
    ],
)
def test_what_yaml_takes_for_something_else_than_text_is_to_be_quoted(options: dict[str, Any], taken: str) -> None:
    (name,) = options
    with pytest.raises(InputError, match=rf"data 'x' got {name}: .*; {taken} is no text: YAML .*quotes"):
        call_with(build, options, what="data 'x'")


@pytest.mark.parametrize(
    "options",
    [{"numbers": [True]}, {"numbers": ["a"]}, {"range": ["a", "b"]}, {"names": [["a"]]}, {"values": {"a": "b"}}],
)
def test_what_a_container_holds_is_looked_at(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(InputError, match=rf"data 'x' got {name}: .*correct it"):
        call_with(build, options, what="data 'x'")


def test_sound_options_pass() -> None:
    options = {"names": ["no", "1"], "groups": {"a": ["b"]}, "numbers": [0, 255], "free": {"x": 1}, "range": [0, 1.5]}
    call_with(build, options, what="data 'x'")
    call_with(build, {"names": "classes.txt", "groups": None, "free": None}, what="data 'x'")
    call_with(build, {"values": [0, 255]}, what="data 'x'")
    call_with(build, {"values": {0: "no", 255: "yes"}}, what="data 'x'")
