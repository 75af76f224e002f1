"""Forged heads with a right checksum: each is refused with an `InputError`, or runs within the bounds and fits its network."""

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from img2img import InputError, MaskedNetwork, masks
from img2img.backbones import Backbone, build_backbone
from img2img.backbones.head_check import check_head
from img2img.masks import task_header
from img2img.masks.file_header import checksum
from img2img.masks.heads import MAX_LAYERS, build_head, describe_head
from img2img.masks.storage import read_task_file

CHANNELS = 3
SPECS: dict[str, dict[str, Any]] = {
    "transformer": {"kind": "image_transformer", "width": 4, "blocks": 0, "head_kernel": 3},
    "classifier": {"kind": "lenet", "in_pixels": 16, "hidden": [8]},
}
NASTY: list[Any] = [
    *(0, 1, 2, 3, 7, 64, 65, 129, 500, 3000, 10**9, 10**30, -1, -3, True, False, None, 0.5, 500.5, 1e-9, -2.5, 1e308),
    *([1], [0, 0], [3, 3], [2, 2, 2], [3000, 3000], [1, 1, 1, 1], [9, 9, 9, 9], [-1, -1, -1, -1], [[1]], {}, {"a": 1}),
    *("", "same", "valid", "zeros", "reflect", "circular", "nearest", "bilinear", "bicubic", "area", "linear", "x" * 500),
]


class Case:
    """A network, and the file of one of its tasks, which is forged."""

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        self.backbone: Backbone = build_backbone({**spec, "out_channels": CHANNELS})
        self.net = MaskedNetwork(self.backbone, head="head")
        self.net.add_task("it", masks.Identity(), head=self.backbone.make_head(CHANNELS))
        self.path = self.net.save_task("it", folder / "it.safetensors")
        self.header, self.tensors = read_task_file(self.path)
        self.net.delete_task("it")

    def load(self, head: Any, tensors: dict[str, torch.Tensor]) -> nn.Module | None:
        """The head as a bundle's loader takes it; None where it is refused."""
        kept = {name: t for name, t in self.tensors.items() if not name.startswith("head/")}
        kept |= {f"head/{name}": t for name, t in tensors.items()}
        header = copy.deepcopy(self.header) | {"head": head}
        header["checksum"] = checksum(header, kept)
        self.path.write_bytes(safetensors.torch.save(kept, metadata={"format": task_header.FORMAT, "header": json.dumps(header)}))
        try:
            self.net.load_task(self.path, name="it")
            check_head(self.backbone, self.net.state("it").head, CHANNELS)
            return self.net.state("it").head
        except InputError:
            return None
        finally:
            if "it" in self.net.tasks():
                self.net.delete_task("it")


