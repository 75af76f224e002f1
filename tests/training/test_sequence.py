"""The whole sequence on a tiny experiment: what it leaves, that nothing is forgotten, and that it goes on after a kill."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import Killed, killed_at, refuse_steps
from PIL import Image

import img2img
from img2img import InputError, MaskedNetwork
from img2img.bundle import load_bundle
from img2img.inference.evaluator import Evaluator
from img2img.masks.task_state import TaskState
from img2img.reports.page import write_report
from img2img.training import sequence as sequence_module
from img2img.training.collect import collect_results
from img2img.training.config import read_experiment
from img2img.training.loop import fit
from img2img.training.results import Results
from img2img.training.run import run
from img2img.training.sequence import SequenceRunner

Make = Callable[..., dict[str, Any]]


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    network, _ = load_bundle(folder / "bundle")
    return {k: v.clone() for k, v in network.state_dict().items()}


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _collected(runner: SequenceRunner, network: MaskedNetwork) -> Results:
    return collect_results(runner.experiment, {n: data.task for n, data in runner.task_data.items()}, runner.progress, network)


def _untimed(results: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(results, default=str)
    kept = json.loads(text)
    for task in kept["tasks"]:
        del task["train_seconds"]
    return kept


@pytest.fixture(scope="module")
def two(config_in: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the results of a run of two tasks, to be read or copied."""
    folder = tmp_path_factory.mktemp("two") / "run"
    return folder, run(config_in(folder, sequence=["disks", "colour"]))


def test_a_run_leaves_a_bundle_results_images_logs_and_a_page(config: Make, tmp_path: Path) -> None:
    results = run(config(compare={"decoder_only": ["colour"]}), report=write_report)
    folder = tmp_path / "run"
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["version"] == 2
    assert results["backbone"].keys() >= {"name", "parameters", "sha256"}
    assert [t["name"] for t in results["tasks"]] == ["disks", "colour", "edges"]
    wanted = {
        "name", "kind", "primary_metric", "higher_is_better", "value", "baseline", "comparisons", "bytes", "density",
        "train_seconds",
        "test_images",
    }  # fmt: skip
    assert all(t.keys() >= wanted for t in results["tasks"])
    assert [list(t["comparisons"]) for t in results["tasks"]] == [[], ["decoder_only"], []]
    assert results["tasks"][0]["density"] is None, "the task that trained the backbone has no mask"
    assert all(0 < t["density"] < 1 for t in results["tasks"][1:]), "bits have flipped"
    assert results["forgetting"]["max_abs_output_change"] == 0.0
    matrix = results["forgetting"]["value_matrix"]
    assert [[v is None for v in row] for row in matrix] == [[i > t for i in range(3)] for t in range(3)]
    assert all(matrix[t][i] == matrix[i][i] for t in range(3) for i in range(t))
    assert results["transfer"]["backward"] == 0
    assert results["transfer"]["forward"] is not None
    for name in ("disks", "colour", "edges"):
        assert (folder / "bundle" / "tasks" / f"{name}.safetensors").stat().st_size == next(
            t["bytes"] for t in results["tasks"] if t["name"] == name
        )
        assert (folder / "images" / f"{name}.png").stat().st_size > 0
        rows = list(csv.DictReader((folder / "metrics" / f"{name}.csv").open()))
        assert [int(r["step"]) for r in rows] == [2, 3, 4, 6, 8]
        assert any((folder / "tensorboard" / name).iterdir())
    assert (folder / "metrics" / "colour.decoder_only.csv").exists()
    assert (folder / "report.html").stat().st_size > 0
    assert "largest change of an output 0" in (folder / "log.txt").read_text()
    assert not list(folder.rglob("*.tmp"))
    assert not list((folder / "checkpoints").glob("*"))


def test_a_bundle_gives_the_outputs_that_were_reported(config: Make, tmp_path: Path) -> None:
    runner = SequenceRunner(read_experiment(config()))
    runner.run()
    model = img2img.load(str(tmp_path / "run"))
    kinds = {name: (task.kind, task.side) for name, task in model.tasks.items()}
    assert kinds == {"disks": ("segmentation", 32), "colour": ("colourisation", 32), "edges": ("edges", 32)}
    sample = runner.task_data["edges"].parts.test[0]
    task_data = runner.task_data["edges"]
    example = task_data.task.example(img2img.data.Batch.stack([sample]))
    expected = runner.evaluator.predict(runner.run_of("edges"), task_data.task, example.input)[0]
    assert torch.allclose(model.predict("edges", sample.image), expected, atol=1e-6)
    odd = sample.image[:29, :31]
    assert model.run("colour", odd).shape == (29, 31, 3), "images of any size"
    with pytest.raises(InputError, match=r"'style'.*has disks, colour, edges"):
        model.run("style", odd)
    with pytest.raises(InputError, match=r"expected \(H, W, 3\) uint8"):
        model.run("colour", odd.astype(np.float32))


