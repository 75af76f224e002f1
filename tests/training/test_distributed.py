"""Several processes on one task: the same result as one, whatever is trained; one writer; killed and resumed."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from img2img import InputError
from img2img.api import run
from img2img.bundle import load_bundle
from img2img.data.base import ImageDataset, Sample
from img2img.files.lock import hold
from img2img.tasks import build_task
from img2img.tasks.base import Example
from img2img.training import sequence
from img2img.training.config import read_experiment
from img2img.training.distributed import Processes, refuse_several_processes, start_fabric, training_precision
from img2img.training.sequence import SequenceRunner

ONE = {"accelerator": "cpu", "threads": 1}
Make = Callable[..., dict[str, Any]]
HELPERS, ROOT = Path(__file__).parents[1] / "helpers", Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
METHODS: dict[str, dict[str, Any]] = {
    "piggyback": {"name": "piggyback", "init": 6e-3},
    "frozen": {"name": "piggyback", "init": 6e-3},  # on a random backbone whose batch normalisation stays as it is
    "affine": {"name": "affine"},
    "ksm": {"name": "ksm"},
    "impresslearn": {"name": "impresslearn", "basis": "shared", "penalty_weight": 5.0},
    "finetune": {"name": "finetune"},
    "cpg": {"name": "cpg", "prunings": 2},
    "lwf": {"name": "lwf"},
    "ewc": {"name": "ewc", "samples": 4, "strength": 10.0},
    "joint": {"name": "joint"},
    "adversary": {"name": "finetune"},  # with a discriminator, whose gradients are added up too
}
"""What is trained past the wrapped call, in parts, by hooks, in turns; PackNet is a part of CPG."""


def started(command: list[str]) -> subprocess.CompletedProcess[str]:
    """The outcome of a command that starts processes, on CPUs."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{HELPERS}", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    try:
        printed, errors = process.communicate(timeout=240)
    except BaseException:
        process.terminate()  # torchrun ends its processes then; killed, it would leave them
        process.communicate(timeout=60)
        raise
    return subprocess.CompletedProcess(command, process.returncode, printed, errors)


def job(config: dict[str, Any], *, kill_at: int | None = None, report: bool = False) -> dict[str, Any]:
    """What `distributed_run.py` is to do."""
    return {"config": config, "kill_at": kill_at, "report": report}


