"""A Decathlon in the official files, made small: from the sequence to the score and the server's file."""

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import img2img
from img2img.api import run
from img2img.backbones import build_backbone
from img2img.cli.pipeline import run_config, run_decathlon
from img2img.data.base import Batch
from img2img.data.cache import CachedDataset
from img2img.data.datasets.decathlon import DECATHLON, Decathlon
from img2img.errors import InputError
from img2img.research.decathlon import (
    CLASSES,
    FINETUNED,
    MADE,
    OFFICIAL,
    SEEN,
    decathlon_score,
    finish,
    note_of,
    predict,
    score_of,
)
from img2img.tasks import Task, build_task
from img2img.training.compose import compose, plain_config
from img2img.training.config import read_experiment

pytestmark = pytest.mark.usefixtures("without_curves")

CONFIGS = Path(__file__).parents[2] / "configs"

COUNTS = {"train": 12, "val": 4, "test": 5}


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """All ten datasets of two classes, a dark and a bright one, with ids as the official files have them."""
    root, rng = tmp_path / "decathlon-1.0", np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for number, dataset in enumerate(DECATHLON, start=1):
        ids = [number * 10_000_000 + 2, number * 10_000_000 + 7]
        for part, count in COUNTS.items():
            folder = root / "data" / dataset / part
            folder.mkdir(parents=True)
            images, annotations = [], []
            for i in range(count):
                name, image_id = f"data/{dataset}/{part}/{i}.png", number * 1000 + len(part) * 100 + i
                pixels = rng.integers(0, 90, (20, 24, 3)) + 160 * (i % 2)
                Image.fromarray(pixels.astype(np.uint8)).save(root / name)
                images.append({"id": image_id, "file_name": name, "width": 24, "height": 20})
                annotations.append({"id": i, "image_id": image_id, "category_id": ids[i % 2], "bbox": []})
            content: dict[str, Any] = {"images": images, "categories": [{"id": i, "name": f"c{i}"} for i in ids]}
            stem = "test_stripped" if part == "test" else part
            if part != "test":
                content["annotations"] = annotations
            (root / "annotations" / f"{dataset}_{stem}.json").write_text(json.dumps(content))
    return tmp_path


def _config(root: Path, tmp_path: Path, sequence: list[str]) -> dict[str, Any]:
    def task(dataset: str) -> dict[str, Any]:
        parts = {"train": {"part": "train"}, "test": {"part": "val"}}
        data = {
            "kind": "decathlon",
            "root": str(root),
            "dataset": dataset,
            "square": 18,
            "middle": 16,
            "fractions": [0.75, 0.25],
            "parts": parts,
        }
        return {"task": {"kind": "classification"}, "data": data}

    return {
        "name": "decathlon",
        "out": str(tmp_path / "run"),
        "backbone": {"kind": "wide_resnet", "depth": 10, "width": 1},
        "method": {"name": "piggyback"},
        "train": {
            "epochs": 4,
            "batch_size": 3,
            "augmentation": {"crop": 16, "zoom": [1, 1]},
            "optimiser": {"lr": 1e-2},
            "schedule": {"warmup": 0},
            "validation": {"epochs": 2},
        },
        "tasks": {name: task(name) for name in DECATHLON},
        "sequence": sequence,
        "evaluation": {"check_images": 1, "panels": 1},
        "device": {"accelerator": "cpu"},
    }


