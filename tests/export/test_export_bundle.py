"""All tasks of a bundle, alone and as small files beside one file of weights."""

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import img2img
from img2img import InputError
from img2img.export import export_bundle, load_exported, load_tasks


def run(path: Path, images: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]


def test_all_tasks_of_a_bundle(bundle: Path, tmp_path: Path) -> None:
    made = export_bundle(bundle, tmp_path / "out", format="safetensors")
    assert [entry.path.name for entry in made] == ["disks.safetensors", "ink.safetensors", "paint.safetensors"]
    assert made[1].values["figures"] == {"MSE": 0.25}
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    expected = img2img.load(bundle).predict("disks", image)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    assert torch.equal(load_exported(made[0].path)[0](x)[0].argmax(0), expected)


def test_some_tasks_and_wrong_ones(bundle: Path, tmp_path: Path) -> None:
    assert [e.path.name for e in export_bundle(bundle.parent, tmp_path, format="safetensors", tasks=["ink"])] == [
        "ink.safetensors"
    ]
    with pytest.raises(InputError, match=r"'inks' .*disks, ink, paint"):
        export_bundle(bundle, tmp_path, format="safetensors", tasks=["inks"])
    with pytest.raises(InputError, match="expected one of onnx, pt2, safetensors"):
        export_bundle(bundle, tmp_path, format="h5")


@pytest.mark.slow
def test_small_files_beside_one_file_of_weights(bundle: Path, tmp_path: Path) -> None:
    made = {entry.path.stem: entry for entry in export_bundle(bundle, tmp_path / "out", format="onnx_shared")}
    network, tasks = load_tasks(bundle)
    weights = network.masked_weights()
    assert (tmp_path / "out" / "backbone.bin").stat().st_size == 4 * sum(w.numel() for w in weights.values())
    # Binary masks are a bit a weight; an affine task's weights are no bits, and it keeps its own.
    assert made["ink"].bytes < 4 * sum(w.numel() for w in weights.values()) / 4 < made["paint"].bytes
    images = np.random.default_rng(0).random((3, 3, 16, 20), np.float32)
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "out", moved)
    x = torch.from_numpy(images)
    with torch.no_grad():
        raw = {name: network(x, task=name) for name in network.tasks()}
    assert (run(moved / "disks.onnx", images) == raw["disks"].argmax(1).numpy()).mean() > 0.999
    for name in ("ink", "paint"):
        expected = tasks[name].prediction(raw[name], x)
        np.testing.assert_allclose(run(moved / f"{name}.onnx", images), expected, rtol=0, atol=2e-6)
    (moved / "backbone.bin").write_bytes(b"another")
    with pytest.raises(InputError, match=r"backbone\.bin holds another backbone"):
        export_bundle(bundle, moved, format="onnx_shared")
