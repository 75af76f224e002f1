"""`img2img export`, `img2img share` and adapters, from a bundle to files that other programs read."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import img2img
from img2img import InputError, masks
from img2img.bundle import load_bundle, read_bundle
from img2img.cli import app

pytestmark = pytest.mark.usefixtures("without_curves")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def _onnx(path: Path, image: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(onnxruntime.InferenceSession(path).run(None, {"image": image.numpy()})[0])


def _pt2(path: Path, image: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = torch.export.load(path).module()(image)
    return output


# Tracing for ONNX takes ten times as long; tests/export and a page of the documentation do it anyway.
@pytest.mark.slow
@pytest.mark.parametrize(("ending", "run"), [("pt2", _pt2), pytest.param("onnx", _onnx, marks=pytest.mark.slow)])
def test_a_task_becomes_a_file_that_runs(
    bundle: Path, tmp_path: Path, ending: str, run: Callable[[Path, torch.Tensor], torch.Tensor]
) -> None:
    path = tmp_path / f"colour.{ending}"
    result = call("export", "colour", "--bundle", bundle, "--out", path, "--json")
    assert result.exit_code == 0, f"{result.output} {result.exception}"
    (facts,) = json.loads(result.stdout)
    assert (facts["format"], facts["bytes"]) == (ending, path.stat().st_size)
    image = torch.rand(1, 3, 32, 48)
    assert (run(path, image) - img2img.load(bundle).run("colour", image)).abs().max() < 1e-4


def test_all_tasks_go_into_a_folder_and_mistakes_are_named(bundle: Path, tmp_path: Path) -> None:
    result = call("export", "all", "--bundle", bundle, "--format", "safetensors", "--out", tmp_path / "out")
    assert result.exit_code == 0, f"{result.output} {result.exception}"
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == ["clean", "colour", "edges", "parts"]
    there = tmp_path / "out" / "edges.safetensors"
    for arguments in (("all", "--format", "safetensors", "--out", there.parent), ("edges", "--out", there)):
        assert "--overwrite" in str(call("export", "--bundle", bundle, *arguments).exception)
        size = there.stat().st_size
        there.write_bytes(b"")
        assert call("export", "--bundle", bundle, *arguments, "--overwrite").exit_code == 0
        assert there.stat().st_size == size
    assert call("export", "edges", "--bundle", bundle, "--out", tmp_path / "e.SAFETENSORS").exit_code == 0
    for arguments, said in (
        (("style", "--out", "a.onnx"), "no task 'style'"),
        (("colour", "--out", "a.jpg"), "or --format with one of onnx, pt2, safetensors"),
        (("colour", "--out", "a.onnx", "--format", "pt2"), "'pt2' for a.onnx, whose ending is that of 'onnx': expected .pt2"),
        (("all", "--out", "a.onnx"), "--out a.onnx names a file: expected a folder"),
        (("colour", "--out", "a.onnx", "--format", "onnx_shared"), "names a file: expected a folder"),
        (("colour", "--out", "a.onnx", "--size", "big"), "--size 'big': expected height and width"),
        (("colour", "--out", "a.onnx", "--size", "²x3"), "--size '²x3': expected height and width"),
        (("colour", "--out", "a.onnx", "--size", "9" * 5000 + "x3"), "expected height and width"),
        (("colour", "--out", "a.onnx", "--size", "100000x100000"), "10,000,000,000 pixels: expected at most"),
        (("colour", "--out", "a.safetensors", "--size", "64x64"), "a state dict takes every size"),
        (("colour", "--out", there.parent, "--format", "pt2", "--overwrite"), "is a folder: expected the name of a file"),
    ):
        failed = call("export", "--bundle", bundle, *arguments)
        assert isinstance(failed.exception, InputError)
        assert said in str(failed.exception)


def test_a_bundle_is_saved_with_a_card_and_pushed_only_when_told(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[Any] = []
    monkeypatch.setattr("img2img.hub.push_to_hub", lambda *args, **kwargs: pushed.append((args, kwargs)) or "the address")
    assert call("share", "save", bundle, tmp_path / "demo", "--license", "apache-2.0").exit_code == 0
    assert ModelCard.load(tmp_path / "demo" / "README.md").data.license == "apache-2.0"
    card = tmp_path / "demo" / "README.md"
    card.write_text(card.read_text() + "Mine.\n")
    refused = call("share", "save", bundle, tmp_path / "demo").exception
    assert isinstance(refused, InputError)
    assert "--overwrite" in str(refused)
    assert card.read_text().endswith("Mine.\n")
    assert call("share", "save", bundle, tmp_path / "demo", "--overwrite", "--license", "apache-2.0").exit_code == 0
    assert "Mine." not in card.read_text()
    image = np.zeros((32, 32, 3), np.uint8)
    expected = img2img.load(bundle).run("colour", image)
    assert np.array_equal(img2img.from_pretrained(tmp_path / "demo").run("colour", image), expected)
    img2img.save_pretrained(bundle, tmp_path / "again")
    assert (tmp_path / "again" / "README.md").is_file()
    assert pushed == []
    assert call("share", "push", tmp_path / "demo", "me/demo").stdout == "the address\n"
    assert pushed == [((tmp_path / "demo", "me/demo"), {"license": None, "private": True})]
    assert call("share", "push", bundle, "me/demo", "--public", "--license", "mit").stdout == "the address\n"
    assert pushed[1] == ((bundle, "me/demo"), {"license": "mit", "private": False})


def test_a_repository_that_none_can_be_is_called_malformed(bundle: Path) -> None:
    for name in ("bad name!", "a/b/c"):
        failed = call("share", "push", bundle, name)
        assert isinstance(failed.exception, InputError)
        assert re.search(rf"'{name}' is no name of a repository .*expected owner/name", str(failed.exception))
        assert "connection" not in str(failed.exception)


def test_a_bucket_is_no_place_to_write_to(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing copies into it: a folder `s3:` would be made."""
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (32, 32)).save(images / "a.png")
    address = "s3://bucket/place"
    for arguments in (
        ("export", "colour", "--bundle", bundle, "--out", address + "/it.onnx"),
        ("export", "colour", "--bundle", bundle, "--out", "s3://it.onnx", "--overwrite"),
        ("export", "all", "--bundle", bundle, "--out", address),
        ("share", "save", bundle, address),
        ("export-adapter", "colour", "--bundle", bundle, "--out", address),
        ("join", address, bundle),
        ("run", "colour", images, "--bundle", bundle, "--out", address),
        ("run", "colour", images, "--bundle", bundle, "--out", address, "--launcher", "ray"),
        ("tasks", "similarity", bundle, "--out", address + ".png"),
        ("add-task", bundle, "new", "--images", images, "--out", address),
        ("absorb", "a.safetensors", "--bundle", bundle, "--images", images, "--out", address),
        ("report", images, "--out", address),
    ):
        failed = call(*arguments)
        assert isinstance(failed.exception, InputError), (arguments, failed.output, failed.exception)
        assert re.search(r"s3://\S+ is no folder", str(failed.exception)), (arguments, failed.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_task_with_trained_copies_says_how_to_train_one_that_is_an_adapter(
    make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    kind = {"kind": "classification", "classes": ["a", "b", "c"]}
    mixed = masks.Mixed(method=masks.LoRA(rank=2), trainable_copies=0.1)
    for method, said in ((mixed, r"train it with masks\.trainable_copies=null"), (masks.Piggyback(), "train it by one of these")):
        trained = make_bundle({"kind": "lenet", "hidden": [12]}, {"it": kind}, method)
        failed = call("export-adapter", "it", "--bundle", trained, "--out", tmp_path / "adapter")
        assert isinstance(failed.exception, InputError)
        assert re.search(said, str(failed.exception)), failed.exception


def test_an_adapter_becomes_a_task_and_a_task_an_adapter(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    """Out of one bundle into another on the same backbone; its tasks stay as they are, bit for bit."""
    spec = {"kind": "lenet", "hidden": [12]}
    kind = {"kind": "classification", "classes": ["a", "b", "c"]}
    trained = make_bundle(spec, {"lora": kind}, masks.LoRA(rank=2, target_weights=["*"]))
    target = make_bundle(spec, {"first": kind, "second": kind})
    before = {path.name: path.read_bytes() for path in (target / "tasks").iterdir()}
    folder = tmp_path / "adapter"
    result = call("export-adapter", "lora", "--bundle", trained, "--out", folder, "--json")
    assert result.exit_code == 0, f"{result.output} {result.exception}"
    assert [Path(p).name for p in json.loads(result.stdout)] == ["adapter_model.safetensors", "adapter_config.json"]
    assert "--overwrite" in str(call("export-adapter", "lora", "--bundle", trained, "--out", folder).exception)
    assert "names a file: expected a folder" in str(
        call("export-adapter", "lora", "--bundle", trained, "--out", tmp_path / "x.safetensors").exception
    )
    assert "no task 'colour'" in str(call("export-adapter", "colour", "--bundle", trained, "--out", tmp_path / "x").exception)
    assert "lies within the bundle" in str(call("export-adapter", "lora", "--bundle", trained, "--out", trained).exception)

    into = ("--bundle", target, "--name")
    for arguments, said in (
        (("new",), "got no task whose head .* one of first, second: name it by head_of, --head-of on the command line"),
        (("new", "--head-of", "third"), "head_of='third'"),
        (("first", "--head-of", "second"), "'first' in .* already"),
        (("no/name", "--head-of", "first"), "task name 'no/name'"),
    ):
        failed = call("import-adapter", folder, *into, *arguments)
        assert isinstance(failed.exception, InputError)
        assert re.search(said, str(failed.exception)), failed.exception
    assert {path.name: path.read_bytes() for path in (target / "tasks").iterdir()} == before

    task = next((trained / "tasks").glob("lora.safetensors"))
    assert "is the file of a task of img2img, 'lora': expected an adapter" in str(
        call("import-adapter", task, *into, "new", "--head-of", "first").exception
    )
    made = call("import-adapter", folder, *into, "new", "--head-of", "first", "--json")
    assert made.exit_code == 0, f"{made.output} {made.exception}"
    facts = json.loads(made.stdout)
    assert (facts["form"], facts["method"], facts["head"], facts["rounding"]) == ("peft", "lora", "the file's", 0)
    assert {path.name: path.read_bytes() for path in (target / "tasks").iterdir() if path.stem != "new"} == before
    image = torch.rand(1, 3, 28, 28)
    there, here = load_bundle(trained)[0], load_bundle(target)[0]
    with torch.no_grad():
        assert torch.equal(here(image, task="new"), there(image, task="lora"))

    config = tmp_path / "task.yaml"
    config.write_text("task: {kind: classification, classes: [x, y, z]}")
    assert call("import-adapter", folder, *into, "named", "--config", config).exit_code == 0
    assert img2img.load(target).tasks["named"].classes == ("x", "y", "z")
    config.write_text("task: {kind: classification, classes: [x, y]}")
    refused = call("import-adapter", folder, *into, "two", "--config", config).exception
    assert isinstance(refused, InputError)
    assert "the head" in str(refused)
    assert read_bundle(target)["tasks"] == ["first", "second", "new", "named"]


def test_an_adapter_without_a_head_takes_a_tasks_and_the_backbones_normalisation(
    make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = make_bundle(tasks={"colour": {"kind": "colourisation"}})
    network = load_bundle(bundle)[0]
    weight = next(name for name, module in network.backbone.named_modules() if isinstance(module, torch.nn.Conv2d))
    change = torch.rand(network.backbone.get_submodule(weight).weight.shape[0], 1, 1, 1) / 10
    name = "lycoris_" + weight.replace(".", "_")
    file = tmp_path / "any.safetensors"
    save_file({f"{name}.weight": change.view(1, -1, 1, 1), f"{name}.on_input": torch.tensor(False)}, file)
    made = call("import-adapter", file, "--bundle", bundle, "--name", "new")
    assert made.exit_code == 0, f"{made.output} {made.exception}"
    assert "the backbone's" in made.stdout
    assert "of colour" in made.stdout
    assert "this very backbone" in made.stdout
    network = load_bundle(bundle)[0]
    ours, theirs = network.merge("new").state_dict(), network.merge("colour").state_dict()
    expected = network.backbone.state_dict()
    for key, tensor in ours.items():
        if key.startswith("head."):
            assert torch.equal(tensor, theirs[key])
        elif key == f"{weight}.weight":
            assert torch.allclose(tensor, expected[key] * (1 + change), rtol=1e-3)
        else:
            assert torch.equal(tensor, expected[key])
    config = tmp_path / "task.yaml"
    config.write_text("task: {kind: colourisation}")
    failed = call("import-adapter", file, "--bundle", bundle, "--name", "other", "--config", config).exception
    assert "has no head" in str(failed)