@pytest.fixture(scope="module", params=SPECS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    return Case(tmp_path_factory.mktemp("heads"), SPECS[request.param])


def layers(channels: int) -> list[nn.Module]:
    """One of each kind, of sensible options."""
    return [
        nn.Conv2d(channels, CHANNELS, 1), nn.Conv2d(channels, CHANNELS, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(channels, CHANNELS, 4, 2, 1), nn.Linear(channels, CHANNELS), nn.Upsample(scale_factor=2.0),
        nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.ReLU(),
        nn.Identity(),
    ]  # fmt: skip


def forged(channels: int, generator: np.random.Generator) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A head of one to four layers, some options of which are nasty, and tensors that fit it, where they are small."""
    known = layers(channels)
    chosen = [known[int(i)] for i in generator.integers(len(known), size=int(generator.integers(1, 4)))]
    described = json.loads(json.dumps([describe_head(layer) for layer in chosen]))
    for layer in described:
        for name in layer["options"]:
            if generator.random() < 0.1:
                layer["options"][name] = copy.deepcopy(NASTY[int(generator.integers(len(NASTY)))])
    head = described[0] if len(described) == 1 else {"kind": "Sequential", "layers": described}
    tensors: dict[str, torch.Tensor] = {}
    for i, layer in enumerate(described):
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in layer["options"].items()}
        try:
            with torch.device("meta"):
                shapes = {name: tuple(t.shape) for name, t in getattr(nn, layer["kind"])(**options).state_dict().items()}
        except Exception:
            shapes = {}
        if sum(torch.Size(shape).numel() for shape in shapes.values()) < 1 << 20:
            tensors |= {name if head is layer else f"{i}.{name}": torch.rand(shape) for name, shape in shapes.items()}
    return head, tensors


def test_forged_heads_are_refused_or_run_and_give_the_sizes_they_should(case: Case) -> None:
    generator = np.random.default_rng(0)
    channels, loaded, count = case.backbone.head_channels, 0, 100
    features = torch.rand((2, channels, 24, 40) if case.backbone.stride > 1 else (2, channels))
    expected = case.backbone.make_head(CHANNELS)(features).shape
    began = time.perf_counter()
    for _ in range(count):
        head = case.load(*forged(channels, generator))
        if head is not None:
            loaded += 1
            assert head(features).shape == expected
    assert 0 < loaded < count
    assert time.perf_counter() - began < 60, "none of them takes long"


@pytest.mark.parametrize(
    "head",
    [
        {"kind": "Sequential", "layers": [{"kind": "ReLU", "options": {}}] * (MAX_LAYERS + 1)},
        {"kind": "Sequential", "layers": [{"kind": "Upsample", "options": {"scale_factor": 9.0, "mode": "nearest"}}] * 2},
        {"kind": "ReplicationPad2d", "options": {"padding": 3000}},
        {"kind": "Upsample", "options": {"scale_factor": 500, "mode": "nearest"}},
        {"kind": "AdaptiveAvgPool2d", "options": {"output_size": 3000}},
        {"kind": "Conv2d", "options": {"in_channels": 4, "out_channels": 3, "kernel_size": 1, "stride": 0}},
        {"kind": "Upsample", "options": {"scale_factor": None}},
        {"kind": "ReLU", "options": {"bias": True}},
    ],
    ids=["layers", "enlarged twice", "padding", "scale", "pool", "stride", "no scale", "bias"],
)
def test_a_head_beyond_the_ranges_is_refused_without_being_built(head: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"head (has more than|enlarges|option)"):
        build_head(head)


def test_a_head_of_a_hundred_thousand_layers_or_nested_as_deep_is_refused_at_once(case: Case) -> None:
    began = time.perf_counter()
    assert case.load({"kind": "Sequential", "layers": [{"kind": "ReLU", "options": {}}] * 60_000}, {}) is None
    deep: dict[str, Any] = {"kind": "ReLU", "options": {}}
    for _ in range(150):
        deep = {"kind": "Sequential", "layers": [deep]}
    assert case.load(deep, {}) is None
    assert time.perf_counter() - began < 30


def test_a_head_whose_middle_is_large_or_slow_is_refused_though_its_output_fits() -> None:
    backbone = build_backbone({**SPECS["transformer"], "out_channels": CHANNELS})
    up, down = nn.Upsample(scale_factor=64.0), nn.Conv2d(3, 3, 64, stride=64)
    with pytest.raises(InputError, match="values at once"):
        check_head(backbone, nn.Sequential(nn.Conv2d(4, 3, 1), up, down), CHANNELS)
    with pytest.raises(InputError, match="operations"):
        check_head(backbone, nn.Sequential(nn.Conv2d(4, 60, 101, padding=50), nn.Conv2d(60, 3, 101, padding=50)), CHANNELS)
    two, five = nn.Conv2d(4, 2, 1), nn.Conv2d(5, 3, 1)
    for head, message in ((two, r"\(2, 2, 3, 5\).*\(2, 3, 3, 5\)"), (None, "no head"), (five, "run")):
        with pytest.raises(InputError, match=message):
            check_head(backbone, head, CHANNELS)
    check_head(backbone, nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1)), CHANNELS)


FLOATS_OF_8_BITS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


@pytest.mark.parametrize("dtype", [*FLOATS_OF_8_BITS, torch.int8, torch.complex64], ids=str)
def test_types_that_no_layer_computes_with_are_refused(case: Case, dtype: torch.dtype) -> None:
    tensors = {name.removeprefix("head/"): t for name, t in case.tensors.items() if name.startswith("head/")}
    assert case.load(case.header["head"], tensors) is not None
    assert case.load(case.header["head"], {name: t.to(dtype) for name, t in tensors.items()}) is None


def test_heads_of_a_wider_or_narrower_type_come_in_the_networks_own(case: Case) -> None:
    tensors = {name.removeprefix("head/"): t for name, t in case.tensors.items() if name.startswith("head/")}
    for cast in (torch.float64, torch.float16):
        head = case.load(case.header["head"], {name: t.to(cast) for name, t in tensors.items()})
        assert head is not None
        assert {p.dtype for p in head.parameters()} == {torch.float32}


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(4, 3, 3, padding="same"), lambda: nn.Sequential(nn.Conv2d(4, 3, 1))])
def test_heads_within_the_ranges_are_rebuilt_as_they_were(make: Callable[[], nn.Module]) -> None:
    head = make()
    again = build_head(json.loads(json.dumps(describe_head(head))))
    again.load_state_dict(head.state_dict())
    x = torch.rand(1, 4, 8, 8)
    assert torch.equal(again(x), head(x))
