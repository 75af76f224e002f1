"""The contract of every mask method over every kind of layer: what all later work inherits."""

from pathlib import Path

import pytest
import torch
from torch import nn
from zoo import LAYERS, METHODS, evaluate, train

from img2img import MaskedNetwork, masks
from img2img.masks.layers import hash_tensors
from img2img.masks.task import all_tensors

FORMATS = ["contiguous", "channels_last"]
PRECISIONS = ["float32", "float64", "bf16 autocast"]


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("method", METHODS)
class TestContract:
    @pytest.fixture
    def backbone_and_input(self, layers: str) -> tuple[nn.Module, torch.Tensor]:
        return LAYERS[layers]()

    @pytest.fixture
    def net(self, backbone_and_input: tuple[nn.Module, torch.Tensor], method: str) -> MaskedNetwork:
        net = MaskedNetwork(backbone_and_input[0])
        net.add_task("first", METHODS[method]())
        net.add_task("second", METHODS[method]())
        return net

    @pytest.fixture
    def x(self, backbone_and_input: tuple[nn.Module, torch.Tensor]) -> torch.Tensor:
        return backbone_and_input[1]

    @pytest.mark.parametrize("memory_format", FORMATS)
    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_training_one_task_changes_neither_the_backbone_nor_the_other_task(
        self, net: MaskedNetwork, x: torch.Tensor, memory_format: str, precision: str
    ) -> None:
        if memory_format == "channels_last":
            if x.ndim != 4:
                pytest.skip("channels_last is a format of four dimensions")
            net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        if precision == "float64":
            net.backbone.double()
            net._reset_tensors()
            for task in net.tasks():
                net.state(task).norm.double()
            x = x.double() if x.is_floating_point() else x
        before = {n: t.clone() for n, t in all_tensors(net.backbone).items()}
        probe = evaluate(net, "first", x)
        second = evaluate(net, "second", x)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16 autocast"):
            train(net, "second", x)
        for name, tensor in all_tensors(net.backbone).items():
            assert torch.equal(tensor, before[name]), name
        assert net.hash_backbone() == net.backbone_sha256
        assert torch.equal(evaluate(net, "first", x), probe)
        if any(True for _ in net.state("second").parameters()):
            assert not torch.equal(evaluate(net, "second", x), second)
        for _, mask in net.state("second").named_masks():
            assert all(p.dtype == torch.float32 for p in mask.parameters())

    def test_gradients_reach_every_score_and_no_backbone_tensor(self, net: MaskedNetwork, x: torch.Tensor, method: str) -> None:
        net.train()
        out = net(x, task="first")
        if method == "identity" and not list(net.state("first").parameters()):
            assert not out.requires_grad
            return
        out.square().sum().backward()
        assert all(p.grad is None for p in net.backbone.parameters())
        assert all(p.grad is None for p in net.state("second").parameters())
        for name, p in net.state("first").masks.named_parameters():
            assert p.grad is not None, name
            assert p.grad.shape == p.shape

    def test_freezing_keeps_the_outputs_bit_for_bit(self, net: MaskedNetwork, x: torch.Tensor) -> None:
        train(net, "first", x)
        before = evaluate(net, "first", x)
        net.freeze_task("first")
        assert torch.equal(evaluate(net, "first", x), before)
        net.train()
        assert torch.equal(net(x, task="first"), before), "a frozen task runs in evaluation mode"
        assert not any(p.requires_grad for p in net.state("first").parameters())

    def test_a_saved_task_gives_the_same_outputs_on_another_copy_of_the_backbone(
        self, net: MaskedNetwork, x: torch.Tensor, tmp_path: Path, backbone_and_input: tuple[nn.Module, torch.Tensor]
    ) -> None:
        train(net, "first", x)
        before = evaluate(net, "first", x)
        path = net.save_task("first", tmp_path / "first.safetensors", info={"note": 1.5})
        other = MaskedNetwork(backbone_and_input[0])
        assert other.load_task(path) == "first"
        assert torch.equal(evaluate(other, "first", x), before)
        assert other.state("first").info == {"note": 1.5}

    def test_a_merged_module_gives_the_same_outputs(self, net: MaskedNetwork, x: torch.Tensor) -> None:
        train(net, "first", x)
        before = evaluate(net, "first", x)
        plain = net.merge("first")
        with torch.no_grad():
            assert torch.equal(plain(x), before)
        assert hash_tensors(all_tensors(net.backbone).items()) == net.backbone_sha256

    def test_the_density_is_the_fraction_of_weights_that_are_kept(self, net: MaskedNetwork, x: torch.Tensor) -> None:
        train(net, "first", x)
        state, weights = net.state("first"), net.masked_weights()
        effective = state.effective(weights)
        for name, density in state.densities().items():
            kept = (effective[name] == weights[name]).float().mean().item()
            assert density == pytest.approx(kept, abs=1e-6)
            assert 0 < density <= 1


def _roles(layers: str) -> dict[str, set[str]]:
    net = MaskedNetwork(LAYERS[layers]()[0])
    return {"masked": set(net.roles.masked), "fixed": set(net.roles.fixed_parameters), "norm": set(net.roles.norm_parameters)}


def test_attention_masks_its_projections_and_leaves_tokens_positions_and_gammas() -> None:
    assert _roles("attention") == {
        "masked": {"attention.in_proj_weight", "attention.out_proj.weight"},
        "fixed": {"token", "position", "gamma", "attention.in_proj_bias", "attention.out_proj.bias"},
        "norm": {"norm.weight", "norm.bias"},
    }


def test_tied_weights_are_masked_once_under_their_first_name() -> None:
    assert _roles("tied")["masked"] == {"embedding.weight", "mix.weight"}
    backbone, x = LAYERS["tied"]()
    net = MaskedNetwork(backbone)
    net.add_task("t", masks.Piggyback())
    with torch.no_grad():
        net.state("t").masks["embedding/weight"].score[3] = 0.0
    plain = net.merge("t")
    assert plain.output.weight is plain.embedding.weight
    assert (plain.output.weight[3] == 0).all()
    with torch.no_grad():
        out = net.eval()(x, task="t")
    assert (out[..., 3] == 0).all(), "the output layer sees the masked embedding too"


def test_a_name_pattern_or_a_function_chooses_what_is_masked() -> None:
    backbone, _ = LAYERS["conv2d"]()
    net = MaskedNetwork(backbone, select=lambda name, module, p: name.startswith("3."))
    assert net.roles.masked == ("3.weight", "3.bias")


def test_normalisation_is_found_by_isinstance_and_by_the_users_predicate() -> None:
    class Norm(nn.BatchNorm2d):
        pass

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    backbone = nn.Sequential(nn.Conv2d(3, 8, 1), Norm(8), Scale())
    assert MaskedNetwork(backbone).roles.norm_parameters == ("1.weight", "1.bias")
    mine = MaskedNetwork(backbone, is_norm=lambda name, module: isinstance(module, Norm | Scale))
    assert mine.roles.norm_parameters == ("1.weight", "1.bias", "2.scale")
