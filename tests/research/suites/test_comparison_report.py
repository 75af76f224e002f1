"""The page of a comparison, its figures and tables, from a made suite."""

import base64
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_suite import TASKS, make_suite, results, write_run
from img2img.research.suites.curves import mean_curve, run_curve
from img2img.research.suites.grids import task_grid
from PIL import Image

from img2img.errors import InputError
from img2img.research.suites.aggregate import Stat, best, relative_skill
from img2img.research.suites.comparison_page import write_comparison
from img2img.research.suites.page_text import spread
from img2img.research.suites.paired_differences import gain, nearest_mask, pair_rows, pairs
from img2img.research.suites.plot_style import look, save_png, with_palette
from img2img.research.suites.quality_figures import curve_figure, quality_bytes_figure, zeroed_figure
from img2img.research.suites.suite import Method, TaskInfo, read_suite
from img2img.research.suites.tables import winners
from img2img.training.output_images import read_strip, save_strip

FIGURES = (
    "skill", "pairs", "bytes", "quality_against_bytes", "time", "zeroed_by_task", "similarity_piggyback", "kappa_piggyback",
    "zeroed_by_layer_piggyback", "k_by_layer_piggyback", "kernels_by_layer_piggyback",
    *(f"forgetting_{label}" for label in ("piggyback", "finetune", "sequential")),
    *(f"{kind}_{task[0]}" for kind in ("curve", "grid") for task in TASKS),
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The suite, and what was written for it."""
    folder = tmp_path_factory.mktemp("comparison")
    suite = make_suite(folder / "suite")
    assert write_comparison(suite, folder / "out") == folder / "out" / "index.html"
    return suite, folder / "out"


def bare_suite(folder: Path, *labels: str) -> Path:
    """Nothing but one `results.json` a label."""
    for label in labels:
        path = folder / "runs" / label / "0"
        path.mkdir(parents=True)
        (path / "results.json").write_text(json.dumps(results("piggyback", 0)), encoding="utf-8")
    return folder


class Page(HTMLParser):
    """The tags, table rows and text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words.append(data)
            if "td" in self._open or "th" in self._open:
                self.rows[-1][-1] += data

    def row(self, title: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == title)


def page_of(out: Path) -> Page:
    return Page((out / "index.html").read_text(encoding="utf-8"))


def table(out: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "tables" / f"{name}.json").read_text(encoding="utf-8"))
    return found


# ------------------------------------------------------------------ numbers


