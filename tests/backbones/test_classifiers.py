"""What all classifiers share: the shape of the call, heads, a backbone's own output layer, specs, files and masks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from img2img import MaskedNetwork, masks
from img2img.backbones import Classifier, build_backbone
from img2img.errors import InputError
from img2img.masks.heads import build_head, describe_head


class InPlaceTrunk(nn.Module):
    """Overwrites its input, as a network that starts with an in-place activation does."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu_().mean((2, 3))


def tiny(**options: Any) -> Classifier:
    defaults: dict[str, Any] = {"out_channels": 5, "min_size": 4, "spec": {"kind": "tiny"}}
    return Classifier(InPlaceTrunk(), 3, **(defaults | {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 2.0)} | options))


@pytest.mark.parametrize("output", ["head", "backbone"])
def test_logits_are_the_last_layer_on_the_trunk_of_the_normalised_image(output: str) -> None:
    net = tiny(output=output)
    x = torch.rand(2, 3, 4, 6)
    before = x.clone()
    normal = torch.stack([(x[:, i] - m) / s for i, (m, s) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 2.0)])], 1)
    last = net.head if output == "head" else net.output
    assert isinstance(last, nn.Linear)
    torch.testing.assert_close(net(x), normal.relu().mean((2, 3)) @ last.weight.T + last.bias)
    assert torch.equal(x, before), "the caller's image stays"
    grey = torch.rand(2, 1, 4, 4)
    assert torch.equal(net(grey), net(grey.repeat(1, 3, 1, 1)))


def test_a_head_is_a_linear_layer_that_a_task_file_can_rebuild() -> None:
    net = tiny()
    head = net.make_head(7)
    assert (net.head_channels, net.stride, net.min_size) == (3, 1, 4)
    again = build_head(describe_head(head))
    again.load_state_dict(head.state_dict())
    features = torch.rand(2, 3)
    assert torch.equal(again(features), head(features))
    assert head(features).shape == (2, 7)


def test_with_an_output_layer_of_its_own_the_backbone_leaves_nothing_for_heads() -> None:
    net = tiny(output="backbone")
    assert isinstance(net.make_head(5), nn.Identity)
    assert net.head_channels == 5
    with pytest.raises(InputError, match=r"4 classes.* 5.*output: head"):
        net.make_head(4)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(3, 8, 8), r"expected \(N, 3, H, W\)"),
        (torch.rand(1, 2, 8, 8), r"expected \(N, 3, H, W\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.rand(1, 3, 3, 9), r"3 x 9.*at least 4.*to 4 x 9"),
    ],
)
def test_a_batch_of_another_form_is_refused(x: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny()(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_channels": 0}, "for 0 classes: expected at least 1"),
        ({"output": "trunk"}, "'trunk'.*'head' or 'backbone'"),
        ({"mean": (0.5,)}, r"mean \[0.5\].*three numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "no std of 0"),
        ({"std": (1.0, "1", 1.0)}, "expected three numbers"),
        ({"mean": (0.0, float("nan"), 0.0)}, "expected three numbers"),
        ({"spec": {"layer": nn.ReLU}}, "plain values"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(**options)


# Of each kind one with every option away from its default.
SPECS: dict[str, dict[str, Any]] = {
    "resnet": {
        "kind": "torchvision", "name": "resnet18", "stem": "cifar", "norm_affine": False, "output": "backbone",
        "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4],
    },
    "densenet": {"kind": "torchvision", "name": "densenet121"},
    "wide_resnet": {"kind": "wide_resnet", "depth": 10, "width": 1, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]},
    "vgg_small": {"kind": "vgg_small", "width": 0.125, "hidden": [64, 32], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]},
    "lenet": {"kind": "lenet", "in_pixels": 1024, "hidden": [20, 10, 5], "output": "backbone", "mean": 0.5, "std": 0.25},
}  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_a_network_is_rebuilt_from_its_spec_and_state_dict(name: str) -> None:
    options = SPECS[name] | {"out_channels": 3}
    first = build_backbone(options).eval()
    assert first.spec.items() >= options.items()
    again = build_backbone(json.loads(json.dumps(first.spec))).eval()
    assert again.spec == first.spec
    again.load_state_dict(first.state_dict())
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), first(x))
    assert first(x).shape == (2, 3)


@pytest.mark.parametrize("name", ["wide_resnet", "vgg_small", "lenet"])
def test_the_trunk_of_an_earlier_training_comes_from_a_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "first.safetensors"
    first = build_backbone(SPECS[name] | {"out_channels": 3})
    save_file(first.state_dict(), path)
    second = build_backbone(SPECS[name] | {"out_channels": 2, "weights": str(path)})
    assert isinstance(second, Classifier)
    for key, tensor in second.trunk.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[f"trunk.{key}"])
    assert "weights" not in second.spec
    with pytest.raises(InputError, match=f"no ImageNet weights of {name}"):
        build_backbone(SPECS[name] | {"out_channels": 2, "weights": "imagenet"})


