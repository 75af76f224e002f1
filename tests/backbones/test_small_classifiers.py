"""Classifiers for small images, and the transformer for images."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import vgg

from img2img.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from img2img.backbones.lenet import LeNet
from img2img.backbones.transformer import ImageTransformer
from img2img.backbones.vgg_small import VGGSmall
from img2img.backbones.wide_resnet import WideResNet
from img2img.errors import InputError

# ---------------------------------------------------------------------- LeNet-300-100, against the sums that it is


@torch.no_grad()
def test_it_is_three_matrices_with_relu_between() -> None:
    net = LeNet(out_channels=10)
    weights = [(layer.weight, layer.bias) for layer in (net.trunk.fc1, net.trunk.fc2, net.head)]
    assert [tuple(w.shape) for w, _ in weights] == [(300, 784), (100, 300), (10, 100)]
    assert sum(p.numel() for p in net.parameters()) == 266_610
    x = torch.rand(5, 1, 28, 28)
    y = ((x - 0.1307) / 0.3081).flatten(1)
    for w, b in weights[:2]:
        y = (y @ w.T + b).clamp(min=0)
    torch.testing.assert_close(net(x), y @ weights[2][0].T + weights[2][1])


@torch.no_grad()
def test_colours_count_by_their_mean() -> None:
    net = LeNet(out_channels=10)
    grey, colour = torch.rand(2, 1, 28, 28), torch.rand(2, 3, 28, 28)
    torch.testing.assert_close(net(grey.repeat(1, 3, 1, 1)), net(grey))
    torch.testing.assert_close(net(colour), net(colour.mean(1, keepdim=True)))


def test_without_hidden_layers_it_is_a_linear_classifier() -> None:
    net = LeNet(out_channels=3, in_pixels=16, hidden=[])
    assert net.head_channels == 16
    assert net(torch.rand(2, 3, 4, 4)).shape == (2, 3)


@pytest.mark.parametrize("size", [(32, 32), (28, 29)])
def test_a_image_of_another_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"got images of {size[0]} x {size[1]}.*exactly 28 x 28"):
        LeNet(out_channels=10)(torch.rand(1, 1, *size))


# ---------------------------------------------------------------------- VGG16-BN for 32 pixels, against torchvision and CPG


def vgg_parameters(**options: object) -> int:
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
    assert vgg_parameters(hidden=[]) == convolutions
    assert vgg_parameters() == convolutions + 513 * 4096 + 4097 * 4096 == 33_601_472


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


# ---------------------------------------------------------------------- wide residual networks, against code written out


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


def plain_transformer(x: Tensor, w: dict[str, Tensor], blocks: int) -> Tensor:
    """The network of Johnson et al. written out, in training mode with batch statistics."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(x, None, None, w[f"{name}.weight"], w[f"{name}.bias"], training=True)

    def conv(x: Tensor, name: str, pad: int, stride: int = 1) -> Tensor:
        x = F.conv2d(F.pad(x, (pad,) * 4, mode="reflect"), w[f"{name}.0.weight"], stride=stride)
        return norm(x, f"{name}.1")

    x = (x - 0.5) / 0.5
    x = conv(x, "encoder.0", 4).relu()
    x = conv(x, "encoder.1", 1, stride=2).relu()
    x = conv(x, "encoder.2", 1, stride=2).relu()
    for i in range(blocks):
        x = x + conv(conv(x, f"encoder.{3 + i}.conv1", 1).relu(), f"encoder.{3 + i}.conv2", 1)
    for i in range(2):
        x = F.conv_transpose2d(x, w[f"decoder.{i}.0.weight"], stride=2, padding=1, output_padding=1)
        x = norm(x, f"decoder.{i}.1").relu()
    return F.conv2d(F.pad(x, (4,) * 4, mode="reflect"), w["head.weight"], w["head.bias"])


def test_it_computes_the_papers_network() -> None:
    net = ImageTransformer(out_channels=3, width=4, blocks=2)
    for p in net.parameters():
        nn.init.normal_(p, 0.1, 0.3)
    x = torch.rand(2, 3, 16, 20)
    torch.testing.assert_close(net(x), plain_transformer(x, net.state_dict(), 2))


@pytest.mark.parametrize(("options", "millions"), [({}, 1.68), ({"width": 80, "blocks": 7}, 14.1)])
def test_its_size_is_the_papers_and_the_posters(options, millions) -> None:
    with torch.device("meta"):
        net = ImageTransformer(out_channels=3, **options)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_it_goes_up_by_transposed_convolutions_and_keeps_the_images_size() -> None:
    net = ImageTransformer(out_channels=5, width=4, blocks=1)
    assert [type(m) for m in net.decoder.modules() if hasattr(m, "stride")] == [nn.ConvTranspose2d] * 2
    assert net(torch.rand(1, 3, 8, 12)).shape == (1, 5, 8, 12)
    assert (net.stride, net.min_size, net.head_channels) == (4, 8, 4)
    assert net.make_head(2)(torch.rand(1, 4, 8, 8)).shape == (1, 2, 8, 8)


def test_instance_normalisation_looks_at_one_image_alone() -> None:
    x = torch.rand(2, 3, 8, 8)
    net = ImageTransformer(out_channels=1, width=4, blocks=1, norm="instance")
    torch.testing.assert_close(net(x)[:1], net(x[:1]))
    batch = ImageTransformer(out_channels=1, width=4, blocks=1, norm="batch")
    assert (batch(x)[:1] - batch(x[:1])).abs().max() > 1e-3


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_fresh_network_neither_dies_nor_explodes(norm) -> None:
    y = ImageTransformer(out_channels=3, width=8, norm=norm)(torch.rand(4, 3, 32, 32))
    assert 0.1 < y.std() < 10


def test_weights_of_an_earlier_training_come_from_a_file(tmp_path) -> None:
    first = ImageTransformer(out_channels=7, width=4, blocks=1)
    save_file(first.state_dict(), tmp_path / "first.safetensors")
    second = ImageTransformer(out_channels=2, width=4, blocks=1, weights=tmp_path / "first.safetensors")
    for part in ("encoder", "decoder"):
        for name, tensor in getattr(first, part).state_dict().items():
            assert torch.equal(tensor, getattr(second, part).state_dict()[name])
    with pytest.raises(InputError, match="shape"):
        ImageTransformer(out_channels=2, width=8, blocks=1, weights=tmp_path / "first.safetensors")


def test_it_compiles_to_one_graph() -> None:
    net, x = ImageTransformer(out_channels=3, width=4, blocks=1).eval(), torch.rand(1, 3, 16, 16)
    assert torch.equal(torch.compile(net, fullgraph=True, backend="eager")(x), net(x))


@pytest.mark.parametrize(
    "options", [{"width": 0}, {"blocks": -1}, {"head_kernel": 4}, {"norm": "layer"}, {"weights": "imagenet"}]
)
def test_wrong_options_are_refused(options) -> None:
    with pytest.raises(InputError):
        ImageTransformer(out_channels=3, **options)
