"""The ImpressLearn study on made images, its table of bytes against the paper's, and its tasks."""

import functools
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from img2img import InputError
from img2img.cli.report import report as report_command
from img2img.files.lock import FolderInUseError, hold
from img2img.masks import SupSup
from img2img.research.impresslearn import measurements, run
from img2img.research.impresslearn.numbered_tasks import NumberedTasks, build_numbered_tasks, standardised, synthetic_tasks
from img2img.research.impresslearn.options import Study, TrainOptions, read_study
from img2img.research.impresslearn.report import rebuild_report
from img2img.research.impresslearn.results import TABLE_2, TableRow
from img2img.research.impresslearn.resume_check import check_earlier
from img2img.research.impresslearn.study_network import Job, StudyNetwork
from img2img.training.compose import compose, plain_config

pytestmark = pytest.mark.usefixtures("without_curves")

ROOT = Path(__file__).parents[2]

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"kind": "made", "size": 6, "train": 400, "test": 200, "noise": 0.1},
    "hidden": [64, 32],
    "scaled": True,
    "densities": [0.3],
    "counts": [1, 6],
    "new_tasks": 2,
    "basis_tasks": 3,
    "wrong_masks": 3,
    "train": {"mask_epochs": 8, "alpha_epochs": 8, "batch_size": 40, "lr": 5e-3, "together": 4},
    "inference": {"tasks": 3, "density": 0.3, "count": 6, "batch_size": 50},
    "variants": {"density": 0.3, "counts": [6]},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("study")
    return folder, run({**TINY, "out": str(folder)})


def _mean(rows: list[dict[str, Any]], key: str = "accuracy") -> float:
    return sum(row[key] for row in rows) / len(rows)


