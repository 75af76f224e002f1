"""A task that is made of a fine-tuned network: what each step brings, and what is refused before any training."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import killed_at
from safetensors.torch import load_file, save_file

import img2img
from img2img import InputError
from img2img.api import absorb as make_task
from img2img.bundle import task_path
from img2img.training.config import read_experiment
from img2img.training.evaluation import evaluate_run
from img2img.training.run import run

pytestmark = pytest.mark.usefixtures("without_curves")

Make = Callable[..., dict[str, Any]]
SHORT = {
    "steps": 24,
    "batch_size": 4,
    "checkpoint_every": 4,
    "augmentation": {"crop": 32},
    "validation": {"every": 12, "precise_bn_batches": 8},
    "schedule": {"warmup": 0},
    "optimiser": {"mask_lr": 1e-3},
}
DISKS = {"kind": "segmentation"}


@pytest.fixture(scope="module")
def made(config_in: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, a run of two tasks, and `tuned`, a run that fine-tuned copies of its backbone."""
    folder = tmp_path_factory.mktemp("finetuned")
    base = config_in(folder / "base", sequence=["colour", "edges"])
    base["train"]["steps"] = 30
    run(base)
    tuned = config_in(folder / "tuned", sequence=["disks"], method={"name": "finetune"})
    tuned["backbone"] = {"mode": "bundle", "weights": str(folder / "base")}
    tuned["train"] |= {"steps": 60, "batch_size": 4}
    run(tuned)
    save_file(load_file(folder / "tuned" / "strategy" / "disks.safetensors"), folder / "disks.safetensors")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "base" / "bundle", tmp_path / "bundle")
    shutil.copy(made / "disks.safetensors", tmp_path)
    return tmp_path


@pytest.fixture
def absorb(here: Path, config: Make) -> Callable[..., Path]:
    """`absorb(**changes)`: the disks from the fine-tuned network, into the run folder `out`."""

    def call(**changes: Any) -> Path:
        arguments: dict[str, Any] = {
            "bundle": here / "bundle",
            "finetuned": here / "disks.safetensors",
            "name": "disks",
            "task": DISKS,
            "data": config()["tasks"]["disks"]["data"],
            "train": SHORT,
            "out": here / "out",
            "overrides": ["device.accelerator=cpu"],
        }
        return make_task(**arguments | changes)

    return call


def _result(folder: Path) -> dict[str, Any]:
    (task,) = json.loads((folder / "results.json").read_text(encoding="utf-8"))["tasks"]
    return task


def test_a_fine_tuned_network_becomes_a_small_task_as_good_as_it(here: Path, made: Path, absorb: Callable[..., Path]) -> None:
    import time

    t = time.time()
    out = absorb()
    print(_result(out), time.time() - t)