def test_a_killed_run_goes_on_and_ends_bit_equal(config: Make, tmp_path: Path) -> None:
    options = {"compare": {"decoder_only": ["colour"]}, "sequence": ["disks", "colour"]}
    whole = run(config(out=str(tmp_path / "whole"), **options))
    options |= {"evaluation": {"check_images": 2, "panels": 2, "previews": 2}}  # what is watched is learned alike
    # In the first task before and after its checkpoint at step 4, in the second, and in the comparison (steps 17 to 24): each
    # restart counts its own steps.
    for step, resumed_from in ((2, []), (7, ["disks.pt"]), (11, ["colour.pt"]), (10, ["colour.decoder_only.pt"])):
        with killed_at(step):
            run(config(**options))
        assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("*.pt")] == resumed_from
        torch.manual_seed(12345 + step)  # another process has other random states
    resumed = run(config(**options))
    said = (tmp_path / "run" / "log.txt").read_text()
    assert all(f"{what}: goes on from its checkpoint, at step 4 of 8" in said for what in ("disks", "colour"))
    assert _untimed(resumed) == _untimed(whole)
    assert _same(_tensors(tmp_path / "run"), _tensors(tmp_path / "whole"))
    for name in ("disks", "colour", "colour.masks", "colour.decoder_only"):
        assert (tmp_path / "run" / "metrics" / f"{name}.csv").read_text() == (
            tmp_path / "whole" / "metrics" / f"{name}.csv"
        ).read_text()
    assert not (tmp_path / "whole" / "previews").exists()
    for name in ("disks", "colour", "colour.decoder_only"):
        with Image.open(tmp_path / "run" / "previews" / f"{name}.jpg") as preview:
            assert preview.width / preview.height == 2 / 3  # two square images; inputs, outputs and targets in rows


def test_what_is_watched_may_change_when_a_training_with_averages_goes_on(config: Make, tmp_path: Path) -> None:
    options: dict[str, Any] = {"sequence": ["disks"], "evaluation": {"check_images": 2, "panels": 2}}
    made = config(out=str(tmp_path / "whole"), **options)
    made["train"] = {**made["train"], "average": {"decay": 0.5}}
    run(made)
    for killed, previews in ((True, 2), (False, 0)):
        again = {**made, "out": str(tmp_path / "run"), "evaluation": {**options["evaluation"], "previews": previews}}
        if killed:
            with killed_at(7):
                run(again)
            assert (tmp_path / "run" / "checkpoints" / "disks.pt").is_file()
        else:
            run(again)
    assert _same(_tensors(tmp_path / "run"), _tensors(tmp_path / "whole"))


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("name", ["disks", "colour"])
def test_a_run_killed_between_training_and_bookkeeping_repeats_no_step(
    config: Make, tmp_path: Path, two: tuple[Path, dict[str, Any]], name: str
) -> None:
    options, whole = {"sequence": ["disks", "colour"]}, two[1]
    original = SequenceRunner._finish

    def killed(self: SequenceRunner, names: list[str], entry: dict[str, Any]) -> None:
        if names[-1] == name:
            raise Killed
        original(self, names, entry)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SequenceRunner, "_finish", killed)
        with pytest.raises(Killed):
            run(config(**options))
    with pytest.MonkeyPatch.context() as patch:
        refuse_steps(patch)
        run(config(sequence=["disks", "colour"][: 1 + (name == "colour")]))
    assert _untimed(run(config(**options))) == _untimed(whole)
    assert _same(_tensors(tmp_path / "run"), _tensors(two[0]))


