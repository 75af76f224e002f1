"""VGG16-BN for 32 pixels against torchvision's VGG-16 and the figures of CPG's code."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torchvision.models import vgg

from img2img.backbones.vgg_small import VGGSmall


def parameters(**options: object) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in VGGSmall(out_channels=5, **options).trunk.parameters())  # type: ignore[arg-type]


@torch.no_grad()
def test_its_convolutions_are_those_of_torchvisions_vgg16_bn() -> None:
    net = VGGSmall(out_channels=5, hidden=[]).eval()
    theirs = vgg.make_layers(vgg.cfgs["D"], batch_norm=True).eval()
    for ours, layer in zip(net.trunk.features, theirs, strict=True):
        assert type(ours) is type(layer)
        if isinstance(layer, nn.Conv2d):
            layer.weight.copy_(ours.weight)
            layer.bias.zero_()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(net.trunk(x), theirs(x).flatten(1))
    assert net.trunk(x).shape == (2, 512)


def test_its_size_is_that_of_cpgs_network() -> None:
    sizes = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convolutions = sum(9 * a * b + 2 * b for a, b in pairwise(sizes))
    assert parameters(hidden=[]) == convolutions
    assert parameters() == convolutions + 513 * 4096 + 4097 * 4096 == 33_601_472


def test_width_multiplies_channels_and_hidden_layers() -> None:
    net = VGGSmall(out_channels=5, width=0.3, hidden=[100])
    convolutions = [m.out_channels for m in net.trunk.features if isinstance(m, nn.Conv2d)]
    assert convolutions == [19, 19, 38, 38, 76, 76, 76, 153, 153, 153, 153, 153, 153], "rounded down"
    assert (net.trunk.hidden[0].in_features, net.head_channels) == (153, 30)


@torch.no_grad()
def test_larger_images_are_averaged_and_smaller_ones_refused() -> None:
    net = VGGSmall(out_channels=5, width=0.125, hidden=[]).eval()
    x = torch.randn(1, 3, 64, 96)
    assert torch.allclose(net.trunk(x), net.trunk.features(x).mean((2, 3)))
    assert net.min_size == 32
    with pytest.raises(RuntimeError, match="too small"):
        net.trunk(torch.rand(1, 3, 31, 31))


@torch.no_grad()
def test_it_starts_as_cpgs_does() -> None:
    torch.manual_seed(0)
    net = VGGSmall(out_channels=5, width=0.5, hidden=[512])
    for conv in (m for m in net.trunk.features if isinstance(m, nn.Conv2d)):
        assert conv.weight.std().item() == pytest.approx((2 / (9 * conv.out_channels)) ** 0.5, rel=0.1)
    assert net.trunk.hidden[0].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not net.trunk.hidden[0].bias.any()
