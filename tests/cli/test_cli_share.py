"""`img2img export` and `img2img share`, from a bundle to files that other programs read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard
from typer.testing import CliRunner

import img2img
from img2img import InputError
from img2img.cli import app


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_task_becomes_an_onnx_file_that_runs(bundle: Path, tmp_path: Path) -> None:
    result = call("export", bundle, "colour", "--out", tmp_path / "colour.onnx", "--json")
    assert result.exit_code == 0, f"{result.output} {result.exception}"
    (facts,) = json.loads(result.stdout)
    assert (facts["format"], facts["bytes"]) == ("onnx", (tmp_path / "colour.onnx").stat().st_size)
    image = torch.rand(1, 3, 32, 48)
    (output,) = onnxruntime.InferenceSession(tmp_path / "colour.onnx").run(None, {"image": image.numpy()})
    assert np.abs(output - img2img.load(bundle).run("colour", image).numpy()).max() < 1e-4


def test_all_tasks_go_into_a_folder_and_mistakes_are_named(bundle: Path, tmp_path: Path) -> None:
    result = call("export", bundle, "all", "--format", "safetensors", "--out", tmp_path / "out")
    assert result.exit_code == 0, f"{result.output} {result.exception}"
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == ["clean", "colour", "edges", "parts"]
    for arguments, said in (
        (("style", "--out", "a.onnx"), "no task 'style'"),
        (("colour", "--out", "a.jpg"), "expected one of onnx, pt2, safetensors"),
        (("colour", "--out", "a.onnx", "--size", "big"), "--size 'big': expected height and width"),
    ):
        failed = call("export", bundle, *arguments)
        assert isinstance(failed.exception, InputError)
        assert said in str(failed.exception)


def test_a_bundle_is_saved_with_a_card_and_pushed_only_when_told(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[Any] = []
    monkeypatch.setattr("img2img.hub.push_to_hub", lambda *args, **kwargs: pushed.append((args, kwargs)) or "the address")
    assert call("share", "save", bundle, tmp_path / "demo", "--license", "apache-2.0").exit_code == 0
    assert ModelCard.load(tmp_path / "demo" / "README.md").data.license == "apache-2.0"
    image = np.zeros((32, 32, 3), np.uint8)
    expected = img2img.load(bundle).run("colour", image)
    assert np.array_equal(img2img.from_pretrained(tmp_path / "demo").run("colour", image), expected)
    img2img.load(bundle).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").is_file()
    assert pushed == []
    assert call("share", "push", tmp_path / "demo", "me/demo").stdout == "the address\n"
    assert pushed == [((tmp_path / "demo", "me/demo"), {"private": True})]
    assert img2img.load(bundle).push_to_hub("me/demo", private=False) == "the address"
    assert pushed[1][0][1:] == ("me/demo",)
    assert pushed[1][1] == {"private": False}
