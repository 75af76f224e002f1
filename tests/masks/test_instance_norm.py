"""A task that normalises by each image's own statistics: alone or in a batch, trained, stored, merged, and in large images."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mask_zoo import WithHead, head
from torch import nn

import img2img
from img2img import InputError, MaskedNetwork, masks
from img2img.backbones import build_backbone
from img2img.bundle import HEAD, add_task_to_bundle, save_backbone
from img2img.inference import prediction
from img2img.masks.task_inference import by_norm_statistics
from img2img.training.run import run

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 3, 8, 8)


@pytest.fixture
def net() -> MaskedNetwork:
    net = MaskedNetwork(WithHead(), head="head")
    net.add_task("own", masks.Piggyback(start="uniform"), head=head())
    net.add_task("style", masks.Piggyback(start="uniform"), head=head(), norm="instance")
    with torch.no_grad():
        for tensor in net.state("style").norm_tensors().values():
            tensor.add_(torch.rand_like(tensor))
    return net.eval()


def _as_instance_norm(plain: nn.Module) -> nn.Module:
    """The same network with PyTorch's own instance normalisation in place of its batch normalisation."""
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            other = nn.InstanceNorm2d(layer.num_features, eps=layer.eps, affine=True)
            other.weight, other.bias = layer.weight, layer.bias
            plain.set_submodule(name, other)
    return plain


@torch.no_grad()
def test_it_is_pytorchs_instance_normalisation_in_training_and_evaluation(net: MaskedNetwork, x: torch.Tensor) -> None:
    y, other = net(x, task="style"), net(x, task="own")
    assert torch.allclose(y, _as_instance_norm(net.merge("style"))(x), atol=1e-6)
    for i in range(3):
        assert torch.allclose(net(x[i : i + 1], task="style"), y[i : i + 1], atol=1e-6), "no image depends on the others"
    net.train()
    assert torch.equal(net(x, task="style"), y)
    net.eval()
    assert torch.equal(net(x, task="own"), other), "the other task has its running statistics"
    assert not torch.allclose(y, other, atol=1e-2)


def test_a_task_owns_the_parameters_and_no_statistics(net: MaskedNetwork, x: torch.Tensor, tmp_path: Path) -> None:
    own = net.state("style").norm_tensors()
    assert own
    assert not any("running" in name or "tracked" in name for name in own)
    module = net.task_module("style")
    module.train()
    before = net.hash_backbone()
    module(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.state("style").norm.parameters())
    assert net.hash_backbone() == before
    net.eval()
    with torch.no_grad():
        y = net(x, task="style")
        again = copy.deepcopy(net)
        again.delete_task("style")
        again.load_task(net.save_task("style", tmp_path / "style.safetensors"))
        again.eval()
        assert again.state("style").norm_mode == "instance"
        for other in (again, copy.deepcopy(net)):
            assert torch.equal(other(x, task="style"), y)
        merged = net.merge("style")
        assert torch.equal(merged(x), y)
        assert torch.equal(copy.deepcopy(merged)(x), y)
        exported = torch.export.export(merged, (x,)).module()
        assert torch.allclose(exported(x), y, atol=1e-6)


