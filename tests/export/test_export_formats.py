"""Each format computes what the library computes, for every kind of task, several methods and several networks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from img2img.data.base import Batch
from img2img.export import export_task, load_exported
from img2img.export.graph import served_input
from img2img.inference.evaluator import Evaluator
from img2img.tasks import build_task

KINDS = ("segmentation", "style", "edges", "denoising", "translation")
# Most networks are too slow to trace for every kind and method: each stands for what is special about it.
NETWORKS = {
    "transposed": ({"kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3}, "edges", "ksm"),
    "instance": ({"kind": "image_transformer", "width": 4, "blocks": 0, "norm": "instance"}, "colourisation", "piggyback"),
    "depthwise": (
        {"kind": "smp", "arch": "unet", "encoder": "tu-tf_efficientnet_lite0", "depth": 2, "decoder_channels": [16, 8]},
        "segmentation",
        "affine",
    ),
    "resnet18": ({"kind": "torchvision", "name": "resnet18"}, "classification", "piggyback"),
    "lenet": ({"kind": "lenet", "hidden": [20]}, "classification", "affine"),
    "vgg_small": ({"kind": "vgg_small", "width": 0.1, "hidden": [40]}, "classification", "ksm"),
}


def eight_bit(count: int, height: int, width: int) -> torch.Tensor:
    coarse = torch.rand(count, 3, 4, 4)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth + 0.1 * torch.rand(count, 3, height, width)).div(1.1).mul(255).byte()


def library(network: Any, task: Any, images: torch.Tensor) -> torch.Tensor:
    """What the library makes of 8-bit images, without any of the exporter's code."""
    backbone = network.backbone
    evaluator = Evaluator(stride=backbone.stride, min_size=backbone.min_size, device=torch.device("cpu"))
    input = task.served_input(Batch(image=images))
    prediction = evaluator.predict(lambda x: network(x, task="it"), task, input)
    if task.kind == "classification":
        return torch.softmax(prediction, 1)
    return prediction if task.kind == "segmentation" else task.to_image(prediction, input)


def run_onnx(path: Path, images: torch.Tensor) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"image": (images.numpy() / np.float32(255)).astype(np.float32)})
    return output


