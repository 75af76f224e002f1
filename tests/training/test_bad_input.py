"""What a user can get wrong: one clear error each, and nothing already learned is lost."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from scripts import run_script
from typer.testing import CliRunner

import img2img
from img2img import InputError
from img2img.api import run
from img2img.bundle import load_bundle
from img2img.cli import app as commands
from img2img.cli.output import one_message
from img2img.errors import OutOfMemoryError
from img2img.tasks.colourisation import Colourisation
from img2img.training import checkpoint
from img2img.training.config import AugmentationOptions, ScheduleOptions, TrainOptions, read_experiment
from img2img.training.evaluation import evaluate_run
from img2img.training.loop import TrainingDivergedError, explained
from img2img.training.optimiser import schedule

pytestmark = pytest.mark.usefixtures("without_curves")

Make = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequnce": []}, "no option 'sequnce': did you mean 'sequence'"),
        ({"sequence": ["disks", "colours"]}, "names the task 'colours', which the config does not have"),
        ({"sequence": []}, "the sequence is empty"),
        ({"sequence": ["all"], "tasks": {"all": {}}}, "a task 'all': that stands for every task"),
        ({"sequence": [True]}, "True is no text: .*quotes"),
        ({"tasks": {1: {}}}, "1 is no text: .*quotes"),
        ({"sequence": [True], "tasks": {True: {"count": 2}}}, "True is no text: .*quotes"),
        ({"masks": {"trainable_copies": ["a", None]}}, "None is no text: .*quotes"),
        ({"sequence": ["disks", "disks"]}, "names a task twice"),
        ({"train": {"stepz": 3}}, "train has no option 'stepz': did you mean 'steps'"),
        ({"train": {"steps": 0}}, "steps=0 and epochs=0: expected one of them above 0"),
        ({"train": {"steps": 1, "optimiser": {"lr": -1}}}, "train.optimiser got lr: -1: expected more than 0"),
        ({"train": {"steps": 1.5}}, "train got steps: 1.5: expected int"),
        ({"train": {"steps": 1, "optimiser": {"lr": "high"}}}, "train.optimiser got lr: 'high': expected float"),
        ({"sequence": "disks"}, "the config got sequence: 'disks': expected"),
        ({"device": {"channels_last": "yes"}}, "device got channels_last: 'yes': expected bool"),
        ({"train": {"steps": 1, "epochs": 2}}, "steps=1 and epochs=2: expected one of them above 0"),
        ({"resume": "yes"}, "expected 'auto', 'never' or 'anyway'"),
        ({"evaluation": {"panels": 0}}, "evaluation got panels: 0: expected 1 or more"),
        ({"train": {"steps": 8, "optimiser": {"nesterov": True, "momentum": 0}}}, "nesterov: true with momentum: 0"),
        ({"backbone": {"kind": "smp", "mode": "first"}}, "backbone.mode='first'"),
        ({"backbone": {"kind": "smp", "mode": "pretrained"}}, "needs backbone.weights"),
    ],
)
def test_a_wrong_config_is_refused_before_anything_starts(config: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_experiment(config(**changes))


@pytest.mark.parametrize(
    ("changes", "of_task", "message"),
    [
        ({"method": {"name": "pigyback"}}, None, "pigyback"),
        ({"method": {"name": "piggyback", "start": "onez"}}, None, "onez"),
        (
            {"masks": {"trainable_copies": ["*"]}},
            {"name": "mixed", "method": {"name": "piggyback"}, "trainable_copies": ["*"]},
            "mixed of mixed",
        ),
        ({"method": {"name": "finetune"}}, {"name": "ksm"}, r"tasks\.colour\.method=.*: the method 'finetune' learns all"),
    ],
)
def test_a_wrong_method_is_refused_before_the_backbone_is_trained(
    config: Make, tmp_path: Path, changes: dict[str, Any], of_task: dict[str, Any] | None, message: str
) -> None:
    wrong = config(**changes)
    if of_task is not None:
        wrong["tasks"]["colour"]["method"] = of_task
    with pytest.raises(InputError, match=message):
        run(wrong)
    assert not (tmp_path / "run" / "metrics").exists()


COPIED = {"name": "impresslearn", "basis": "b"}


@pytest.mark.parametrize(
    ("bases", "of_tasks", "message"),
    [
        ({"tasks": ["colour"], "kind": "bnary"}, {"edges": COPIED}, "kind"),
        ({"count": 2, "seed": 0, "density": 5.0}, {"edges": COPIED}, "density"),
        ({"tasks": ["colour"]}, {"colour": {"name": "lora"}, "edges": COPIED}, r"tasks\.edges: .*lora.* has no binary mask"),
        ({"tasks": ["disks"]}, {"edges": COPIED}, r"tasks\.edges: .*identity.* has no binary mask"),
        ({}, {"colour": {"name": "lora", "target_weights": ["nothing*"]}}, r"tasks\.colour: .*nothing\*"),
        ({}, {"colour": {"name": "piggyback", "init": float("inf")}}, "init"),
        ({}, {"colour": {"name": "lora"}, "edges": {"name": "piggyback", "start_from": "colour"}}, "LoRAMask has no binary mask"),
        ({}, {"edges": {"name": "piggyback", "start_from": "nearest", "norm": "frozen"}}, "has none of its own .norm='frozen'"),
    ],
)
def test_masks_that_cannot_be_made_are_refused_before_the_backbone_is_trained(
    config: Make, tmp_path: Path, bases: dict[str, Any], of_tasks: dict[str, dict[str, Any]], message: str
) -> None:
    wrong = config()
    if bases:
        wrong["masks"] = {"bases": {"b": bases}}
    for name, given in of_tasks.items():
        method = dict(given)
        start, norm = method.pop("start_from", None), method.pop("norm", None)
        wrong["tasks"][name]["method"] = method
        wrong["tasks"][name] |= {} if start is None else {"start_from": start}
        wrong["tasks"]["colour"] |= {} if norm is None else {"norm": norm}
    with pytest.raises(InputError, match=message):
        run(wrong)
    assert not (tmp_path / "run" / "metrics").exists()


@pytest.mark.parametrize("basis", [None, {"tasks": ["colour"]}, {"count": 2, "seed": 0, "density": 0.2}], ids=str)
def test_looking_at_masks_beforehand_changes_no_training(
    config: Make, tmp_path: Path, basis: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = config(method={"name": "affine"})
    if basis is None:
        whole["tasks"]["edges"]["start_from"] = "colour"
    else:
        whole |= {"masks": {"bases": {"b": basis}}}
        whole["tasks"]["colour"]["method"] = {"name": "piggyback"}
        whole["tasks"]["edges"]["method"] = COPIED
    checked = run(whole)
    monkeypatch.setattr("img2img.training.mask_strategy.check_masks", lambda experiment, network: None)
    assert [t["value"] for t in run(whole | {"out": str(tmp_path / "unchecked")})["tasks"]] == [
        t["value"] for t in checked["tasks"]
    ]


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        ({"kind": "colour"}, {}, "task kind 'colour' is unknown"),
        ({}, {"kind": "imagefolder"}, "data kind 'imagefolder' is unknown"),
        ({}, {"rot": "x"}, "no option 'rot'"),
        ({}, {"parts": {"train": {}, "test": {}}}, "parts must be train, val, test"),
        ({}, {"parts": {p: {"root": "nowhere"} for p in ("train", "val", "test")}}, "nowhere"),
    ],
)
def test_a_wrong_task_or_dataset_is_refused_before_the_first_step(
    config: Make, tmp_path: Path, task: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    whole = config()
    whole["tasks"]["edges"] = {
        "task": whole["tasks"]["edges"]["task"] | task,
        "data": whole["tasks"]["edges"]["data"] | data,
    }
    with pytest.raises(InputError, match=message):
        run(whole)
    assert not (tmp_path / "run" / "metrics").exists(), "the last task of the sequence is checked before the first is trained"


def test_an_empty_folder_names_the_folder(config: Make, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    whole = config(sequence=["colour"])
    whole["tasks"]["colour"]["data"] = {"kind": "image_folder", "root": str(tmp_path / "empty")}
    with pytest.raises(InputError, match="empty"):
        run(whole)


def _folder(tmp_path: Path, images: list[Image.Image]) -> dict[str, Any]:
    root = tmp_path / "images"
    root.mkdir()
    for i, image in enumerate(images):
        image.save(root / f"{i}.png")
    return {"kind": "image_folder", "parts": {p: {"root": str(root)} for p in ("train", "val", "test")}}


def test_a_corrupt_image_is_named_and_the_finished_tasks_are_kept(config: Make, tmp_path: Path) -> None:
    data = _folder(tmp_path, [Image.new("RGB", (40, 40), "red")] * 3)
    whole = config(sequence=["disks", "colour"])
    whole["tasks"]["colour"]["data"] = data
    (tmp_path / "images" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(InputError, match=r"1\.png"):
        run(whole)
    (tmp_path / "images" / "1.png").unlink()
    results = run(whole)
    assert [t["name"] for t in results["tasks"]] == ["disks", "colour"]


def test_grey_rgba_16_bit_and_small_images_train(config: Make, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 256, (40, 40)).astype(np.uint8)),
        Image.fromarray(rng.integers(0, 256, (40, 40, 4)).astype(np.uint8)),
        Image.fromarray(rng.integers(0, 65536, (40, 40)).astype(np.uint16)),
        Image.fromarray(rng.integers(0, 256, (13, 17, 3)).astype(np.uint8)),  # smaller than the crop
    ]
    whole = config(sequence=["edges"])
    whole["tasks"]["edges"]["data"] = _folder(tmp_path, images)
    results = run(whole)
    assert results["tasks"][0]["test_images"] == 4


def test_a_nan_loss_stops_early_and_keeps_what_was_learned(config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def learned() -> dict[str, Any]:
        progress = json.loads((tmp_path / "run" / "progress.json").read_text())
        return {key: value for key, value in progress.items() if key not in ("planned", "checksum")}

    run(config(sequence=["disks"]))
    before = learned()
    original, calls = Colourisation.loss, 0

    def poisoned(self: Colourisation, raw: torch.Tensor, example: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return original(self, raw, example) * (float("nan") if calls == 6 else 1)

    monkeypatch.setattr(Colourisation, "loss", poisoned)
    with pytest.raises(TrainingDivergedError, match=r"colourisation.*not a finite.*step 6"):
        run(config(sequence=["disks", "colour"]))
    assert calls == 6
    assert learned() == before
    saved = torch.load(tmp_path / "run" / "checkpoints" / "colour.pt", weights_only=True)
    assert saved["step"] == 4, "the last checkpoint is the one before"
    assert all(torch.isfinite(t).all() for t in saved["module"].values())
    monkeypatch.setattr(Colourisation, "loss", original)
    assert len(run(config(sequence=["disks", "colour"]))["tasks"]) == 2


def test_weights_that_are_not_finite_replace_no_checkpoint(config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finite loss may have a gradient that is none: its step spoils the weights, and the next loss would show it too late."""
    original, calls = Colourisation.loss, 0

    def poisoned(self: Colourisation, raw: torch.Tensor, example: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        spoiled = (raw.flatten()[0] * 0).sqrt() if calls == 8 else 0
        return original(self, raw, example) + spoiled

    whole = config(sequence=["disks", "colour"])
    whole["train"] |= {"steps": 12, "validation": {"every": 12, "precise_bn_batches": 0}}
    monkeypatch.setattr(Colourisation, "loss", poisoned)
    with pytest.raises(TrainingDivergedError, match="trained weight or score"):
        run(whole)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "colour.pt", weights_only=True)
    assert saved["step"] == 4
    monkeypatch.setattr(Colourisation, "loss", original)
    assert len(run(whole)["tasks"]) == 2