def rows(folder: Path, name: str) -> list[dict[str, float]]:
    """A training's log."""
    with open(folder / "metrics" / f"{name}.csv", newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.fixture
def voided(disk_data: Path, tmp_path: Path) -> dict[str, Any]:
    """The disks, with labels of which different parts are void: processes have different numbers of pixels."""
    parts = {}
    for part in ("train", "val", "test"):
        folder = tmp_path / "labels" / part
        folder.mkdir(parents=True)
        for i, path in enumerate(sorted((disk_data / part / "labels").iterdir())):
            label = np.array(Image.open(path))
            label[: 5 * (i % 6)] = 255
            Image.fromarray(label).save(folder / path.name)
        parts[part] = {"images": str(disk_data / part / "images"), "labels": str(folder)}
    return {"kind": "image_label_folder", "classes": ["ground", "disk"], "parts": parts}


@pytest.mark.slow
def test_processes_whose_folder_is_in_use_all_end_with_one_message_and_touch_nothing(config: Make, tmp_path: Path) -> None:
    file, folder = tmp_path / "jobs.json", tmp_path / "run"
    file.write_text(
        json.dumps([job(config(sequence=["disks"], device=ONE, evaluation={"batch_size": 4}), report=True)]), encoding="utf-8"
    )
    command = [*TORCHRUN, str(HELPERS / "distributed_run.py"), str(file)]
    with hold(folder):
        done = started(command)
        assert [path.name for path in folder.iterdir()] == [".img2img.lock"]
    assert done.returncode != 0
    assert f"run is in use by process {os.getpid()} on" in done.stderr
    done = started(command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "report.html").is_file()
    assert not (folder / ".img2img.lock").exists()


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("methods", [["piggyback", "finetune"], [*METHODS]], ids=["two", "all"])
def test_two_processes_learn_what_one_learns(config: Make, tmp_path: Path, voided: dict[str, Any], methods: list[str]) -> None:
    """All in one start of the processes, which takes longer than the trainings."""

    def learns(method: str, folder: str) -> dict[str, Any]:
        # Instance normalisation: it does not matter which images a process has.
        backbone = {"kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3, "norm": "instance"}
        made = config(out=str(tmp_path / folder / method), method=METHODS[method], sequence=["disks", "colour"], device=ONE)
        made |= {"backbone": {"mode": "first_task", **backbone}, "evaluation": {"panels": 1, "check_images": 1}}
        if method == "frozen":
            made |= {"backbone": {**backbone, "mode": "random", "norm": "batch"}, "masks": {"norm": "frozen"}}
        made["train"] |= {"batch_size": 4, "steps": 6}
        made["tasks"]["disks"]["data"] = voided
        if method == "adversary":
            loss = {"gan": {"receptive_field": 16, "channels": 4, "weight": 0.2}}
            made["tasks"]["colour"]["task"] = {"kind": "edges", "drawing": "sobel", "loss": loss}
        return made | (
            {"masks": {"bases": {"shared": {"count": 3, "density": 0.5, "seed": 0}}}} if method == "impresslearn" else {}
        )

    jobs = [job(learns(method, "two"), report=method == "piggyback") for method in methods]
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps(jobs), encoding="utf-8")
    done = started([*TORCHRUN, str(HELPERS / "distributed_run.py"), str(file)])
    assert done.returncode == 0, done.stdout + done.stderr

    for method in methods:
        SequenceRunner(read_experiment(learns(method, "one"))).run()
        one, two = tmp_path / "one" / method, tmp_path / "two" / method
        progress = [json.loads((folder / "progress.json").read_text()) for folder in (one, two)]
        assert [p["environment"]["processes"] for p in progress] == [1, 2]
        names = sorted(path.stem for path in (one / "metrics").glob("*.csv"))
        assert names == sorted(path.stem for path in (two / "metrics").glob("*.csv"))
        # Adam makes steps of small gradients, rounding and all, as large as of others; affine's masks start near their threshold.
        close = 5e-3 if method == "affine" else 5e-4
        for name in names:
            if not name.endswith(".masks"):
                assert [pytest.approx(row, rel=close) for row in rows(one, name)] == rows(two, name), (method, name)
        for name in ("disks", "colour"):
            assert progress[1]["tasks"][name]["value"] == pytest.approx(progress[0]["tasks"][name]["value"], rel=close), method
    # One of the two wrote: a line of the log, one file of events, one report.
    reported = tmp_path / "two" / "piggyback"
    assert done.stdout.count("colour: is learned (piggyback)") == 1
    assert (reported / "log.txt").read_text().count("colour: is learned (piggyback)") == 1
    assert len(list((reported / "tensorboard" / "colour").iterdir())) == 1
    assert json.loads((reported / "results.json").read_text())["environment"]["processes"] == 2
    assert (reported / "report.html").is_file()
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_two_processes_go_on_bit_equal_after_a_kill(config: Make, tmp_path: Path) -> None:
    def normalises(folder: str) -> dict[str, Any]:
        # Batch normalisation, which each process does for its own images, in the backbone and in the task's own state.
        # The second task has averages of its weights and of the processes' statistics.
        made = config(out=str(tmp_path / folder), sequence=["disks", "colour"], compare={"decoder_only": ["colour"]}, device=ONE)
        made["tasks"]["colour"]["train"] = {"average": {"decay": 0.5, "of": "all"}}
        return made

    jobs = [job(normalises("whole")), job(normalises("resumed"), kill_at=7), job(normalises("resumed"), kill_at=8)]
    jobs += [job(normalises("resumed"))]
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps(jobs), encoding="utf-8")
    done = started([*TORCHRUN, str(HELPERS / "distributed_run.py"), str(file)])
    assert done.returncode == 0, done.stdout + done.stderr
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    files = [{p.name: p.read_bytes() for p in sorted((f / "bundle").rglob("*.*"))} for f in (whole, resumed)]
    assert files[0] == files[1]
    for name in ("disks", "colour", "colour.masks", "colour.decoder_only"):
        assert (whole / "metrics" / f"{name}.csv").read_bytes() == (resumed / "metrics" / f"{name}.csv").read_bytes()
    network = load_bundle(whole / "bundle")[0]
    assert 0 < (network.state("colour").density() or 0) < 1, "bits have flipped"


@pytest.mark.slow
def test_a_pipeline_runs_under_fabric_run(tmp_path: Path) -> None:
    fabric = [str(Path(sys.executable).with_name("fabric")), "run", "--accelerator=cpu", "--devices=2"]
    small = [
        "experiment=demo", "sequence=[shapes]", "compare.decoder_only=[]", "masks.trainable_copies=null",
        "backbone=image_transformer", "backbone.width=4",
        "backbone.blocks=0", "tasks.shapes.data.count={train: 4, val: 2, test: 2}", "train.steps=2",
        "train.validation.precise_bn_batches=2",
        "train.batch_size=2", "evaluation.panels=1", "evaluation.check_images=1", f"out={tmp_path / 'run'}",
    ]  # fmt: skip
    done = started([*fabric, str(ROOT / "pipelines" / "image_to_image.py"), *small])
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["environment"]["processes"] == 2
    assert (done.stdout + done.stderr).count("shapes: trains the backbone") == 1
    assert (tmp_path / "run" / "config" / "config.yaml").is_file()


