import datetime
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pytest

from img2img.errors import InputError
from img2img.validation import Number, Size, Stored, as_model, call_with, one_of


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


class Part(Stored):
    name: str = ""
    value: Number | None = None
    bytes: Size = 0


class Whole(Stored):
    parts: list[Part]
    by_name: dict[str, str | Number] = {}  # noqa: RUF012  # a pydantic model copies it


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, r"^a\.json lacks parts; restore it$"),
        ([], r"^a\.json: expected an object, got \[\]; restore it$"),
        ({"parts": [{}, {"value": "1"}]}, r"a\.json: parts\[1\]\.value: expected a number, got '1'; restore"),
        ({"parts": [{"value": True}]}, r"parts\[0\]\.value: expected a number, got True"),
        ({"parts": [{"value": float("nan")}]}, r"parts\[0\]\.value: expected .*finite number, got nan"),
        ({"parts": [{"bytes": True}]}, r"parts\[0\]\.bytes: expected a whole number, got True"),
        ({"parts": [{"bytes": 2.0}]}, r"parts\[0\]\.bytes: expected a whole number, got 2\.0"),
        ({"parts": [{"bytes": -1}]}, r"parts\[0\]\.bytes: expected 0 or more, got -1"),
        ({"parts": [{"bytes": 1 << 63}]}, r"parts\[0\]\.bytes: expected less than .*, got 9223372036854775808"),
        ({"parts": [{"name": 3}]}, r"parts\[0\]\.name: expected text, got 3"),
        ({"parts": [], "by_name": {"x": None}}, r"by_name\.x: expected text or a number, got None"),
        ({"parts": "x" * 10**6}, r"parts: expected a list, got 'xxx"),
        ({"parts": [], "by_name": {"x" * 10**6: []}}, r"by_name\.xxx"),
    ],
)
def test_what_a_file_holds_is_refused_with_the_place_and_what_was_expected(value: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        as_model(Whole, value, "a.json", remedy="restore it")
    assert len(str(caught.value)) < 300


def test_numbers_of_a_file_are_written_as_they_were_read() -> None:
    plain = {"parts": [{"name": "", "value": value, "bytes": 2} for value in (1, 1.0, -0.5, None)], "by_name": {"a": 1, "b": "1"}}
    assert repr(as_model(Whole, plain, "a.json", remedy="").model_dump()) == repr(plain)


def test_a_name_that_is_not_known_is_refused_with_the_known_ones() -> None:
    assert one_of("ksm start", "ones", ("ones", "uniform")) == "ones"
    for other in ("one", None, ["ones"], 1):
        with pytest.raises(InputError, match=r"start=.*one of 'ones', 'uniform'"):
            one_of("ksm start", other, ("ones", "uniform"))