def test_own_masks_learn_wrong_ones_guess_and_combinations_learn_with_more_impressions(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    _, results = finished
    assert _mean(results["own"]) > 0.9
    assert abs(_mean(results["wrong"]) - 0.1) < 0.1, "another task's mask knows nothing of this one's permutation"
    for kind in ("heterogeneous", "homogeneous", "random"):
        one, six = ([row for row in results["combined"] if (row["kind"], row["count"]) == (kind, c)] for c in (1, 6))
        assert _mean(six) > _mean(one) + 0.05
    (single,) = {row["own"] == row["alpha"] for row in results["basis"] if row["count"] == 1}
    assert single, "one mask scaled by a positive number in each layer of a network without biases decides alike"
    assert all(row["alpha_finds"] for row in results["basis"])
    assert all(0.2 < row["overlap"] < 1 / 0.3 for row in results["overlaps"])


def test_the_tasks_that_are_inferred_combine_masks_of_the_kind_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    add_basis = measurements._add_basis

    def noted(bench: StudyNetwork, name: str, kind: Any, count: int) -> None:
        made.append(f"{name}: {kind}")
        add_basis(bench, name, kind, count)

    monkeypatch.setattr(measurements, "_add_basis", noted)
    monkeypatch.setattr("img2img.research.impresslearn.write_report", lambda folder, results: None)
    small = {"counts": [6], "kinds": ["random"], "new_tasks": 1, "basis_tasks": 0, "wrong_masks": 1, "variants": {"counts": []}}
    config = {**TINY, **small, "inference": {**TINY["inference"], "kind": "random"}, "weights": "signed_constant", "outputs": 20}
    results = run({**config, "out": str(tmp_path)})
    (row,) = results["inference"]
    assert (row["kind"], row["tasks"], row["count"]) == ("random", 3, 6)
    assert made == ["random_6: random", "inference_random_1: random"]
    with pytest.raises(InputError, match="inference got kind: 'made'"):
        read_study({**config, "out": "x", "inference": {"kind": "made"}})


def test_the_files_of_a_study_say_what_its_results_say(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, results = finished
    assert json.loads((folder / "results.json").read_text(encoding="utf-8")) == results
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    given = json.loads((ROOT / "docs" / "results" / "image_to_image" / "summary.json").read_text(encoding="utf-8"))
    assert summary.keys() == given.keys()
    assert [task.keys() for task in summary["tasks"]] == [given["tasks"][0].keys()] * 2
    assert [task["name"] for task in summary["tasks"]] == ["permutation_7", "permutation_8"]
    assert {task["baseline"] for task in summary["tasks"]} == {0.1}
    counts = [f"{kind}_{count}" for kind in ("heterogeneous", "homogeneous", "random") for count in (1, 6)]
    assert list(summary["methods"]) == [f"{name}_d0.3" for name in ("supsup", *counts)]
    (first, *_) = results["own"]
    size = (folder / "seed0" / "density0.3" / "supsup" / "own_7.safetensors").stat().st_size
    assert summary["methods"]["supsup_d0.3"]["permutation_7"] == {
        "mean": first["accuracy"], "std": None, "seeds": 1, "bytes": size
    }  # fmt: skip
    report = (folder / "report.md").read_text(encoding="utf-8")
    for name in ("accuracy", "basis_tasks", "overlap", "variants"):
        assert f"(figures/{name}.png)" in report
        assert (folder / "figures" / f"{name}.png").stat().st_size > 1000
    assert str(folder) not in report + json.dumps(results)


def test_img2img_report_writes_the_report_of_a_study_anew(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, results = finished
    out, damaged = tmp_path / "out", tmp_path / "damaged"
    report_command(folder, out)
    names = ["report.md", *(f"figures/{name}.png" for name in ("accuracy", "basis_tasks", "overlap", "variants"))]
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.*")) == sorted(names)
    for name in names:
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    damaged.mkdir()
    no_alpha = [{key: value for key, value in row.items() if key != "alpha"} for row in results["basis"]]
    for change, message in (
        ({"version": 2}, "version: expected 1"),
        ({"basis": no_alpha}, r"basis\[0\] lacks alpha"),
        ({"own": []}, "own"),
        ({"wrong": []}, "a cell without rows"),
    ):
        (damaged / "results.json").write_text(json.dumps(results | change), encoding="utf-8")
        with pytest.raises(InputError, match=rf"damaged/results.json.*{message}.*run the study again"):
            report_command(damaged, tmp_path / "new")
        assert not (tmp_path / "new" / "report.md").exists()


@pytest.mark.parametrize("name", ["permuted_mnist", "permuted_scaled", "rotated_mnist"])
def test_the_published_studies_have_what_a_report_needs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("img2img.research.impresslearn.report.draw", lambda folder, results: [])  # the figures take longest
    text = rebuild_report(ROOT / "docs" / "results" / name, tmp_path).read_text(encoding="utf-8")
    page = (ROOT / "docs" / "findings" / "impresslearn.md").read_text(encoding="utf-8")
    (own,) = re.findall(r"\| own mask \(SupSup\) \| 0.1 \| ([\d.]+) \|", text)
    start = {"permuted_mnist": "permuted", "permuted_scaled": "permuted, scaled weights", "rotated_mnist": "rotated"}[name]
    assert f"| {start} | {own} |" in page


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was(
    finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = {**TINY, "out": str(tmp_path), "inference": {**TINY["inference"], "tasks": 0}}
    config["variants"] = {"counts": []}
    trainings: list[list[str]] = []
    train = StudyNetwork._train

    def killed(bench: StudyNetwork, jobs: list[Job], *args: Any, **kwargs: Any) -> None:
        trainings.append([job.task for job in jobs])
        if len(trainings) == 6:
            raise KeyboardInterrupt
        train(bench, jobs, *args, **kwargs)

    monkeypatch.setattr(StudyNetwork, "_train", killed)
    monkeypatch.setattr("img2img.research.impresslearn.write_report", lambda folder, results: None)  # the figures take longest
    with pytest.raises(KeyboardInterrupt):
        run(config)
    results = run(config)
    again, others = trainings[6], [name for number, names in enumerate(trainings) if number not in (5, 6) for name in names]
    assert again == trainings[5], "what was cut off is trained again"
    assert len(set(others)) == len(others), "and nothing else is trained twice"
    keys = "own", "wrong", "combined", "basis", "overlaps"
    assert {key: results[key] for key in keys} == {key: finished[1][key] for key in keys}
    before = len(trainings)
    run(config)
    assert len(trainings) == before, "a finished study trains nothing"
    (tmp_path / "results.json").unlink()
    run({**config, "train": {**TINY["train"], "lr": 2e-2}})
    assert len(trainings) > before, "what an unfinished study learned at another rate is not taken"


def test_a_study_keeps_its_folder_and_a_changed_measurement_is_noticed(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(finished[0], folder)
    config = {**TINY, "out": str(folder)}
    monkeypatch.setattr("img2img.research.impresslearn.write_report", lambda folder, results: None)  # the figures take longest
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with hold(folder), pytest.raises(FolderInUseError, match="study is in use by"):
        run(config)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    with pytest.raises(InputError), hold(tmp_path):
        run({**TINY, "out": str(tmp_path / "new"), "new_tasks": -1})
    assert not (tmp_path / "new").exists()
    path = next((folder / "seed0" / "density0.3" / "units").glob("own*.json"))
    whole = path.read_text()
    for wrong in (whole.replace('"bytes": ', '"bytes": 1', 1), whole[:-9], "[]", '{"depends": 1}'):
        assert wrong != whole
        path.write_text(wrong)
        with pytest.raises(InputError, match=rf"{path.name}.*"):
            run(config)
    path.unlink()  # as the message says
    assert run(config)["own"] == finished[1]["own"]


def test_a_mask_of_the_workbench_is_the_one_that_its_task_alone_would_get(tmp_path: Path) -> None:
    study = read_study({**TINY, "out": str(tmp_path), "train": {"mask_epochs": 1, "batch_size": 40}})
    family = build_numbered_tasks(study.data)
    bench, alone = (StudyNetwork(study, family, seed=0, density=0.3) for _ in range(2))
    jobs = [Job("first", 1), Job("second", 2), Job("again", 1, 1)]
    bench.learn(jobs, SupSup(density=0.3), epochs=1, folder="supsup")
    first, again = (bench.network.state(task).binaries()["trunk.fc1.weight"] for task in ("first", "again"))
    assert not first.equal(again), "a repeated training has other start scores and another order"
    for job in jobs:
        torch.manual_seed(alone.seed_of("scores", job))
        state = alone.network.add_task(job.task, SupSup(density=0.3))
        optimiser = torch.optim.RMSprop(state.parameters(), lr=study.train.lr)
        alone.network.train()
        for x, y in family.batches([job.number], [alone.seed_of("order", job)], epochs=1, batch_size=40):
            optimiser.zero_grad()
            F.cross_entropy(alone.network(x[0], task=job.task), y[0]).backward()
            optimiser.step()
        for name, mask in state.binaries().items():
            assert mask.equal(bench.network.state(job.task).binaries()[name])


# ---------------------------------------------------------------------- table 2


@pytest.mark.parametrize("row", TABLE_2, ids=lambda row: f"{row.data}, {row.network}")
def test_table_2_comes_out_as_it_is_printed(row: TableRow) -> None:
    for got, printed in zip((row.mask, row.task, row.savings), row.printed, strict=True):
        digits = len(f"{printed}".partition(".")[2]) if printed != int(printed) else 0
        assert abs(got - printed) < 10**-digits, "the paper cuts digits off as often as it rounds"


def test_the_papers_mask_by_hand() -> None:
    lenet = TABLE_2[0]
    assert lenet.mask == 266_000 / 8 * 2 / 1024
    assert lenet.alphas == 300
    assert lenet.task == 300 * 4 / 1024
    cifar = TABLE_2[2]
    assert math.isclose(cifar.task, cifar.mask / 2 + 210 * 4 / 1024), "10 masks over 20 tasks"


def test_coded_masks_take_about_their_entropy(finished: tuple[Path, dict[str, Any]]) -> None:
    (row,) = finished[1]["storage"]
    weights = 36 * 64 + 64 * 32 + 32 * 10
    assert row["weights"] == weights
    assert row["as_the_paper_counts"] == 0.3 * weights * 2
    entropy = weights * -(0.3 * math.log2(0.3) + 0.7 * math.log2(0.7)) / 8
    assert math.isclose(row["entropy_bytes"], entropy, rel_tol=0.01)
    assert entropy < row["coded_bytes"] < entropy + 64
    assert [entry["count"] for entry in row["combined"]] == [1, 6]


# ---------------------------------------------------------------------- images and options


def test_batches_are_the_permuted_images_in_each_tasks_own_order() -> None:
    family = synthetic_tasks(size=4, train=30, test=10)
    (x, y), *rest = family.batches([1, 2], [5, 6], epochs=2, batch_size=10)
    assert len(rest) == 5
    assert x.shape == (2, 10, 1, 4, 4)
    plain, classes = family.pixels(1, "train")
    for index, (number, seed) in enumerate([(1, 5), (2, 6)]):
        rows = torch.randperm(30, generator=torch.Generator().manual_seed(seed))[:10]
        assert y[index].equal(classes[rows])
        first, order = (np.random.default_rng(n).permutation(16) for n in (1, number))
        unpermuted = plain.flatten(1)[:, np.argsort(first)]
        assert x[index].equal(standardised(unpermuted[:, order])[rows].view(10, 1, 4, 4))
    with pytest.raises(InputError, match="batch_size=31"):
        family.steps(31)


def test_rotations_are_each_whole_degree_once(tmp_path: Path) -> None:
    family = build_numbered_tasks({"kind": "rotated_mnist", "root": str(tmp_path)})
    assert sorted(family.label(number) for number in range(1, 360)) == list(range(1, 360))
    apart = [abs(family.label(n + 1) - family.label(n)) for n in range(1, 100)]
    assert sum(apart) / len(apart) > 60, "neighbours in number are no neighbours in angle"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"countz": [1]}, "did you mean 'counts'"),
    ({"train": {"lr": -1}}, r"train.lr=-1"),
    ({"kinds": ["hetero"]}, "'hetero'"),
    ({"densities": [0.1, 0.1]}, "each once"),
    ({"densities": [1.5]}, "fractions between 0 and 1"),
    ({"inference": {"density": 0.1}}, "inference.density=0.1"),
    ({"inference": {"tasks": 3, "density": 0.3, "count": 7}}, "ask for more masks than the 6"),
    ({"inference": {"tasks": -5}}, "inference: tasks=-5: expected 0 or more"),
    ({"inference": {"tasks": 3, "density": 0.3, "count": 6, "epochs": []}}, r"inference.epochs=\[\]"),
    ({"variants": {"density": 0.3, "counts": [6], "lr": -1}}, "variants.lr=-1: expected more than 0"),
    ({"variants": {"density": 0.3, "counts": [0]}}, "variants.counts has 0"),
    ({"basis_tasks": -1}, "basis_tasks=-1: expected 0 or more"),
    ({"threads": 0}, "threads=0: expected 1 or more"),
    ({"outputs": 9}, "outputs=9: expected 10 or more, one for each class"),
    ({"data": {"kind": "mnist"}}, "expected one of permuted_mnist, rotated_mnist, made"),
    ({"data": {"kind": "made", "noise": 2.0}}, "noise=2.0"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_what_cannot_be_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run({**TINY, **change, "out": str(tmp_path)})


def test_more_tasks_than_there_are_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few: Callable[..., NumberedTasks] = functools.partial(NumberedTasks, "few", synthetic_tasks()._source, number_of_tasks=8)
    monkeypatch.setattr("img2img.research.impresslearn.build_numbered_tasks", lambda options: few())
    with pytest.raises(InputError, match="needs 9 tasks, 6 for the basis"):
        run({**TINY, "out": str(tmp_path)})


@pytest.mark.parametrize("name", ["tiny", "permuted_mnist", "rotated_mnist"])
def test_a_config_names_every_option_and_its_default(name: str) -> None:
    overrides = [f"study={name}", *(["data_root=somewhere"] if name != "tiny" else [])]
    study = read_study(plain_config(compose("impresslearn", overrides)))
    assert study.name == name
    if name == "tiny":
        return
    plain = Study(name=study.name, out=study.out, data=study.data)
    assert study.train == plain.train == TrainOptions()
    base = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "impresslearn.yaml"))
    assert isinstance(base, dict)
    assert set(vars(plain)) == base.keys() - {"defaults", "hydra"}
    for key in set(vars(plain)) - {"name", "out", "data", "train", "inference", "variants"}:
        wanted = getattr(plain, key)
        assert getattr(study, key) == (list(wanted) if isinstance(wanted, tuple) else wanted), key


def test_the_measurements_leave_nothing_behind(tmp_path: Path) -> None:
    study = read_study({**TINY, "out": str(tmp_path)})
    bench = StudyNetwork(study, build_numbered_tasks(study.data), seed=0, density=0.3)
    measurements.combinations(bench, "random", 6)
    assert bench.network.tasks() == ()
    assert bench.network.bases() == {}


def test_a_folder_with_another_pipelines_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text("{}")
    with pytest.raises(InputError, match="holds a run of another pipeline"):
        run({**TINY, "out": str(tmp_path)})
    assert not (tmp_path / "results.json").exists()


@pytest.fixture
def copied(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of the finished study's folder."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {**TINY["train"], "lr": 1e-2}}, r"with train\.lr=0\.005, which one with train\.lr=0\.01 would replace"),
        ({"train": {**TINY["train"], "mask_epochs": 9}}, r"train\.mask_epochs=8"),
        ({"data": {**TINY["data"], "noise": 0.2}}, "data={'kind': 'made'.*'noise': 0.2"),
        ({"outputs": 20}, "outputs=10, which one with outputs=20"),
        ({"hidden": [64, 16]}, r"hidden=\[64, 32\]"),
        ({"scaled": False}, "scaled=True"),
        ({"counts": [6]}, r"counts=\[1, 6\], which one with counts=\[6\]"),
        ({"kinds": ["random"]}, "kinds="),
        ({"new_tasks": 1}, "new_tasks=2"),
        ({"inference": {**TINY["inference"], "tasks": 4}}, r"inference\.tasks=3"),
        ({"variants": {"density": 0.3, "counts": []}}, r"variants\.counts=\[6\]"),
    ],
)
def test_finished_results_are_not_replaced_by_those_of_another_study(copied: Path, change: dict[str, Any], message: str) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=message):
        run({**TINY, **change, "out": str(copied)})
    assert before == {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}


