"""Classifiers of torchvision against torchvision's own networks, bit for bit."""

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from img2img import MaskedNetwork, masks
from img2img.backbones import Classifier, torchvision_classifiers
from img2img.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from img2img.backbones.torchvision_classifiers import torchvision_classifier
from img2img.errors import InputError

# Their last linear layer, and parameters in millions with a thousand classes, as torchvision publishes them.
NETWORKS = {
    "vgg16": ("classifier.6", 138.36),
    "vgg16_bn": ("classifier.6", 138.37),
    "resnet18": ("fc", 11.69),
    "resnet50": ("fc", 25.56),
    "densenet121": ("classifier", 7.98),
}


def random_network(name: str) -> nn.Module:
    """torchvision's network of that name, with values that neither die nor explode, statistics of normalisation included."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None)
    network.to_empty(device="cpu")
    for tensor in network.state_dict().values():
        if tensor.ndim > 1:
            bound = (6 / tensor[0].numel()) ** 0.5
            tensor.uniform_(-bound, bound)
        else:
            tensor.uniform_(0.5, 1.5) if tensor.is_floating_point() else tensor.zero_()
    return network.eval()


@pytest.fixture(params=NETWORKS)
def theirs(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    return request.param, random_network(request.param)


@torch.no_grad()
def test_it_computes_what_torchvision_computes(theirs: tuple[str, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    name, network = theirs
    last, millions = NETWORKS[name]
    prefix = "module." if name == "vgg16_bn" else ""  # the last layer is left out under either name
    published = {name: {prefix + key: tensor for key, tensor in network.state_dict().items()}}
    monkeypatch.setattr(torchvision_classifiers, "torchvision_tensors", published.__getitem__)
    net = torchvision_classifier(name, out_channels=1000, weights="imagenet").eval()
    net.head.load_state_dict(network.get_submodule(last).state_dict())
    parameters = dict(net.named_parameters())
    assert sum(p.numel() for p in parameters.values()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert parameters.keys() - {"head.weight", "head.bias"} == {
        f"trunk.{key}" for key, _ in network.named_parameters() if not key.startswith(f"{last}.")
    }
    for size in [(64, 64), (70, 33)]:
        x = torch.rand(2, 3, *size)
        normalised = (x - torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)) / torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
        expected = network(normalised)
        assert expected.isfinite().all()
        assert expected.std() > 0
        assert torch.equal(net(x), expected)


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "densenet121"])
def test_the_smallest_image_is_the_one_that_it_says(name: str) -> None:
    with torch.device("meta"):
        net = torchvision_classifier(name, out_channels=2).eval()
        size = net.min_size
        assert net(torch.rand(1, 3, size, size)).shape == (1, 2)
        if size > 1:
            with pytest.raises(RuntimeError, match="too small"):
                net.trunk(torch.rand(1, 3, size - 1, size - 1))


@torch.no_grad()
def test_weights_of_a_file_fill_the_trunk_and_leave_the_last_layer_out(tmp_path: Path) -> None:
    network = random_network("resnet18")
    bare = {k: v for k, v in network.state_dict().items() if not k.startswith("fc.") and "num_batches" not in k}
    wrapped = {f"module.{k}": v for k, v in network.state_dict().items()}
    files = {"whole": network.state_dict(), "no_head": bare, "wrapped": wrapped}
    network.fc = nn.Identity()
    for name, tensors in files.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        net = torchvision_classifier("resnet18", out_channels=3, weights=tmp_path / f"{name}.safetensors")
        assert all(torch.equal(a, b) for a, b in zip(net.trunk.state_dict().values(), network.state_dict().values(), strict=True))
        assert net.head.weight.shape == (3, 512)
        assert net.head.weight.device.type == "cpu"
    whole = tmp_path / "whole.safetensors"
    with pytest.raises(InputError, match=r"another shape.*conv1\.weight"):
        torchvision_classifier("resnet18", out_channels=3, weights=whole, stem="cifar")
    with pytest.raises(InputError, match="belongs to another network"):
        torchvision_classifier("resnet50", out_channels=3, weights=whole)


@torch.no_grad()
def test_a_narrow_resnet_is_torchvisions_with_fewer_channels() -> None:
    narrow = torchvision_classifier("resnet18", out_channels=5, weights=None, stem="cifar", width=0.75)
    whole = torchvision_classifier("resnet18", out_channels=5, weights=None, stem="cifar")
    shapes = {name: p.shape for name, p in narrow.named_parameters()}
    for name, p in whole.named_parameters():
        scaled = [n if n in (3, 5) or (axis > 1) else round(0.75 * n) for axis, n in enumerate(p.shape)]
        assert list(shapes[name]) == scaled, name
    assert narrow(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert narrow.spec["width"] == 0.75
    assert "width" not in whole.spec
    for wrong in (
        {"name": "vgg16", "width": 0.5},
        {"name": "resnet18", "width": 0.5, "weights": "imagenet"},
        {"name": "resnet18", "width": 0.0},
    ):
        with pytest.raises(InputError, match="width"):
            torchvision_classifier(out_channels=2, **wrong)  # type: ignore[arg-type]


def test_the_small_stem_keeps_a_image_of_32_pixels_at_its_size() -> None:
    net = torchvision_classifier("resnet18", out_channels=2, stem="cifar").eval()
    trunk = net.trunk
    x = torch.randn(1, 3, 32, 32)
    first = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(x))))
    assert first.shape == (1, 64, 32, 32)
    assert trunk.layer4(trunk.layer3(trunk.layer2(trunk.layer1(first)))).shape == (1, 512, 4, 4)
    # 9,408 weights of the 7x7 convolution become 1,728.
    assert sum(p.numel() for p in trunk.parameters()) == 11_176_512 - 9_408 + 1_728
    assert trunk.conv1.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)


def test_normalisation_without_affine_leaves_a_task_its_masks_and_statistics() -> None:
    net = torchvision_classifier("resnet18", out_channels=5, stem="cifar", norm_affine=False, output="backbone")
    assert not [name for name, _ in net.named_parameters() if ".bn" in name or "downsample.1" in name]
    network = MaskedNetwork(net, head="head")
    assert (len(network.roles.masked), network.roles.norm_parameters) == (21, ())
    assert len(network.roles.norm_buffers) == 20 * 3
    state = network.add_task("a", masks.SupSup(density=0.3), head=net.make_head(5))
    x = torch.rand(2, 3, 32, 32)
    network(x, task="a").square().mean().backward()
    assert {len(state.masks), len(list(state.parameters()))} == {21}
    assert all(p.grad is not None for p in state.parameters())
    with pytest.raises(InputError, match=r"vgg11 got norm_affine: false.*vgg11_bn"), torch.device("meta"):
        torchvision_classifier("vgg11", out_channels=2, norm_affine=False)


def test_masks_of_vgg_cover_its_hidden_linear_layers_and_train_through_relu_in_place() -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        net = torchvision_classifier("vgg16", out_channels=2)
    small = net.trunk.classifier  # narrower than 4096, so that the test takes no half a gigabyte
    small[0], small[3], net.head = nn.Linear(512 * 49, 64), nn.Linear(64, 64), nn.Linear(64, 2)
    net.to_empty(device="cpu")
    masks.randomise(net, kind="kaiming_normal", seed=0)
    net.mean.fill_(0.5)
    net.std.fill_(0.25)
    network = MaskedNetwork(net, head="head")
    assert len(network.roles.masked) == 13 + 2
    state = network.add_task("a", masks.Piggyback(), head=nn.Linear(64, 2))
    network.train()
    network(torch.rand(2, 3, 32, 32), task="a").square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in state.parameters())
    assert all(p.grad.any() for p in state.parameters())


@pytest.mark.slow
def test_every_network_of_the_known_families_is_a_classifier() -> None:
    names = torchvision.models.list_models(torchvision.models, include=["vgg*", "*resne*t*", "densenet*"])
    assert len(names) >= 8 + 5 + 2 + 3 + 4
    for name in names:
        with torch.device("meta"):
            net = torchvision_classifier(name, out_channels=4).eval()
            assert isinstance(net, Classifier)
            assert net(torch.rand(1, 3, 32, 32)).shape == (1, 4)
