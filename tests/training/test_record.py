"""A run knows the files that it was learned from: changed data is never taken for the same."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import killed_at
from PIL import Image
from typer.testing import CliRunner

from img2img import InputError
from img2img.api import run
from img2img.cli import app
from img2img.research.suites.runner import other_data
from img2img.research.suites.store import store_run
from img2img.training.evaluation import evaluate_run
from img2img.training.record import read_now, read_record

pytestmark = pytest.mark.usefixtures("without_curves")

Make = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without images and the page, which take longest."""
    monkeypatch.setattr("img2img.training.run.save_panels", lambda runner: None)
    monkeypatch.setattr("img2img.training.run.save_outputs", lambda runner, folder: None)
    monkeypatch.setattr("img2img.api.write_report", lambda folder: folder)


@pytest.fixture
def data(disk_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(disk_data, tmp_path / "data"))


@pytest.fixture
def made(config: Make, data: Path) -> Make:
    """The tiny experiment on a copy of the images, split by fractions, so that one more image changes the split."""

    def make(root: Path = data, **changes: Any) -> dict[str, Any]:
        whole = config(**{"sequence": ["disks", "colour"]} | changes)
        images, labels = (str(root / "train" / name) for name in ("images", "labels"))
        (root / "classes.txt").write_text("ground\ndisk\n")
        labelled = {"kind": "image_label_folder", "images": images, "labels": labels, "classes": str(root / "classes.txt")}
        whole["tasks"]["disks"]["data"] = labelled
        whole["tasks"]["colour"]["data"] = {"kind": "image_folder", "root": images}
        return whole

    return make


def _add(data: Path) -> None:
    for kind, value in (("images", (9, 9, 9)), ("labels", 1)):
        Image.new("RGB" if kind == "images" else "L", (32, 32), value).save(data / "train" / kind / "0a.png")


def _correct(data: Path) -> None:
    path = data / "train" / "labels" / "3.png"
    Image.fromarray(1 - np.asarray(Image.open(path))).save(path)


def _rename(data: Path) -> None:
    (data / "classes.txt").write_text("disk\nground\n")


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_add, r"added .*0a\.png.* moved to another part"),
        (_correct, r"1 changed \(\w+/3\.png \(label\)\)"),
        (lambda data: (data / "train" / "images" / "5.png").unlink(), r"removed .*/5\.png"),
    ],
)
def test_a_finished_run_on_other_files_is_refused_with_the_way_on(
    made: Make, data: Path, tmp_path: Path, change: Callable[[Path], object], said: str
) -> None:
    first = run(made())
    kept = (tmp_path / "run" / "results.json").read_bytes()
    assert run(made()) == first, "unchanged files are no change"
    change(data)
    with pytest.raises(InputError, match=rf"'(disks|colour)'.*{said}.*anyway"):
        run(made())
    assert (tmp_path / "run" / "results.json").read_bytes() == kept


@pytest.mark.slow
def test_changed_names_of_classes_are_changed_data(made: Make, data: Path) -> None:
    config = made()
    run(config)
    _rename(data)
    with pytest.raises(InputError, match=r"2 changed \(options/data\.classes, "):
        run(config)


@pytest.mark.slow
def test_an_interrupted_run_does_not_go_on_with_another_split(made: Make, data: Path, tmp_path: Path) -> None:
    with killed_at(6):
        run(made())
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*.pt")] == ["disks.pt"]
    _add(data)
    with pytest.raises(InputError, match=r"'disks' from other files .*added"):
        run(made())
    run(made(resume="anyway"))
    assert "its files have changed since it was learned" in (tmp_path / "run" / "log.txt").read_text()
    run(made())  # what was accepted is the data from now on


@pytest.mark.slow
def test_a_task_that_was_not_begun_may_have_other_files(made: Make, data: Path) -> None:
    with killed_at(2):  # before the first checkpoint
        run(made())
    _add(data)
    assert run(made())["tasks"][0]["name"] == "disks"


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("step", [6, None])
def test_data_that_was_copied_elsewhere_is_the_same(made: Make, data: Path, tmp_path: Path, step: int | None) -> None:
    whole = run(made(out=str(tmp_path / "whole")))
    if step is None:
        run(made())
    else:
        with killed_at(step):
            run(made())
    shutil.copytree(data, tmp_path / "other")
    for path in (tmp_path / "other").rglob("*.png"):
        os.utime(path, (1, 1))
    shutil.rmtree(data)
    resumed = run(made(root=tmp_path / "other"))
    for results in (whole, resumed):
        for task in results["tasks"]:
            del task["train_seconds"]
    assert resumed == whole, "bit for bit"


