"""Backbones of every family as a spec builds them, and under masks."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from img2img import MaskedNetwork, masks
from img2img.backbones import build_backbone
from img2img.errors import InputError

SPECS = [
    {"kind": "smp", "arch": "unet", "encoder": "resnet18", "out_channels": 3, "decoder_channels": [8, 8, 8, 8, 8]},
    {"kind": "smp", "arch": "fpn", "encoder": "tu-tf_efficientnet_lite0", "out_channels": 2, "options": {"upsampling": 4}},
    {"kind": "image_transformer", "out_channels": 3, "width": 4, "blocks": 1, "norm": "instance"},
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_network_is_rebuilt_from_its_spec_and_state_dict(spec) -> None:
    first = build_backbone(spec).eval()
    again = build_backbone(json.loads(json.dumps(first.spec))).eval()
    assert again.spec == first.spec
    again.load_state_dict(first.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), first(x))


def test_the_spec_keeps_no_path_of_this_machine(tmp_path) -> None:
    first = build_backbone(SPECS[2])
    torch.save(first.state_dict(), tmp_path / "first.pth")
    second = build_backbone(SPECS[2] | {"weights": str(tmp_path / "first.pth")})
    assert torch.equal(second.encoder[0][0].weight, first.encoder[0][0].weight)
    assert second.spec == first.spec
    assert "weights" not in second.spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "unet"}, "'unet'.*image_transformer.*smp"),
        ({"kind": None}, "kind None is unknown"),
        ({"encoders": "x"}, "no option 'encoders'.*'encoder'"),
        ({"out_channels": "3"}, "out_channels: '3'.*int"),
        ({"out_channels": True}, "out_channels: True"),
        ({"out_channels": 0}, "out_channels 0: expected 1 channel or class"),
        ({"depth": 2.5}, "depth: 2.5"),
        ({"decoder_channels": "8,8"}, "decoder_channels: '8,8'"),
        ({"options": [1]}, r"options: \[1\]"),
        ({"weights": 3}, "weights: 3"),
    ],
)
def test_a_wrong_spec_is_refused_with_what_is_known(change, message) -> None:
    with pytest.raises(InputError, match=message):
        build_backbone(SPECS[0] | change)


@pytest.mark.parametrize(
    ("name", "width", "message"),
    [
        ("resnet18", float("inf"), "width: inf: expected a finite number"),
        ("resnet18", 0.001, "leaves a channel everywhere"),
        ("resnext50_32x4d", 0.9, "convolutions have groups"),
    ],
)
def test_a_width_that_no_network_has_is_refused(name: str, width: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_backbone({"kind": "torchvision", "name": name, "out_channels": 2, "width": width})


def test_a_spec_without_output_channels_is_refused() -> None:
    with pytest.raises(InputError, match="needs the option 'out_channels'"):
        build_backbone({"kind": "image_transformer"})


# ---------------------------------------------------------------------- under masks: transposed convolutions above all

MASKED: dict[str, dict[str, Any]] = {
    "transformer": {"kind": "image_transformer", "width": 4, "blocks": 1, "norm": "instance"},
    "unet": {"kind": "smp", "arch": "unet", "encoder": "resnet18", "decoder_channels": [16, 16, 8, 8, 8]},
    "linknet": {"kind": "smp", "arch": "linknet", "encoder": "resnet18"},
    "depthwise": {"kind": "smp", "arch": "fpn", "encoder": "tu-tf_efficientnet_lite0"},
}


@pytest.mark.parametrize("name", MASKED)
def test_every_convolution_of_a_backbone_is_masked_learns_and_merges_exactly(name: str) -> None:
    backbone = build_backbone({**MASKED[name], "out_channels": 3})
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
