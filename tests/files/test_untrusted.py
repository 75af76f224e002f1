"""JSON of other people, read with bounds, and messages that stay short whatever they quote."""

import json
import pickle
import sys
from typing import Any

import numpy as np
import pytest

from img2img.errors import LONGEST, InputError
from img2img.files.json_files import parse_json
from img2img.files.unpickle import read_pickled_arrays
from img2img.files.untrusted import check_plain, mapping


@pytest.mark.parametrize(
    "text",
    [
        *("NaN", "-Infinity", "1e400", "9" * 41, "9" * 10_000, "{", "", '{"a": nan}'),
        *("[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, b"\xff", b'"\xed\xa0\x80"'),
    ],
    ids=lambda text: str(text[:12]),
)
def test_what_is_no_json_of_plain_sizes_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError) as caught:
        parse_json(text)
    assert not isinstance(caught.value, RecursionError)


def test_what_is_json_comes_as_it_is() -> None:
    value = {"a": [1, -2.5, "ü", None, True, {"b": 10**20}]}
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[[[[[1]]]]]], "nested"),
        (list(range(10_001)), "10001 entries"),
        ({"a" * 1001: 1}, "1001 letters"),
        ({"a": ["b" * 1001]}, "1001 letters"),
        (1e10, "the number"),
        (-(10**40), "the number"),
        ({1, 2}, "a set"),
    ],
)
def test_values_larger_than_any_are_refused(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"it has .*{message}"):
        check_plain(value, "it")
    check_plain({"a": [1, 2.5, "b" * 1000, None, True, {"c": [[1]]}]}, "it")


def test_a_message_is_cut_in_its_middle_and_can_be_printed() -> None:
    error = InputError("what was got: " + "x" * 12_000_000 + "; what to do")
    assert len(str(error)) <= LONGEST
    assert str(error).startswith("what was got: xxx")
    assert str(error).endswith("xxx; what to do")
    assert " … (1199" in str(error)
    assert str(InputError("short")) == "short"
    assert str(InputError("half a letter: \ud800")).encode(sys.stdout.encoding or "utf-8")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_what_is_only_shown_is_a_mapping_or_nothing() -> None:
    assert mapping({"a": 1}) == {"a": 1}
    assert mapping([1]) == mapping("x") == mapping(None) == {}


def test_nan_is_taken_where_that_is_asked_for() -> None:
    assert parse_json('[1, Infinity, "x"]', allow_nan=True) == [1, float("inf"), "x"]
    with pytest.raises(ValueError, match="Infinity"):
        parse_json('[1, Infinity, "x"]')


# ---------------------------------------------------------------------- pickled arrays


def read(path, *dtypes):
    return read_pickled_arrays(path, dtypes=dtypes, expected="a pickle of a test", remedy="write it")


def test_arrays_come_back_in_their_containers(tmp_path) -> None:
    array = np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    (tmp_path / "a").write_bytes(pickle.dumps({"data": [array], "labels": [3, 1], "names": ["café"]}))
    content = read(tmp_path / "a", "u1")
    np.testing.assert_array_equal(content["data"][0], array)
    assert content["labels"] == [3, 1]
    assert content["names"] == ["café"]


def test_arrays_of_another_type_are_refused(tmp_path) -> None:
    (tmp_path / "a").write_bytes(pickle.dumps(np.zeros(2, np.float32)))
    with pytest.raises(InputError, match=r"'f4'.*a pickle of a test"):
        read(tmp_path / "a", "u1")


def test_a_missing_file_says_what_to_do(tmp_path) -> None:
    with pytest.raises(InputError, match=r"nowhere.*a pickle of a test"):
        read(tmp_path / "nowhere", "u1")