def test_results_of_another_version_are_not_replaced(copied: Path) -> None:
    for text, why in (("[]", "it describes no study"), ('{"study": {"colour": 1}, "data": {}}', "no option 'colour'")):
        (copied / "results.json").write_text(text)
        with pytest.raises(InputError, match=rf"not written by a study.*{why}"):
            run({**TINY, "out": str(copied)})


def test_what_adds_to_finished_results_is_allowed(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    more: list[dict[str, Any]] = [
        {"name": "other", "threads": 1, "train": {**TINY["train"], "together": 1}},
        {"seeds": [0, 1], "densities": [0.1, 0.3], "counts": [1, 3, 6, 8], "new_tasks": 3, "wrong_masks": 4},
        {"variants": {**TINY["variants"], "counts": [3, 6]}, "counts": [1, 3, 6]},
        {"inference": {**TINY["inference"], "epochs": [1, 2]}},
    ]
    for change in more:
        check_earlier(folder, read_study({**TINY, **change, "out": str(folder)}))


def test_more_new_tasks_are_measured_where_an_earlier_measurement_had_fewer(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(finished[0], tmp_path / "study")
    found = []
    for new_tasks in (2, 3, 4):
        study = read_study({**TINY, "out": str(tmp_path / "study"), "new_tasks": new_tasks})
        bench = StudyNetwork(study, build_numbered_tasks(study.data), seed=0, density=0.3)
        found.append(measurements.inference(bench, 1)["accuracy"])
        measurements._add_basis(bench, "inference_1", study.inference.kind, study.inference.count)
        jobs = [Job(f"inference_1_on_{number}", number) for number in (7, 8, 9)][:new_tasks]
        for job in jobs:
            bench.network.load_task(bench.path("inference_1", job), name=job.task)
        assert found[-1] == pytest.approx(sum(bench.accuracy(job.task, job.number) for job in jobs) / len(jobs))
    assert found[0] == finished[1]["inference"][0]["accuracy"]


def test_what_was_not_measured_may_be_asked_for_with_any_options(tmp_path: Path) -> None:
    bare = {**TINY, "inference": {"tasks": 0}, "variants": {"counts": []}}
    study = {key: value for key, value in bare.items() if key != "data"}
    (tmp_path / "results.json").write_text(json.dumps({"study": study, "data": TINY["data"]}))
    check_earlier(tmp_path, read_study({**TINY, "out": str(tmp_path)}))


@pytest.mark.slow
def test_one_mask_has_no_overlap_to_report(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    few = {"counts": [1], "inference": {"tasks": 0}, "variants": {"counts": []}, "train": {**TINY["train"], "mask_epochs": 1}}
    assert run({**TINY, **few, "out": str(tmp_path)})["overlaps"] == []
    assert not (tmp_path / "figures" / "overlap.png").exists()
    assert "Overlap" not in (tmp_path / "report.md").read_text()
    assert [str(warning.message) for warning in recwarn if "labels" in str(warning.message)] == []
    assert OmegaConf.load(tmp_path / "config" / "config.yaml").counts == [1]


def test_outputs_beyond_the_classes_are_never_a_target_and_learn_to_be_silent(tmp_path: Path) -> None:
    study = read_study({**TINY, "out": str(tmp_path), "outputs": 25})
    family = build_numbered_tasks(study.data)
    bench = StudyNetwork(study, family, seed=0, density=0.3)
    job = Job("mask_1", 1)
    bench.learn([job], SupSup(density=0.3), epochs=study.train.mask_epochs, folder="supsup")
    x, y = family.test(1)
    logits = bench.outputs("mask_1", x)
    assert logits.shape == (len(x), 25)
    assert y.max() < 10
    assert bench.accuracy("mask_1", 1) > 0.9
    assert logits.softmax(1)[:, 10:].sum(1).mean() < 0.1, "of 0.6 before training"
