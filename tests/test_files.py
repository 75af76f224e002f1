"""Atomic files: the old one or the new one, whatever happens."""

from pathlib import Path

import pytest

from img2img import InputError
from img2img.files import read_json, write_atomic, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_json(tmp_path / "new" / "a.json", {"x": 1})

    def half(temporary: Path) -> None:
        temporary.write_text("{")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_atomic(path, half)
    assert read_json(path) == {"x": 1}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_the_new_file_appears_whole_under_its_name_at_the_end_only(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"

    def slow(temporary: Path) -> None:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")

    assert write_atomic(path, slow).read_text() == "whole"


def test_nan_is_no_json_and_a_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())
    (tmp_path / "b.json").write_text("{'x': 1}")
    with pytest.raises(InputError, match=r"b\.json is not valid JSON"):
        read_json(tmp_path / "b.json")
    with pytest.raises(InputError, match="no file at"):
        read_json(tmp_path / "c.json")


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"x": "\xc3\xa9"}')
    assert read_json(tmp_path / "a.json") == {"x": "é"}