def test_the_headline_table_gives_mean_spread_direction_and_the_best(made: tuple[Path, Path]) -> None:
    page = page_of(made[1])
    header = next(row for row in page.rows if row[:1] == ["Method"])
    assert header[1:4] == ["streets mIoU ↑", "colour ab error ↓", "edges MSE ↓"]
    assert page.row("Trivial baseline")[1:4] == ["0.2000 doing nothing", "200.0 doing nothing", "4,000 doing nothing"]
    # 0.5 and 0.6: mean 0.55, sample deviation 0.1 / sqrt(2) = 0.0707; 100 and 120: 110 and 14.1.
    assert page.row("Piggyback")[1:4] == ["0.5500 ± 0.0707", "110.0◆ ± 14.1", "1,100◆ ± 141"]
    assert page.row("Fine-tuned networks")[1:4] == ["0.5000 ± 0.0000", "100.0 ± 14.1", "1,200 ± 141"]
    # What was forgotten counts: 0.1 and 0.3 at the end, though 0.7 and 0.8 when learned.
    assert page.row("Fine-tuned on")[1:4] == ["0.2000 ± 0.1414", "275.0 ± 35.4", "925.0 ± 35.4"]
    source = (made[1] / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<strong>([\d.,]+)</strong>", source) == ["0.5500", "925.0", "100.0"]  # Fine-tuned on stands higher


def test_the_second_table_has_the_methods_whose_figures_moved_as_they_were_when_learned(made: tuple[Path, Path]) -> None:
    rows = [row for row in page_of(made[1]).rows if row and row[0] == "Fine-tuned on"]
    assert rows[1][1:] == ["0.7500 ± 0.0707", "85.00 ± 7.07", "925.0 ± 35.4", "2"]
    assert {entry["method"] for entry in table(made[1], "just_learned")} == {"sequential"}


def test_the_headline_for_documents_says_the_same_in_markdown(made: tuple[Path, Path]) -> None:
    lines = (made[1] / "tables" / "headline.md").read_text(encoding="utf-8").splitlines()
    rows = {row[0]: row[1:] for line in lines if (row := [cell.strip() for cell in line.strip("|").split("|")])}
    assert rows["method"][:3] == ["streets mIoU ↑", "colour ab error ↓", "edges MSE ↓"]
    assert rows["Piggyback"][:3] == ["**0.5500 ± 0.071**", "110.0 ± 14", "1,100 ± 140"]
    # At the end, and in brackets when it was learned, for a method that forgets.
    assert rows["Fine-tuned on"][:2] == ["0.2000 ± 0.14 (0.7500 ± 0.071)", "275.0 ± 35 (85.00 ± 7.1)"]
    assert {len(row) for row in rows.values()} == {8}
    assert {row[-1] for row in rows.values()} == {"seeds", "---", "", "2"}


def test_the_task_that_trained_the_backbone_counts_for_no_mask(made: tuple[Path, Path], tmp_path: Path) -> None:
    text = page_of(made[1]).text
    assert "streets trained the backbone and has no mask" in text
    # On colour fine-tuning is better, 100 against 110, on edges the mask, 1,100 against 1,200.
    assert "tasks on which Piggyback is on average at least as good as Fine-tuned networks of the same seeds1 of 2" in text
    suite = bare_suite(tmp_path, "a")
    other = results("piggyback", 0)
    other["backbone"]["mode"] = "pretrained"
    (suite / "runs" / "a" / "0" / "results.json").write_text(json.dumps(other), encoding="utf-8")
    assert read_suite(suite).backbone_task is None


def test_a_mask_on_another_backbone_leaves_the_backbones_task_what_it_is(tmp_path: Path) -> None:
    suite = make_suite(tmp_path / "suite")
    other = results("piggyback", 0)
    other["backbone"]["mode"] = "random"
    (suite / "runs" / "random" / "0").mkdir(parents=True)
    (suite / "runs" / "random" / "0" / "results.json").write_text(json.dumps(other), encoding="utf-8")
    read = read_suite(suite)
    assert read.backbone_task == "streets"
    assert {task for task, *_ in pair_rows(read)} == {"colour", "edges"}


def test_a_lucky_seed_is_not_marked_best(made: tuple[Path, Path]) -> None:
    suite = read_suite(made[0])
    edges = suite.tasks[2]
    assert winners(suite, edges) == ({"sequential"}, {"piggyback"})
    few = tuple(replace(m, runs=m.runs[:1]) if m.label == "sequential" else m for m in suite.methods)
    assert winners(replace(suite, methods=few), edges) == ({"piggyback"}, {"piggyback"})


def test_methods_stand_by_group_in_the_suites_order(made: tuple[Path, Path]) -> None:
    first = [row[0] for row in page_of(made[1]).rows if row]
    assert first[:7] == [
        "Method", "Trivial baseline", "Masks on the frozen backbone", "Piggyback", "Comparison methods", "Fine-tuned on",
        "Fine-tuned networks",
    ]  # fmt: skip


def test_skills_are_relative_to_fine_tuning(made: tuple[Path, Path]) -> None:
    by = {(row["task"], row["method"]): row for row in table(made[1], "skill")}
    # streets: (0.55 - 0.2) / (1 - 0.2) = 0.4375 of a perfect 1, fine-tuning (0.5 - 0.2) / 0.8 = 0.375.
    assert by["streets", "piggyback"]["mean"] == pytest.approx(0.4375)
    assert by["streets", "piggyback"]["relative_to_finetune"] == pytest.approx(0.4375 / 0.375)
    # colour: (200 - 275) / 200 < 0, worse than doing nothing; fine-tuning (200 - 100) / 200.
    assert by["colour", "sequential"]["relative_to_finetune"] == pytest.approx(-0.375 / 0.5)
    assert by["edges", "finetune"]["relative_to_finetune"] == 1


def test_relative_skills_are_those_of_the_seeds_that_both_have(made: tuple[Path, Path]) -> None:
    suite = read_suite(made[0])
    piggyback, finetune = (next(m for m in suite.methods if m.label == label) for label in ("piggyback", "finetune"))
    colour = next(task for task in suite.tasks if task.name == "colour")
    # Seed 0: (200 - 100) / 200 and (200 - 90) / 200; seed 1: 80 and 90.
    assert relative_skill(piggyback, finetune, colour) == pytest.approx((100 + 80) / (110 + 90))
    assert relative_skill(replace(piggyback, runs=piggyback.runs[:1]), finetune, colour) == pytest.approx(100 / 110)
    assert relative_skill(piggyback, replace(finetune, runs=finetune.runs[1:]), colour) == pytest.approx(80 / 90)
    apart = replace(finetune, runs=tuple(replace(run, seed=run.seed + 10) for run in finetune.runs))
    assert relative_skill(piggyback, apart, colour) == pytest.approx((100 + 80) / (110 + 90)), "all where they share none"


def test_pairs_are_of_the_same_seed_and_a_gain_is_better_in_either_direction(made: tuple[Path, Path]) -> None:
    rows = {(row["task"], row["method"], row["seed"]): row for row in table(made[1], "pairs")}
    assert {task for task, *_ in rows} == {"colour", "edges"}, "streets is the backbone's own"
    assert "finetune" not in {method for _, method, _ in rows}
    # Lower is better: 1,000 against 1,100 of seed 0 is a gain, 120 against 110 of seed 1 is a loss.
    assert rows["edges", "piggyback", 0]["gain"] == pytest.approx(100 / 1100)
    assert rows["colour", "piggyback", 1]["gain"] == pytest.approx(-10 / 110)
    suite = read_suite(made[0])
    piggyback, finetune = (next(m for m in suite.methods if m.label == label) for label in ("piggyback", "finetune"))
    streets = suite.tasks[0]
    assert [pair.gain for pair in pairs(piggyback, finetune, streets)] == pytest.approx([0.0, 0.2]), "higher is better"
    assert [pair.seed for pair in pairs(piggyback, replace(finetune, runs=finetune.runs[1:]), streets)] == [1]
    apart = replace(finetune, runs=tuple(replace(run, seed=run.seed + 10) for run in finetune.runs))
    assert gain(piggyback, apart, streets) is None
    elsewhere = [replace(run, results=run.results | {"environment": {"device": "another"}}) for run in finetune.runs]
    assert gain(piggyback, replace(finetune, runs=tuple(elsewhere)), streets) is None, "their backbones differ"


def test_a_gain_has_its_standard_error_and_its_wins(made: tuple[Path, Path]) -> None:
    suite = read_suite(made[0])
    piggyback, finetune = (next(m for m in suite.methods if m.label == label) for label in ("piggyback", "finetune"))
    found = gain(piggyback, finetune, suite.tasks[0])
    # 0 and 0.2: their standard deviation is 0.1414, over the root of two pairs 0.1.
    assert found is not None
    assert (found.mean, found.error, found.wins, found.pairs) == (pytest.approx(0.1), pytest.approx(0.1), 2, 2)
    lines = (made[1] / "tables" / "pairs.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "| better than Fine-tuned networks by | colour | edges | a task |"
    # (-11.11 - 9.09) / 2 and (9.09 + 7.69) / 2 per cent, half their differences.
    assert "| Piggyback | −10.1 ± 1.0 % (0/2) | **+8.4 ± 0.7 %** (2/2) |" in "\n".join(lines)
    row = [row for row in page_of(made[1]).rows if row and row[0] == "Piggyback" and "%" in row[1]]
    assert row == [["Piggyback", "−10.1 ± 1.0 % 0 of 2", "+8.4 ± 0.7 % 2 of 2"]]


def test_the_mask_that_is_named_has_as_many_pairs_as_any(made: tuple[Path, Path]) -> None:
    suite = read_suite(made[0])
    piggyback = next(m for m in suite.methods if m.label == "piggyback")
    sequential = next(m for m in suite.methods if m.label == "sequential")
    # When it was lucky in its only seed, it is not the one to quote: sequential's edges, 900, are best of all.
    lucky = replace(sequential, label="lucky", group="mask", runs=sequential.runs[:1])
    assert nearest_mask(replace(suite, methods=(*suite.methods, lucky))) == (piggyback, 1, 2)
    assert nearest_mask(replace(suite, methods=(piggyback,))) is None


def test_a_disaster_does_not_squeeze_the_others_into_a_line(made: tuple[Path, Path]) -> None:
    methods = read_suite(made[0]).methods
    points = [(method, 1e6, value) for method, value in zip(methods, (0.5, 0.4, -7.0), strict=True)]
    axes = quality_bytes_figure(points, all_tasks=dict.fromkeys(methods, True)).axes[0]
    assert 0 < axes.get_ylim()[0] < 0.4
    assert f"{methods[2].title} (−7.000, below)" in [note.get_text() for note in axes.texts]
    assert sum(line.get_marker() == "v" for line in axes.lines) >= 1


def test_a_reference_that_learned_nothing_is_nothing_to_compare_with(made: tuple[Path, Path]) -> None:
    suite = read_suite(made[0])
    piggyback, finetune = (next(m for m in suite.methods if m.label == label) for label in ("piggyback", "finetune"))
    task = suite.tasks[0]
    spoilt = type(task)(**{**vars(task), "trivial": 0.499})
    assert relative_skill(piggyback, finetune, task) is not None
    assert relative_skill(piggyback, finetune, spoilt) is None


@pytest.mark.parametrize(
    ("means", "higher", "expected"),
    [((0.1, 0.3, 0.2), True, {1}), ((0.1, 0.3, 0.2), False, {0}), ((0.3, None, 0.3), True, {0, 2}), ((None, None), True, set())],
)
def test_the_best_is_the_best_in_its_direction_and_ties_share_it(means: Any, higher: bool, expected: set[int]) -> None:
    stats = [None if mean is None else Stat(mean, None, 1) for mean in means]
    assert best(stats, higher_is_better=higher) == expected


@pytest.mark.parametrize(
    ("stat", "shown"),
    [(None, ("—", "")), (Stat(0.5, None, 1), ("0.5000", "")), (Stat(0.83891, 0.00214, 3), ("0.8389", "± 0.0021")),
     (Stat(1139.4, 21.7, 2), ("1,139", "± 22")), (Stat(0.0, 0.0, 2), ("0", "± 0")),
     (Stat(12.5, 3456.0, 2), ("12.50", "± 3,456.00"))],
)  # fmt: skip
def test_a_spread_has_as_many_decimals_as_its_mean(stat: Stat | None, shown: tuple[str, str]) -> None:
    assert spread(stat) == shown


def test_sizes_count_what_is_shared_once(made: tuple[Path, Path]) -> None:
    by = {row["method"]: row for row in table(made[1], "sizes")}
    # Tasks of 30,000 bytes with seed 0 and 31,000 with seed 1, three of them, beside a backbone of 1,000,000.
    assert [by["piggyback"][key] for key in ("shared_bytes", "task_bytes", "total_bytes")] == [1_000_000, 91_500, 1_091_500]
    assert [by["finetune"][key] for key in ("shared_bytes", "total_bytes")] == [0, 3_001_500]
    assert page_of(made[1]).row("Piggyback")[5] == "1.09 MB"


def test_training_times_are_summed_over_the_tasks(made: tuple[Path, Path]) -> None:
    # 60 + 61 + 62 s with seed 0, 30 s more with seed 1.
    entry = next(row for row in table(made[1], "time") if row["method"] == "piggyback")
    assert entry["seconds_mean"] == 198
    assert entry["seconds_std"] == pytest.approx(30 / 2**0.5)


def test_the_forgetting_matrix_is_the_mean_over_seeds(made: tuple[Path, Path]) -> None:
    cells = {(row["method"], row["after"], row["task"]): row for row in table(made[1], "forgetting")}
    assert cells["sequential", "streets", "streets"]["value"] == pytest.approx(0.75)
    assert cells["sequential", "edges", "streets"]["value"] == pytest.approx(0.2)
    # Skills fell from 0.625 and 0.75 to -0.125 and 0.125.
    assert cells["sequential", "edges", "streets"]["skill_change"] == pytest.approx(-0.6875)
    assert ("sequential", "streets", "colour") not in cells
    assert all(row["skill_change"] == 0 for row in cells.values() if row["method"] != "sequential")


def test_learning_curves_join_the_phases_of_a_task_and_average_seeds(tmp_path: Path) -> None:
    for seed, value in ((0, 0.1), (1, 0.3)):
        folder = tmp_path / "runs" / "sequential" / str(seed)
        write_run(folder, "sequential", seed)
        log = folder / "metrics" / "streets.warmup.csv"
        log.write_text(f"step,loss,val mIoU\n5,1.0,{value}\n", encoding="utf-8")
    suite = read_suite(tmp_path)
    points = mean_curve(suite.methods[0], suite.tasks[0])
    assert [step for step, _ in points] == [5, 15, 25, 35, 45]
    assert points[0][1] == pytest.approx(0.2)
    assert points[-1][1] == pytest.approx(0.75)
    (tmp_path / "runs" / "sequential" / "0" / "metrics" / "streets.joint.csv").write_text("step,loss\n1,1\n", encoding="utf-8")
    assert len(run_curve(suite.methods[0].runs[0], suite.tasks[0])) == 0
    assert len(run_curve(suite.methods[0].runs[1], suite.tasks[0])) == 5


def test_forty_methods_leave_room_for_the_axes(tmp_path: Path) -> None:
    """Their legend has columns; matplotlib's warning that it found no room would fail the test."""
    methods = [Method(f"m{i}", f"a method with a longer name {i}", "mask", "", i, ()) for i in range(40)]
    task = TaskInfo("edges", "edges", "MSE", False, None, None)
    curves = curve_figure(task, {method: [(1, i + 1.0), (2, 2.0)] for i, method in enumerate(methods)})
    bars = zeroed_figure(methods, ["edges"], {method: {"edges": 0.5} for method in methods})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (curves, bars):
            save_png(figure, tmp_path / "figure.png")
            (axes,) = figure.axes
            assert axes.bbox.width > 0.4 * figure.bbox.width
            assert axes.bbox.height > 0.6 * figure.bbox.height


def test_csv_and_json_tables_say_the_same(made: tuple[Path, Path]) -> None:
    names = sorted(path.stem for path in (made[1] / "tables").glob("*.csv"))
    assert names == sorted(path.stem for path in (made[1] / "tables").glob("*.json"))
    assert {"headline", "final", "just_learned", "skill", "forgetting", "sizes", "time", "figures", "masks_layers"} <= set(names)
    for name in names:
        with open(made[1] / "tables" / f"{name}.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        objects = table(made[1], name)
        shown = {None: "", True: "true", False: "false"}
        assert rows, name
        as_text = [{k: shown[v] if v is None or isinstance(v, bool) else str(v) for k, v in row.items()} for row in objects]
        assert rows == as_text, name


def test_the_wide_table_is_tasks_by_methods(made: tuple[Path, Path]) -> None:
    first = table(made[1], "headline")[0]
    assert first == {"task": "streets", "metric": "mIoU", "higher_is_better": True, "trivial": 0.2, "piggyback": 0.55,
                     "sequential": pytest.approx(0.2), "finetune": 0.5}  # fmt: skip


# ------------------------------------------------------------------ the page and its figures


def test_every_figure_is_made_and_shows_something(made: tuple[Path, Path]) -> None:
    found = {path.stem: path for path in (made[1] / "figures").iterdir()}
    assert found.keys() == set(FIGURES)
    for name, path in found.items():
        with Image.open(path, formats=["PNG"]) as image:
            pixels = np.asarray(image.convert("L"))
            colours = len(image.convert("RGB").getcolors(1 << 20))
            assert not {"Software", "date:create"} & image.info.keys()
        assert min(pixels.shape) > 100, name
        dark = (pixels < 128).mean()
        assert 0.001 < dark < 0.9, name
        assert colours > 10, name


def test_every_figure_is_on_the_page(made: tuple[Path, Path]) -> None:
    images = [attrs for tag, attrs in page_of(made[1]).tags if tag == "img"]
    assert len(images) == len(FIGURES)
    files = {path.read_bytes() for path in (made[1] / "figures").iterdir()}
    shown = 0
    for attrs in images:
        assert attrs["alt"]
        head, data = (attrs["src"] or "").split(",", 1)
        blob = base64.b64decode(data, validate=True)
        assert head in ("data:image/png;base64", "data:image/jpeg;base64")
        shown += blob in files
        with Image.open(io.BytesIO(blob)) as image:
            image.load()
    assert shown == len(FIGURES) - 3  # the three grids are JPEG on the page


def test_the_page_needs_nothing_else_and_links_only_into_itself(made: tuple[Path, Path]) -> None:
    source = (made[1] / "index.html").read_text(encoding="utf-8")
    page = Page(source)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        assert (attrs.get("href") or "#results")[1:] in ids
        assert (attrs.get("src") or "data:").startswith("data:")
    assert not re.findall(r"https?://|url\(|@import", source)
    assert str(made[0]) not in source


def test_the_same_suite_gives_the_same_bytes(made: tuple[Path, Path], tmp_path: Path) -> None:
    suite = bare_suite(tmp_path / "suite", "a")
    shutil.copytree(made[0] / "runs" / "piggyback" / "0" / "outputs", suite / "runs" / "a" / "0" / "outputs")
    files = []
    for out in (tmp_path / "first", tmp_path / "second"):
        write_comparison(suite, out)
        files.append({str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert files[0].keys() == files[1].keys()
    assert [name for name in files[0] if files[0][name] != files[1][name]] == []


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium: apt-get install chromium")
def test_the_page_opens_in_a_browser_without_an_error_or_a_request(made: tuple[Path, Path], tmp_path: Path) -> None:
    said, dom = in_browser(made[1] / "index.html", tmp_path)
    assert "CONSOLE" not in said
    assert "Fine-tuned networks" in dom
    # The switches do catch what they are to catch.
    broken = tmp_path / "broken.html"
    broken.write_text("<!DOCTYPE html><title>x</title><img src='missing.png'><script>nonsense()</script>", encoding="utf-8")
    said, _ = in_browser(broken, tmp_path)
    assert "CONSOLE" in said


def in_browser(page: Path, folder: Path) -> tuple[str, str]:
    """What headless Chromium says of a page on stderr, and the page's elements as it sees them."""
    quiet = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--enable-logging=stderr", "--v=0", f"--user-data-dir={folder / 'profile'}")  # fmt: skip
    # No host can be reached: a page that asks for one gets an error, which is logged.
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = ["chromium", "--headless", "--no-sandbox", *quiet, offline, "--dump-dom", page.as_uri()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            dom, said = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, said
    return said, dom


# ------------------------------------------------------------------ what is missing, odd or damaged


def test_what_a_suite_lacks_is_left_out(tmp_path: Path) -> None:
    suite = bare_suite(tmp_path / "suite", "piggyback")
    run = suite / "runs" / "piggyback" / "0" / "results.json"
    short = results("piggyback", 0)
    short["tasks"][1] |= {"bytes": None, "train_seconds": None}
    for key in ("transfer", "environment", "experiment"):
        del short[key]
    run.write_text(json.dumps(short), encoding="utf-8")
    write_comparison(suite, tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert {path.stem for path in (tmp_path / "out" / "figures").iterdir()} == {"skill", "forgetting_piggyback"}
    assert not list((tmp_path / "out" / "tables").glob("pairs.*")), "nothing to compare with"
    headings = [attrs.get("id") for tag, attrs in page.tags if tag == "h2"]
    assert headings == ["results", "skill", "forgetting", "figures", "setup"]
    assert page.row("piggyback")[1:] == ["0.5000", "100.0◆", "1,000◆", "0.5417", "—", "1"]
    assert "±" not in page.text.replace("mean ± standard", "")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["commit"] is None
    assert summary["methods"]["piggyback"]["colour"] == {"mean": 100.0, "std": None, "seeds": 1, "bytes": None}


def test_a_method_without_a_task_has_no_figure_there_and_tasks_keep_the_longest_order(tmp_path: Path) -> None:
    suite = bare_suite(tmp_path / "suite", "a", "b")
    short = results("piggyback", 0)
    short["tasks"] = [short["tasks"][2], short["tasks"][0]]
    short["forgetting"]["value_matrix"] = [[900.0, None], [900.0, 0.9]]
    (suite / "runs" / "b" / "0" / "results.json").write_text(json.dumps(short), encoding="utf-8")
    write_comparison(suite, tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert [task.name for task in read_suite(suite).tasks] == ["streets", "colour", "edges"]
    assert page.row("b")[1:5] == ["0.9000◆", "—", "900.0◆", "0.8250*"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["methods"]["b"].keys() == {"streets", "edges"}


def test_labels_and_titles_are_escaped_and_name_no_odd_file(tmp_path: Path) -> None:
    suite = bare_suite(tmp_path / "suite", "<b>&'x $_$", "..y", "_z")
    about = {"title": "<script>alert(1)</script>", "methods": {"_z": {"title": "<i>..&</i>", "group": "mask", "note": "<u>"}}}
    (suite / "suite.json").write_text(json.dumps(about), encoding="utf-8")
    write_comparison(suite, tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert not {"b", "script", "i", "u"} & {tag for tag, _ in page.tags}
    for part in ("<b>&'x $_$", "<script>alert(1)</script>", "<i>..&</i>", "<u>"):
        assert part in page.text
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+\.png", name) for name in names)
    assert len([name for name in names if name.startswith("forgetting_")]) == 2  # a folder that begins with a dot is hidden


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("suite.json", "[]", r"suite\.json: expected an object"),
        ("suite.json", '{"methods": {"finetune": {"group": "odd"}}}', r"group 'odd' is unknown: expected one of mask"),
        ("suite.json", '{"methods": {"finetune": 3}}', r"suite\.json, methods, finetune"),
        ("suite.json", '{"order": "x"}', r"suite\.json, order: expected a list"),
        ("suite.json", '{"order": ["a", "a"]}', r"order: expected a list of labels, each once"),
        ("suite.json", "{", r"suite\.json is not valid JSON"),
        ("runs/finetune/0/results.json", "{", r"0/results\.json is not valid JSON"),
        ("runs/finetune/0/metrics/colour.csv", "a,b\n1,2\n", r"colour\.csv is not a training log"),
        ("runs/finetune/0/outputs/colour.jpg", "no picture", r"outputs/colour\.jpg cannot be read as JPEG"),
        ("runs/piggyback/0/masks.json", '{"schema": 1}', r"masks\.json lacks 'layers'"),
        ("runs/piggyback/0/masks.json", '{"schema": 2}', r"masks\.json is damaged \(the schema 2\)"),
        ("runs/piggyback/0/masks.json", "[]", r"masks\.json is damaged"),
        ("runs/finetune/zero/results.json", "{}", r"finetune/zero is not named by a seed"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: str, said: str) -> None:
    suite = tmp_path / "suite"
    for label in ("piggyback", "finetune"):
        write_run(suite / "runs" / label / "0", label, 0)
    (suite / file).parent.mkdir(parents=True, exist_ok=True)
    (suite / file).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        write_comparison(suite, tmp_path / "out")
    assert not (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda r: r.update(shared_bytes=-1), "shared_bytes: expected a number of bytes, got -1"),
        (lambda r: r["tasks"][1].update(trivial=210.0), "trivial baseline of colour is 210.0, but 200.0"),
        (lambda r: r["tasks"][1].update(metric="SSIM"), "metric of colour is 'SSIM', but 'ab error'"),
        (lambda r: r["tasks"][1].update(higher_is_better=True), "higher_is_better of colour is True, but False"),
    ],
)
def test_runs_that_do_not_fit_together_are_refused(tmp_path: Path, spoil: Callable[[Any], None], said: str) -> None:
    suite = bare_suite(tmp_path / "suite", "a", "b")
    changed = results("piggyback", 0)
    spoil(changed)
    (suite / "runs" / "b" / "0" / "results.json").write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(InputError, match=said) as error:
        read_suite(suite)
    assert "runs/b/0/results.json" in str(error.value)


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder; give the folder of a suite"):
        write_comparison(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    with pytest.raises(InputError, match=r"has no runs/LABEL/SEED/results\.json"):
        write_comparison(tmp_path, tmp_path / "out")


# ------------------------------------------------------------------ pictures


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
    with pytest.raises(InputError, match="does not say how many pictures"):
        read_strip(tmp_path / "b.jpg")


def test_a_grid_has_input_target_and_methods_from_left_to_right(tmp_path: Path) -> None:
    suite = bare_suite(tmp_path / "suite", "a", "b")
    colours = {("a", "inputs"): (250, 10, 10), ("a", "targets"): (10, 250, 10)}
    colours |= {("a", "outputs"): (10, 10, 250), ("b", "outputs"): (10, 10, 10)}
    for (label, kind), colour in colours.items():
        save_strip(suite / "runs" / label / "0" / kind / "streets.jpg", [Image.new("RGB", (60, 60), colour)] * 2, (60, 60))
    read = read_suite(suite)
    found = task_grid(read, read.tasks[0])
    assert found is not None
    grid, methods = found
    assert [method.label for method in methods] == ["a", "b"]
    assert grid.size == (4 * 66 - 6, 24 + 2 * 66 - 6)
    centres = [grid.getpixel((66 * i + 30, 24 + 66 + 30)) for i in range(4)]
    assert np.abs(np.array(centres) - np.array(list(colours.values()))).max() <= 6
    assert task_grid(read, read.tasks[1]) is None


def test_pictures_that_do_not_fit_side_by_side_are_refused(tmp_path: Path) -> None:
    suite = bare_suite(tmp_path / "suite", "a", "b")
    for label, count in (("a", 2), ("b", 3)):
        save_strip(suite / "runs" / label / "0" / "outputs" / "streets.jpg", [Image.new("RGB", (8, 8))] * count, (8, 8))
    read = read_suite(suite)
    with pytest.raises(InputError, match=r"b/0/outputs/streets\.jpg holds 3 pictures of \(8, 8\), but those .* are 2"):
        task_grid(read, read.tasks[0])


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