@pytest.mark.parametrize("name", SPECS)
def test_every_layer_but_the_head_is_masked_learns_and_merges_exactly(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(SPECS[name] | {"out_channels": 2})
    net = MaskedNetwork(backbone, head="head")
    layers = {f"{n}.weight" for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and n != "head"}
    assert set(net.roles.masked) == layers
    assert ("output.weight" in layers) == (SPECS[name].get("output") == "backbone")
    state = net.add_task("a", masks.Piggyback(init=6e-3), head=backbone.make_head(2))
    assert len(list(state.head.parameters())) == (0 if "output.weight" in layers else 2)
    x, y = torch.rand(4, 3, 32, 32), torch.randint(0, 2, (4,))
    optimiser = torch.optim.Adam(net.task_module("a").parameters(), 2e-3)
    net.train()
    for _ in range(2):
        optimiser.zero_grad()
        F.cross_entropy(net(x, task="a"), y).backward()
        optimiser.step()
    assert all(p.grad is not None for p in net.task_module("a").parameters())
    assert all(p.grad is None for p in [*backbone.parameters(), *net.backbone.parameters()])
    assert 0 < state.density() < 1
    assert net.hash_backbone() == net.backbone_sha256
    net.save_task("a", tmp_path / "a.safetensors")
    net.load_task(tmp_path / "a.safetensors", name="b")
    net.eval()
    with torch.no_grad():
        assert torch.equal(net(x, task="a"), net(x, task="b")), "the head is rebuilt from the file"
        assert torch.equal(net(x, task="a"), net.merge("a")(x))


def test_a_random_network_with_its_own_output_layer_runs_without_heads() -> None:
    """As SupSup and ImpressLearn have it: one signed constant a layer, no biases, all of it masked."""
    backbone = masks.randomise(build_backbone({"kind": "lenet", "out_channels": 10, "output": "backbone"}), seed=0)
    net = MaskedNetwork(backbone, head=None)
    assert net.roles.masked == ("trunk.fc1.weight", "trunk.fc2.weight", "output.weight")
    assert sum(net.backbone.get_parameter(name).numel() for name in net.roles.masked) == 266_200
    assert all(not net.backbone.get_parameter(name).any() for name in net.roles.fixed_parameters)
    state = net.add_task("a", masks.SupSup(density=0.5))
    assert sum(p.numel() for p in state.parameters()) == 266_200, "scores alone"
    assert net(torch.rand(2, 1, 28, 28), task="a").shape == (2, 10)


@pytest.mark.parametrize("name", ["wide_resnet", "lenet"])
def test_it_compiles_to_one_graph_and_gives_the_same(name: str) -> None:
    net, x = build_backbone(SPECS[name] | {"out_channels": 2}).eval(), torch.rand(1, 3, 32, 32)
    assert torch.equal(torch.compile(net, fullgraph=True, backend="eager")(x), net(x))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wide_resnet", {"depth": 26}, r"depth 26.*6 n \+ 4"),
        ("wide_resnet", {"depth": 4}, "depth 4"),
        ("wide_resnet", {"width": 0}, "width 0"),
        ("vgg_small", {"width": 0.01}, "width 0.01.*raise it"),
        ("vgg_small", {"hidden": [0]}, r"hidden \[0\].*whole numbers"),
        ("vgg_small", {"hidden": 4096}, "hidden: 4096"),
        ("lenet", {"in_pixels": 700}, "in_pixels 700.*square number"),
        ("lenet", {"in_pixels": 0}, "in_pixels 0"),
        ("lenet", {"hidden": ["300"]}, r"hidden: \['300'\].*int"),
        ("lenet", {"std": 0.0}, "no std of 0"),
        ("resnet", {"name": "resnet19"}, "'resnet19'.*resnet18.*vgg16"),
        ("resnet", {"name": "vit_b_16"}, "'vit_b_16' is unknown here"),
        ("resnet", {"stem": "small"}, "stem.*'small'.*cifar"),
        ("densenet", {"stem": "cifar"}, "densenet121 got stem 'cifar'"),
        ("resnet", {"weights": "nowhere.pth"}, "norm_affine: false.*'nowhere.pth'"),
        ("resnet", {"weights": "nowhere.pth", "norm_affine": True}, "no file at 'nowhere.pth'"),
    ],
)
def test_wrong_options_of_a_kind_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_backbone(SPECS[name] | {"out_channels": 2} | options)
