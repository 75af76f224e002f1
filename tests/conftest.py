"""What every test shares."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # of tests that import onnxruntime themselves


# The networks of the tests are tiny: threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


IMAGE_TASKS: Mapping[str, Mapping[str, Any]] = {
    "parts": {"kind": "segmentation", "classes": ["ground", "tree", "house"]},
    "colour": {"kind": "colourisation"},
    "edges": {"kind": "edges", "drawing": "sobel"},
    "clean": {"kind": "denoising", "sigma": 25},
}


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_bundle(spec, tasks)`: a bundle of random weights and half-dense random masks, which nobody trained."""

    def make(
        spec: Mapping[str, Any] = {"kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3},
        tasks: Mapping[str, Mapping[str, Any]] = IMAGE_TASKS,
    ) -> Path:
        from img2img.backbones import build_backbone
        from img2img.bundle import HEAD, add_task_to_bundle, save_backbone
        from img2img.masks import MaskedNetwork, Piggyback
        from img2img.tasks import build_task

        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("bundle")
        backbone = build_backbone({"weights": None, **spec, "out_channels": 1})
        network = MaskedNetwork(backbone, head=HEAD)
        save_backbone(folder, network, backbone.spec)
        for name, options in tasks.items():
            head = backbone.make_head(build_task(options).out_channels)
            network.add_task(name, Piggyback(start="uniform"), head=head)
            info = {"figures": {build_task(options).metric: 0.5}, "side": 32}
            add_task_to_bundle(folder, network, name, options=options, info=info)
        return folder

    return make


@pytest.fixture(scope="session")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    """A bundle of four image tasks, for tests that only read it."""
    return make_bundle()


@pytest.fixture
def registries() -> Iterator[None]:
    """Forgets afterwards the kinds and methods that a test defines, and the modules and folders that it imports them from."""
    from img2img import backbones, data
    from img2img.masks import METHODS
    from img2img.tasks.base import KINDS
    from img2img.training.strategy import STRATEGIES

    path, modules, by_part = list(sys.path), dict(sys.modules), set(data._BY_PART)
    known = [(registry, dict(registry._entries)) for registry in (METHODS, STRATEGIES, KINDS, data.KINDS, backbones.KINDS)]
    yield
    for registry, entries in known:
        registry._entries = {n: e for n, e in registry._entries.items() if n in registry._own} | entries
    data._BY_PART = by_part
    sys.path[:] = path
    for name in sys.modules.keys() - modules.keys():
        if name.startswith("my_"):  # as users' modules are called in tests and documents
            del sys.modules[name]
