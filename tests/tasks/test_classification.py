"""Classification, and tasks whose results carry lettering."""

import io
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from numpy.typing import NDArray
from torch.nn import functional as F

from img2img import InputError, fonts
from img2img.data.base import Batch, Sample
from img2img.data.split import Subset
from img2img.data.synthetic.patterns import Patterns
from img2img.masks.plots import similarity_figure
from img2img.tasks import build_task
from img2img.tasks.base import Example
from img2img.tasks.classification import _write_name
from img2img.tasks.lettering import SMALLEST, fit


def _batch(count: int = 6, size: int = 16) -> Batch:
    images = Patterns("train", count=count, classes=3, size=size)
    return Batch.stack([images[i] for i in range(count)])


def test_target_and_loss_are_the_categories_and_their_cross_entropy() -> None:
    task, batch = build_task({"kind": "classification", "classes": ["cat", "dog", "bird"]}), _batch()
    example = task.example(batch)
    assert example.target.tolist() == [0, 1, 2, 0, 1, 2]
    assert example.input.shape == (6, 3, 16, 16)
    raw = torch.randn(6, 3)
    by_hand = -sum(F.log_softmax(raw, 1)[i, c] for i, c in enumerate(example.target.tolist())) / 6
    torch.testing.assert_close(task.loss(raw, example), by_hand)


def test_figures_of_a_perfect_and_of_the_trivial_prediction() -> None:
    task = build_task({"kind": "classification", "classes": ["cat", "dog", "bird"]})
    images = Subset(Patterns("train", count=9, classes=3, size=8), [0, 1, 4, 7, 5])  # of dog three, of the others one
    task.fit(images)
    example = task.example(Batch.stack([images[i] for i in range(5)]))
    figures = task.metrics()
    figures.update(task.prediction(F.one_hot(example.target, 3).float(), example.input), example)
    assert figures.compute()["top-1"] == 1
    figures = task.metrics()
    figures.update(task.baseline(example), example)
    assert figures.compute()["top-1"] == pytest.approx(3 / 5)


def test_distillation_is_lowest_where_the_outputs_agree() -> None:
    task, target = build_task({"kind": "classification", "classes": ["a", "b"]}), torch.tensor([[2.0, -1.0], [0.5, 0.0]])
    soft = (target / 2).exp() / (target / 2).exp().sum(1, keepdim=True)
    entropy = -(soft * soft.log()).sum(1).mean()
    torch.testing.assert_close(task.distillation(target, target, temperature=2), entropy)
    assert task.distillation(target.flip(1), target, temperature=2) > entropy + 0.1


def test_wrong_categories_are_refused() -> None:
    task = build_task({"kind": "classification", "classes": ["cat", "dog"]})
    with pytest.raises(InputError, match=r"categories \[2\].*0\.\.1"):
        task.example(_batch())
    with pytest.raises(InputError, match="a category"):
        task.example(Batch.stack([Sample(_batch().image[0].permute(1, 2, 0).numpy())]))
    with pytest.raises(InputError, match="two classes or more"):
        build_task({"kind": "classification", "classes": ["cat"]})


def test_a_result_is_the_image_over_the_name_of_its_class() -> None:
    task, example = build_task({"kind": "classification", "classes": ["cat", "dog", "bird"]}), None
    example = task.example(_batch())
    assert isinstance(example, Example)
    raw = F.one_hot(example.target, 3).float()
    shown = task.to_image(raw, example.input)
    assert shown.shape == (6, 3, 128, 128), "small images are enlarged, so that a name can be read"
    assert torch.equal(shown, task.reference(example)), "scores and categories are shown alike"
    enlarged = F.interpolate(example.input, scale_factor=8, mode="nearest")
    torch.testing.assert_close(shown[:, :, :100], enlarged[:, :, :100])
    assert not torch.equal(shown[0, :, 110:], shown[1, :, 110:]), "the names differ"
    assert torch.equal(shown[0, :, 110:], shown[3, :, 110:]), "and are the same for one class"


def test_smoothed_labels_change_the_loss_of_training_and_nothing_that_is_stored() -> None:
    plain, smooth = (
        build_task({"kind": "classification", "classes": ["a", "b", "c", "d"], **o}) for o in ({}, {"label_smoothing": 0.2})
    )
    raw = torch.tensor([[3.0, 0.0, -1.0, 0.5]])
    example = plain.example(Batch(image=torch.zeros(1, 3, 4, 4, dtype=torch.uint8), category=torch.tensor([1])))
    log = raw.log_softmax(1)[0]
    assert float(smooth.loss(raw, example)) == pytest.approx(float(-(0.85 * log[1] + 0.05 * (log.sum() - log[1]))))
    assert float(plain.loss(raw, example)) == pytest.approx(float(-log[1]))
    assert smooth.options() == plain.options()
    with pytest.raises(InputError, match="label_smoothing=1"):
        build_task({"kind": "classification", "classes": ["a", "b"], "label_smoothing": 1.0})


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