def test_a_full_disk_at_a_checkpoint_keeps_the_earlier_one(config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"sequence": ["disks"], "train": config()["train"] | {"steps": 12}}
    whole = run(config(out=str(tmp_path / "whole"), **options))
    original = torch.save

    def full(values: dict[str, Any], file: Any) -> None:
        original(values, file)
        if values["step"] == 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"disks\.pt \(No space.*unchanged"):
        run(config(**options))
    folder = tmp_path / "run" / "checkpoints"
    assert [p.name for p in folder.iterdir()] == ["disks.pt"], "no half-written file stays behind"
    assert torch.load(folder / "disks.pt", weights_only=True)["step"] == 4
    monkeypatch.undo()
    assert run(config(**options))["tasks"][0]["value"] == whole["tasks"][0]["value"]


def test_a_damaged_checkpoint_says_to_delete_it(config: Make, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "disks.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"disks\.pt .*read .*: delete it"):
        run(config(sequence=["disks"]))


def test_a_checkpoint_with_code_in_it_is_never_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save({"fingerprint": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.load_checkpoint(tmp_path / "evil.pt", fingerprint="x")
    assert not (tmp_path / "owned").exists()


def test_a_run_folder_of_another_configuration_is_left_alone(config: Make, tmp_path: Path) -> None:
    run(config(sequence=["disks", "colour"]))
    before = (tmp_path / "run" / "progress.json").read_bytes()
    with pytest.raises(InputError, match="under another configuration"):
        run(config(sequence=["disks", "colour"], seed=1))
    with pytest.raises(InputError, match="not change what was learned"):
        run(config(sequence=["disks", "edges"]))
    with pytest.raises(InputError, match="holds a run already"):
        run(config(sequence=["disks", "colour"], resume="never"))
    assert (tmp_path / "run" / "progress.json").read_bytes() == before


@pytest.mark.slow_after(3)
@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("bundle.json", lambda t: t.replace('"tasks"', '"taks"'), r"bundle\.json lacks tasks"),
        ("bundle.json", lambda t: t.replace('"*"', "5"), r"select\[0\]: expected text, got 5"),
        ("bundle.json", lambda t: t.replace('"select": [', '"select": 5, "other": ['), "select: expected a list, got 5"),
        ("bundle.json", lambda t: t[: len(t) // 2], "not valid JSON"),
        ("bundle.json", lambda t: t.replace('"version": 2', '"version": 9'), "upgrade"),
        ("bundle.json", lambda t: t.replace('"width": 4', '"width": 8'), "does not fit the network"),
        ("bundle.json", lambda t: t.replace('"blocks": 1', '"blocks": 0'), "does not fit the network"),
        ("bundle.json", lambda t: t.replace('"disks"', '"../disks"'), "a task that can be none"),
        ("bundle.json", lambda t: t.replace('"disks"', '"squares"'), "no task file at"),
        ("bundle.json", lambda t: t.replace('"sha256": "', '"sha256": "0'), "one of them was changed"),
    ],
)
def test_a_bundle_edited_by_hand_is_refused(
    config: Make, tmp_path: Path, file: str, edit: Callable[[str], str], message: str
) -> None:
    run(config(sequence=["disks"]))
    path = tmp_path / "run" / "bundle" / file
    changed = edit(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(InputError, match=message):
        img2img.load(str(tmp_path / "run"))


def test_a_bundle_never_reads_weights_from_elsewhere(config: Make, tmp_path: Path) -> None:
    run(config(sequence=["disks"]))
    path = tmp_path / "run" / "bundle" / "bundle.json"
    path.write_text(path.read_text().replace('"width": 4', '"weights": "elsewhere.pth", "width": 4'))
    assert list(img2img.load(str(tmp_path / "run")).tasks) == ["disks"]


def test_a_task_that_does_not_say_its_kind_is_refused(config: Make, tmp_path: Path) -> None:
    run(config(sequence=["disks"]))
    network, _ = load_bundle(tmp_path / "run" / "bundle")
    network.state("disks").info.clear()
    network.save_task("disks", tmp_path / "run" / "bundle" / "tasks" / "disks.safetensors")
    model = img2img.load(str(tmp_path / "run"))  # a task's file is read when it is used
    with pytest.raises(InputError, match="task kind None is unknown"):
        model.run("disks", np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(InputError, match="task kind None is unknown"):
        load_bundle(tmp_path / "run" / "bundle")


def test_segmentation_without_labels_says_what_it_needs(config: Make) -> None:
    whole = config(sequence=["disks"])
    whole["tasks"]["disks"] = {
        "task": {"kind": "segmentation", "classes": ["a", "b"]},
        "data": whole["tasks"]["colour"]["data"],
    }
    with pytest.raises(InputError, match="segmentation task needs a label"):
        run(whole)


def test_a_backbone_whose_bytes_were_changed_is_refused(config: Make, tmp_path: Path) -> None:
    run(config(sequence=["disks"]))
    path = tmp_path / "run" / "bundle" / "backbone.safetensors"
    blob = bytearray(path.read_bytes())
    blob[-3] ^= 1
    path.write_bytes(blob)
    with pytest.raises(InputError, match="one of them was changed"):
        img2img.load(str(tmp_path / "run"))
    path.unlink()
    with pytest.raises(InputError, match="no backbone at"):
        img2img.load(str(tmp_path / "run"))
    with pytest.raises(InputError, match="no bundle in"):
        img2img.load(str(tmp_path))


STARVED = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", STARVED)
def test_running_out_of_memory_names_what_to_try(error: Exception) -> None:
    wanted = r"batch_size=8 at train.augmentation.crop=224: try train.batch_size=4, or train.augmentation.crop=160"
    with (
        pytest.raises(OutOfMemoryError, match=wanted),
        explained(TrainOptions(steps=1, batch_size=8, augmentation=AugmentationOptions(crop=224))),
    ):
        raise error


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("error", STARVED)
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("img2img.data.spec.DataSpec.build", r"'disks' were read: .*tasks\.disks\.data\.resize"),
        ("img2img.training.loop.precise_bn", r"train\.batch_size=2 at train\.augmentation\.crop=32: try train\.batch_size=1"),
        (
            "img2img.tasks.segmentation.Segmentation.baseline",
            r"up to evaluation.batch_size=8 at once: try evaluation.batch_size=4, .*data\.resize",
        ),
        ("img2img.tasks.segmentation.Segmentation.prediction", "try evaluation.batch_size=4"),
        ("img2img.training.output_check.OutputCheck.save", r"in the run: lower train\.batch_size"),
        ("img2img.api.write_report", r"in the run: lower train\.batch_size"),
    ],
)
def test_running_out_of_memory_anywhere_in_a_run_is_one_message(
    config: Make, monkeypatch: pytest.MonkeyPatch, place: str, said: str, error: Exception
) -> None:
    def starve(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(place, starve)
    with pytest.raises(OutOfMemoryError, match=rf"out of memory .*{said}"):
        run(config(sequence=["disks"]))


def test_another_measure_of_a_run_that_does_not_fit_names_what_to_lower(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config(sequence=["disks"]))

    def starve(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("img2img.masks.MaskedNetwork.__call__", starve)
    with pytest.raises(OutOfMemoryError, match=r"try evaluation\.batch_size=4"):
        evaluate_run(tmp_path / "run")
    shown = CliRunner().invoke(commands, ["evaluate", str(tmp_path / "run")])
    assert isinstance(shown.exception, OutOfMemoryError), "which the program's entry shows as one line"


def test_a_command_shows_it_as_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), one_message():
        raise OutOfMemoryError("out of memory: lower batch_size")
    assert capsys.readouterr().err == "error: out of memory: lower batch_size\n"


def test_another_runtime_error_is_passed_on() -> None:
    with pytest.raises(RuntimeError, match="other"), explained(TrainOptions(steps=1)):
        raise RuntimeError("other")


def test_the_rate_rises_and_falls_to_zero() -> None:
    options = TrainOptions(steps=100, schedule=ScheduleOptions(warmup=10))
    rates = [schedule(step, options) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert all(a > b for a, b in pairwise(rates[9:]))
    assert rates[-1] < 1e-3


def test_the_pipeline_prints_one_message_and_no_traceback(config: Make, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "pipelines/image_to_image.py", f"out={tmp_path / 'cli'}", "sequence=[shape]"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: the sequence names the task 'shape', which the config does not have" in done.stderr
    assert "Traceback" not in done.stderr
    unknown = run_script("image_to_image", "sequnce=[shapes]")
    assert unknown.code != 0
    assert "sequnce" in unknown.stderr


@pytest.mark.parametrize(
    ("name", "said"), [("a/b", "letters, digits"), ("a.b", "letters, digits"), ("items", "reserve"), ("Nul", "Windows")]
)
def test_a_task_name_that_no_file_or_module_can_have_is_refused_before_training(config: Make, name: str, said: str) -> None:
    made = config(method={"name": "sequential"})
    made["tasks"][name] = made["tasks"]["colour"]
    with pytest.raises(InputError, match=said):
        read_experiment({**made, "sequence": ["disks", name]})


def test_task_names_that_differ_in_case_alone_are_refused_before_training(config: Make) -> None:
    made = config()
    made["tasks"]["Disks"] = made["tasks"]["colour"]
    with pytest.raises(InputError, match=r"'disks' differs from that of the task 'Disks' in case alone.*another name"):
        run({**made, "sequence": ["disks", "Disks"]})


def test_one_value_for_the_normalisation_names_what_to_raise(config: Make) -> None:
    small = config(backbone={"mode": "first_task", "kind": "smp", "arch": "unet", "encoder": "resnet18", "weights": None})
    small["train"] |= {"batch_size": 1, "augmentation": {"crop": 32}}
    message = (
        r"train\.batch_size=1 at train\.augmentation\.crop=32 leaves .* raise train\.batch_size or train\.augmentation\.crop"
    )
    with pytest.raises(InputError, match=message):
        run(small)


def test_another_value_error_is_passed_on() -> None:
    with pytest.raises(ValueError, match="other"), explained(TrainOptions(steps=1)):
        raise ValueError("other")


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_in_the_place_of_the_run_folder_is_refused(config: Make, tmp_path: Path, inside: bool) -> None:
    file = tmp_path / "run"
    file.write_text("mine")
    out = file / "below" if inside else file
    with pytest.raises(InputError, match=r"out=.*is a file; expected a folder"):
        run(config(out=str(out)))
    assert file.read_text() == "mine"


def test_a_refused_run_leaves_no_folder(config: Make, tmp_path: Path) -> None:
    wrong = config(masks={"trainable_copies": ["nothing.like.this"]})
    with pytest.raises(InputError, match=r"nothing\.like"):
        run(wrong)
    wrong = config()
    wrong["tasks"]["edges"]["data"] = {"kind": "image_folder", "root": str(tmp_path / "nowhere")}
    with pytest.raises(InputError, match="nowhere"):
        run(wrong)
    assert not (tmp_path / "run").exists()


def test_a_refused_run_leaves_the_config_of_the_one_that_is_there(config: Make, tmp_path: Path) -> None:
    run(config(sequence=["disks", "colour"]))
    kept = tmp_path / "run" / "config" / "config.yaml"
    before = kept.read_bytes()
    assert OmegaConf.load(kept).sequence == ["disks", "colour"]
    for changes in ({"seed": 1}, {"sequence": ["disks"]}, {"masks": {"norm": "frozen"}}, {"resume": "never"}):
        with pytest.raises(InputError, match="holds a run"):
            run(config(**{"sequence": ["disks", "colour"], **changes}))
        assert kept.read_bytes() == before
    run(config())
    assert OmegaConf.load(kept).sequence == ["disks", "colour", "edges"], "an accepted one is what the folder holds now"


def test_a_task_and_a_backbone_of_different_answers_are_refused_first(config: Make, tmp_path: Path) -> None:
    patterns = {"kind": "patterns", "classes": 3, "count": {"train": 6, "val": 3, "test": 3}}
    whole = config()
    whole["tasks"]["edges"] = {"task": {"kind": "classification"}, "data": patterns}
    message = r"tasks\.edges is of the kind 'classification', with one answer for a whole image, and the backbone "
    with pytest.raises(InputError, match=message + "'image_transformer' gives one answer for each pixel: choose a classifier"):
        run(whole)
    message = r"tasks\.disks .*'segmentation', with one answer for each pixel.*choose an encoder-decoder, such as backbone="
    with pytest.raises(InputError, match=message):
        run(config(backbone={"mode": "random", "kind": "vgg_small", "width": 0.0625}))
    assert not (tmp_path / "run").exists()
