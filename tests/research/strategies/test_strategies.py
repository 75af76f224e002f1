"""Every comparison method in a sequence of tasks: what it changes, what it stores, that it goes on after a kill."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import killed_at
from tiny_strategies import context

from img2img import InputError
from img2img.api import run
from img2img.training import sequence
from img2img.training.config import OptimiserOptions
from img2img.training.config.train_options import RATES
from img2img.training.strategies import comparison_methods

Make = Callable[..., dict[str, Any]]
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


@pytest.mark.parametrize("name", sorted(comparison_methods()))
def test_every_comparison_method_learns_a_sequence_and_forgets_or_does_not(config: Make, tmp_path: Path, name: str) -> None:
    results = run(config(method=_method(name)))
    change = results["forgetting"]["max_abs_output_change"]
    assert change > 0 if name in FORGETFUL else change == 0
    matrix = results["forgetting"]["value_matrix"]
    assert [[v is None for v in row] for row in matrix] == [[i > t for i in range(3)] for t in range(3)]
    if name not in FORGETFUL:
        assert all(matrix[t][i] == matrix[i][i] for t in range(3) for i in range(t))
    backbone = results["backbone"]["bytes"]
    shared = pytest.approx(backbone, rel=1e-6)
    if name == "decoder_only":
        assert 0 < results["shared_bytes"] < backbone
    else:
        assert results["shared_bytes"] == (0 if name in ("scratch", "finetune") else shared)
    assert all(task["bytes"] > 0 for task in results["tasks"])
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))
    assert len(list((tmp_path / "run" / "strategy").glob("shared*"))) == 1


@pytest.mark.parametrize("name", [*sorted(comparison_methods()), "piggyback"])
def test_every_method_trains_in_mixed_precision(config: Make, name: str) -> None:
    results = run(
        config(method=_method(name), device={"accelerator": "cpu", "precision": "bf16-mixed"}, sequence=["disks", "colour"])
    )
    assert [task["name"] for task in results["tasks"]] == ["disks", "colour"]


# 18 and 26: in PackNet's retraining of the second and third task; the others have 24 steps but for joint training.
@pytest.mark.parametrize(
    ("name", "step"),
    [*itertools.product(sorted(comparison_methods()), [12, 15, 18, 23]), ("packnet", 26), ("joint", 26)],
)
def test_a_killed_comparison_goes_on_and_ends_bit_equal(config: Make, tmp_path: Path, name: str, step: int) -> None:
    whole = run(config(method=_method(name), out=str(tmp_path / "whole")))
    with killed_at(step):
        run(config(method=_method(name)))
    torch.manual_seed(777)  # another process has other random states
    assert _untimed(run(config(method=_method(name)))) == _untimed(whole)
    assert _files(tmp_path / "run" / "strategy") == _files(tmp_path / "whole" / "strategy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "environment", lambda **_: {"commit": "another"})
        assert _untimed(run(config(method=_method(name)))) == _untimed(whole), "a finished run is only read"


def test_the_time_and_the_steps_of_a_first_task_count_its_backbone(config: Make, tmp_path: Path) -> None:
    alone = run(config(method={"name": "finetune"}, out=str(tmp_path / "alone")))
    pruned = run(config(method={"name": "packnet"}))
    assert alone["tasks"][0]["steps"] == 8
    assert pruned["tasks"][0]["steps"] == 8 + 3, "the backbone's and a third for retraining"
    assert [task["steps"] for task in pruned["tasks"][1:]] == [8, 8]


def test_a_part_of_a_training_scales_every_rate_that_is_set() -> None:
    assert {name for name in OptimiserOptions.model_fields if name.endswith("lr")} == set(RATES)
    with_ = context(steps=9, optimiser={"lr": 0.5, "mask_lr": 0.25, "norm_lr": 0.125})
    options = with_.options("colour", steps=4, rate=0.5)
    rates = options.optimiser
    assert (options.steps, rates.lr, rates.mask_lr, rates.norm_lr, rates.head_lr) == (4, 0.25, 0.125, 0.0625, None)
    assert with_.options("colour", steps=9) == with_.task_data["colour"].options


def test_what_a_comparison_method_learned_and_is_gone_is_named(config: Make, tmp_path: Path) -> None:
    run(config(method={"name": "packnet"}, sequence=["disks", "colour"]))
    shutil.rmtree(tmp_path / "run" / "strategy")
    with pytest.raises(InputError, match=r"disks.* is missing.*restore"):
        run(config(method={"name": "packnet"}))


def test_methods_start_from_the_backbone_of_another_run(config: Make, tmp_path: Path) -> None:
    first = run(config(sequence=["disks"], out=str(tmp_path / "first")))
    taken = run(config(method={"name": "finetune"}, backbone_from=str(tmp_path / "first")))
    own = run(config(method={"name": "finetune"}, out=str(tmp_path / "own")))
    assert taken["backbone"]["sha256"] == first["backbone"]["sha256"] == own["backbone"]["sha256"]
    assert [t["value"] for t in taken["tasks"]] == [t["value"] for t in own["tasks"]]
    log = (tmp_path / "run" / "metrics").glob("disks*")
    assert not list(log), "the first task was not trained again"


def test_a_backbone_of_another_configuration_is_refused(config: Make, tmp_path: Path) -> None:
    run(config(sequence=["disks"], out=str(tmp_path / "first")))
    with pytest.raises(InputError, match="another configuration than 'disks'"):
        run(config(method={"name": "finetune"}, backbone_from=str(tmp_path / "first"), seed=1))
    with pytest.raises(InputError, match="holds no run"):
        run(config(method={"name": "finetune"}, backbone_from=str(tmp_path / "nowhere")))
