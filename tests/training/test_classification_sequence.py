"""Classification through the runner, masks and comparison methods that image tasks go through: made images, a tiny network."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import killed_again_and_again
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import img2img
from img2img import InputError
from img2img.masks import METHODS
from img2img.reports.page import write_report
from img2img.training.config import read_experiment
from img2img.training.run import run
from img2img.training.sequence import SequenceRunner
from img2img.training.strategies import comparison_methods

pytestmark = pytest.mark.usefixtures("without_curves")

Make = Callable[..., dict[str, Any]]
MASKS = ("piggyback", "affine", "ksm", "supsup", "identity")
KEEPING = set(comparison_methods()) - {"sequential", "lwf", "ewc"}


@pytest.fixture
def config(tmp_path: Path) -> Make:
    """`config(**changes)`: three tasks of three classes, images of 32 px."""

    def make(**changes: Any) -> dict[str, Any]:
        family = {
            "count": 3,
            "task": {"kind": "classification"},
            "data": {"kind": "patterns", "classes": 3, "count": {"train": 24, "val": 9, "test": 12}},
        }
        return {
            "name": "tiny",
            "out": str(tmp_path / "run"),
            "backbone": {"kind": "vgg_small", "width": 0.0625, "hidden": []},
            "method": {"name": "piggyback", "init": 6e-3},
            "train": {
                "epochs": 1.5,
                "batch_size": 4,
                "checkpoint_every": 2,
                "log_every": 2,
                "augmentation": {"crop": 32, "pad": 2},
                "validation": {"epochs": 0.5, "precise_bn_batches": 0},
                "schedule": {"warmup": 0, "name": "step", "decay_at": [0.5], "head_first": 0.0},
                "optimiser": {"mask_lr": 1e-3, "head_lr": 1e-2, "norm_lr": 1e-3, "head": "sgd"},
            },
            "tasks": {"t": family},
            "sequence": ["t"],
            "evaluation": {"batch_size": 12, "check_images": 3, "panels": 1},
            "device": {"accelerator": "cpu"},
        } | changes

    return make


def _untimed(results: dict[str, Any]) -> dict[str, Any]:
    kept = json.loads(json.dumps(results))
    for task in kept["tasks"]:
        del task["train_seconds"]
    return kept  # type: ignore[no-any-return]


EVERY_RUN = ["piggyback", "finetune", "cpg"]
"""A mask, a copy and parts of the shared weights; the other methods are slow."""


@pytest.mark.slow_after(len(EVERY_RUN))
@pytest.mark.parametrize("name", sorted({*MASKS, *comparison_methods()}, key=lambda name: (name not in EVERY_RUN, name)))
def test_every_method_learns_a_sequence_of_classifications(config: Make, tmp_path: Path, name: str) -> None:
    method = {"name": name, **({"samples": 3} if name == "ewc" else {})}
    results = run(config(method=method), report=write_report)
    assert [task["name"] for task in results["tasks"]] == ["t_1", "t_2", "t_3"]
    for task in results["tasks"]:
        assert (task["kind"], task["primary_metric"], task["baseline"]) == ("classification", "top-1", pytest.approx(1 / 3))
        assert set(task["metrics"]) == {"top-1", *(f"accuracy of pattern {i}" for i in (1, 2, 3))}
        assert task["value"] * 12 == pytest.approx(round(task["value"] * 12)), "a share of the twelve test images"
    change = results["forgetting"]["max_abs_output_change"]
    assert change == 0 if name in KEEPING or name in METHODS else change > 0
    per_task = 1.0 if name in ("finetune", "scratch") else 0.05
    assert 1 <= results["relative_parameters"] <= 1 + 3 * per_task * 1.2
    shown = Image.open(tmp_path / "run" / "images" / "t_2.png")
    assert shown.width > 3 * 128, "input, output and target side by side"
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_killed_run_with_two_optimisers_goes_on_bit_equal(config: Make, tmp_path: Path) -> None:
    whole = run(config(out=str(tmp_path / "whole")))
    assert _untimed(killed_again_and_again(lambda: run(config()), 3, 9, 7)) == _untimed(whole)  # steps 3, 11 and 16 of all
    for task in ("t_1", "t_2", "t_3"):
        first, second = (load_file(tmp_path / run / "bundle" / "tasks" / f"{task}.safetensors") for run in ("run", "whole"))
        assert first.keys() == second.keys()
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_masks_learn_what_a_frozen_backbone_cannot(config: Make) -> None:
    common = config()["train"] | {"epochs": 12, "batch_size": 8, "optimiser": {**config()["train"]["optimiser"], "lr": 3e-3}}
    common |= {"checkpoint_every": 1000, "validation": {**common["validation"], "epochs": 4}}
    family = config()["tasks"]["t"]
    tasks = {"t": family | {"data": family["data"] | {"count": {"train": 120, "val": 12, "test": 60}}}}
    tasks["t"]["count"] = 2
    results = run(config(train=common, tasks=tasks, method={"name": "piggyback"}))
    assert all(task["value"] > 0.8 for task in results["tasks"]), "chance is a third"


def test_a_bundle_of_classifiers_names_the_class_of_a_image(config: Make, tmp_path: Path) -> None:
    run(config())
    model = img2img.load(tmp_path / "run")
    assert {name: task.kind for name, task in model.tasks.items()} == dict.fromkeys(("t_1", "t_2", "t_3"), "classification")
    image = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8).numpy()
    assert model.predict("t_3", image).shape == (3,)
    assert model.run("t_3", image).shape == (128, 128, 3)


@pytest.mark.slow
def test_keeping_the_last_step_keeps_it_whatever_validates_best(config: Make) -> None:
    train = config()["train"] | {"validation": {**config()["train"]["validation"], "keep": "last"}}
    for task in run(config(train=train))["tasks"]:
        assert task["best_step"] == task["steps"] == 9


@pytest.mark.parametrize("output", ["head", "backbone"])
def test_a_random_lenet_with_its_own_output_layer_needs_no_head(config: Make, tmp_path: Path, output: str) -> None:
    backbone = {"mode": "random", "kind": "lenet", "in_pixels": 1024, "hidden": [16], "output": output}
    results = run(config(backbone=backbone, method={"name": "supsup", "density": 0.5}))
    heads = img2img.load(tmp_path / "run").network.state("t_2").head
    assert heads is not None
    assert (sum(p.numel() for p in heads.parameters()) == 0) is (output == "backbone")
    assert results["tasks"][1]["density"] == pytest.approx(0.5, abs=0.01)


def test_a_random_backbone_has_kaimings_weights_and_no_biases(config: Make, tmp_path: Path) -> None:
    backbone = {"mode": "random", "kind": "lenet", "in_pixels": 1024, "hidden": [200], "output": "backbone"}
    run(config(backbone=backbone, method={"name": "supsup", "density": 0.5}, sequence=["t_1"]))
    network = img2img.load(tmp_path / "run").network.backbone
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 2
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx((2 / layer.in_features) ** 0.5, rel=0.1)
        assert not layer.bias.any(), "biases that no mask reaches would answer for every task alike (ImpressLearn, footnote 2)"


def test_a_random_backbone_takes_no_weights(config: Make) -> None:
    backbone = {"mode": "random", "kind": "lenet", "in_pixels": 1024, "hidden": [16], "weights": "some.safetensors"}
    with pytest.raises(InputError, match=r"weights=null, or .*mode=pretrained"):
        run(config(backbone=backbone))


def test_a_folder_with_a_studys_results_is_refused(config: Make, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/summary.json").write_text("{}")
    with pytest.raises(InputError, match="holds a study's results"):
        run(config())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "bf15"}, "expected 'auto', '32-true', 'bf16-mixed' or '16-mixed'"),
        ({"precision": "64-true"}, "expected 'auto', '32-true', 'bf16-mixed' or '16-mixed'"),
        ({"accelerator": "tpu"}, "expected what this machine has"),
    ],
)
def test_what_this_machine_cannot_do_is_one_message(config: Make, change: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(config(device=change))


def test_no_threads_are_refused(config: Make) -> None:
    with pytest.raises(InputError, match="threads: 0: expected 1 or more"):
        run(config(device={"threads": 0}))


@pytest.mark.parametrize(("remeasure", "kept"), [("every", True), ("end", False)])
def test_a_finished_task_keeps_at_most_its_test_images_in_memory(
    config: Make, tmp_path: Path, remeasure: str, kept: bool
) -> None:
    for i in range(60):
        (tmp_path / f"data/{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (4 * i, 0, 90 * (i % 2))).save(tmp_path / f"data/{i % 2}/{i}.png")
    task = {"task": {"kind": "classification"}, "data": {"kind": "class_folder", "root": str(tmp_path / "data")}}
    runner = SequenceRunner(
        read_experiment(config(tasks={"a": task, "b": task}, sequence=["a", "b"], evaluation={"remeasure": remeasure}))
    )
    runner.run()
    for task_data in runner.task_data.values():
        parts = task_data.parts
        assert [part._bytes > 0 for part in (parts.train, parts.val, parts.test)] == [False, False, kept]


def test_a_task_that_needs_categories_says_so_for_data_without(config: Make, tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        (tmp_path / part).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / part / "a.png")
    data = {"kind": "image_folder", "parts": {p: {"root": str(tmp_path / p)} for p in ("train", "val", "test")}}
    tasks = {"t": {"task": {"kind": "classification", "classes": ["a", "b"]}, "data": data}}
    with pytest.raises(InputError, match="needs a category with every image"):
        run(config(tasks=tasks))


def test_a_class_without_a_training_image_is_said(config: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    few = config(tasks={"t": {"task": {"kind": "classification"}, "data": {"kind": "class_folder", "root": str(tmp_path / "a")}}})
    few["tasks"]["t"]["data"] |= {"classes": ["cat", "cow", "dog"], "fractions": [0.5, 0.25, 0.25]}
    for name in ("cat", "dog"):
        (tmp_path / "a" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (32, 32), (10 * i, 0, 200)).save(tmp_path / "a" / name / f"{i}.png")
    run(few)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("t: no training image of cow: such classes cannot be learned") == 1
    run(few)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("no training image") == 1, "not of a finished task"
