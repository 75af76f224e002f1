"""Arguments of a wrong type are one message each, which names the argument; numpy's whole numbers are taken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import img2img
from img2img import InputError
from img2img.inference import Model

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
TASK, DATA = {"kind": "translation"}, {"kind": "pairs", "root": "nowhere"}


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return img2img.load(bundle)


WRONG: list[tuple[dict[str, Any], str]] = [
    *(({"side": value}, "side=") for value in ("x", float("nan"), 2.5, 64.0, True, [1], (), np.array([1, 2]), object)),
    *(({"side": value}, "side=.*1 pixel or more") for value in (0, -3, np.int64(-1))),
    *(({"tile": value}, "tile=") for value in (True, False, "1024", 512.0, {}, 128)),
    *(({"batch_size": value}, "batch_size=") for value in (2.5, "2", 0, True, float("inf"), [2])),
    *(({"form": value}, "form=") for value in (3, ["image"], "", b"image", np.array(["image"]))),
    *(({"errors": value}, "errors=.*'raise', 'return'") for value in ("ignore", None, True, ["raise"])),
]


@pytest.mark.parametrize(("options", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_options_of_run_and_stream(model: Model, options: dict[str, Any], said: str) -> None:
    for call in (lambda: model.run("colour", [IMAGE], **options), lambda: model.stream("colour", [IMAGE], **options)):
        with pytest.raises(InputError, match=said) as caught:
            call()
        assert len(str(caught.value)) < 300
    if "form" not in options:
        with pytest.raises(InputError, match=said):
            model.run_all([IMAGE], **options)


@pytest.mark.parametrize("task", [["colour"], None, 3, {"colour": 1}, ("colour",), b"colour", np.array(["a"]), ""])
def test_names_of_tasks(model: Model, task: Any) -> None:
    for call in (
        lambda: model.run(task, IMAGE),
        lambda: model.stream(task, [IMAGE]),
        lambda: model.predict(task, IMAGE),
        lambda: model.task(task),
        lambda: model.memory(task, (20, 20)),
    ):
        with pytest.raises(InputError, match=r"no task .*parts, colour, edges, clean"):
            call()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(({"device": value}, "device=") for value in (None, 3, ["cpu"], "meta", "", "cuda:x", torch.float32)),
        *(({"precision": value}, "precision=.*'float32', 'bfloat16'") for value in (None, 16, torch.bfloat16, ["float32"])),
        *(({"weights": value}, "weights=.*'cached', 'merged'") for value in (None, 1, ("merged",))),
    ],
    ids=str,
)
def test_options_of_load(bundle: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        img2img.load(bundle, **options)


@pytest.mark.parametrize("folder", [None, 3, b"runs", [], "", "a\0b"])
def test_folders(folder: Any) -> None:
    with pytest.raises(InputError, match=r"folder=.*expected a path"):
        img2img.load(folder)


def test_whole_numbers_of_numpy_are_taken(model: Model) -> None:
    expected = model.run("colour", [IMAGE], side=16, tile=512, batch_size=2)[0]
    taken = model.run("colour", [IMAGE], side=np.int64(16), tile=np.uint16(512), batch_size=np.int32(2))[0]
    assert np.array_equal(taken, expected)
    assert img2img.load(model.folder, device=torch.device("cpu")).device.type == "cpu"  # type: ignore[arg-type]


@pytest.mark.parametrize("images", ["photo.jpg", IMAGE, IMAGE[..., 0], torch.rand(3, 8, 8), None, 3, b"photos"])
def test_one_image_is_no_stream(model: Model, images: Any) -> None:
    with pytest.raises(InputError, match="for many images: expected a list"):
        model.stream("colour", images)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *(({"name": value}, "name=") for value in (None, 3, ["night"], "")),
        *(({"task": value}, "task=.*mapping") for value in (None, "translation", 3, {1: 2})),
        *(({"data": value}, "data=.*mapping") for value in (None, "day", ["day"])),
        *(({"method": value}, "method=") for value in (None, 3, ["piggyback"])),
        *(({"train": value}, "train=.*mapping") for value in (3, "steps", ["steps"])),
        *(({"out": value}, "out=.*path") for value in (3, ["runs"], "")),
    ],
    ids=str,
)
def test_arguments_of_add_task(model: Model, changes: dict[str, Any], said: str) -> None:
    arguments: dict[str, Any] = {"name": "night", "task": TASK, "data": DATA} | changes
    with pytest.raises(InputError, match=said):
        img2img.add_task(model.folder, **arguments)


def test_arguments_of_sharing_and_exporting(model: Model, tmp_path: Path) -> None:
    from img2img.export import export_bundle, export_task

    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: img2img.save_pretrained(model.folder, 3), "folder="),  # type: ignore[arg-type]
        (lambda: img2img.save_pretrained(model.folder, tmp_path / "a", license=3), "license="),  # type: ignore[arg-type]
        (lambda: img2img.push_to_hub(model.folder, 3), "repo_id="),  # type: ignore[arg-type]
        (lambda: img2img.push_to_hub(model.folder, "me/demo", private="no"), "private="),  # type: ignore[arg-type]
        (lambda: export_task(model.network, "colour", model.task("colour"), 3), "path="),  # type: ignore[arg-type]
        (lambda: export_task(model.network, "colour", model.task("colour"), "a.onnx", size=256), "size="),  # type: ignore[arg-type]
        (lambda: export_task(model.network, "colour", model.task("colour"), "a.onnx", size=(1.5, 2)), "size="),  # type: ignore[arg-type]
        (lambda: export_task(model.network, "colour", model.task("colour"), "a.onnx", raw="no"), "raw="),  # type: ignore[arg-type]
        (lambda: export_bundle(model.folder, None, format="onnx"), "folder="),  # type: ignore[arg-type]
    ]
    for call, said in calls:
        with pytest.raises(InputError, match=said):
            call()


def test_nothing_is_exported_or_trained_over_the_bundle(model: Model, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from img2img.cli import app
    from img2img.export import export_bundle

    before = {path: path.read_bytes() for path in model.folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="within the bundle"):
        export_bundle(model.folder, model.folder / "tasks", format="safetensors")
    for out in ("backbone.safetensors", "tasks/../tasks/colour.safetensors"):
        result = CliRunner().invoke(app, ["export", str(model.folder), "colour", "--out", str(model.folder / out)])
        assert isinstance(result.exception, InputError)
    for out in (model.folder, model.folder / "tasks", tmp_path):
        with pytest.raises(InputError, match="choose another folder"):
            img2img.add_task(model.folder, "night", task=TASK, data={"kind": "pairs", "root": str(tmp_path)}, out=out)
    assert {path: path.read_bytes() for path in model.folder.rglob("*") if path.is_file()} == before