def test_what_cannot_be_so_is_refused_and_says_what_to_do(net: MaskedNetwork, x: torch.Tensor) -> None:
    def refused(message: str, backbone: nn.Module) -> None:
        with pytest.raises(InputError, match=message):
            MaskedNetwork(backbone).add_task("style", masks.Piggyback(), norm="instance")

    refused(r"'instance'.*no batch normalisation", nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)))

    class Odd(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    refused(r"class Odd.*norm='own'", nn.Sequential(nn.Conv2d(3, 4, 3), Odd(4)))
    flat = MaskedNetwork(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    flat.add_task("style", masks.Piggyback(), norm="instance")
    with pytest.raises(InputError, match=r"\(2, 4\).*norm='own'"):
        flat(torch.rand(2, 3), task="style")
    net.freeze_task("style")
    with pytest.raises(InputError, match=r"'style'.*norm='instance'.*merge"):
        net.deploy().activate("style")
    with pytest.raises(InputError, match=r"'style'.*norm='instance'.*by_entropy"):
        by_norm_statistics(net, x, tasks=["style"])


def test_layers_with_an_activation_inside_and_a_single_pixel() -> None:
    """timm's layers, and what the deepest layer has of the smallest images."""
    backbone = build_backbone(
        {"kind": "smp", "arch": "unet", "encoder": "tu-tf_efficientnet_lite0", "weights": None, "out_channels": 1}
    )
    net = MaskedNetwork(backbone, head=HEAD)
    net.add_task("style", masks.Piggyback(), head=backbone.make_head(3), norm="instance")
    x = torch.rand(2, 3, 64, 64)
    net.eval()
    with torch.no_grad():
        y = net(x, task="style")
        assert y.isfinite().all()
        assert net(x[..., :32, :32], task="style").isfinite().all()


# ---------------------------------------------------------------------- large images


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    backbone = build_backbone(
        {"kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3, "weights": None, "out_channels": 1}
    )
    network = MaskedNetwork(backbone, head=HEAD)
    save_backbone(tmp_path / "bundle", network, backbone.spec)
    for name, norm in (("gogh", "instance"), ("plain", "own")):
        network.add_task(name, masks.Piggyback(start="uniform"), head=backbone.make_head(3), norm=norm)  # type: ignore[arg-type]
        info = {"figures": {"total style loss": 0.5}, "side": 32}
        add_task_to_bundle(tmp_path / "bundle", network, name, options={"kind": "style"}, info=info)
    return tmp_path / "bundle"


def test_a_large_image_is_normalised_as_a_whole_without_seams(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Dark on one side and bright on the other: a tile's statistics are far from the image's.
    image = np.zeros((64, 400, 3), np.uint8)
    image[:, 200:] = np.random.default_rng(0).integers(100, 256, (64, 200, 3))
    model = img2img.load(bundle)
    whole = model.run("gogh", image, tile=None)
    assert np.array_equal(model.run("gogh", image, tile=160), whole), "never in tiles"
    assert np.array_equal(img2img.load(bundle, weights="merged").run("gogh", image, tile=160), whole)
    network = model.network
    with torch.no_grad():  # tiles by hand, to show that they would differ
        part = network(torch.from_numpy(image[:, :160].copy()).permute(2, 0, 1)[None] / 255, task="gogh")
        all_of_it = network(torch.from_numpy(image).permute(2, 0, 1)[None] / 255, task="gogh")
    assert (part[..., :100] - all_of_it[..., :100]).abs().max() > 0.05
    # Seen smaller than it is, by one view of the whole, and shown part by part.
    small = model.run("gogh", image, side=32, tile=None).astype(int)
    assert np.abs(model.run("gogh", image, side=32, tile=160).astype(int) - small).max() <= 1
    monkeypatch.setattr(prediction, "WHOLE_PIXELS", 20_000)
    with pytest.raises(InputError, match=r"400 x 64.*whole image \(norm='instance'\).*20,000.*side=.*tile=None"):
        model.run("gogh", image)
    assert model.run("plain", image, tile=160).shape == image.shape
    assert np.array_equal(model.run("gogh", image, tile=None), whole)


# ---------------------------------------------------------------------- in a sequence


@pytest.mark.parametrize("method", [{"name": "piggyback", "init": 6e-3}, {"name": "finetune"}], ids=["masks", "finetune"])
def test_one_task_of_a_sequence_may_have_it(config: Make, tmp_path: Path, method: dict[str, Any]) -> None:
    made = config(method=method, sequence=["disks", "edges"])
    plain = run(config(method=method, sequence=["disks", "edges"], out=str(tmp_path / "plain")))
    made["tasks"]["edges"]["norm"] = "instance"
    results = run(made)
    assert results["tasks"][0]["value"] == plain["tasks"][0]["value"]
    assert results["tasks"][1]["value"] != plain["tasks"][1]["value"]
    assert run(made)["tasks"] == results["tasks"], "finished"
    if method["name"] == "piggyback":
        model = img2img.load(tmp_path / "run")
        assert model.network.state("edges").norm_mode == "instance"
        assert model.network.state("disks").norm_mode == "own"


def test_where_one_network_is_shared_or_trains_the_backbone_it_is_refused(config: Make) -> None:
    made = config(method={"name": "lwf"}, sequence=["disks", "edges"])
    made["tasks"]["edges"]["norm"] = "instance"
    with pytest.raises(InputError, match=r"tasks\.edges.*'instance'.*'lwf'.*finetune"):
        run(made)
    made = config(sequence=["disks", "edges"])
    made["tasks"]["disks"]["norm"] = "instance"
    with pytest.raises(InputError, match=r"tasks\.disks\.norm='instance'.*backbone"):
        run(made)


def test_a_merged_network_is_copied_and_sent_to_other_processes_whole(net: MaskedNetwork, x: torch.Tensor) -> None:
    plain = net.merge("style")
    expected = plain(x)
    for other in (pickle.loads(pickle.dumps(plain)), copy.deepcopy(plain)):
        assert torch.equal(other(x), expected)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert not torch.equal(other(x), expected), "its layers use their own parameters"
    assert torch.equal(plain(x), expected)
