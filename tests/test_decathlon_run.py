"""A Decathlon in the official files, made small: from the sequence to the score and the server's file."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import img2img
from img2img.data.base import Batch
from img2img.data.cache import Cached
from img2img.data.decathlon import DECATHLON, Decathlon
from img2img.decathlon import finish, predict, score_of
from img2img.metrics import decathlon_score
from img2img.metrics.decathlon import FINETUNED
from img2img.run import run
from img2img.tasks import Task, build_task

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
        "train": {"epochs": 4, "batch_size": 3, "crop": 16, "zoom": [1, 1], "lr": 1e-2, "warmup": 0, "val_epochs": 2},
        "tasks": {name: task(name) for name in DECATHLON},
        "sequence": sequence,
        "probe": 1,
        "panels": 1,
        "accelerator": "cpu",
    }


def test_ten_tasks_end_with_a_score_and_a_file_for_the_server(official: Path, tmp_path: Path) -> None:
    results = run(_config(official, tmp_path, list(FINETUNED)), then=finish)
    written = json.loads((tmp_path / "run" / "decathlon.json").read_text())
    accuracies = [100 * task["value"] for task in results["tasks"]]
    expected = decathlon_score(accuracies, list(FINETUNED.values()))
    assert written["score"] == expected.total
    assert "validation" in written["note"]
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


def test_fewer_tasks_have_no_score(official: Path, tmp_path: Path) -> None:
    results = run(_config(official, tmp_path, ["dtd", "svhn"]), then=finish)
    assert score_of(results) is None
    assert not (tmp_path / "run" / "decathlon.json").exists()
    assert not (tmp_path / "run" / "submission").exists()


def test_the_servers_pictures_are_made_squares_as_the_tasks_own(official: Path) -> None:
    pictures = Decathlon(root=official, dataset="dtd", part="test")  # of 24 x 20 pixels
    whole = Cached(pictures, square=18)
    seen: list[torch.Tensor] = []

    def answer(network: object, task: Task, input: torch.Tensor) -> torch.Tensor:
        seen.append(input)
        return torch.zeros(len(input), 2)

    task = build_task({"kind": "classification", "classes": ["dark", "bright"]})
    runner: Any = SimpleNamespace(
        run_of=lambda name: None,
        ready={"dtd": SimpleNamespace(task=task)},
        evaluator=SimpleNamespace(device="cpu", predict=answer),
        experiment=SimpleNamespace(batch_size=3),
    )
    assert predict(runner, "dtd", pictures, square=18) == dict.fromkeys(pictures.image_ids, 0)
    assert [len(batch) for batch in seen] == [3, 2], "squares are of one size"
    expected = task.input(Batch.stack([whole[row] for row in range(COUNTS["test"])]))
    assert torch.equal(torch.cat(seen), expected)
    seen.clear()
    predict(runner, "dtd", pictures, square=18, middle=16)
    assert torch.equal(torch.cat(seen), expected[..., 1:17, 1:17])
