"""A tiny experiment of three tasks on a network of a few thousand weights, on pictures that the test writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Config = dict[str, Any]


@pytest.fixture(scope="session")
def disk_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of a disk on a background, with its label; the disk's colour depends on where it is."""
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


@pytest.fixture
def config(disk_data: Path, tmp_path: Path) -> Callable[..., Config]:
    """`config(**changes)`: a whole experiment."""
    labelled = {
        "kind": "image_label_folder",
        "classes": ["ground", "disk"],
        "parts": {
            p: {"images": str(disk_data / p / "images"), "labels": str(disk_data / p / "labels")}
            for p in ("train", "val", "test")
        },
    }
    plain = {"kind": "image_folder", "parts": {p: {"root": str(disk_data / p / "images")} for p in ("train", "val", "test")}}

    def make(**changes: Any) -> Config:
        return {
            "name": "tiny",
            "out": str(tmp_path / "run"),
            "backbone": {"mode": "first_task", "kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3},
            "method": {"name": "piggyback", "init": 6e-3},
            "train": {
                "steps": 8,
                "batch_size": 2,
                "crop": 32,
                "val_every": 3,
                "checkpoint_every": 4,
                "log_every": 2,
                "lr": 1e-2,
                "mask_lr": 1e-2,
                "warmup": 0,
                "head_first": 0.25,
                "norm_batches": 4,
            },
            "tasks": {
                "disks": {"task": {"kind": "segmentation"}, "data": labelled},
                "colour": {"task": {"kind": "colourisation"}, "data": plain},
                "edges": {"task": {"kind": "edges", "drawing": "sobel"}, "data": plain},
            },
            "sequence": ["disks", "colour", "edges"],
            "accelerator": "cpu",
            "probe": 2,
            "panels": 2,
        } | changes

    return make