def test_a_finished_run_trains_nothing_again_and_a_longer_sequence_goes_on(
    config: Make, tmp_path: Path, two: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(two[0], tmp_path / "run")
    short = two[1]
    trained: list[str] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        trained.append(kwargs["checkpoint"].stem)
        return fit(*args, **kwargs)

    monkeypatch.setattr(sequence_module, "fit", counted)
    assert _untimed(run(config(sequence=["disks", "colour"]))) == _untimed(short)
    assert trained == []
    longer = run(config())
    assert trained == ["edges"]
    assert longer["forgetting"]["max_abs_output_change"] == 0.0
    assert [t["value"] for t in longer["tasks"][:2]] == [t["value"] for t in short["tasks"]]


def test_any_subset_in_any_order_and_a_task_learns_the_same_wherever_it_stands(
    config: Make, tmp_path: Path, two: tuple[Path, dict[str, Any]]
) -> None:
    one = run(config(out=str(tmp_path / "one"), sequence=["disks", "edges"]))
    shutil.copytree(two[0], tmp_path / "run")
    three = run(config(sequence=["disks", "colour", "edges"]))
    assert one["tasks"][1]["value"] == three["tasks"][2]["value"], "what was learned in between is invisible"
    other = run(config(out=str(tmp_path / "three"), sequence=["edges", "disks"]))
    assert [t["kind"] for t in other["tasks"]] == ["edges", "segmentation"]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("mode", ["random", "pretrained"])
def test_a_backbone_that_no_task_trains_gets_a_mask_for_each_task(
    config: Make, two: tuple[Path, dict[str, Any]], mode: str
) -> None:
    backbone = {"kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3, "mode": mode}
    if mode == "pretrained":
        backbone["weights"] = str(two[0] / "bundle" / "backbone.safetensors")
    results = run(config(backbone=backbone, sequence=["disks", "colour"]))
    assert all(t["density"] is not None for t in results["tasks"])
    again = run(config(backbone=backbone, sequence=["disks", "colour", "edges"]))
    assert again["backbone"]["sha256"] == results["backbone"]["sha256"]


def test_the_state_of_the_best_validation_is_kept(config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = SequenceRunner(read_experiment(config(sequence=["disks"])))
    seen: list[dict[str, torch.Tensor]] = []
    original = runner._fit

    def spy(name: str, phase: Any, what: str, **more: Any) -> Any:
        module = phase.module
        calls = iter([0.2, 0.7, 0.4])

        def primary_metric(*_: Any) -> float:
            seen.append({k: v.clone() for k, v in module.state_dict().items()})
            return next(calls)

        monkeypatch.setattr(type(runner.evaluator), "primary_metric", primary_metric)
        result = original(name, phase, what, **more)
        monkeypatch.undo()
        seen.append(module.state_dict())
        return result

    runner._fit = spy  # type: ignore[method-assign]
    runner.run()
    assert _same(seen[-1], seen[1])
    assert runner.progress.tasks["disks"].best_step == 6


def test_a_forgetful_network_would_be_reported(
    config: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The comparison is real: make training one task disturb another and the log and the report say so."""
    runner = SequenceRunner(read_experiment(config(sequence=["disks", "colour"])))
    original = runner._learn

    def disturb(name: str) -> Any:
        entry = original(name)
        state = runner.network.state("disks")
        assert isinstance(state, TaskState)
        with torch.no_grad():
            state.head.weight.add_(0.5)  # type: ignore[union-attr]
        return entry

    monkeypatch.setattr(runner, "_learn", disturb)
    network = runner.run()
    results = _collected(runner, network)
    assert results.forgetting.max_abs_output_change > 0
    assert "the outputs of disks are not those that were stored when it was learned" in caplog.text


def test_a_method_that_may_forget_is_not_warned_of(config: Make, caplog: pytest.LogCaptureFixture) -> None:
    results = run(config(sequence=["disks", "colour"], method={"name": "sequential"}), bars=False)
    assert results["forgetting"]["max_abs_output_change"] > 0
    assert "are not those that were stored" not in caplog.text


@pytest.mark.parametrize(
    ("method", "remeasure", "calls", "compared"),
    [
        ("masks", "auto", [1, 1, 1, 1, 5], [0, 1, 2, 3, 4]),
        pytest.param("masks", "every", [1, 2, 3, 4, 5], [0, 1, 2, 3, 4], marks=pytest.mark.slow),
        ("sequential", "auto", [1, 2, 3, 4, 5], [0, 1, 2, 3, 4]),
        pytest.param("sequential", "end", [1, 1, 1, 1, 5], [0, 1, 2, 3, 4], marks=pytest.mark.slow),
    ],
)
def test_finished_tasks_are_measured_again_when_it_is_due(
    config: Make, monkeypatch: pytest.MonkeyPatch, method: str, remeasure: str, calls: list[int], compared: list[int]
) -> None:
    made = config(evaluation={"remeasure": remeasure}, **({} if method == "masks" else {"method": {"name": method}}))
    names = ["disks", "a", "b", "c", "d"]
    made["tasks"] = {name: made["tasks"]["disks" if name == "disks" else "edges"] for name in names}
    runner = SequenceRunner(read_experiment(made | {"sequence": names}))
    measured: list[int] = []
    metrics = Evaluator.metrics

    def count(self: Evaluator, network: Any, *args: Any) -> Any:
        if network is not None:  # a baseline
            measured[-1] += 1
        return metrics(self, network, *args)

    finish = SequenceRunner._finish
    monkeypatch.setattr(Evaluator, "metrics", count)
    monkeypatch.setattr(SequenceRunner, "_finish", lambda *args: (measured.append(0), finish(*args)))
    network = runner.run()
    assert measured == calls
    assert [len(changes) for changes in runner.progress.changes] == [
        min(n, 3) if n < 4 and calls[n] == 1 else n for n in compared
    ]
    results = _collected(runner, network)
    assert results.forgetting.remeasured == ("end" if calls[1] == 1 else "every")
    assert [len(row) for row in runner.progress.rows] == calls, "what was measured, and nothing twice"
    matrix = results.forgetting.value_matrix
    assert [[value is None for value in row] for row in matrix] == [[i > t for i in range(5)] for t in range(5)]
    if method == "masks":
        assert all(row[: t + 1] == matrix[-1][: t + 1] for t, row in enumerate(matrix))
