"""Tasks of every kind on small networks, with masks that are neither all ones nor trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from img2img import MaskedNetwork, masks
from img2img.backbones import build_backbone
from img2img.bundle import add_task_to_bundle, save_backbone
from img2img.tasks import Task, build_task

Made = tuple[MaskedNetwork, Task]

KINDS: dict[str, dict[str, Any]] = {
    "segmentation": {"kind": "segmentation", "classes": ["ground", "disk", "sky"]},
    "classification": {"kind": "classification", "classes": ["a", "b", "c", "d"]},
    "colourisation": {"kind": "colourisation"},
    "bins": {"kind": "colourisation", "bins": {"grid": 40}},
    "guided": {"kind": "colourisation", "bins": {"grid": 40}, "guided_filter": {}},
    "super_resolution": {"kind": "super_resolution", "factor": 2},
    "style": {"kind": "style"},
    "edges": {"kind": "edges", "drawing": "sobel"},
    "canny": {"kind": "edges", "drawing": "canny"},
    "drawing": {"kind": "edges", "drawing": "pair"},
    "translation": {"kind": "translation"},
    "denoising": {"kind": "denoising", "sigma": 30.0},
}
METHODS: dict[str, Callable[[], masks.MaskMethod]] = {
    "piggyback": lambda: masks.Piggyback(start="uniform"),
    "affine": masks.Affine,
    "ksm": masks.KSM,
}
TRANSFORMER = {"kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3}


def unsettle(module: nn.Module) -> None:
    """Give normalisation layers statistics that a fresh network lacks."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)


def add(network: MaskedNetwork, backbone: Any, name: str, kind: str, method: str) -> Task:
    """Add a task whose masks have zeros everywhere."""
    task = build_task(KINDS[kind])
    state = network.add_task(name, METHODS[method](), head=backbone.make_head(task.out_channels))
    with torch.no_grad():
        for parameter in state.masks.parameters():
            if parameter.ndim > 1:  # scores, and not the scalars of a layer
                parameter.add_(0.02 * torch.randn_like(parameter))
    state.info = {"task": task.options(), "figures": {task.metric: 0.5}}
    return task


@pytest.fixture
def make() -> Callable[..., Made]:
    """`make(spec, kind, method)`: a network with one task, "it"."""

    def build(spec: dict[str, Any] = TRANSFORMER, kind: str = "segmentation", method: str = "piggyback") -> Made:
        torch.manual_seed(1)
        backbone = build_backbone(spec | {"out_channels": build_task(KINDS[kind]).out_channels})
        unsettle(backbone)
        network = MaskedNetwork(backbone, head="head")
        task = add(network, backbone, "it", kind, method)
        network.freeze_task("it")
        return network.eval(), task

    return build


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a binary, an affine and a second binary task."""
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("tiny") / "bundle"
    backbone = build_backbone(TRANSFORMER | {"width": 16, "out_channels": 3})
    unsettle(backbone)
    network = MaskedNetwork(backbone, head="head")
    save_backbone(folder, network, backbone.spec)
    tasks = (("disks", "segmentation", "piggyback"), ("ink", "drawing", "piggyback"), ("paint", "style", "affine"))
    for name, kind, method in tasks:
        task = add(network, backbone, name, kind, method)
        add_task_to_bundle(folder, network, name, options=task.options(), info={"figures": {task.metric: 0.25}})
    return folder
