"""The backbones under masks: what is masked in them, transposed convolutions above all, and that it learns and is exact."""

from typing import Any

import pytest
import torch
from torch import nn

from img2img import MaskedNetwork, masks
from img2img.backbones import build_backbone

SPECS: dict[str, dict[str, Any]] = {
    "transformer": {"kind": "image_transformer", "width": 4, "blocks": 1, "norm": "instance"},
    "unet": {"kind": "smp", "arch": "unet", "encoder": "resnet18", "decoder_channels": [16, 16, 8, 8, 8]},
    "linknet": {"kind": "smp", "arch": "linknet", "encoder": "resnet18"},
    "depthwise": {"kind": "smp", "arch": "fpn", "encoder": "tu-tf_efficientnet_lite0"},
}


@pytest.mark.parametrize("name", SPECS)
def test_every_convolution_of_a_backbone_is_masked_learns_and_merges_exactly(name: str) -> None:
    backbone = build_backbone({**SPECS[name], "out_channels": 3})
    net = MaskedNetwork(backbone, head="head")
    convolutions = {
        f"{module}.weight"
        for module, m in backbone.named_modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d) and not module.startswith("head")
    }
    assert set(net.roles.masked) == convolutions
    net.add_task("a", masks.Piggyback(init=6e-3), head=backbone.make_head(2))
    x = torch.rand(2, 3, 64, 64)
    optimiser = torch.optim.Adam(net.task_module("a").parameters(), 1e-2)
    net.train()
    for _ in range(3):
        optimiser.zero_grad()
        (net(x, task="a") - 1).square().mean().backward()
        optimiser.step()
    densities = net.state("a").densities()
    transposed = {f"{module}.weight" for module, m in backbone.named_modules() if isinstance(m, nn.ConvTranspose2d)}
    assert bool(transposed) == (name in ("transformer", "linknet"))
    assert all(0 < densities[weight] < 1 for weight in transposed), "bits of transposed convolutions flip"
    assert net.hash_backbone() == net.backbone_sha256
    net.freeze_task("a")
    with torch.no_grad():
        assert torch.equal(net.merge("a")(x), net.eval()(x, task="a"))
