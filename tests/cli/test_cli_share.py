"""`img2img export` and `img2img share`, from a bundle to files that other programs read."""

import json
from collections.abc import Callable
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

pytestmark = pytest.mark.usefixtures("without_curves")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def _onnx(path: Path, image: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(onnxruntime.InferenceSession(path).run(None, {"image": image.numpy()})[0])


def _pt2(path: Path, image: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = torch.export.load(path).module()(image)
    return output


# Tracing for ONNX takes ten times as long; tests/export and a page of the documentation do it anyway.
@pytest.mark.parametrize(("ending", "run"), [("pt2", _pt2), pytest.param("onnx", _onnx, marks=pytest.mark.slow)])
def test_a_task_becomes_a_file_that_runs(
    bundle: Path, tmp_path: Path, ending: str, run: Callable[[Path, torch.Tensor], torch.Tensor]
) -> None:
    path = tmp_path / f"colour.{ending}"
    result = call("export", bundle, "colour", "--out", path, "--json")
    assert result.exit_code == 0, f"{result.output} {result.exception}"
    (facts,) = json.loads(result.stdout)
    assert (facts["format"], facts["bytes"]) == (ending, path.stat().st_size)
    image = torch.rand(1, 3, 32, 48)
    assert (run(path, image) - img2img.load(bundle).run("colour", image)).abs().max() < 1e-4


def test_all_tasks_go_into_a_folder_and_mistakes_are_named(bundle: Path, tmp_path: Path) -> None:
    result = call("export", bundle, "all", "--format", "safetensors", "--out", tmp_path / "out")
    assert result.exit_code == 0, f"{result.output} {result.exception}"
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == ["clean", "colour", "edges", "parts"]
    there = tmp_path / "out" / "edges.safetensors"
    for arguments in (("all", "--format", "safetensors", "--out", there.parent), ("edges", "--out", there)):
        assert "--overwrite" in str(call("export", bundle, *arguments).exception)
        size = there.stat().st_size
        there.write_bytes(b"")
        assert call("export", bundle, *arguments, "--overwrite").exit_code == 0
        assert there.stat().st_size == size
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
    img2img.save_pretrained(bundle, tmp_path / "again")
    assert (tmp_path / "again" / "README.md").is_file()
    assert pushed == []
    assert call("share", "push", tmp_path / "demo", "me/demo").stdout == "the address\n"
    assert pushed == [((tmp_path / "demo", "me/demo"), {"license": None, "private": True})]
    assert call("share", "push", bundle, "me/demo", "--public", "--license", "mit").stdout == "the address\n"
    assert pushed[1] == ((bundle, "me/demo"), {"license": "mit", "private": False})