@pytest.mark.slow
def test_a_run_without_a_record_goes_on_and_is_bound_from_then_on(made: Make, data: Path, tmp_path: Path) -> None:
    first, config = run(made()), made()
    shutil.rmtree(tmp_path / "run" / "data")
    assert run(config) == first
    assert "kept no list of the files it read" in (tmp_path / "run" / "log.txt").read_text()
    _correct(data)
    with pytest.raises(InputError, match="1 changed"):
        run(config)


def test_a_backbone_of_other_files_is_not_taken(made: Make, data: Path, tmp_path: Path) -> None:
    run(made(out=str(tmp_path / "first"), sequence=["disks"]))
    _correct(data)
    with pytest.raises(InputError, match=r"backbone_from=.*'disks'.*1 changed"):
        run(made(backbone_from=str(tmp_path / "first")))
    assert not (tmp_path / "run").exists()
    run(made(backbone_from=str(tmp_path / "first"), resume="anyway"))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert len(re.findall(r"backbone_from=.*'disks' was learned from other files .*1 changed", log)) == 1


@pytest.mark.slow
def test_evaluate_says_that_the_files_have_changed(made: Make, data: Path, tmp_path: Path) -> None:
    run(made())
    assert all(entry["changed"] is None for entry in evaluate_run(tmp_path / "run").values())
    (name, *_) = [n for n in read_record(tmp_path / "run" / "data" / "disks.json") or {} if n.startswith("test/")]
    path = data / "train" / "images" / name.removeprefix("test/").split(" ")[0]
    Image.new("RGB", (32, 32), (1, 2, 3)).save(path)
    measured = evaluate_run(tmp_path / "run")
    assert path.name in measured["disks"]["changed"]
    said = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run")])
    assert said.exit_code == 0
    assert f"disks: measured on other files than the run had: {measured['disks']['changed']}" in said.output


def test_results_say_what_they_are_of_and_a_suite_does_not_mix_them(made: Make, data: Path, tmp_path: Path) -> None:
    results = run(made())
    again = run(made(out=str(tmp_path / "again")))
    digests = [task["data_sha256"] for task in results["tasks"]]
    assert digests == [task["data_sha256"] for task in again["tasks"]]
    assert len(set(digests)) == 2
    assert other_data(tmp_path / "run", tmp_path / "store") is None, "nothing is stored yet"
    store_run(tmp_path / "again", tmp_path / "store", label="masks", seed=0)
    assert other_data(tmp_path / "run", tmp_path / "store") is None
    _correct(data)
    run(made(out=str(tmp_path / "new")))
    assert "'disks' was learned from other files" in (other_data(tmp_path / "new", tmp_path / "store") or "")
    assert other_data(tmp_path / "new", tmp_path / "store", but=("masks", 0)) is None


def test_any_text_among_the_options_is_read(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("a")
    options = {"long": "x" * 5000, "null": "a\0b", "home": "~nobody/x", "kind": str(tmp_path / "list"), "folder": str(tmp_path)}
    assert list(read_now({}, options | {"deep": {"file": str(tmp_path / "list")}})) == ["options/deep.file"]


def test_made_images_have_no_files(config: Make, tmp_path: Path) -> None:
    made = config(sequence=["shapes"])
    data = {"kind": "scenes", "scenes": "shapes", "size": 32, "count": {"train": 4, "val": 2, "test": 2}}
    made["tasks"]["shapes"] = {"task": {"kind": "segmentation"}, "data": data}
    for _ in range(2):
        assert [task["data_sha256"] for task in run(made)["tasks"]] == [None]
    assert not (tmp_path / "run" / "data").exists()
    assert "kept no list" not in (tmp_path / "run" / "log.txt").read_text()


def test_a_damaged_record_is_one_message(made: Make, tmp_path: Path) -> None:
    run(made())
    (tmp_path / "run" / "data" / "disks.json").write_text('{"files": {"a": 3}}')
    with pytest.raises(InputError, match=r"files\.a: .*got 3; restore"):
        run(made())
