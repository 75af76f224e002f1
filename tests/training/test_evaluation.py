"""A finished run measured again, and the overview of its images."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from img2img.backbones.perceptual import perceptual_network
from img2img.cli import app
from img2img.errors import InputError
from img2img.reports.page import write_report
from img2img.training.evaluation import evaluate_run
from img2img.training.output_check import max_abs_difference
from img2img.training.output_images import overview
from img2img.training.run import run

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


def test_perceptual_metrics_are_of_tasks_that_make_photos_and_change_no_training(config: Make, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = perceptual_network("squeezenet1_1", weights=None, layers=["fire9"])
    weights = tmp_path / "weights.safetensors"
    layers = [layer for part in network.parts.values() for layer in part.children()]
    save_file(
        {f"features.{i}.{k}": v.contiguous() for i, layer in enumerate(layers) for k, v in layer.state_dict().items()}, weights
    )
    plain = json.loads((_run(config(sequence=["disks", "colour"])) / "results.json").read_text(encoding="utf-8"))
    perceptual = {"metrics": ["lpips", "kid"], "perceptual": {"name": "squeezenet1_1", "weights": str(weights)}}
    folder = _run(config(sequence=["disks", "colour"], evaluation=perceptual, out=str(tmp_path / "measured")))
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    more = {"LPIPS (squeezenet1_1)", "KID (squeezenet1_1)"}
    for before, after in zip(plain["tasks"], results["tasks"], strict=True):
        assert before["metrics"].items() <= after["metrics"].items()
        assert after["metrics"].keys() - before["metrics"].keys() == (more if after["name"] == "colour" else set())
    assert results["tasks"][1]["baseline_metrics"]["LPIPS (squeezenet1_1)"] > 0
    assert evaluate_run(folder)["colour"]["metrics"] == pytest.approx(results["tasks"][1]["metrics"], rel=1e-4, abs=1e-6)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "LPIPS (squeezenet1_1)" in page
    assert "by the features of the network in brackets" in page
    (weights.parent / "moved").mkdir()
    weights.rename(weights.parent / "moved" / "weights.safetensors")
    with pytest.raises(InputError, match=r"no file at .*weights.safetensors"):
        run(config(sequence=["disks"], evaluation=perceptual, out=str(tmp_path / "refused")))
    assert not (tmp_path / "refused" / "results.json").exists()
    with pytest.raises(InputError, match=r"metrics lpips.*no network is given.*evaluation.perceptual"):
        run(config(sequence=["disks"], evaluation={"metrics": ["lpips"]}, out=str(tmp_path / "refused")))


@pytest.mark.slow
def test_warnings_about_the_data_are_shown(config: Make, disk_data: Path, tmp_path: Path) -> None:
    """On stderr of the command, where no program has set up another place; the JSON stays clean."""
    shutil.copytree(disk_data, tmp_path / "data")
    made = config(sequence=["colour"])
    images = tmp_path / "data" / "train" / "images"
    made["tasks"]["colour"]["data"] = {"kind": "image_folder", "root": str(images)}
    folder = _run(made)
    (images / "notes.tiff.part").write_text("no image")
    command = "import sys; from img2img.cli import app; app(sys.argv[1:])"
    shown = subprocess.run(
        [sys.executable, "-c", command, "evaluate", str(folder), "--json"], capture_output=True, text=True, check=True
    )
    assert list(json.loads(shown.stdout)) == ["colour"]
    assert "colour: " in shown.stderr
    assert "left out" in shown.stderr


def test_what_cannot_be_measured(config: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: expected config/config.yaml"):
        evaluate_run(tmp_path / "nowhere")
    folder = _run(config(sequence=["disks", "colour"], method={"name": "finetune"}))
    with pytest.raises(InputError, match=r"'finetune'.*no bundle"):
        evaluate_run(folder)
    folder = _run(config(sequence=["disks"], out=str(tmp_path / "masks")))
    with pytest.raises(InputError, match="no task 'colour'"):
        evaluate_run(folder, tasks=["colour"])


def test_the_overview_has_three_tasks_side_by_side_and_the_others_below() -> None:
    sizes = {"a": (40, 60), "b": (20, 90), "c": (30, 60), "d": (50, 70)}
    grids = {name: np.full((*size, 3), 50 * i, np.uint8) for i, (name, size) in enumerate(sizes.items())}
    page = overview(grids)
    assert page.shape == (28 + 40 + 24 + 28 + 50, 70 + 24 + 90 + 24 + 60, 3)
    corners = {"a": (28, 0), "b": (28, 94), "c": (28, 208), "d": (120, 0)}
    for name, (top, left) in corners.items():
        height, width = sizes[name]
        assert (page[top : top + height, left : left + width] == grids[name]).all(), name
    assert (page[28 + 20 : 92, 94:184] == 255).all(), "white below a lower grid"
    assert overview({"a": grids["a"]}).shape == (68, 60, 3)


# ---------------------------------------------------------------------- more of the same


def test_equal_outputs_have_changed_by_exactly_zero() -> None:
    outputs = torch.randn(2, 3, 4, 4)
    assert max_abs_difference(outputs, outputs.clone()) == 0.0
    assert max_abs_difference(torch.tensor([math.inf, -0.0]), torch.tensor([math.inf, 0.0])) == 0.0


def test_the_largest_change_counts_in_either_direction() -> None:
    before = torch.tensor([1.0, 2.0, 3.0])
    assert max_abs_difference(before, torch.tensor([1.5, 2.0, 0.0])) == 3.0
    assert max_abs_difference(before, torch.tensor([1.5, 7.0, 3.0])) == 5.0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.tensor([1.0]), torch.nextafter(torch.tensor([1.0]), torch.tensor([2.0]))),
        (torch.tensor([0.0]), torch.tensor([1e-45])),  # the smallest denormal
        (torch.tensor([0.0], dtype=torch.float64), torch.tensor([5e-324], dtype=torch.float64)),
        (torch.tensor([2**60]), torch.tensor([2**60 + 1])),  # equal as float64
    ],
)
def test_one_last_bit_is_a_change(before: Tensor, after: Tensor) -> None:
    assert max_abs_difference(before, after) > 0.0
    assert max_abs_difference(after, before) > 0.0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([1.0, math.nan], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, math.nan]),
        ([1.0, math.nan], [1.0, math.nan]),
        ([1.0, math.inf], [1.0, 2.0]),
        ([math.inf], [-math.inf]),
    ],
)
def test_nan_in_either_output_and_lost_infinities_are_infinite_changes(before: list[float], after: list[float]) -> None:
    assert max_abs_difference(torch.tensor(before), torch.tensor(after)) == math.inf


def test_an_infinity_that_stays_does_not_hide_the_change_beside_it() -> None:
    assert max_abs_difference(torch.tensor([math.inf, 1.0]), torch.tensor([math.inf, 1.25])) == 0.25


def test_outputs_that_cannot_be_compared_are_refused() -> None:
    for before, after in (
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(0), torch.zeros(0)),
    ):
        with pytest.raises(InputError, match="expected one shape and type"):
            max_abs_difference(before, after)
