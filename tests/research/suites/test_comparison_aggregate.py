"""The numbers of a comparison: means, skills, pairs, sizes, times, and their tables."""

import csv
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_suite import add_run, bare_suite, elsewhere, make_suite, page_of, results, table, write_run

from img2img.research.suites.aggregate import (
    Sizes,
    Stat,
    best,
    final,
    matrix,
    mean_curve,
    mean_skill,
    moved,
    relative_skill,
    seconds,
    sizes,
    transfer,
    whole_runs,
)
from img2img.research.suites.page_text import spread
from img2img.research.suites.paired_differences import Gain, gain, gain_points, mean_gain, nearest_mask, pair_rows, pairs
from img2img.research.suites.plot_style import save_png
from img2img.research.suites.quality_figures import (
    affected_figure,
    curve_figure,
    forgetting_figure,
    gain_bytes_figure,
    pareto_front,
    quality_bytes_figure,
    skill_figure,
    time_figure,
)
from img2img.research.suites.store import store_run, training_curve
from img2img.research.suites.suite import Method, Run, TaskInfo, read_suite
from img2img.research.suites.summary import chosen_by_validation
from img2img.research.suites.tables import _forgetting, winners


def test_the_headline_table_gives_mean_spread_direction_and_the_best(made: tuple[Path, Path]) -> None:
    page = page_of(made[1])
    header = next(row for row in page.rows if row[:1] == ["Method"])
    assert header[1:4] == ["streets mIoU ↑", "colour ab error ↓", "edges MSE ↓"]
    assert page.row("Baseline")[1:4] == ["0.2000 majority class", "200.0 majority class", "4,000 majority class"]
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
    add_run(suite, "a", other)
    assert read_suite(suite).backbone_task is None


def test_a_mask_on_another_backbone_leaves_the_backbones_task_what_it_is(tmp_path: Path) -> None:
    suite = make_suite(tmp_path / "suite")
    other = results("piggyback", 0)
    other["backbone"]["mode"] = "random"
    add_run(suite, "random", other)
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
        "Method", "Baseline", "Masks on the frozen backbone", "Piggyback", "Comparison methods", "Fine-tuned on",
        "Fine-tuned networks",
    ]  # fmt: skip


def test_skills_are_relative_to_fine_tuning(made: tuple[Path, Path]) -> None:
    by = {(row["task"], row["method"]): row for row in table(made[1], "skill")}
    # streets: (0.55 - 0.2) / (1 - 0.2) = 0.4375 of a perfect 1, fine-tuning (0.5 - 0.2) / 0.8 = 0.375.
    assert by["streets", "piggyback"]["mean"] == pytest.approx(0.4375)
    assert by["streets", "piggyback"]["relative_to_finetune"] == pytest.approx(0.4375 / 0.375)
    # colour: (200 - 275) / 200 < 0, worse than the baseline; fine-tuning (200 - 100) / 200.
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
    apart = replace(finetune, runs=tuple(elsewhere(run, seed=run.seed + 10) for run in finetune.runs))
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
    apart = replace(finetune, runs=tuple(elsewhere(run, seed=run.seed + 10) for run in finetune.runs))
    assert gain(piggyback, apart, streets) is None
    moved = tuple(elsewhere(run, environment={"device": "another"}) for run in finetune.runs)
    assert gain(piggyback, replace(finetune, runs=moved), streets) is None, "their backbones differ"


