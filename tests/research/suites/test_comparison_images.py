"""Images of methods side by side, and how figures look."""

from pathlib import Path

import numpy as np
import pytest
from comparison_suite import add_run, bare_suite, results
from PIL import Image

from img2img.errors import InputError
from img2img.research.suites.plot_style import look, with_palette
from img2img.research.suites.sheets import overview, read_sheet, task_grid
from img2img.research.suites.summary import finish
from img2img.training.output_images import read_strip, save_strip


def test_a_strip_comes_back_in_tiles(tmp_path: Path) -> None:
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
    path = save_strip(tmp_path / "a.jpg", [Image.new("RGB", (32, 24), colour) for colour in colours], (64, 48))
    strip = read_strip(path)
    assert strip is not None
    assert [tile.size for tile in strip.tiles] == [(64, 48)] * 3
    centres = [tile.getpixel((32, 24)) for tile in strip.tiles]
    assert np.abs(np.array(centres) - np.array(colours)).max() <= 6
    assert read_strip(tmp_path / "none.jpg") is None
    Image.new("RGB", (30, 10)).save(tmp_path / "b.jpg")
    with pytest.raises(InputError, match="does not tell how many images"):
        read_strip(tmp_path / "b.jpg")


Colour = tuple[int, int, int]


def strip(
    folder: Path, kind: str, colour: Colour, count: int = 2, task: str = "streets", size: tuple[int, int] = (60, 60)
) -> None:
    save_strip(folder / kind / f"{task}.jpg", [Image.new("RGB", size, colour)] * count, size)


def test_a_grid_has_input_target_and_methods_from_left_to_right(tmp_path: Path) -> None:
    suite = bare_suite(tmp_path / "suite", "a", "b")
    colours = {("a", "inputs"): (250, 10, 10), ("a", "targets"): (10, 250, 10)}
    colours |= {("a", "outputs"): (10, 10, 250), ("b", "outputs"): (10, 10, 10)}
    for (label, kind), colour in colours.items():
        strip(tmp_path / "runs" / label / "0", kind, colour)
    read = finish(suite, tmp_path / "runs")
    found = task_grid(read, read.tasks[0])
    assert found is not None
    grid, methods = found
    assert [method.label for method in methods] == ["a", "b"]
    assert grid.size == (4 * 66 - 6, 24 + 2 * 66 - 6)
    centres = [grid.getpixel((66 * i + 30, 24 + 66 + 30)) for i in range(4)]
    assert np.abs(np.array(centres) - np.array(list(colours.values()))).max() <= 12
    assert task_grid(read, read.tasks[1]) is None


def test_a_sheet_keeps_the_columns_of_runs_that_are_gone_and_takes_the_lowest_seed(tmp_path: Path) -> None:
    suite = bare_suite(tmp_path / "suite", "a", "b")
    add_run(suite, "a", results("piggyback", 0), seed=3)
    strip(tmp_path / "runs" / "a" / "3", "outputs", (10, 10, 250))
    finish(suite, tmp_path / "runs")
    strip(tmp_path / "runs" / "a" / "0", "outputs", (250, 10, 10))
    strip(tmp_path / "other" / "b" / "0", "outputs", (10, 250, 10))
    finish(suite, tmp_path / "runs")
    finish(suite, tmp_path / "other")
    sheet = read_sheet(suite / "images" / "streets.webp")
    assert sheet is not None
    assert list(sheet.methods) == ["a", "b"]
    found = [s.tiles[1].getpixel((30, 30)) for s in sheet.methods.values()]
    assert np.abs(np.array(found) - np.array([(250, 10, 10), (10, 250, 10)])).max() <= 12
    assert [tile.size for s in sheet.methods.values() for tile in s.tiles] == [(60, 60)] * 4


def test_the_overview_has_a_row_a_task_and_a_column_a_method(tmp_path: Path) -> None:
    suite = bare_suite(tmp_path / "suite", "a", "b")
    strip(tmp_path / "runs" / "a" / "0", "outputs", (250, 10, 10))
    assert overview(finish(suite, tmp_path / "runs")) is None, "one task is its own grid"
    colours = {("a", "inputs"): (10, 250, 10), ("a", "outputs"): (10, 10, 250), ("b", "outputs"): (10, 10, 10)}
    for (label, kind), colour in colours.items():
        strip(tmp_path / "runs" / label / "0", kind, colour, 3, "colour", (96, 192))
    image = overview(finish(suite, tmp_path / "runs"))
    assert image is not None
    assert image.size == (3 * (96 + 6) - 6, 24 + 96 + 6 + 96), "input, a and b; streets is enlarged, colour made smaller"
    white = (255, 255, 255)
    for row, wanted in ((0, (white, (250, 10, 10), white)), (1, tuple(colours.values()))):
        centres = [image.getpixel((102 * i + 48, 24 + 102 * row + 48)) for i in range(3)]
        assert np.abs(np.array(centres) - np.array(wanted)).max() <= 12
    assert image.getpixel((102 + 10, 24 + 102 + 48)) == white, "a high image is in the middle of its tile"


def test_tasks_whose_answer_is_a_label_have_no_sheet(tmp_path: Path) -> None:
    changed = results("piggyback", 0)
    changed["tasks"][0] |= {"kind": "classification", "primary_metric": "top-1"}
    suite = tmp_path / "suite"
    add_run(suite, "a", changed)
    for task in ("streets", "colour"):
        strip(tmp_path / "runs" / "a" / "0", "outputs", (250, 10, 10), task=task)
    finish(suite, tmp_path / "runs")
    assert [path.name for path in (suite / "images").iterdir()] == ["colour.webp"]


def test_images_that_do_not_fit_side_by_side_are_refused(tmp_path: Path) -> None:
    suite = bare_suite(tmp_path / "suite", "a", "b")
    for label, count in (("a", 2), ("b", 3)):
        strip(tmp_path / "runs" / label / "0", "outputs", (0, 0, 0), count)
    with pytest.raises(InputError, match=r"b/0/outputs/streets\.jpg: .*3 .*2"):
        finish(suite, tmp_path / "runs")


def test_the_palette_keeps_what_is_frequent_exactly() -> None:
    rng = np.random.default_rng(0)
    pixels = np.full((80, 80, 3), 255, dtype=np.uint8)
    pixels[:20] = (0, 114, 178)
    pixels[20:40] = rng.integers(0, 256, (20, 80, 3))
    few = with_palette(Image.fromarray(pixels))
    back = np.asarray(few.convert("RGB"))
    assert (back[:20] == (0, 114, 178)).all()
    assert (back[40:] == 255).all()
    assert len(np.unique(back.reshape(-1, 3), axis=0)) <= 256
    assert np.abs(back[20:40].astype(int) - pixels[20:40]).mean() < 40


def test_many_methods_look_different() -> None:
    looks = [(style["color"], style["marker"], style["linestyle"]) for style in map(look, range(28))]
    assert len(set(looks)) == 28
    assert len({(colour, dash) for colour, _, dash in looks}) == 28
