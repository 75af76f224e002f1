"""A finished run measured again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from typer.testing import CliRunner

from img2img import InputError
from img2img.api import run
from img2img.cli import app
from img2img.training.evaluation import evaluate_run

Make = Callable[..., dict[str, Any]]


def _run(config: dict[str, Any]) -> Path:
    folder = Path(config["out"])
    run(config)
    (folder / "config").mkdir(exist_ok=True)
    OmegaConf.save(OmegaConf.create(config), folder / "config" / "config.yaml")
    return folder


def test_the_figures_are_those_that_were_reported(config: Make) -> None:
    folder = _run(config())
    measured = evaluate_run(folder)
    assert list(measured) == ["disks", "colour", "edges"]
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for task in results["tasks"]:
        entry = measured[task["name"]]
        assert entry["images"] == 4
        assert entry["metrics"] == pytest.approx(task["metrics"], rel=1e-4)
        assert entry["baseline"] == pytest.approx(task["baseline_metrics"], rel=1e-4)
        assert entry["reported"] == task["metrics"]
    validation = evaluate_run(folder, tasks=["colour"], part="val")
    assert list(validation) == ["colour"]
    assert validation["colour"]["images"] == 3
    shown = CliRunner().invoke(app, ["evaluate", str(folder), "--task", "edges", "--json"])
    assert list(json.loads(shown.stdout)) == ["edges"]
    table = CliRunner().invoke(app, ["evaluate", str(folder), "--task", "disks"]).stdout
    assert f"{measured['disks']['metrics']['mIoU']:.4g}" in table


def test_what_cannot_be_measured(config: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: expected config/config.yaml"):
        evaluate_run(tmp_path / "nowhere")
    folder = _run(config(sequence=["disks", "colour"], method={"name": "finetune"}))
    with pytest.raises(InputError, match=r"'finetune'.*no bundle"):
        evaluate_run(folder)
    folder = _run(config(sequence=["disks"], out=str(tmp_path / "masks")))
    with pytest.raises(InputError, match="no task 'colour' in this bundle"):
        evaluate_run(folder, tasks=["colour"])