def sizes(network: Any) -> list[tuple[int, int, int]]:
    low, step = network.backbone.min_size, network.backbone.stride
    if network.backbone.spec["kind"] == "lenet":
        return [(1, 28, 28), (5, 28, 28)]
    low = -(-low // step) * step
    return [(1, low, low), (4, low + 2 * step, low + step), (2, low, low + 5 * step)]


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("name", ["transposed", "lenet", "instance", "depthwise", "resnet18"])
def test_onnx_computes_what_the_library_computes(name: str, make: Callable[..., Any], tmp_path: Path) -> None:
    spec, kind, method = NETWORKS[name]
    network, task = make(spec, kind, method)
    made = export_task(network, "it", task, tmp_path / "it.onnx")
    for shape in sizes(network):
        images = eight_bit(*shape)
        expected, got = library(network, task, images), torch.from_numpy(run_onnx(made.path, images))
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        if kind == "segmentation":
            assert (got != expected).double().mean() < 1e-3
        else:
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert made.agreement.difference < 1e-5
    assert made.bytes == made.path.stat().st_size


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_as_a_program_of_torch(kind: str, make: Callable[..., Any], tmp_path: Path) -> None:
    network, task = make(kind=kind)
    made = export_task(network, "it", task, tmp_path / "it.pt2")
    run = torch.export.load(made.path).module()
    for shape in sizes(network):
        images = eight_bit(*shape)
        torch.testing.assert_close(run(images.float() / 255), library(network, task, images), rtol=0, atol=2e-6)


@pytest.mark.slow  # the loop that follows the edges takes long to trace
def test_the_loop_inside_canny_as_onnx(make: Callable[..., Any], tmp_path: Path) -> None:
    network, task = make(kind="canny")
    path = export_task(network, "it", task, tmp_path / "it.onnx").path
    images = eight_bit(2, 16, 24)
    torch.testing.assert_close(torch.from_numpy(run_onnx(path, images)), library(network, task, images), rtol=0, atol=1e-5)


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("name", sorted(NETWORKS, key=["transposed", "lenet", "instance"].count, reverse=True))
def test_a_state_dict_rebuilds_the_network_bit_for_bit(name: str, make: Callable[..., Any], tmp_path: Path) -> None:
    spec, kind, method = NETWORKS[name]
    network, task = make(spec, kind, method)
    path = export_task(network, "it", task, tmp_path / "it.safetensors").path
    plain, values = load_exported(path)
    x = eight_bit(*sizes(network)[-1]).float() / 255
    with torch.no_grad():
        assert torch.equal(plain(x), network(x, task="it"))
    assert build_task(values["options"]).options() == task.options()
    merged = network.merge("it").state_dict()
    tensors = safetensors.torch.load_file(path)  # with torch alone
    assert tensors.keys() == merged.keys()
    assert all(torch.equal(tensors[key], merged[key]) for key in merged)


def test_raw_output(make: Callable[..., Any], tmp_path: Path) -> None:
    network, task = make()
    made = export_task(network, "it", task, tmp_path / "it.pt2", raw=True)
    images = eight_bit(2, 12, 8).float() / 255
    with torch.no_grad():
        expected = network(images, task="it")
    torch.testing.assert_close(torch.export.load(made.path).module()(images), expected, rtol=0, atol=1e-6)
    assert made.values["output"].startswith("raw: ")


@pytest.mark.slow
def test_what_a_file_says_of_itself(make: Callable[..., Any], tmp_path: Path) -> None:
    network, task = make()
    export_task(network, "it", task, tmp_path / "it.onnx")
    model = onnx.load(tmp_path / "it.onnx")
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert told["task"] == "it"
    assert told["kind"] == "segmentation"
    assert json.loads(told["classes"]) == ["ground", "disk", "sky"]
    assert json.loads(told["stride"]) == 4
    assert json.loads(told["min_size"]) == 8
    assert told["backbone_sha256"] == network.backbone_sha256
    assert told["output"].startswith("labels: (N, H, W) int64")
    axes = [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 3, "height", "width"]
    assert [axis.dim_param for axis in model.graph.output[0].type.tensor_type.shape.dim] == ["batch", "height", "width"]
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [20]

    program = export_task(network, "it", task, tmp_path / "it.pt2")
    extra = {"img2img.json": ""}
    torch.export.load(program.path, extra_files=extra)
    assert json.loads(extra["img2img.json"]) == program.values
    for file in tmp_path.iterdir():  # nothing of the machine that made it
        assert str(Path(torch.__file__).parents[1]).encode() not in file.read_bytes(), file


@pytest.mark.slow
def test_a_size_of_its_own(make: Callable[..., Any], tmp_path: Path) -> None:
    network, task = make(kind="drawing")
    made = export_task(network, "it", task, tmp_path / "it.onnx", size=(16, 12))
    axes = [a.dim_param or a.dim_value for a in onnx.load(made.path).graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 3, 16, 12]
    assert run_onnx(made.path, eight_bit(3, 16, 12)).shape == (3, 3, 16, 12)
    assert made.values["size"] == [16, 12]


def test_a_network_with_an_input_a_pixel_gets_one_size(make: Callable[..., Any], tmp_path: Path) -> None:
    network, task = make(*NETWORKS["lenet"])
    assert export_task(network, "it", task, tmp_path / "it.safetensors").values["size"] == [28, 28]


def test_every_level_of_an_8_bit_image_reaches_the_network_exactly(make: Callable[..., Any]) -> None:
    _, task = make()
    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    assert torch.equal(served_input(task, levels.float() / 255), task.served_input(Batch(image=levels)))
