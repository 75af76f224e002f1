"""What every test shares."""

import copy
import functools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

from img2img.cli.process import bound_spinning

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # of tests that import onnxruntime themselves
bound_spinning()  # of processes that tests start: this one has a single thread


# The networks of the tests are tiny: threads would only wait for each other.
torch.set_num_threads(1)
# A busy machine is no reason to fail; tests that need more examples say so.
hypothesis.settings.register_profile("img2img", deadline=None, max_examples=50)
hypothesis.settings.load_profile("img2img")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`slow_after(n)`: of the parameters of a test the first n are for every run, and the others are slow."""
    seen: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("slow_after")
        if mark is not None:
            test = item.nodeid.partition("[")[0]
            seen[test] += 1
            if seen[test] > mark.args[0]:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _unsynced() -> Iterator[None]:
    """Files are not waited for until they are on the disk: no test cuts the power, and a run asks for it a hundred times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which refuses a closed file, too
        yield


IMAGE_TASKS: Mapping[str, Mapping[str, Any]] = {
    "parts": {"kind": "segmentation", "classes": ["ground", "tree", "house"]},
    "colour": {"kind": "colourisation"},
    "edges": {"kind": "edges", "drawing": "sobel"},
    "clean": {"kind": "denoising", "sigma": 25},
}


@pytest.fixture
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without learning curves, whose drawing takes longer than the tests' trainings: for tests of something else."""
    monkeypatch.setattr("img2img.reports.figures.learning_curve", lambda *_, **__: "")


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_bundle(spec, tasks, method)`: a bundle of random weights and half-dense random masks, which nobody trained."""

    def make(
        spec: Mapping[str, Any] = {"kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3},
        tasks: Mapping[str, Mapping[str, Any]] = IMAGE_TASKS,
        method: Any = None,
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
            task = build_task(options)
            network.add_task(name, method or Piggyback(start="uniform"), head=backbone.make_head(task.out_channels))
            info = {"figures": {task.metric: 0.5}, "side": 32}
            add_task_to_bundle(folder, network, name, options=task.options(), info=info)
        return folder

    return make


@pytest.fixture(scope="session")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    """A bundle of four image tasks, for tests that only read it."""
    return make_bundle()


@pytest.fixture
def registries() -> Iterator[None]:
    """Forgets afterwards the kinds and methods that a test defines, and the modules and folders that it imports them from."""
    from img2img.backbones import BACKBONES
    from img2img.data import DATA
    from img2img.masks import METHODS
    from img2img.registry import _imported
    from img2img.tasks import TASKS
    from img2img.training.strategies import STRATEGIES

    path, modules, imported = list(sys.path), dict(sys.modules), dict(_imported)
    known = [(registry, dict(registry._entries)) for registry in (TASKS, DATA, BACKBONES, METHODS, STRATEGIES)]
    yield
    for registry, entries in known:
        registry._entries = {n: e for n, e in registry._entries.items() if n in registry._own} | entries
    sys.path[:] = path
    _imported.clear()  # or workers of later tests would be asked to import what is gone
    _imported.update(imported)
    for name in sys.modules.keys() - modules.keys():
        if name.startswith("my_"):  # as users' modules are called in tests and documents
            del sys.modules[name]


Config = dict[str, Any]


@pytest.fixture(scope="session")
def disk_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of a disk on a background, with its label; the disk's colour depends on where it is."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    for part, count in (("train", 12), ("val", 3), ("test", 4)):
        for folder in ("images", "labels"):
            (root / part / folder).mkdir(parents=True)
        for i in range(count):
            cy, cx = rng.integers(8, 24, 2)
            disk = (y - cy) ** 2 + (x - cx) ** 2 < 49
            image = np.full((32, 32, 3), (40, 60, 160)) + rng.integers(0, 20, (32, 32, 3))
            image[disk] = (220, 120, 30)
            Image.fromarray(image.astype(np.uint8)).save(root / part / "images" / f"{i}.png")
            Image.fromarray(disk.astype(np.uint8)).save(root / part / "labels" / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def config_in(disk_data: Path) -> Callable[..., Config]:
    """`config_in(folder, **changes)`: a whole experiment, for fixtures whose runs several tests read."""
    labelled = {
        "kind": "image_label_folder",
        "classes": ["ground", "disk"],
        "parts": {
            p: {"images": str(disk_data / p / "images"), "labels": str(disk_data / p / "labels")}
            for p in ("train", "val", "test")
        },
    }
    plain = {"kind": "image_folder", "parts": {p: {"root": str(disk_data / p / "images")} for p in ("train", "val", "test")}}

    def make(folder: Path, /, **changes: Any) -> Config:
        whole = {
            "name": "tiny",
            "out": str(folder),
            "backbone": {"mode": "first_task", "kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3},
            "method": {"name": "piggyback", "init": 6e-3},
            "train": {
                "steps": 8,
                "batch_size": 2,
                "checkpoint_every": 4,
                "log_every": 2,
                "augmentation": {"crop": 32},
                "validation": {"every": 3, "precise_bn_batches": 4},
                "optimiser": {"lr": 1e-2, "mask_lr": 1e-2},
                "schedule": {"warmup": 0, "head_first": 0.25},
            },
            "tasks": {
                "disks": {"task": {"kind": "segmentation"}, "data": labelled},
                "colour": {"task": {"kind": "colourisation"}, "data": plain},
                "edges": {"task": {"kind": "edges", "drawing": "sobel"}, "data": plain},
            },
            "sequence": ["disks", "colour", "edges"],
            "device": {"accelerator": "cpu"},
            "evaluation": {"check_images": 2, "panels": 2},
        }
        return copy.deepcopy(whole) | changes  # a test may change what it gets

    return make


@pytest.fixture
def config(config_in: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    """`config(**changes)`: a whole experiment, in the test's own folder."""
    return functools.partial(config_in, tmp_path / "run")
