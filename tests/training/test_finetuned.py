"""A task that is made of a fine-tuned network: what each step brings, and what is refused before any training."""

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
from img2img.tasks import build_task
from img2img.tasks.base import Example
from img2img.training.config import read_experiment
from img2img.training.finetuned import Distilled
from img2img.training.run import run

pytestmark = pytest.mark.usefixtures("without_curves")

Make = Callable[..., dict[str, Any]]
Absorb = Callable[..., Path]
SHORT = {
    "steps": 12,
    "batch_size": 2,
    "checkpoint_every": 4,
    "augmentation": {"crop": 32},
    "validation": {"every": 6, "precise_bn_batches": 4},
    "schedule": {"warmup": 0},
    "optimiser": {"mask_lr": 1e-3, "lr": 3e-3},
}
HALF = {"name": "sparse_signs", "share": 0.5}
DISKS = {"kind": "segmentation"}


@pytest.fixture(scope="module")
def made(config_in: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, a run of two tasks, and `disks.safetensors`, a network that was fine-tuned from its backbone."""
    folder = tmp_path_factory.mktemp("finetuned")
    run(config_in(folder / "base", sequence=["colour", "edges"]))
    tuned = config_in(folder / "tuned", sequence=["disks"], method={"name": "finetune"})
    tuned["backbone"] = {"mode": "bundle", "weights": str(folder / "base")}
    tuned["train"]["steps"] = 30
    run(tuned)
    save_file(load_file(folder / "tuned" / "strategy" / "disks.safetensors"), folder / "disks.safetensors")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "base" / "bundle", tmp_path / "bundle")
    shutil.copy(made / "disks.safetensors", tmp_path)
    return tmp_path


@pytest.fixture
def absorb(here: Path, config: Make) -> Absorb:
    """`absorb(**changes)`: the disks of the fine-tuned network, into the run folder `out`."""

    def call(**changes: Any) -> Path:
        arguments: dict[str, Any] = {
            "bundle": here / "bundle",
            "finetuned": here / "disks.safetensors",
            "name": "disks",
            "task": DISKS,
            "data": config()["tasks"]["disks"]["data"],
            "method": HALF,
            "train": SHORT,
            "out": here / "out",
            "overrides": ["device.accelerator=cpu", "evaluation.panels=1"],
        }
        return make_task(**arguments | changes)

    return call


def _result(folder: Path) -> dict[str, Any]:
    (task,) = json.loads((folder / "results.json").read_text(encoding="utf-8"))["tasks"]
    found: dict[str, Any] = task
    return found


def test_a_fine_tuned_network_becomes_a_small_task_nearly_as_good_and_the_others_stay(
    here: Path, made: Path, absorb: Absorb
) -> None:
    image = torch.rand(1, 3, 32, 32)
    before = img2img.load(here / "bundle")
    task = _result(absorb())
    found, tuned = task["finetuned"], _result(made / "tuned")
    val = found["val"]
    assert found["metrics"] == pytest.approx(tuned["metrics"], abs=1e-5), "the file is the network that was fine-tuned"
    assert found["bytes"] == (here / "disks.safetensors").stat().st_size > 2 * task["bytes"]
    assert list(val) == ["finetuned", "signs", "statistics", "trained"]
    assert 0.3 < found["moved"] <= 0.5
    assert 0.5 < found["explained"] < 1
    assert val["signs"] < val["trained"], "the training brings something"
    assert val["trained"] > val["finetuned"] - 0.1, "and most of what is missing"
    after = img2img.load(here / "bundle")
    assert list(after.tasks) == ["colour", "edges", "disks"]
    assert after.tasks["disks"].method == "sparse_signs"
    assert after.network.state("disks").info["finetuned"]["val"] == val
    for name in before.tasks:
        assert torch.equal(before.run(name, image), after.run(name, image))


def test_a_killed_call_goes_on_and_ends_bit_equal(here: Path, absorb: Absorb) -> None:
    shutil.copytree(here / "bundle", here / "another")
    absorb(bundle=here / "another", out=here / "whole")
    with killed_at(7):
        absorb()
    assert (here / "out" / "checkpoints" / "disks.pt").is_file()
    absorb()
    assert task_path(here / "bundle", "disks").read_bytes() == task_path(here / "another", "disks").read_bytes()
    assert _result(here / "out")["finetuned"] == _result(here / "whole")["finetuned"]
    with pytest.raises(InputError, match="has a task 'disks' already"):
        absorb(out=here / "third")


def test_the_signs_may_be_kept_and_the_loss_be_the_tasks_own(here: Path, absorb: Absorb) -> None:
    few = SHORT | {"steps": 4}
    task = _result(absorb(train=few, distil=False, train_signs=False, method="dense_signs"))
    assert task["finetuned"]["moved"] == 1
    signs = {name: mask.signed() for name, mask in img2img.load(here / "bundle").network.state("disks").named_masks()}
    backbone, tuned = load_file(here / "bundle" / "backbone.safetensors"), load_file(here / "disks.safetensors")
    for name, found in signs.items():
        assert torch.equal(found, torch.where(tuned[name] >= backbone[name], 1, -1)), name


def test_any_mask_method_may_learn_from_the_outputs_alone(here: Path, config: Make) -> None:
    whole = config(out=str(here / "out"), sequence=["disks"], backbone={"mode": "bundle", "weights": str(here / "bundle")})
    whole["tasks"]["disks"]["finetuned"] = {"weights": str(here / "disks.safetensors"), "start": False}
    run(whole)
    found = _result(here / "out")["finetuned"]
    assert list(found["val"]) == ["finetuned", "trained"]
    assert found["moved"] is None


def test_the_teacher_normalises_as_the_task_does(config: Make, tmp_path: Path) -> None:
    """A network that was fine-tuned with each image's own statistics is measured, and taught from, with them."""
    base = config(sequence=["colour"])
    base["backbone"]["norm"] = "batch"
    run(base)
    backbone = {"mode": "bundle", "weights": base["out"]}
    tuned = config(sequence=["edges"], method={"name": "finetune"}, backbone=backbone, out=str(tmp_path / "tuned"))
    tuned["tasks"]["edges"]["norm"] = "instance"
    reported = run(tuned)["tasks"][0]["value"]
    made = config(sequence=["edges"], method=HALF, backbone=backbone, out=str(tmp_path / "made"))
    weights = str(tmp_path / "tuned" / "strategy" / "edges.safetensors")
    made["tasks"]["edges"] |= {"norm": "instance", "finetuned": {"weights": weights, "keep_frozen": True}}
    (task,) = run(made)["tasks"]
    assert task["finetuned"]["metrics"]["MSE"] == pytest.approx(reported, rel=1e-5)


def test_a_training_that_makes_it_worse_is_not_kept(here: Path, absorb: Absorb) -> None:
    """What the signs and their statistics give is the state of step 0, and stays where no later one validates better."""
    ruin = {"optimiser": {"mask_lr": 1.0, "lr": 10.0, "head_lr": 10.0}}
    (task,) = json.loads((absorb(train={**SHORT, **ruin}) / "results.json").read_text())["tasks"]
    assert task["best_step"] == 0
    assert task["finetuned"]["val"]["trained"] == pytest.approx(task["finetuned"]["val"]["statistics"])


def test_distillation_is_least_where_the_output_is_the_teachers() -> None:
    teacher = torch.nn.Conv2d(3, 2, 1)
    for options in ({"kind": "segmentation", "classes": ["a", "b"]}, {"kind": "translation"}):
        task = build_task(options)
        objective = Distilled(task, teacher)
        example = Example(torch.rand(2, 3, 8, 8), torch.zeros(0))
        raw = teacher(example.input).detach().requires_grad_()
        loss = objective.loss(raw, example)
        loss.backward()
        assert raw.grad is not None
        assert raw.grad.abs().max() < 1e-6
        assert objective.loss(raw + torch.randn_like(raw), example) > loss
        assert all(p.grad is None for p in teacher.parameters())


def _changed(here: Path, **changes: Any) -> Path:
    """The file with other tensors: a tensor in place of each, or None to leave it out."""
    tensors = load_file(here / "disks.safetensors") | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, here / "changed.safetensors")
    return here / "changed.safetensors"


