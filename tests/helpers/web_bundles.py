"""Tiny bundles with random masks, made in a moment: what a service serves is not what this is about."""

import io
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from img2img.backbones import build_backbone
from img2img.bundle import HEAD, add_task_to_bundle, load_bundle, save_backbone
from img2img.masks import Identity, MaskedNetwork, Piggyback
from img2img.tasks import build_task

IMAGES = {
    "disks": {"kind": "segmentation", "classes": ["ground", "disk", "a <b>bold</b> class"]},
    "colour": {"kind": "colourisation"},
    "edges": {"kind": "edges", "drawing": "sobel"},
}
CLASSES = {"birds": {"kind": "classification", "classes": ["robin", "wren", "owl"]}}


def make_bundle(folder: Path, backbone: dict[str, object], tasks: dict[str, dict[str, object]]) -> Path:
    """A bundle whose first task runs on the bare backbone, and the others with half of the weights."""
    torch.manual_seed(0)
    plain = build_backbone({**backbone, "out_channels": 3})
    network = MaskedNetwork(plain, head=HEAD)
    save_backbone(folder, network, plain.spec)
    for name, options in tasks.items():
        task = build_task(options)
        method = Piggyback(start="uniform") if network.tasks() else Identity()
        network.add_task(name, method, head=plain.make_head(task.out_channels))
        network.freeze_task(name)
        add_task_to_bundle(folder, network, name, options=task.options(), info={"figures": {task.metric: 0.5}, "side": 32})
    return folder


def image_bundle(folder: Path) -> Path:
    """Three tasks that give images."""
    return make_bundle(folder, {"kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3}, IMAGES)


def class_bundle(folder: Path) -> Path:
    """One task that gives scores."""
    return make_bundle(folder, {"kind": "vgg_small", "width": 0.0625, "hidden": []}, CLASSES)


def photo(width: int = 60, height: int = 44, *, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """An image of smooth colours."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The file of an image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def same(a: Image.Image, b: Image.Image) -> bool:
    """The same pixels in the same mode."""
    return a.mode == b.mode and a.size == b.size and np.array_equal(np.asarray(a), np.asarray(b))


def task_file(bundle: Path, folder: Path, name: str) -> Path:
    """The file of a further task of a bundle, which stays as it is."""
    copy = Path(shutil.copytree(bundle, folder))
    network, backbone = load_bundle(copy)
    task = build_task({"kind": "translation"})
    network.add_task(name, Piggyback(start="uniform"), head=backbone.make_head(task.out_channels))
    network.freeze_task(name)
    info = {"figures": {task.metric: 0.5}, "side": 32}
    return add_task_to_bundle(copy, network, name, options=task.options(), info=info)
