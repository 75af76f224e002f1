"""Data on which the baseline is perfect, such as masks of 0 and 255 under two classes: said at once, and no run is lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import img2img
from img2img.cli import app
from img2img.hub.card import model_card
from img2img.reports.page import write_report
from img2img.research.decathlon import score_of
from img2img.research.suites.comparison_page import write_comparison
from img2img.research.suites.store import store_run
from img2img.research.suites.summary import finish
from img2img.tasks import build_task
from img2img.training.config import TrainOptions
from img2img.training.run import run
from img2img.training.strategy import TaskData
from img2img.training.task_data import remarks

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def masks(disk_data: Path, tmp_path: Path) -> dict[str, Any]:
    """The disks' masks with 255 for 1, as drawing programs write them, taken for void."""
    root = Path(shutil.copytree(disk_data, tmp_path / "masks"))
    for path in root.glob("*/labels/*.png"):
        Image.fromarray(np.where(np.asarray(Image.open(path)), 255, 0).astype(np.uint8)).save(path)
    parts = {part: {name: str(root / part / name) for name in ("images", "labels")} for part in ("train", "val", "test")}
    return {"kind": "image_label_folder", "classes": ["ground", "object"], "void": [255], "parts": parts}


def test_a_run_ends_with_results_a_report_tables_and_a_card(config: Make, masks: dict[str, Any], tmp_path: Path) -> None:
    made = config(sequence=["colour", "disks"])
    made["tasks"]["disks"]["data"] = masks
    results = run(made, report=write_report)
    folder = tmp_path / "run"
    assert json.loads((folder / "results.json").read_text()) == results
    assert [task["baseline"] for task in results["tasks"]] == [pytest.approx(results["tasks"][0]["baseline"]), 1.0]
    assert results["transfer"]["backward"] == 0, "of the other task"
    log = (folder / "log.txt").read_text()
    begins = log.index("disks: is learned")
    for said in (
        "disks: no training pixel of object: such classes cannot be learned",
        "disks: no test pixel of object",
        "the baseline is perfect there: the task has no skill",
        "the labels of the test part hold ground and 255 alone, which is void",
    ):
        assert 0 <= log.find(said) < begins, "before any training"
    assert "disks" in (folder / "report.html").read_text()
    shown = CliRunner().invoke(app, ["info", str(folder)])
    assert shown.exit_code == 0, shown.output
    assert run(made) == results, "and again"
    for label in ("a", "b"):
        store_run(folder, tmp_path / "suite", label=label, seed=0)
    finish(tmp_path / "suite", tmp_path)
    write_comparison(tmp_path / "suite", tmp_path / "page")
    tables = json.loads((tmp_path / "page" / "tables" / "skill.json").read_text())
    assert "disks" not in json.dumps(tables)
    assert "colour" in json.dumps(tables)
    card = str(model_card(folder / "bundle", name="n", results=results, run=folder, license=None))
    assert "| disks |" in card


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", ["joint", "finetune"])
def test_every_task_alike(config: Make, masks: dict[str, Any], method: str) -> None:
    made = config(sequence=["disks", "colour"], method={"name": method})
    made["tasks"]["disks"]["data"] = masks
    results = run(made)
    assert results["transfer"]["average_skill"] is not None


def test_a_new_task_is_added(bundle: Path, masks: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    few = {"steps": 2, "batch_size": 2, "augmentation": {"crop": 32}, "validation": {"every": 2, "precise_bn_batches": 0}}
    img2img.add_task(tmp_path / "bundle", "object", task={"kind": "segmentation"}, data=masks, train=few, out=tmp_path / "new")
    assert "object" in img2img.load(tmp_path / "bundle").tasks
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    assert results["transfer"]["average_skill"] is None


def test_a_test_part_of_one_class(tmp_path: Path) -> None:
    from img2img.data import build_data

    for part in ("train", "val", "test"):
        for name in ("cat", "dog") if part != "test" else ("cat",):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / name / "0.png")
    parts = {part: {"root": str(tmp_path / part)} for part in ("train", "val", "test")}
    data = build_data({"kind": "class_folder", "parts": parts, "classes": ["cat", "dog"]})
    task = build_task({"kind": "classification", "classes": ["cat", "dog"]})
    config = SimpleNamespace(name="t")  # remarks ask for no more
    said = list(remarks(TaskData(config, task, data, TrainOptions(steps=1))))  # type: ignore[arg-type]
    assert said == [
        "no test image of dog: how well they were learned is not measured",
        "the test part has a single class, so that the baseline is perfect there: the task has no skill",
    ]


def test_a_decathlon_without_a_figure_has_no_score() -> None:
    task = {"name": "svhn", "value": None, "bytes": 1}
    results = {"tasks": [task], "forgetting": {"value_matrix": [[None]]}, "relative_parameters": 1.0, "shared_bytes": 0}
    assert score_of(results | {"backbone": {"bytes": 1}}) is None
