"""Every comparison method in a sequence of tasks: what it changes, what it stores, that it goes on after a kill."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import killed_again_and_again
from safetensors.torch import load_file
from tiny_strategies import context

from img2img import InputError
from img2img.reports.read import read_training
from img2img.research.suites.store import record_of
from img2img.training import sequence
from img2img.training.config import OptimiserOptions
from img2img.training.config.train_options import RATES
from img2img.training.run import run
from img2img.training.strategies import comparison_methods

Make = Callable[..., dict[str, Any]]
Whole = Callable[[str], tuple[Path, dict[str, Any]]]
FORGETFUL = {"sequential", "lwf", "ewc"}


def _method(name: str) -> dict[str, Any]:
    return {"name": name, **({"samples": 3} if name == "ewc" else {})}


def _untimed(results: dict[str, Any]) -> dict[str, Any]:
    kept = json.loads(json.dumps(results))
    for task in kept["tasks"]:
        del task["train_seconds"]
    return kept  # type: ignore[no-any-return]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(config_in: Make, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """`whole(method)`: the folder and the results of a method's run that nothing interrupted, to be read."""

    @functools.cache
    def of(name: str) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path_factory.mktemp(name) / "run"
        return folder, run(config_in(folder, method=_method(name)))

    return of


@pytest.mark.parametrize("name", sorted(comparison_methods()))
def test_every_comparison_method_learns_a_sequence_and_forgets_or_does_not(whole: Whole, name: str) -> None:
    folder, results = whole(name)
    change = results["forgetting"]["max_abs_output_change"]
    assert change > 0 if name in FORGETFUL else change == 0
    matrix = results["forgetting"]["value_matrix"]
    assert [[v is None for v in row] for row in matrix] == [[i > t for i in range(3)] for t in range(3)]
    if name not in FORGETFUL:
        assert all(matrix[t][i] == matrix[i][i] for t in range(3) for i in range(t))
    backbone = results["backbone"]["bytes"]
    stored = load_file(folder / "bundle" / "backbone.safetensors").values()
    assert backbone == sum(t.nbytes for t in stored)
    # What a method learns is stored as it is: in half precision is the backbone alone, where that is exact. Heads alone use it.
    shared = pytest.approx(sum(t.numel() * (4 if t.dtype == torch.float16 else t.element_size()) for t in stored), rel=1e-6)
    if name == "decoder_only":
        assert 0 < results["shared_bytes"] < backbone
    else:
        assert results["shared_bytes"] == {"scratch": 0, "finetune": 0, "head_only": backbone}.get(name, shared)
    assert all(task["bytes"] > 0 for task in results["tasks"])
    assert not list((folder / "checkpoints").glob("*"))
    assert len(list((folder / "strategy").glob("shared*"))) == 1


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("name", [*sorted(comparison_methods()), "piggyback"])
def test_every_method_trains_in_mixed_precision(config: Make, name: str) -> None:
    device = {"accelerator": "cpu", "precision": "bf16-mixed"}
    train = config()["train"] | {"steps": 4}
    made = config(method=_method(name), device=device, train=train, sequence=["disks", "colour"])
    made["tasks"]["colour"]["task"] = {"kind": "colourisation", "bins": {"grid": 40}}  # a head of many channels
    results = run(made)
    assert [task["name"] for task in results["tasks"]] == ["disks", "colour"]


# Most methods have 8 steps a task and a checkpoint at every fourth: the second task before and after its checkpoint (steps 12
# and 15 of all), the third too (18 and 23). The others are killed in their retrainings as well. Two methods, one that keeps a
# network for each task and one that shares one, are killed but once, by a process that learned all that comes before.
KILLS = {name: [(12, 7, 6, 7)] for name in comparison_methods()}
KILLS["packnet"] = [(12, 4, 7, 7, 7), (18,), (26,)]  # in the retraining of the second and of the third task
KILLS["joint"] = [(12, 7, 6, 7), (26,)]
KILLS["finetune"] = [(12, 7, 6, 7), (23,)]


