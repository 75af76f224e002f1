"""Images of methods side by side, and how figures look."""

from pathlib import Path

import numpy as np
import pytest
from comparison_suite import add_run, bare_suite, results
from PIL import Image

from img2img.errors import InputError
from img2img.research.suites.plot_style import look, with_palette
from img2img.research.suites.sheets import read_sheet, task_grid
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


def strip(folder: Path, kind: str, colour: tuple[int, int, int], count: int = 2) -> None:
    save_strip(folder / kind / "streets.jpg", [Image.new("RGB", (60, 60), colour)] * count, (60, 60))


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