def test_ten_tasks_end_with_a_score_and_a_file_for_the_server(official: Path, tmp_path: Path) -> None:
    results = run(_config(official, tmp_path, list(FINETUNED)), then=finish)
    written = json.loads((tmp_path / "run" / "decathlon.json").read_text())
    accuracies = [100 * task["value"] for task in results["tasks"]]
    expected = decathlon_score(accuracies, list(FINETUNED.values()))
    assert written["score"] == expected.total
    assert written["note"] == MADE, "two classes are not the Decathlon's"
    assert list(written["parts"].values()) == list(expected.parts)
    assert written["score_per_parameter"] == pytest.approx(expected.total / results["relative_parameters"])
    assert written["relative_parameters"] == pytest.approx(1 + 9 / 32, abs=0.2), (
        "nine masks, and norm parameters, many in so small a network"
    )
    submission = json.loads((tmp_path / "run" / "submission" / "results.json").read_text())
    assert len(submission) == 10 * COUNTS["test"]
    first = [entry for entry in submission if entry["image_id"] // 1000 == 1]
    assert [entry["image_id"] for entry in first] == [1400 + i for i in range(5)]
    assert {entry["category_id"] for entry in first} <= {10_000_002, 10_000_007}
    right = [
        entry["category_id"] == entry["image_id"] // 1000 * 10_000_000 + (2, 7)[entry["image_id"] % 2] for entry in submission
    ]
    assert np.mean(right) > 0.7, "dark and bright are told apart, in the official ids"
    model = img2img.load(tmp_path / "run")
    assert all(model.task(name).square and model.tasks[name].side == 16 for name in FINETUNED), "in use they see squares too"


NINE = [name for name in FINETUNED if name != "imagenet12"]


@pytest.fixture
def on_a_given_network(official: Path, tmp_path: Path) -> dict[str, Any]:
    """Nine tasks on the weights of a file, all that the recommended command changes."""
    torch.manual_seed(0)
    weights = tmp_path / "wrn.safetensors"
    save_file(build_backbone({"kind": "wide_resnet", "depth": 10, "width": 1, "out_channels": 2}).state_dict(), weights)
    config = _config(official, tmp_path, NINE)
    config["backbone"] |= {"mode": "pretrained", "weights": str(weights)}
    config["train"] |= {"epochs": 1, "validation": {"epochs": 1}}
    return config


@pytest.mark.slow
def test_the_accuracy_of_a_given_network_completes_the_score(on_a_given_network: dict[str, Any], tmp_path: Path) -> None:
    results = run(on_a_given_network, then=partial(finish, imagenet12_accuracy=59.67))
    written = json.loads((tmp_path / "run" / "decathlon.json").read_text())
    accuracies = {task["name"]: 100 * task["value"] for task in results["tasks"]} | {"imagenet12": 59.67}
    expected = decathlon_score([accuracies[name] for name in FINETUNED], list(FINETUNED.values()))
    assert (written["score"], written["accuracies"]["imagenet12"]) == (expected.total, 59.67)
    assert written["given"] == {"imagenet12": 59.67}
    assert written["note"].startswith(OFFICIAL)
    assert "imagenet12's accuracy was given with the backbone and not measured" in written["note"]
    assert written["relative_parameters"] == results["relative_parameters"], "the backbone is counted once either way"
    submission = json.loads((tmp_path / "run" / "submission" / "results.json").read_text())
    assert len(submission) == 9 * COUNTS["test"]
    assert 1 not in {entry["image_id"] // 1000 for entry in submission}, "ImageNet's images have no answer"
    log = " ".join((tmp_path / "run" / "log.txt").read_text().split())
    assert "1 of the ten datasets are not in it and count as wrong there: imagenet12" in log


def test_fewer_tasks_have_no_score_but_a_file_for_the_server(official: Path, tmp_path: Path) -> None:
    results = run(_config(official, tmp_path, ["dtd", "svhn"]), then=finish)
    assert score_of(results) is None
    assert score_of(results, 59.67) is None
    assert not (tmp_path / "run" / "decathlon.json").exists()
    submission = json.loads((tmp_path / "run" / "submission" / "results.json").read_text())
    learned = {DECATHLON.index(name) + 1 for name in ("dtd", "svhn")}
    assert {entry["image_id"] // 1000 for entry in submission} == learned
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("no score") == 1
    assert "of a backbone from a file imagenet12_accuracy=PERCENT gives imagenet12's" in log
    assert "8 of the ten datasets are not in it and count as wrong there: imagenet12, aircraft, cifar100" in log


def test_a_dataset_without_test_images_leaves_the_others_in_the_servers_file(official: Path, tmp_path: Path) -> None:
    (official / "decathlon-1.0" / "annotations" / "svhn_test_stripped.json").unlink()
    run(_config(official, tmp_path, ["dtd", "svhn"]), then=finish)
    submission = json.loads((tmp_path / "run" / "submission" / "results.json").read_text())
    assert {entry["image_id"] // 1000 for entry in submission} == {DECATHLON.index("dtd") + 1}
    assert "no test images of svhn: no file at" in (tmp_path / "run" / "log.txt").read_text()


def _results(names: list[str], parameters: float) -> dict[str, Any]:
    tasks = [{"name": name, "value": 0.9, "bytes": 1} for name in names]
    matrix = {"value_matrix": [[0.9] * len(names)] * len(names)}
    return {
        "tasks": tasks,
        "relative_parameters": parameters,
        "shared_bytes": 10,
        "backbone": {"bytes": 100},
        "forgetting": matrix,
    }


def test_a_given_network_is_one_more_where_tasks_take_nothing_from_it() -> None:
    for parameters, unused, expected in ((9.0, True, 10.0), (10.0, False, 10.0), (1.28, False, 1.28)):
        score = score_of(_results(NINE, parameters), 59.67, unused=unused)
        assert score is not None
        assert score["relative_parameters"] == pytest.approx(expected)
    measured = score_of(_results(list(FINETUNED), 10.0), unused=True)
    assert measured is not None
    assert (measured["relative_parameters"], measured["given"]) == (10.0, {})


def test_what_was_forgotten_does_not_count() -> None:
    results = _results(list(FINETUNED), 1.0)
    results["forgetting"]["value_matrix"][-1] = [0.1] * 9 + [0.9]
    score = score_of(results)
    assert score is not None
    assert list(score["accuracies"].values()) == [pytest.approx(10.0)] * 9 + [pytest.approx(90.0)]


def test_the_bytes_of_a_given_network_count_once() -> None:
    masks = _results(NINE, 1.28)
    individual = masks | {"shared_bytes": 0}
    found = [score_of(results, 59.67) for results in (masks, individual)]
    assert [score["bytes"] for score in found if score is not None] == [10 + 9, 100 + 9]
    whole = score_of(_results(list(FINETUNED), 10.0) | {"shared_bytes": 0})
    assert whole is not None
    assert whole["bytes"] == 10, "ImageNet's network is one of the ten tasks"


def _experiment(*overrides: str, pipeline: str = "decathlon") -> Any:
    return compose(pipeline, [*overrides, "++data_root=somewhere"])


RECOMMENDED = (
    "experiment=decathlon",
    "backbone.mode=pretrained",
    "backbone.weights=wrn28_4.safetensors",
    f"sequence=[{','.join(NINE)}]",
)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*RECOMMENDED, "imagenet12_accuracy=0.5967"], "a fraction as it seems: expected per cent"),
        ([*RECOMMENDED, "imagenet12_accuracy=101"], r"expected a number in \[0, 100\]"),
        ([*RECOMMENDED, "imagenet12_accuracy=-1"], r"expected a number in \[0, 100\]"),
        ([*RECOMMENDED, "imagenet12_accuracy=high"], r"expected a number in \[0, 100\]"),
        ([*RECOMMENDED, "imagenet12_accuracy=true"], r"expected a number in \[0, 100\]"),
        ([*RECOMMENDED, "imagenet12_accuracy=nan"], r"expected a number in \[0, 100\]"),
        ([*RECOMMENDED[:3], "imagenet12_accuracy=59.67"], "the sequence learns imagenet12, whose accuracy is measured"),
        (["experiment=decathlon", RECOMMENDED[3], "imagenet12_accuracy=59.67"], "but backbone.mode='first_task'"),
        ([*RECOMMENDED, "method=sequential", "imagenet12_accuracy=59.67"], "which method='sequential' changes"),
    ],
)
def test_an_accuracy_that_cannot_be_is_refused_before_anything_is_trained(
    overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("img2img.api.run", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(SystemExit):
        run_decathlon(_experiment(*overrides))
    assert re.search(message, capsys.readouterr().err)


def test_the_key_reaches_the_end_of_a_run_and_other_scripts_do_not_know_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[dict[str, Any], Any]] = []
    monkeypatch.setattr("img2img.api.run", lambda config, *, composed, then: ran.append((config, then)))
    for method in ("affine", "finetune", "head_only"):
        run_decathlon(_experiment(*RECOMMENDED, f"method={method}", "imagenet12_accuracy=59.67"))
        assert "imagenet12_accuracy" not in ran[-1][0], "the experiment does not know it"
        assert (ran[-1][1].func, ran[-1][1].keywords) == (finish, {"imagenet12_accuracy": 59.67})
    run_decathlon(_experiment("experiment=decathlon"))
    assert ran[-1][1].keywords == {"imagenet12_accuracy": None}
    with pytest.raises(InputError, match="no option 'imagenet12_accuracy'"):
        _experiment("experiment=pacs", "imagenet12_accuracy=59.67", pipeline="imagenet_to_sketch")
    with pytest.raises(SystemExit):
        run_config(_experiment("experiment=pacs", "+imagenet12_accuracy=59.67", pipeline="imagenet_to_sketch"))
    assert "pipelines/decathlon.py alone" in capsys.readouterr().err


def test_a_score_says_what_it_is_worth() -> None:
    def noted(*overrides: str, classes: Mapping[str, int] = CLASSES) -> str:
        experiment = read_experiment(plain_config(_experiment(*overrides)))
        data = [task.data.plain() for task in experiment.tasks]
        return note_of([(options, classes.get(options.get("dataset", ""), 2)) for options in data])

    assert noted("experiment=decathlon") == OFFICIAL
    assert noted("experiment=decathlon_final") == SEEN
    assert "trained on" in SEEN
    assert "only the server's file counts" in SEEN
    assert noted("experiment=decathlon_made") == MADE
    assert noted("experiment=decathlon", classes=CLASSES | {"dtd": 8}) == MADE, "the official layout, but not its images"
    one = "tasks.dtd.data.parts.train.part=train+val"
    assert noted("experiment=decathlon", one) == SEEN, "one task is enough"


def test_the_servers_images_are_made_squares_as_the_tasks_own(official: Path) -> None:
    dataset = Decathlon(root=official, dataset="dtd", part="test")  # of 24 x 20 pixels
    whole = CachedDataset(dataset, square=18)
    seen: list[torch.Tensor] = []

    def answer(network: object, task: Task, input: torch.Tensor) -> torch.Tensor:
        seen.append(input)
        return torch.zeros(len(input), 2)

    task = build_task({"kind": "classification", "classes": ["dark", "bright"]})
    runner: Any = SimpleNamespace(
        run_of=lambda name: None,
        task_data={"dtd": SimpleNamespace(task=task)},
        evaluator=SimpleNamespace(device="cpu", predict=answer),
        experiment=SimpleNamespace(evaluation=SimpleNamespace(batch_size=3)),
    )
    assert predict(runner, "dtd", dataset, square=18) == dict.fromkeys(dataset.image_ids, 0)
    assert [len(batch) for batch in seen] == [3, 2], "squares are of one size"
    expected = task.input(Batch.stack([whole[row] for row in range(COUNTS["test"])]))
    assert torch.equal(torch.cat(seen), expected)
    seen.clear()
    predict(runner, "dtd", dataset, square=18, middle=16)
    assert torch.equal(torch.cat(seen), expected[..., 1:17, 1:17])