@pytest.mark.slow_after(3)
@pytest.mark.parametrize(
    ("name", "steps"), [(name, steps) for name in sorted(KILLS, key="cpg finetune ".find, reverse=True) for steps in KILLS[name]]
)
def test_a_killed_comparison_goes_on_and_ends_bit_equal(
    config: Make, tmp_path: Path, whole: Whole, name: str, steps: tuple[int, ...]
) -> None:
    folder, results = whole(name)
    assert _untimed(killed_again_and_again(lambda: run(config(method=_method(name))), *steps)) == _untimed(results)
    assert _files(tmp_path / "run" / "strategy") == _files(folder / "strategy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "environment", lambda **_: {"commit": "another"})
        assert _untimed(run(config(method=_method(name)))) == _untimed(results), "a finished run is only read"


def test_the_time_and_the_steps_of_a_first_task_count_its_backbone(whole: Whole) -> None:
    alone, pruned = whole("finetune")[1], whole("packnet")[1]
    assert alone["tasks"][0]["steps"] == 8
    assert pruned["tasks"][0]["steps"] == 8 + 3, "the backbone's and a third for retraining"
    assert [task["steps"] for task in pruned["tasks"][1:]] == [8, 8]


@pytest.mark.parametrize("name", ["finetune", "lwf", "packnet", "cpg"])
def test_the_validation_of_the_state_that_was_kept_is_that_of_the_last_training(whole: Whole, name: str) -> None:
    folder, results = whole(name)
    record = record_of(folder, label=name, seed=0)
    for task, stored in zip(results["tasks"], record.tasks, strict=True):
        training = read_training(folder, task["name"], task["primary_metric"])
        assert training is not None
        assert training.last is not None
        assert (training.last > 0) == (name in ("packnet", "cpg") or (name == "lwf" and task["name"] != "disks"))
        assert task["val"] == dict(training.curve.validation)[training.last + task["best_step"]]
        assert stored.val == task["val"]


def test_a_training_of_all_tasks_leaves_no_validation_of_one(whole: Whole) -> None:
    folder, results = whole("joint")
    assert [task["val"] for task in results["tasks"]] == [None] * 3, "the mean skill of all chose the state"
    assert read_training(folder, "disks", results["tasks"][0]["primary_metric"]).last is None  # type: ignore[union-attr]


def test_a_part_of_a_training_scales_every_rate_that_is_set() -> None:
    assert {name for name in OptimiserOptions.model_fields if name.endswith("lr")} == set(RATES)
    with_ = context(steps=9, optimiser={"lr": 0.5, "mask_lr": 0.25, "norm_lr": 0.125, "head_lr": None})
    options = with_.options("colour", steps=4, rate=0.5)
    rates = options.optimiser
    assert (options.steps, rates.lr, rates.mask_lr, rates.norm_lr, rates.head_lr) == (4, 0.25, 0.125, 0.0625, None)
    assert with_.options("colour", steps=9) == with_.task_data["colour"].options


def test_what_a_comparison_method_learned_and_is_gone_is_named(config: Make, tmp_path: Path, whole: Whole) -> None:
    shutil.copytree(whole("packnet")[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "strategy")
    with pytest.raises(InputError, match=r"disks.* is missing.*restore"):
        run(config(method={"name": "packnet"}))


def test_methods_start_from_the_backbone_of_another_run(config: Make, tmp_path: Path, whole: Whole) -> None:
    first = run(config(sequence=["disks"], out=str(tmp_path / "first")))
    taken = run(config(method={"name": "finetune"}, backbone_from=str(tmp_path / "first")))
    own = whole("finetune")[1]
    assert taken["backbone"]["sha256"] == first["backbone"]["sha256"] == own["backbone"]["sha256"]
    assert [t["value"] for t in taken["tasks"]] == [t["value"] for t in own["tasks"]]
    log = (tmp_path / "run" / "metrics").glob("disks*")
    assert not list(log), "the first task was not trained again"


def test_a_backbone_of_another_configuration_is_refused(config: Make, tmp_path: Path, whole: Whole) -> None:
    with pytest.raises(InputError, match="another configuration than 'disks'"):
        run(config(method={"name": "finetune"}, backbone_from=str(whole("finetune")[0]), seed=1))
    with pytest.raises(InputError, match="holds no run"):
        run(config(method={"name": "finetune"}, backbone_from=str(tmp_path / "nowhere")))
