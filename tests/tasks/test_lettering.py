"""Names on images: every letter is drawn or said, and none is left out without a mark."""

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from numpy.typing import NDArray

from img2img import fonts
from img2img.masks.plots import similarity_figure
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


def test_a_letter_that_no_font_has_is_written_as_its_code_and_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "_warned", set())
    fonts.font_for.cache_clear()
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


@pytest.fixture
def extra_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only installed font: 中 is a bar at the left of its square and 文 one at its right; it has no other letter."""
    glyphs = {".notdef": (0, 1000), "left": (0, 200), "right": (800, 1000)}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({ord("中"): "left", ord("文"): "right"})
    drawn = {}
    for name, (low, high) in glyphs.items():
        pen = TTGlyphPen(None)
        for index, point in enumerate(((low, 0), (low, 800), (high, 800), (high, 0))):
            (pen.moveTo if index == 0 else pen.lineTo)(point)
        pen.closePath()
        drawn[name] = pen.glyph()
    builder.setupGlyf(drawn)
    builder.setupHorizontalMetrics({name: (1000, low) for name, (low, _) in glyphs.items()})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Bars", "styleName": "Regular", "fullName": "Bars"})
    builder.setupOS2()
    builder.setupPost()
    path = tmp_path / "bars.ttf"
    builder.save(path)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path)])
    for cached in (fonts.font_for, fonts._families):
        cached.cache_clear()
    monkeypatch.setattr(fonts, "_warned", set())
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    return path


@pytest.mark.filterwarnings("error")  # matplotlib warns of each letter that it cannot draw, at every drawing
def test_figures_take_letters_from_installed_fonts(extra_font: Path, caplog: pytest.LogCaptureFixture) -> None:
    def drawn(*names: str) -> NDArray[np.uint8]:
        figure = similarity_figure(names, [[1.0, 0.5], [0.5, 1.0]])
        figure.savefig(io.BytesIO(), format="svg")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.array(canvas.buffer_rgba())

    assert not np.array_equal(drawn("ab中", "cd"), drawn("ab文", "cd"))  # two boxes would be alike
    assert fit("中文", 12, 300, 40).font.getname() == ("Bars", "Regular")
    assert caplog.text == ""
    figure = similarity_figure(["a\ue123b", "cd"], [[1.0, 0.5], [0.5, 1.0]])
    for _ in range(2):
        figure.savefig(io.BytesIO())
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["aU+E123b", "cd"]
    similarity_figure(["\ue123"], [[1.0]])
    assert [record.getMessage().count("U+E123") for record in caplog.records] == [1]
    assert "install one that has them" in caplog.text


def test_fonts_of_coloured_images_are_not_taken(extra_font: Path) -> None:
    with TTFont(extra_font) as font:
        del font["glyf"], font["loca"]
        font["maxp"].tableVersion = 0x00005000
        font.save(extra_font.with_name("coloured.ttf"))
    assert fonts._letters(extra_font) == {"中", "文"}
    assert fonts._letters(extra_font.with_name("coloured.ttf")) == frozenset()
