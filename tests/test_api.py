"""A new task for a bundle that is there: the same as if the first run had learned it, and no other task moves."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import img2img
from img2img import InputError
from img2img.api import add_task as train_new_task
from img2img.bundle import delete_task_from_bundle, read_bundle, task_path
from img2img.bundle.join import join_bundles
from img2img.training.evaluation import evaluate_run

pytestmark = pytest.mark.usefixtures("without_curves")

FEW = {
    "steps": 6,
    "batch_size": 2,
    "log_every": 3,
    "augmentation": {"crop": 32},
    "validation": {"every": 3, "precise_bn_batches": 0},
}
TRANSLATION = {"kind": "translation"}


@pytest.fixture
def folder(bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    for i in range(10):
        image = rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)
        for name, values in (("a", image), ("b", 255 - image)):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / name / f"{i}.png")
    return {"kind": "paired_folders", "inputs": str(tmp_path / "a"), "targets": str(tmp_path / "b")}


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_a_new_task_runs_and_is_kept_and_the_others_stay(
    folder: Path, pairs: dict[str, Any], image: NDArray[np.uint8], tmp_path: Path
) -> None:
    model = img2img.load(folder)
    before = model.run_all(image)
    run = img2img.add_task(folder, "negative", task=TRANSLATION, data=pairs, train=FEW, out=tmp_path / "run")
    assert run == tmp_path / "run"
    again = img2img.load(folder)
    made = again.tasks["negative"]
    assert (made.kind, made.method, made.side) == ("translation", "sparse_signs", 32)
    assert made.metrics["MSE"] is not None
    assert (tmp_path / "run" / "report.html").is_file()
    assert evaluate_run(tmp_path / "run")["negative"]["metrics"] == pytest.approx(made.metrics, rel=1e-4)
    assert list(again.tasks) == [*before, "negative"]
    merged = img2img.load(folder, weights="merged")
    assert np.array_equal(again.run("negative", image), merged.run("negative", image))
    for name, result in before.items():
        assert np.array_equal(model.run(name, image), result)
        assert np.array_equal(again.run(name, image), result)


def test_images_that_changed_after_the_training_are_not_taken_for_the_same(
    folder: Path, pairs: dict[str, Any], tmp_path: Path
) -> None:
    call = partial(train_new_task, folder, "negative", task=TRANSLATION, data=pairs, train=FEW, out=tmp_path / "run")
    call()
    delete_task_from_bundle(folder, "negative")
    Image.new("RGB", (40, 32)).save(tmp_path / "b" / "3.png")
    with pytest.raises(InputError, match=r"'negative'.*1 changed \(\w+/3\.png"):
        call()
    assert "negative" not in img2img.load(folder).tasks
    call(overrides=["resume=anyway"])
    assert "negative" in img2img.load(folder).tasks


@pytest.mark.parametrize("method", ["ksm", {"name": "affine", "channel_wise": True}])
def test_other_mask_methods(folder: Path, pairs: dict[str, Any], tmp_path: Path, method: Any) -> None:
    img2img.add_task(folder, "negative", task=TRANSLATION, data=pairs, method=method, train=FEW, out=tmp_path / "run")
    assert img2img.load(folder).tasks["negative"].method == (method if isinstance(method, str) else "affine")


def test_a_mask_method_may_be_given_as_an_object(folder: Path, pairs: dict[str, Any], tmp_path: Path) -> None:
    method = img2img.masks.LoRA(rank=2)
    img2img.add_task(folder, "negative", task=TRANSLATION, data=pairs, method=method, train=FEW, out=tmp_path / "run")
    assert img2img.load(folder).network.state("negative").method.inner == method


def test_what_cannot_be_leaves_all_as_it_was(
    folder: Path, pairs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"name": "colour"}, "has a task 'colour' already"),
        ({"name": "a/b"}, "a/b"),
        ({"task": {"kind": "magic"}}, "task kind 'magic' is unknown"),
        ({"data": {**pairs, "inputs": "nowhere"}}, "no folder at nowhere"),
        ({"data": {"kind": "image_folder", "root": str(tmp_path / "a")}}, "needs an image to start from"),
        ({"method": "magic"}, "method=magic: expected one of affine"),
        ({"method": "finetune"}, "'finetune' masks nothing"),
        ({"method": "null"}, "method=null: expected the name of a file in method/"),
        ({"overrides": ["trian.steps=3"]}, "did you mean 'train.steps'"),
        ({"train": {"stepz": 3}}, "stepz"),
    ]
    for changes, said in cases:
        arguments: dict[str, Any] = {"name": "new", "task": TRANSLATION, "data": pairs, "train": FEW} | changes
        with pytest.raises(InputError, match=said):
            img2img.add_task(folder, **arguments)
    assert list(img2img.load(folder).tasks) == ["parts", "colour", "edges", "clean"]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files


def test_a_program_that_uses_hydra_itself_can_add_a_task(folder: Path, pairs: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "mine.yaml").write_text("rate: 3\n")
    with hydra.initialize_config_dir(str(tmp_path / "conf"), version_base="1.2"):
        img2img.add_task(folder, "negative", task=TRANSLATION, data=pairs, train=FEW, out=tmp_path / "run")
        assert "negative" in img2img.load(folder).tasks
        assert hydra.compose("mine", ["rate=4"]).rate == 4
        assert str(hydra.version.getbase()) == "1.2"


def test_a_call_that_was_ended_after_its_last_file_goes_on(
    folder: Path, pairs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(out: str) -> Path:
        return train_new_task(folder, "negative", task=TRANSLATION, data=pairs, train=FEW, out=tmp_path / out)

    def ended(into: Path, sources: list[Path]) -> None:
        join_bundles(into, sources)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("img2img.api.join_bundles", ended)
        with pytest.raises(KeyboardInterrupt):
            add("run")
    learned = task_path(folder, "negative").read_bytes()
    assert add("run") == tmp_path / "run"
    assert task_path(folder, "negative").read_bytes() == learned
    assert read_bundle(folder)["tasks"].count("negative") == 1
    with pytest.raises(InputError, match="has a task 'negative' already"):
        add("another")
    assert not (tmp_path / "another").exists()


def test_a_bundle_whose_selection_has_a_part_that_fits_nothing_takes_a_new_task(
    folder: Path, pairs: dict[str, Any], tmp_path: Path
) -> None:
    """Such were written before they were refused, and still load."""
    description = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(description | {"select": ["*", "encodr.*"]}))
    train_new_task(folder, "negative", task=TRANSLATION, data=pairs, train=FEW, out=tmp_path / "run")
    assert list(img2img.load(folder).tasks) == [*description["tasks"], "negative"]


def test_a_task_whose_file_is_gone_is_one_message(folder: Path, pairs: dict[str, Any], tmp_path: Path) -> None:
    train_new_task(folder, "negative", task=TRANSLATION, data=pairs, train=FEW, out=tmp_path / "run")
    task_path(folder, "negative").unlink()
    with pytest.raises(InputError, match=r"'negative' already.*delete that"):
        train_new_task(folder, "negative", task=TRANSLATION, data=pairs, train=FEW, out=tmp_path / "run")