def test_a_gain_has_its_standard_error_and_its_wins(made: tuple[Path, Path]) -> None:
    suite = read_suite(made[0])
    piggyback, finetune = (next(m for m in suite.methods if m.label == label) for label in ("piggyback", "finetune"))
    found = gain(piggyback, finetune, suite.tasks[0])
    # 0 and 0.2: their standard deviation is 0.1414, over the root of two pairs 0.1.
    assert found is not None
    assert (found.mean, found.error, found.wins, found.pairs) == (pytest.approx(0.1), pytest.approx(0.1), 2, 2)
    lines = (made[1] / "tables" / "pairs.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "| better than Fine-tuned networks by | colour | edges | all | a task |"
    # (-11.11 - 9.09) / 2 and (9.09 + 7.69) / 2 per cent, half their differences.
    assert "| Piggyback | −10.1 ± 1.0 % (0/2) | **+8.4 ± 0.7 %** (2/2) | −0.9 ± 0.2 % (0/2) |" in "\n".join(lines)
    row = [row for row in page_of(made[1]).rows if row and row[0] == "Piggyback" and "%" in row[1]]
    assert row == [["Piggyback", "−10.1 ± 1.0 % 0 of 2", "+8.4 ± 0.7 % 2 of 2", "−0.9 ± 0.2 % 0 of 2"]]


def test_the_gain_over_all_tasks_is_of_the_seeds_that_have_them_all(made: tuple[Path, Path]) -> None:
    suite = read_suite(made[0])
    piggyback, finetune = (next(m for m in suite.methods if m.label == label) for label in ("piggyback", "finetune"))
    tasks = suite.tasks[1:]
    # Seed 0: (-10/90 + 100/1100) / 2; seed 1: (-10/110 + 100/1300) / 2.
    seeds = [(-1 / 9 + 1 / 11) / 2, (-1 / 11 + 1 / 13) / 2]
    found = mean_gain(piggyback, finetune, tasks)
    assert found == Gain(pytest.approx(sum(seeds) / 2), pytest.approx(abs(seeds[0] - seeds[1]) / 2), 0, 2)
    assert mean_gain(replace(piggyback, runs=piggyback.runs[1:]), finetune, tasks) == Gain(pytest.approx(seeds[1]), None, 0, 1)
    assert mean_gain(replace(piggyback, runs=()), finetune, tasks) is None
    points = gain_points(suite)
    assert [(method.label, round(size)) for method, size, *_ in points if method in (piggyback, finetune)] == [
        ("piggyback", 30_500),
        ("finetune", 1_000_500),
    ]
    assert points[-1][2:] == (0.0, None, None), "the reference itself"
    assert {point.seeds for point in points[:-1]} == {2}


def test_one_lucky_seed_is_not_on_the_front(made: tuple[Path, Path]) -> None:
    *others, reference = gain_points(read_suite(made[0]))
    lucky = others[0]._replace(bytes=others[0].bytes / 2, gain=0.2, seeds=1, error=None)
    few, same = (
        gain_bytes_figure([replaced, *others[1:], reference], reference="fine-tune")
        for replaced in (lucky, lucky._replace(seeds=2))
    )
    fronts = [next(line for line in figure.axes[0].lines if line.get_drawstyle() == "steps-post") for figure in (few, same)]
    assert [(lucky.bytes, 0.2) in zip(*front.get_data(), strict=True) for front in fronts] == [False, True]
    assert f"{lucky.method.title} (1 seed)" in {text.get_text() for text in few.axes[0].texts}
    assert lucky.method.title in {text.get_text() for text in same.axes[0].texts}


def test_the_front_has_what_nothing_smaller_equals() -> None:
    points = [(30.0, 0.2), (10.0, -0.1), (20.0, -0.1), (40.0, 0.2), (50.0, 0.3), (60.0, 0.1), (10.0, -0.2)]
    assert pareto_front(points) == [(10.0, -0.1), (30.0, 0.2), (50.0, 0.3)]


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
    spoilt = type(task)(**{**vars(task), "baseline": 0.499})
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


def test_seeds_are_averaged_over_the_same_tasks_alone(made: tuple[Path, Path]) -> None:
    suite = read_suite(made[0])
    piggyback = next(m for m in suite.methods if m.label == "piggyback")
    first, second = piggyback.runs

    def without(run: Run, place: int, **changes: Any) -> Run:
        tasks = [task for i, task in enumerate(run.record.tasks) if i != place]
        rows = [
            [value for i, value in enumerate(row) if i != place] for t, row in enumerate(run.record.value_matrix) if t != place
        ]
        return elsewhere(run, tasks=tasks, value_matrix=rows, **changes)

    # Two tasks each, and not the same two: the first seed alone. Then two seeds have the other two tasks.
    apart = replace(piggyback, runs=(without(first, 2), without(second, 1)))
    assert mean_skill(apart, suite) == (Stat(pytest.approx((0.375 + 0.5) / 2), None, 1), 2)
    assert sizes(apart) == Sizes(1e6, 60_000)
    assert seconds(apart) == Stat(121.0, None, 1)
    assert transfer(apart, "average_skill") == Stat(0.5, None, 1)
    assert [task.name for task in matrix(apart, suite).tasks] == ["streets", "colour"]
    assert matrix(apart, suite).values[0][0] == 0.5
    twice = replace(piggyback, runs=(*apart.runs, without(first, 1, seed=2)))
    assert mean_skill(twice, suite) == (
        Stat(pytest.approx((0.375 + 0.75 + 0.5 + 0.7) / 4), pytest.approx(0.0265, abs=1e-4), 2),
        2,
    )
    assert sizes(twice) == Sizes(1e6, 61_000)
    assert [task.name for task in matrix(twice, suite).tasks] == ["streets", "edges"]
    # A seed that has them all stands for the method, and one whose metric is missing does not.
    assert mean_skill(replace(piggyback, runs=(*twice.runs, first)), suite) == (Stat(pytest.approx(1.625 / 3), None, 1), 3)
    unknown = elsewhere(second, value_matrix=[[0.6, None, None], [0.6, None, None], [0.6, None, 1200.0]])
    assert mean_skill(replace(piggyback, runs=(without(first, 2), unknown)), suite) == (Stat(pytest.approx(0.4375), None, 1), 2)


def test_the_figure_of_skills_has_means_over_the_same_tasks_alone(made: tuple[Path, Path]) -> None:
    suite = read_suite(made[0])
    rows = [[0.5, 0.9, None], [0.5, None, 0.1], [0.5, None, 0.3]]
    (axes,) = skill_figure(suite.methods, suite.tasks, rows, reference=None).axes
    bars = [line for line in axes.lines if line.get_linewidth() == 2.2]
    assert [float(bar.get_xdata()[0]) for bar in bars] == pytest.approx([0.3, 0.4])  # type: ignore[index]


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


def test_what_was_measured_at_the_end_alone_is_not_shown_as_measured_in_between(tmp_path: Path) -> None:
    for seed, remeasured in ((0, "end"), (1, "every")):
        changed = results("piggyback", seed)
        changed["forgetting"] |= {"remeasured": remeasured}
        add_run(tmp_path, "piggyback", changed, seed=seed)
    suite = read_suite(tmp_path)
    assert [run.record.remeasured for run in suite.runs] == ["end", "every"]
    ends = replace(suite.methods[0], runs=suite.methods[0].runs[:1])
    found = matrix(ends, suite)
    assert found.values == [[0.5, None, None], [None, 100.0, None], [0.5, 100.0, 1000.0]]
    assert found.changes == [[0.0, None, None], [None, 0.0, None], [0.0, 0.0, 0.0]]
    rows = {(row[1], row[2]): row[3:] for row in _forgetting(replace(suite, methods=(ends,)))}
    assert rows["colour", "streets"] == (None, None)
    (axes,) = forgetting_figure(ends, found).axes
    assert axes.texts[1].get_text() == "—"
    assert axes.images[0].get_array().mask.tolist() == [[False, True, True], [True, False, True], [False] * 3]  # type: ignore[union-attr]
    assert matrix(suite.methods[0], suite).values[1][0] == 0.6, "of the seed that was measured then"
    without_skill = replace(found, changes=[[None] * 3] * 3)
    save_png(forgetting_figure(ends, without_skill), tmp_path / "figure.png")


def test_one_seed_has_no_spread_in_the_figure_of_times() -> None:
    method = Method("a", "a", "mask", "", 0, ())
    ends = []
    for std, seeds in ((None, 1), (5.0, 2)):
        (axes,) = time_figure([method], [Stat(60.0, std, seeds)]).axes
        ends.append([float(line.get_xdata()[0]) for line in axes.lines])  # type: ignore[index]
    assert np.isnan(ends[0]).all()
    assert ends[1] == [55.0, 65.0]


def test_learning_curves_join_the_phases_of_a_task_and_average_seeds(tmp_path: Path) -> None:
    for seed, value in ((0, 0.1), (1, 0.3)):
        folder = tmp_path / "sequential" / str(seed)
        write_run(folder, "sequential", seed)
        log = folder / "metrics" / "streets.warmup.csv"
        log.write_text(f"step,loss,val mIoU\n5,1.0,{value}\n", encoding="utf-8")
        store_run(folder, tmp_path / "store", label="sequential", seed=seed)
    suite = read_suite(tmp_path / "store")
    points = mean_curve(suite.methods[0], suite.tasks[0])
    assert [step for step, _ in points] == [5, 15, 25, 35, 45]
    assert points[0][1] == pytest.approx(0.2)
    assert points[-1][1] == pytest.approx(0.75)
    assert training_curve(tmp_path / "sequential" / "0", "streets", "mIoU")
    (tmp_path / "sequential" / "0" / "metrics" / "streets.joint.csv").write_text("step,loss\n1,1\n", encoding="utf-8")
    assert training_curve(tmp_path / "sequential" / "0", "streets", "mIoU") == [], "all tasks trained at once"


def test_a_learning_curve_has_as_many_prunings_as_there_were(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    for suffix in ("", *(f".prune{k}" for k in range(1, 13)), ".retrain", ".decoder_only"):
        (folder / f"streets{suffix}.csv").write_text(f"step,loss,val mIoU\n10,1.0,0.{len(suffix)}\n", encoding="utf-8")
    (folder / "streets.prune1.extra.csv").write_text("step,loss,val mIoU\n10,1.0,0.9\n", encoding="utf-8")
    curve = training_curve(tmp_path, "streets", "mIoU")
    assert curve == [(10 * (i + 1), value) for i, value in enumerate([0.0, *[0.7] * 9, *[0.8] * 3, 0.8])]


def test_bars_of_masks_that_zero_and_that_move_say_which_do_what() -> None:
    first, second = (Method(name, name, "mask", "", i, ()) for i, name in enumerate(("bits", "signs")))
    (axes,) = affected_figure({first: "zeroed", second: "moved"}, ["edges"], {first: {"edges": 0.5}, second: {"edges": 0.1}}).axes
    assert axes.get_ylabel() == "zeroed or moved weights [%]"
    assert axes.get_legend_handles_labels()[1] == ["bits (zeroed)", "signs (moved)"]


@pytest.mark.slow
def test_forty_methods_leave_room_for_the_axes(tmp_path: Path) -> None:
    """Their legend has columns; matplotlib's warning that it found no room would fail the test."""
    methods = [Method(f"m{i}", f"a method with a longer name {i}", "mask", "", i, ()) for i in range(40)]
    task = TaskInfo("edges", "edges", "MSE", False, None, None)
    curves = curve_figure(task, {method: [(1, i + 1.0), (2, 2.0)] for i, method in enumerate(methods)})
    bars = affected_figure(dict.fromkeys(methods, "zeroed"), ["edges"], {method: {"edges": 0.5} for method in methods})
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
    assert {"headline", "final", "just_learned", "skill", "forgetting", "sizes", "time", "metrics", "masks_layers"} <= set(names)
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
    assert first == {"task": "streets", "metric": "mIoU", "higher_is_better": True, "baseline": 0.2, "piggyback": 0.55,
                     "sequential": pytest.approx(0.2), "finetune": 0.5}  # fmt: skip


def test_validation_chooses_and_the_test_images_do_not(tmp_path: Path) -> None:
    suite = read_suite(bare_suite(tmp_path / "suite", "piggyback", "finetune", "sequential"))
    # Best in validation: of a score the highest, of an error the lowest, at the step that was kept.
    validated = {"piggyback": (0.3, 50.0), "finetune": (0.6, 70.0), "sequential": (0.5, 90.0)}

    def run(of: Run, label: str) -> Run:
        score, error = validated[label]
        curves = {"streets": [(20, 0.9), (40, score)], "colour": [(40, error)]}
        tasks = [task.model_copy(update={"curve": curves.get(task.name, [])}) for task in of.record.tasks]
        return replace(of, record=of.record.model_copy(update={"tasks": tasks}))

    methods = tuple(replace(m, runs=tuple(run(each, m.label) for each in m.runs)) for m in suite.methods)
    found = chosen_by_validation(replace(suite, methods=methods))
    assert found == {"streets": ("finetune", pytest.approx(0.6)), "colour": ("piggyback", pytest.approx(50.0))}
    assert chosen_by_validation(suite).keys() <= {"streets", "colour", "edges"}

    def with_finetune(change: Callable[[Method], Method]) -> dict[str, str]:
        twice = (m if m.label == "finetune" else replace(m, runs=m.runs * 2) for m in methods if m.label != "sequential")
        changed = tuple(change(m) if m.label == "finetune" else m for m in twice)
        return {task: label for task, (label, _) in chosen_by_validation(replace(suite, methods=changed)).items()}

    assert with_finetune(lambda m: replace(m, runs=m.runs * 2))["streets"] == "finetune"
    assert with_finetune(lambda m: m)["streets"] == "piggyback", "one lucky seed is no evidence"

    def forgets(m: Method) -> Method:
        first, *others = m.runs
        rows = [*first.record.value_matrix[:-1], [0.0, *first.record.value_matrix[-1][1:]]]
        lost = replace(first, record=first.record.model_copy(update={"value_matrix": rows}))
        return replace(m, runs=(lost, *others, *m.runs))

    assert with_finetune(forgets)["streets"] == "piggyback", "what was validated is lost at the end"


def test_a_shorter_sequence_of_a_method_that_forgets_is_not_averaged_in(made: tuple[Path, Path]) -> None:
    suite = read_suite(made[0])
    sequential = next(m for m in suite.methods if m.label == "sequential")
    run, task = sequential.runs[0], suite.tasks[0]
    short = {"tasks": run.record.tasks[:1], "value_matrix": [run.record.value_matrix[0][:1]], "seed": 9}
    both = replace(sequential, runs=(run, replace(run, record=run.record.model_copy(update=short))))
    assert both.runs[1].tasks == (task.name,)
    assert moved(both)
    assert whole_runs(both) == [run]
    assert final(both, task) == Stat(run.final(task.name), None, 1)  # type: ignore[arg-type]
    masks = next(m for m in suite.methods if m.label == "piggyback")
    assert whole_runs(masks) == masks.runs


def test_what_was_validated_is_looked_up_by_its_step_only_where_one_training_made_it(tmp_path: Path) -> None:
    # PackNet's second training keeps its tenth step, whose validation is 0.3; the first training's tenth step had 0.9.
    stored = results("piggyback", 0)
    stored["tasks"][0] |= {"best_step": 10, "steps": 50}
    for label, method, val in (("pruned", "packnet", None), ("pruned_anew", "packnet", 0.3), ("masked", "piggyback", None)):
        run = tmp_path / label / "0"
        write_run(run, "piggyback", 0)
        stored["tasks"][0]["val"] = val
        (run / "results.json").write_text(json.dumps(stored | {"method": method}), encoding="utf-8")
        (run / "metrics" / "streets.csv").write_text("step,loss,val mIoU\n10,1,0.9\n40,1,0.8\n", encoding="utf-8")
        if method == "packnet":
            (run / "metrics" / "streets.retrain.csv").write_text("step,loss,val mIoU\n10,1,0.3\n", encoding="utf-8")
        store_run(run, tmp_path / "store", label=label, seed=0)
    suite = read_suite(tmp_path / "store")
    assert [run.task("streets").curve[-1] for run in suite.runs if run.record.method == "packnet"] == [(50, 0.3)] * 2  # type: ignore[union-attr]

    def chosen(label: str) -> Any:
        alone = replace(suite, methods=tuple(method for method in suite.methods if method.label == label))
        return chosen_by_validation(alone).get("streets")

    assert chosen("pruned") is None, "a run of an earlier version, which did not store the validation"
    assert chosen("pruned_anew") == ("pruned_anew", 0.3)
    assert chosen("masked") == ("masked", 0.9)
