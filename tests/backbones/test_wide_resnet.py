"""Wide residual networks against the functional code of their authors, written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from img2img.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from img2img.backbones.wide_resnet import WideResNet


def plain_wide_resnet(x: Tensor, w: dict[str, Tensor], blocks: int) -> Tensor:
    """Zagoruyko and Komodakis's forward pass in training mode, but for the stride of 2 in the first group."""

    def active(x: Tensor, name: str) -> Tensor:
        return F.relu(F.batch_norm(x, None, None, w[f"trunk.{name}.weight"], w[f"trunk.{name}.bias"], training=True))

    def block(x: Tensor, base: str, stride: int) -> Tensor:
        o1 = active(x, f"{base}.bn1")
        y = F.conv2d(o1, w[f"trunk.{base}.conv1.weight"], stride=stride, padding=1)
        z = F.conv2d(active(y, f"{base}.bn2"), w[f"trunk.{base}.conv2.weight"], padding=1)
        new = w.get(f"trunk.{base}.shortcut.weight")
        return z + (x if new is None else F.conv2d(o1, new, stride=stride))

    x = F.conv2d(x, w["trunk.conv.weight"], padding=1)
    for group in (1, 2, 3):
        for i in range(blocks):
            x = block(x, f"group{group}.{i}", 2 if i == 0 else 1)
    return F.linear(active(x, "bn").mean((2, 3)), w["head.weight"], w["head.bias"])


def test_it_computes_what_its_authors_code_computes() -> None:
    torch.manual_seed(0)
    net = WideResNet(out_channels=3, depth=16, width=2)
    for p in net.parameters():
        nn.init.normal_(p, 0.1, 0.2)
    x = torch.rand(4, 3, 32, 24)
    normalised = (x - torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)) / torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    torch.testing.assert_close(net(x), plain_wide_resnet(normalised, net.state_dict(), 2))


def test_wrn_28_4_has_the_sources_size() -> None:
    net = WideResNet(out_channels=10)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 28
    # By hand: the stem, three groups of 3x3 convolutions, three 1x1 shortcuts; then normalisation and the classifier.
    groups = [(16, 64), (64, 128), (128, 256)]
    weights = 9 * 3 * 16 + sum(9 * (a * b + 7 * b * b) + a * b for a, b in groups)
    norms = 2 * (sum(a + 7 * b for a, b in groups) + 256)
    assert sum(m.weight.numel() for m in convolutions) == weights == 5_839_280
    assert sum(p.numel() for p in net.parameters()) == weights + norms + 257 * 10 == 5_849_050


@torch.no_grad()
def test_maps_of_a_image_of_64_pixels_halve_in_every_group() -> None:
    net = WideResNet(out_channels=2, depth=10, width=1).eval()
    x, sizes = torch.rand(1, 3, 64, 64), []
    for layer in list(net.trunk)[:4]:
        x = layer(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes == [(16, 64, 64), (16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_convolutions_start_kaiming_normal_over_the_fan_out() -> None:
    torch.manual_seed(0)
    for conv in (m for m in WideResNet(out_channels=2, depth=10).modules() if isinstance(m, nn.Conv2d)):
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)