@pytest.mark.slow
def test_what_cannot_be_is_refused_before_training_and_leaves_all_as_it_was(
    here: Path, absorb: Absorb, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("img2img.training.sequence.fit", lambda *_, **__: pytest.fail("it trains"))
    files = {path: path.read_bytes() for path in (here / "bundle").rglob("*") if path.is_file()}
    tensors = load_file(here / "disks.safetensors")
    heads = [name for name in tensors if name.startswith("head.")]
    weight = next(name for name in tensors if name.endswith("weight") and name not in heads)
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, here / "wrapped.pt")
    (here / "text.safetensors").write_text("no tensors")
    plain = config()["tasks"]["colour"]["data"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"finetuned": here / "nowhere.safetensors"}, r"nowhere\.safetensors.*check the path"),
        ({"finetuned": here / "text.safetensors"}, "cannot be read as tensors"),
        ({"finetuned": here / "wrapped.pt"}, "'module.': remove that"),
        ({"finetuned": _changed(here, **{weight: torch.zeros(3)})}, rf"{weight} has shape \(3,\)"),
        ({"name": "parts", "task": {"kind": "denoising", "sigma": 25}, "data": plain}, "head.*expected the head of"),
        ({"name": "colour"}, "has a task 'colour' already"),
        ({"task": {"kind": "magic"}}, "task kind 'magic' is unknown"),
        ({"method": "piggyback"}, "'piggyback': expected sparse_signs or dense_signs"),
        ({"data": {"kind": "image_folder", "root": "nowhere"}}, "nowhere"),
    ]
    for changes, said in cases:
        with pytest.raises(InputError, match=said):
            absorb(**changes)
        assert not (here / "out" / "bundle").exists()
    for changes, said in (
        (dict.fromkeys(heads), "head.*missing or unexpected"),
        ({"mean": tensors["mean"] + 0.5}, "no task has of its own.*--keep-frozen"),
    ):
        with pytest.raises(InputError, match=said):
            absorb(finetuned=_changed(here, **changes))
    assert {path: path.read_bytes() for path in (here / "bundle").rglob("*") if path.is_file()} == files


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sequence": ["disks"]}, "first task trains the backbone"),
        ({"method": {"name": "finetune"}}, "'finetune' has no masks"),
        ({"method": {"name": "piggyback"}}, r"'piggyback': expected sparse_signs.*start=false"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_when_it_is_read(config: Make, changes: dict[str, Any], said: str) -> None:
    whole = config(**{"method": HALF, "sequence": ["colour", "disks"]} | changes)
    whole["tasks"]["disks"]["finetuned"] = {"weights": "x.safetensors"}
    with pytest.raises(InputError, match=said):
        read_experiment(whole)
    whole["tasks"]["disks"]["finetuned"] |= {"start": False, "distil": False}
    with pytest.raises(InputError, match="for nothing"):
        read_experiment(whole)
