"""Names on images: every letter is drawn or said, and none is left out without a mark."""

import logging

import numpy as np
import pytest

from img2img.tasks.classification import _write_name
from img2img.tasks.lettering import SMALLEST, fit


def _box(font: object, text: str) -> bytes:
    return bytes(font.getmask(text))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["été", "naïve café", "Ελληνικά", "собака", "Łódź", "größe"])
def test_letters_beyond_ascii_are_no_boxes(name: str) -> None:
    fitted = fit(name, 14, 300, 40)
    assert fitted.lines == [name]
    nothing = _box(fitted.font, "\U0010fffe")  # what the font draws for a letter that it does not have
    assert all(_box(fitted.font, letter) != nothing for letter in name if letter != " ")


def test_a_letter_that_no_font_has_is_written_as_its_code_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert fit("a\ue123b", 12, 300, 40).lines == ["aU+E123b"]
    assert "install one that has them" in caplog.text


@pytest.mark.parametrize("name", ["a name of many words that goes on", "one_long_name_with_underscores-and-hyphens", "x" * 60])
def test_long_names_take_more_lines_and_lose_nothing(name: str) -> None:
    fitted = fit(name, 14, 120, 120)
    assert "".join(fitted.lines).replace(" ", "") == name.replace(" ", "")
    assert all(fitted.font.getlength(line) <= 120 for line in fitted.lines)
    assert len(fitted.lines) * fitted.step <= 120


def test_what_does_not_fit_at_all_is_marked() -> None:
    fitted = fit("word " * 400, 14, 100, 30)
    assert fitted.step == SMALLEST + SMALLEST // 3
    assert fitted.lines[-1].endswith("…")
    assert len(fitted.lines) * fitted.step <= 30


def test_the_strip_with_the_name_leaves_two_thirds_of_the_image() -> None:
    for name in ("dog", "a very long class name " * 20, "中" * 50):
        whole = np.full((128, 160, 3), 100, np.uint8)
        _write_name(whole, name, first=0, height=128)
        assert (whole[: 128 * 2 // 3 - 4] == 100).all()
        assert (whole[-3:] > 128).any()
        rows = np.full((128, 160, 3), 100, np.uint8)  # the same, made in bands
        for first in range(0, 128, 20):
            _write_name(rows[first : first + 20], name, first=first, height=128)
        assert np.array_equal(rows, whole)
