"""Each format computes what the library computes; what cannot be exported says so and leaves no file."""

import json
import os
import shutil
import subprocess
import sys
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
from torch import nn

import img2img
from img2img import InputError, MaskedNetwork, masks
from img2img.backbones import Backbone, Classifier
from img2img.data.base import Batch
from img2img.export import export_bundle, export_task, load_exported, load_tasks
from img2img.export.check import check_agreement
from img2img.export.graph import TaskGraph, served_input, task_graph
from img2img.inference.evaluator import Evaluator
from img2img.tasks import build_task

KINDS = ("segmentation", "bins", "guided", "super_resolution", "style", "edges", "denoising", "translation")
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


HEADS: dict[str, Callable[[int], nn.Module]] = {
    "two layers": lambda out: nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, out, 1)),
    "no bias": lambda out: nn.Conv2d(4, out, 3, padding=1, bias=False),
    "another kernel": lambda out: nn.Conv2d(4, out, 1),
    "another padding mode": lambda out: nn.Conv2d(4, out, 3, padding=1),
}


class Doubled(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("head", HEADS)
def test_a_state_dict_says_which_head_it_has(head: str, make: Callable[..., Any], tmp_path: Path) -> None:
    """One that has another form than the backbone's own, even where the tensors' shapes are the same."""
    network, task = make(kind="denoising")
    network.add_task("other", masks.Piggyback(start="uniform"), head=HEADS[head](task.out_channels))
    made = export_task(network, "other", task, tmp_path / "it.safetensors")
    plain, values = load_exported(made.path)
    assert values["head"] == made.values["head"]
    x = torch.rand(2, 3, 12, 8)
    with torch.no_grad():
        assert torch.equal(plain(x), network(x, task="other"))
    assert "head" not in export_task(network, "it", task, tmp_path / "own.safetensors").values


def test_a_head_that_no_file_can_describe_is_sent_to_other_formats(make: Callable[..., Any], tmp_path: Path) -> None:
    network, task = make(kind="denoising")
    network.add_task("other", masks.Piggyback(start="uniform"), head=Doubled(4, task.out_channels, 1))
    with pytest.raises(InputError, match=r"head of the task 'other', a Doubled, .*export the task as onnx or pt2"):
        export_task(network, "other", task, tmp_path / "it.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_forged_head_in_a_header_is_refused(make: Callable[..., Any], tmp_path: Path) -> None:
    network, task = make(kind="denoising")
    network.add_task("other", masks.Piggyback(start="uniform"), head=HEADS["two layers"](task.out_channels))
    path = export_task(network, "other", task, tmp_path / "it.safetensors").path
    with safetensors.safe_open(path, "pt") as file:
        values = json.loads(file.metadata()["img2img"])
    tensors = safetensors.torch.load_file(path)
    deep: Any = {"kind": "ReLU", "options": {}}
    for _ in range(40):
        deep = {"kind": "Sequential", "layers": [deep]}
    huge = {"kind": "Conv2d", "options": {"in_channels": 4, "out_channels": 1 << 20, "kernel_size": [128, 128]}}
    for head in (3, {}, {"kind": "custom", "class": "Mine"}, {"kind": "Linear", "options": {}}, deep, huge):
        header = {"img2img": json.dumps(values | {"head": head})}
        safetensors.torch.save_file(tensors, tmp_path / "forged.safetensors", metadata=header)
        with pytest.raises(InputError):
            load_exported(tmp_path / "forged.safetensors")


def test_a_state_dict_says_what_its_network_takes_and_gives(make: Callable[..., Any], tmp_path: Path) -> None:
    """It is the network alone, whatever `raw` is, and takes all sizes."""
    for kind in ("colourisation", "segmentation"):
        network, task = make(kind=kind)
        told = [export_task(network, "it", task, tmp_path / f"{kind}.safetensors", raw=raw).values for raw in (False, True)]
        assert told[0] == told[1] == load_exported(tmp_path / f"{kind}.safetensors")[1]
        assert told[0]["output"].startswith("raw: ")
        assert told[0]["input"].startswith("(N, 3, H, W) float32, what `served_input`")
        assert told[0]["input"].endswith("height and width multiples of 4, at least 8")
        with pytest.raises(InputError, match=r"size=\(16, 12\): a state dict takes every size.*onnx or pt2"):
            export_task(network, "it", task, tmp_path / "sized.safetensors", size=(16, 12))
    assert not (tmp_path / "sized.safetensors").exists()


class Same(nn.Module):
    """A trunk with TensorFlow's SAME padding at strides, of which a classifier takes all sizes."""

    def __init__(self) -> None:
        super().__init__()
        from timm.layers import Conv2dSame

        self.convs = nn.Sequential(Conv2dSame(3, 4, 3, stride=2), nn.ReLU(), Conv2dSame(4, 6, 5, stride=2), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convs(x).amax((2, 3))


def same_padding(*, out_channels: int) -> Backbone:
    return Classifier(
        Same(), 6, out_channels=out_channels, min_size=9, spec={"kind": "of same padding", "out_channels": out_channels}
    )


def test_same_padding_of_a_classifier_is_that_of_each_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = same_padding(out_channels=3)
    network = MaskedNetwork(backbone, head="head").eval()
    task = build_task({"kind": "classification", "classes": ["a", "b", "c"]})
    network.add_task("it", masks.Piggyback(start="uniform"), head=backbone.make_head(3))
    run = torch.export.load(export_task(network, "it", task, tmp_path / "it.pt2", raw=True).path).module()
    with torch.no_grad():
        for size in ((9, 9), (12, 16), (10, 11), (15, 14), (64, 65), (63, 224)):
            x = torch.rand(2, 3, *size)
            torch.testing.assert_close(run(x), network(x, task="it"), rtol=0, atol=1e-6, msg=str(size))
        fixed = export_task(network, "it", task, tmp_path / "fixed.pt2", raw=True, size=(15, 14))
        x = torch.rand(2, 3, 15, 14)
        torch.testing.assert_close(torch.export.load(fixed.path).module()(x), network(x, task="it"), rtol=0, atol=1e-6)


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


def graph_of(make: Callable[..., Any], kind: str) -> TaskGraph:
    network, task = make(kind=kind)
    return task_graph(network, "it", task, raw=False)


def test_a_file_that_computes_something_else_is_refused(make: Callable[..., Any]) -> None:
    graph = graph_of(make, "colourisation")
    shapes = [(2, 8, 12)]
    assert check_agreement(graph, graph, shapes, what="it").difference == 0
    with pytest.raises(InputError, match=r"it\.onnx.*0\.001"):
        check_agreement(lambda x: graph(x) + 1e-3, graph, shapes, what="it.onnx")
    with pytest.raises(InputError, match="differs"):
        check_agreement(lambda x: graph(x) * float("nan"), graph, shapes, what="it")
    assert check_agreement(lambda x: graph(x) + 1e-5, graph, shapes, what="it").difference > 5e-6
    with pytest.raises(InputError, match="expected at most 2e-06"):  # what torch runs itself is the same but for an ulp
        check_agreement(lambda x: graph(x) + 1e-5, graph, shapes, what="it", by_torch=True)
    with pytest.raises(InputError, match="expected"):
        check_agreement(lambda x: graph(x)[..., :4], graph, shapes, what="it")
    with pytest.raises(InputError, match="does not run on 2 images of 8 x 12"):
        check_agreement(lambda x: graph(x[:, :2]), graph, shapes, what="it")


def test_labels_may_differ_where_two_classes_are_level_and_nowhere_else(make: Callable[..., Any]) -> None:
    graph = graph_of(make, "segmentation")
    with torch.no_grad():
        graph.network.head.weight[:] = graph.network.head.weight[0]
        graph.network.head.bias[:] = torch.tensor([1.0, 1.0, -1.0])
    level = check_agreement(lambda x: graph(x) ^ 1, graph, [(1, 8, 8)], what="it")
    assert (level.difference, level.labels) == (0, 1)
    with pytest.raises(InputError, match="differs"):
        check_agreement(lambda x: torch.full_like(graph(x), 2), graph, [(1, 8, 8)], what="it")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_its_command(
    package: str, make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, task = make()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"'{package}'.*pip install 'img2img\[export\]'"):
        export_task(network, "it", task, tmp_path / "it.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_fails_its_check_is_not_kept(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("img2img.export.check.TOLERANCE", -1.0)
    network, task = make(kind="style")
    (tmp_path / "it.pt2").write_bytes(b"an earlier one")
    for ending in ("safetensors", "pt2"):
        with pytest.raises(InputError, match="not kept"):
            export_task(network, "it", task, tmp_path / f"it.{ending}")
    assert [p.name for p in tmp_path.iterdir()] == ["it.pt2"]
    assert (tmp_path / "it.pt2").read_bytes() == b"an earlier one"


def test_what_is_asked_for_must_make_sense(make: Callable[..., Any], tmp_path: Path) -> None:
    network, task = make()
    with pytest.raises(InputError, match=r"it\.tflite.*onnx, pt2, safetensors"):
        export_task(network, "it", task, tmp_path / "it.tflite")
    with pytest.raises(InputError, match="'coreml'"):
        export_task(network, "it", task, tmp_path / "it.onnx", format="coreml")
    with pytest.raises(InputError, match="no task"):
        export_task(network, "other", task, tmp_path / "it.onnx")
    with pytest.raises(InputError, match="pad or resize them to 16 x 12"):
        export_task(network, "it", task, tmp_path / "it.onnx", size=(13, 12))
    with pytest.raises(InputError, match=r"10,000,000,000 pixels: expected at most 67,108,864"):
        export_task(network, "it", task, tmp_path / "it.onnx", size=(100_000, 100_000))
    with pytest.raises(InputError, match="'coreml'"):
        export_task(network, "it", task, tmp_path / "it.ONNX", format="coreml")
    assert export_task(network, "it", task, tmp_path / "it.SafeTensors").path.name == "it.SafeTensors"
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(InputError, match=r"folder\.pt2 is a folder: expected the name of a file"):
        export_task(network, "it", task, tmp_path / "folder.pt2")
    for dtype, said in ((torch.bfloat16, "bfloat16"), (torch.float64, "float64")):
        network.to(dtype)
        for ending in ("safetensors", "pt2"):
            with pytest.raises(InputError, match=f"network is {said}: files are exported in float32 alone"):
                export_task(network, "it", task, tmp_path / f"cast.{ending}")


def test_a_bucket_is_no_folder_to_write_into(make: Callable[..., Any], bundle: Path, monkeypatch: Any, tmp_path: Path) -> None:
    network, task = make()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"out=s3://bucket/it\.pt2 is no folder: .*copy it into the bucket"):
        export_task(network, "it", task, "s3://bucket/it.pt2")
    with pytest.raises(InputError, match=r"out=s3://bucket is no folder"):
        export_bundle(bundle, "s3://bucket", format="safetensors")
    assert not list(tmp_path.iterdir())


def test_a_folder_in_place_of_a_file_is_named_before_anything_is_written(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "paint.onnx").mkdir()
    for format in ("onnx", "onnx_shared"):
        with pytest.raises(InputError, match=r"paint\.onnx is a folder"):
            export_bundle(bundle, tmp_path, format=format)
    assert [path.name for path in tmp_path.iterdir()] == ["paint.onnx"]


def test_no_weights_are_left_where_no_task_becomes_a_graph(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise InputError("does not become a graph")

    monkeypatch.setattr("img2img.export.onnx_shared.trace", fail)
    with pytest.raises(InputError, match="does not become a graph"):
        export_bundle(bundle, tmp_path / "out", format="onnx_shared")
    assert not (tmp_path / "out").exists()


def test_a_network_of_the_users_own_class_is_sent_to_merge(tmp_path: Path) -> None:
    network = MaskedNetwork(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1)), head="1")
    network.add_task("it", masks.Piggyback(), head=nn.Conv2d(4, 3, 1))
    with pytest.raises(InputError, match=r"Sequential.*network\.merge"):
        export_task(network, "it", build_task({"kind": "style"}), tmp_path / "it.pt2")


def test_a_task_that_no_graph_can_hold_says_so(make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, task = make(kind="style")
    monkeypatch.setattr(task, "prediction", lambda raw, input: raw * float(raw.sum()), raising=True)
    with pytest.raises(InputError, match=r"'it' does not become a graph"):
        export_task(network, "it", task, tmp_path / "it.pt2")


@pytest.mark.slow
def test_onnxruntime_keeps_nothing_in_the_home(tmp_path: Path) -> None:
    """From 1.29 on it makes an ID of the machine and a database of reports there."""
    program = """
import onnx
from img2img.export.onnx_file import runner
node = onnx.helper.make_node("Relu", ["image"], ["y"])
values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("image", "y")]
graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
import torch
print(runner(model.SerializeToString())(torch.ones(1)).tolist())
"""
    others = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "CI")}
    done = subprocess.run([sys.executable, "-c", program], env=others | {"HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.stdout.strip() == "[1.0]", done.stderr
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name or path.name == "deviceid"]


# ---------------------------------------------------------------------- all tasks of a bundle


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