def test_a_batch_that_the_processes_cannot_share_out_is_refused_first(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two(Processes):
        def __init__(self, fabric: Any) -> None:
            super().__init__(fabric)
            self.world_size = 2

    monkeypatch.setattr(sequence, "Processes", Two)
    experiment = config()
    experiment["tasks"]["edges"] |= {"train": {"batch_size": 3}}
    with pytest.raises(InputError, match=r"batch_size=3 .*2 processes.*multiple"):
        run(experiment)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ({}, {"devices": 0}, "devices=0, nodes=1: expected whole numbers"),
        ({}, {"devices": "two"}, "devices='two', nodes=1: expected whole numbers"),
        (
            {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"},
            {"devices": 3},
            "devices=3, but 2 processes were launched on this machine: leave devices out",
        ),
    ],
    ids=["none", "text", "another number"],
)
def test_numbers_of_processes_that_cannot_be_are_refused(
    environment: dict[str, str], options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(InputError, match=message):
        start_fabric(accelerator="cpu", precision="32-true", **options)


def test_what_runs_in_one_process_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_several_processes("a suite")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match=r"a suite.*one process, and 4"):
        refuse_several_processes("a suite")


class UnevenLabels(ImageDataset):
    """One label image with fewer pixels from class to class."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        label = np.repeat(np.arange(3), (70, 20, 10)).reshape(10, 10)
        return Sample(np.zeros((10, 10, 3), np.uint8), label.astype(np.uint8), name="uneven")


@pytest.mark.parametrize("kind", ["segmentation", "weighted", "classification", "colourisation", "edges", "denoising"])
def test_a_loss_is_a_mean_over_as_many_terms_as_it_says(kind: str) -> None:
    """The whole batch's loss is the mean of its parts', each counting for what it says: what processes rely on."""
    weighted, kind = kind == "weighted", "segmentation" if kind == "weighted" else kind
    options: dict[str, Any] = {"kind": kind, **({"class_weights": "median_frequency"} if weighted else {})}
    if kind in ("segmentation", "classification"):
        options["classes"] = ["a", "b", "c"]
    task, random = build_task(options), torch.Generator().manual_seed(3)
    if weighted:
        task.fit(UnevenLabels())

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random)

    shape = (6, 5, 4)
    if kind == "segmentation":
        target = torch.randint(0, 3, shape, generator=random)
        target[drawn(*shape) < torch.tensor([0.9, 0.8, 0.3, 0.2, 0.1, 0])[:, None, None]] = 255
    elif kind == "classification":
        target = torch.randint(0, 3, (6,), generator=random)
    else:
        target = drawn(6, 2 if kind == "colourisation" else 3, 5, 4)
    raw = drawn(6, task.out_channels) if kind == "classification" else drawn(6, task.out_channels, 5, 4)
    example = Example(drawn(6, 3, 5, 4), target)
    parts = [Example(example.input[s], example.target[s]) for s in (slice(2), slice(2, 6))]
    losses = [task.loss(raw[s], part) for s, part in zip((slice(2), slice(2, 6)), parts, strict=True)]
    counts = [float(task.loss_count(part)) for part in parts]
    mean = sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)
    torch.testing.assert_close(mean, task.loss(raw, example))
    assert sum(counts) == pytest.approx(float(task.loss_count(example)), rel=1e-6 if weighted else 0)


@pytest.mark.parametrize("instructions", [True, False])
def test_bfloat16_is_taken_where_the_processor_has_it_and_warned_of_where_not(
    instructions: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": instructions}, raising=False)
    assert training_precision("auto", "cpu") == ("bf16-mixed" if instructions else "32-true")
    assert training_precision("32-true", "cpu") == "32-true"
    assert caplog.text == ""
    assert training_precision("bf16-mixed", "cpu") == "bf16-mixed"
    assert ("device.precision=bf16-mixed: this processor has no instructions for bfloat16" in caplog.text) is not instructions
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # torch before it had the function
    assert training_precision("auto", "cpu") == "32-true"


def test_mixed_precision_is_not_announced(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    start_fabric(accelerator="cpu", precision="bf16-mixed")
    assert caplog.text == ""
    assert capsys.readouterr() == ("", "")
