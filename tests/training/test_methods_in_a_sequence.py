"""Mask methods, starts and bases in a sequence of tasks."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import img2img
from img2img import InputError, MaskedNetwork, masks
from img2img.backbones import build_backbone
from img2img.bundle import HEAD, load_backbone, load_bundle, read_bundle, save_backbone
from img2img.reports.page import write_report
from img2img.training.config import OptimiserOptions, read_experiment
from img2img.training.mask_strategy import groups_of
from img2img.training.optimiser import all_of
from img2img.training.run import run

Make = Callable[..., dict[str, Any]]
SUPSUP = {"name": "supsup", "density": 0.4}
SIGNS = {"name": "sparse_signs", "share": 0.2, "penalty_weight": 0.1}
IMPRESS = {"name": "impresslearn", "basis": "shared"}


def _with(config: dict[str, Any], task: str, **changes: Any) -> dict[str, Any]:
    tasks = {**config["tasks"], task: {**config["tasks"][task], **changes}}
    return {**config, "tasks": tasks}


METHODS = [{"name": "affine", "channel_wise": True}, {"name": "ksm"}, SUPSUP, SIGNS, {"name": "lora", "rank": 2}]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m["name"])
def test_every_method_runs_and_reports_what_the_bundle_gives(config: Make, tmp_path: Path, method: dict[str, Any]) -> None:
    results = run(config(method=method, sequence=["disks", "colour", "edges"]))
    assert results["forgetting"]["max_abs_output_change"] == 0.0
    network, _ = load_bundle(tmp_path / "run" / "bundle")
    assert network.state("edges").method.options() == {**network.state("colour").method.options()}
    assert network.state("colour").density() == results["tasks"][1]["density"]
    # Another process evaluates the bundle: nothing is left to be learned, and every earlier output is compared bit for bit.
    again = run(config(method=method, sequence=["disks", "colour", "edges"]))
    assert [t["value"] for t in again["tasks"]] == [t["value"] for t in results["tasks"]]


@pytest.mark.slow
def test_a_task_may_have_a_method_of_its_own(config: Make, tmp_path: Path) -> None:
    run(_with(config(), "edges", method={"name": "ksm"}))
    network, _ = load_bundle(tmp_path / "run" / "bundle")
    assert [network.state(t).method.name for t in network.tasks()] == ["identity", "piggyback", "ksm"]


def test_tasks_may_have_weights_of_their_own_and_leave_others_as_they_are(config: Make, tmp_path: Path) -> None:
    changed = config(masks={"trainable_copies": ["decoder.1.*"], "select": ["decoder.*", "encoder.3.*"]})
    results = run(changed)
    assert results["forgetting"]["max_abs_output_change"] == 0.0
    network, _ = load_bundle(tmp_path / "run" / "bundle")
    masked = {name: type(mask).__name__ for name, mask in network.state("edges").named_masks()}
    assert masked.pop("decoder.1.0.weight") == "TrainableCopy"
    assert sorted(masked) == ["decoder.0.0.weight", "encoder.3.conv1.0.weight", "encoder.3.conv2.0.weight"]
    assert set(masked.values()) == {"PiggybackMask"}
    frozen = network.masked_weights()["decoder.1.0.weight"]
    learned = [dict(network.state(task).named_masks())["decoder.1.0.weight"](frozen) for task in ("colour", "edges")]
    assert results["backbone"]["copied_parameters"] == frozen.numel()
    assert results["backbone"]["masked_parameters"] == sum(network.masked_weights()[name].numel() for name in masked)
    assert all(float((weight - frozen).abs().max()) > 0.005 for weight in learned), "they learn at train.optimiser.lr"
    assert not torch.equal(*learned)
    assert [t["value"] for t in run(changed)["tasks"]] == [t["value"] for t in results["tasks"]], "measured again from the bundle"


@pytest.mark.parametrize("select", [[], ["decoder.*"], None])
def test_a_bundle_keeps_which_weights_are_masked(select: list[str] | None, tmp_path: Path) -> None:
    backbone = build_backbone({"kind": "image_transformer", "width": 4, "blocks": 1, "out_channels": 2})
    network = MaskedNetwork(backbone, head=HEAD, select=["*"] if select is None else select)
    save_backbone(tmp_path, network, backbone.spec, select)
    stored, _ = load_backbone(tmp_path, read_bundle(tmp_path))
    assert stored.masked_weights().keys() == network.masked_weights().keys()


def test_patterns_of_own_weights_that_fit_nothing_are_refused_before_training(config: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'nothing\.\*' fits no weight"):
        run(config(masks={"trainable_copies": ["nothing.*"]}))
    assert not (tmp_path / "run" / "bundle").exists()


def test_a_comparison_method_does_not_ask_which_weights_would_be_masked_tasks_own(config: Make) -> None:
    results = run(config(masks={"trainable_copies": ["nothing.*"]}, method={"name": "head_only"}, sequence=["disks", "colour"]))
    assert results["backbone"]["copied_parameters"] == 0


def test_a_run_that_masks_nothing_has_a_report_like_any_other(config: Make, tmp_path: Path) -> None:
    results = run(config(masks={"select": []}, sequence=["disks", "colour"]), report=write_report)
    assert results["backbone"]["masked_parameters"] == 0
    assert [task["density"] for task in results["tasks"]] == [None, None]
    assert (tmp_path / "run" / "report.html").is_file()
    found = json.loads((tmp_path / "run" / "masks.json").read_text(encoding="utf-8"))
    assert found["tasks"]["colour"] == {"method": "piggyback", "density": None, "zeroed": None, "densities": [], "values": {}}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("start", ["colour", "nearest"])
def test_a_task_may_start_from_another(config: Make, tmp_path: Path, start: str) -> None:
    frozen = {"steps": 1, "validation": {"every": 1}, "optimiser": {"mask_lr": 1e-12, "lr": 1e-12}}
    changed = _with(config(sequence=["disks", "colour", "edges"]), "edges", start_from=start, train=frozen)
    run(changed)
    network, _ = load_bundle(tmp_path / "run" / "bundle")
    mine, theirs = network.state("edges").binaries(), network.state("colour").binaries()
    same = all(torch.equal(mask, theirs[name]) for name, mask in mine.items())
    assert same or (start == "nearest" and network.state("edges").density() == 1.0)  # nearest to the backbone's own task


def test_a_start_from_a_later_task_is_refused_before_training(config: Make) -> None:
    with pytest.raises(InputError, match="from='edges': expected 'nearest'"):
        read_experiment(_with(config(), "colour", start_from="edges"))


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("basis", [{"count": 3, "density": 0.3, "seed": 0}, {"tasks": ["colour"]}])
def test_a_task_learns_a_combination_of_shared_masks_and_a_bundle_brings_them(
    config: Make, tmp_path: Path, basis: dict[str, Any]
) -> None:
    changed = _with(config(masks={"bases": {"shared": basis}}), "edges", method={**IMPRESS, "penalty_weight": 0.01})
    results = run(changed)
    assert results["tasks"][2]["density"] is None
    files = list((tmp_path / "run" / "bundle" / "bases").glob("*.safetensors"))
    network, _ = load_bundle(tmp_path / "run" / "bundle")
    assert [p.stem for p in files] == [network.bases()["shared"].sha256]
    alphas = torch.stack([mask.values()["alpha"] for _, mask in network.state("edges").named_masks()])
    assert not torch.equal(alphas, torch.full_like(alphas, 1 / alphas.shape[1])), "they have been trained"
    with pytest.raises(InputError, match="in use by"):
        network.delete_basis("shared")
    assert run(changed)["tasks"] == results["tasks"]
    files[0].write_bytes(files[0].read_bytes()[:-3])
    with pytest.raises(InputError, match=r"\.safetensors"):
        img2img.load(tmp_path / "run")


def test_a_basis_that_is_not_there_or_comes_too_late_is_refused_before_training(config: Make) -> None:
    with pytest.raises(InputError, match=r"'shared', which masks\.bases"):
        read_experiment(_with(config(), "edges", method=IMPRESS))
    late = _with(config(masks={"bases": {"shared": {"tasks": ["edges"]}}}), "colour", method=IMPRESS)
    with pytest.raises(InputError, match="'edges' before 'colour'"):
        read_experiment(late)


def test_a_penalty_is_part_of_the_loss(config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first_loss(out: str) -> float:
        bases = {"shared": {"count": 2, "density": 0.5, "seed": 0}}
        run(_with(config(out=str(tmp_path / out), masks={"bases": bases}, sequence=["disks", "edges"]), "edges", method=IMPRESS))
        with open(tmp_path / out / "metrics" / "edges.csv", newline="") as file:
            return float(next(csv.DictReader(file))["loss"])

    plain = first_loss("plain")
    monkeypatch.setattr(masks.ImpressLearn, "penalty", lambda self, masks: torch.tensor(5.0))
    assert first_loss("penalised") == pytest.approx(plain + 5, rel=1e-5)


def test_densities_and_flips_by_layer_are_logged_at_every_validation(config: Make, tmp_path: Path) -> None:
    results = run(config(sequence=["disks", "colour"]))
    with open(tmp_path / "run" / "metrics" / "colour.masks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    network, _ = load_bundle(tmp_path / "run" / "bundle")
    layers = list(network.masked_weights())
    assert [row["step"] for row in rows] == [str(step) for step in (3, 6, 8) for _ in layers]
    assert [row["layer"] for row in rows] == 3 * layers
    assert sum(int(row["flips"]) for row in rows) > 0
    best = {row["layer"]: float(row["density"]) for row in rows if row["step"] == str(_best_step(tmp_path))}
    assert best == pytest.approx(network.state("colour").densities())
    assert results["tasks"][1]["density"] == network.state("colour").density()
    assert not (tmp_path / "run" / "metrics" / "disks.masks.csv").exists()


def _best_step(folder: Path) -> int:
    progress = json.loads((folder / "run" / "progress.json").read_text())
    step: int = progress["tasks"]["colour"]["best_step"]
    return step


def test_scores_norm_state_with_head_and_whole_networks_have_rates_of_their_own() -> None:
    options = OptimiserOptions(mask_lr=1e-4, head_lr=1e-2, lr=1e-3)
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1))
    network = MaskedNetwork(plain, head="2")
    network.add_task("a", masks.Piggyback(), head=torch.nn.Conv2d(4, 2, 1))

    def rates(module: torch.nn.Module) -> dict[tuple[int, ...], float]:
        groups = groups_of(module) if isinstance(module, masks.TaskModule) else all_of(module)
        return {tuple(p.shape): group.lr for group in groups(options) for p in group.parameters}

    assert rates(network.task_module("a")) == {(4, 3, 3, 3): 1e-4, (4,): 1e-2, (2, 4, 1, 1): 1e-2, (2,): 1e-2}
    assert set(rates(plain).values()) == {1e-3}
    options = OptimiserOptions(mask_lr=1e-4, lr=1e-3, head_lr=None)
    assert set(rates(network.task_module("a")).values()) == {1e-4, 1e-3}, "without head_lr they train at lr"
