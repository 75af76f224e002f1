"""The contract of every mask method over every kind of layer: what all later work inherits."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from mask_zoo import LAYERS, METHODS, evaluate, network, train
from torch import nn

from img2img import MaskedNetwork, masks
from img2img.masks.tensors import all_tensors, hash_tensors

PRECISIONS = ["float32", "float64", "bf16 autocast"]
FORMATS: dict[int, tuple[torch.memory_format, ...]] = {
    4: (torch.contiguous_format, torch.channels_last),
    5: (torch.contiguous_format, torch.channels_last_3d),
}
"""The memory formats of an input of so many dimensions; of others there is one."""

VARIANTS = {
    "piggyback-uniform", "piggyback-ternary", "affine-simple", "ksm-element-hard", "ksm-through-scale", "supsup-global",
    "supsup-erdos-renyi", "impresslearn-hybrid", "dora", "lokr", "ia3", "dan", "residual-adapter-series", "dense-signs",
    "dense-signs-layer",
}  # fmt: skip
"""Methods that read a weight's shape as another one of their class does."""
EXAMPLES = {"transposed2d", "attention", "tied"}
"""Layers of which each has something that no other has: its axes, one of PyTorch's own calls, a weight that is used twice."""


def usual(
    method: str, layers: str, memory_format: torch.memory_format = torch.contiguous_format, precision: str = "float32"
) -> bool:
    """Whether `make test` runs the combination; all the others are of `make test-slow`.

    Every method runs on some layers, every method that has a way of its own to read shapes on all layers, and both in every
    memory format; of the precisions all run on the examples.
    """
    if precision != "float32" and (layers not in EXAMPLES or memory_format is not torch.contiguous_format):
        return False
    return method not in VARIANTS or layers in EXAMPLES


def combined(*more: tuple[Any, ...]) -> list[Any]:
    """Parameters: every method with every layer and what else there is, the unusual ones as slow."""
    return [
        pytest.param(*given, id="-".join(map(str, given)).replace("torch.", ""), marks=() if usual(*given) else pytest.mark.slow)
        for given in itertools.product(METHODS, LAYERS, *more)
        if len(given) == 2 or given[2] in FORMATS.get(LAYERS[given[1]]()[1].ndim, (torch.contiguous_format,))
    ]


class Contract:
    """What the contract's tests are made from: two tasks on a network of one kind of layer."""

    @pytest.fixture
    def backbone_and_input(self, layers: str) -> tuple[nn.Module, torch.Tensor]:
        return LAYERS[layers]()

    @pytest.fixture
    def net(self, backbone_and_input: tuple[nn.Module, torch.Tensor], method: str) -> MaskedNetwork:
        net = network(backbone_and_input[0])
        net.add_task("first", METHODS[method]())
        net.add_task("second", METHODS[method]())
        return net

    @pytest.fixture
    def x(self, backbone_and_input: tuple[nn.Module, torch.Tensor]) -> torch.Tensor:
        return backbone_and_input[1]


@pytest.mark.parametrize(("method", "layers"), combined())
class TestContract(Contract):
    def test_gradients_reach_every_score_and_no_backbone_tensor(self, net: MaskedNetwork, x: torch.Tensor, method: str) -> None:
        net.train()
        out = net(x, task="first")
        if not list(net.state("first").parameters()):
            assert not out.requires_grad
            return
        out.square().sum().backward()
        assert all(p.grad is None for p in net.backbone.parameters())
        assert all(p.grad is None for p in net.state("second").parameters())
        for name, p in net.state("first").masks.named_parameters():
            assert p.grad is not None, name
            assert p.grad.shape == p.shape

    def test_freezing_keeps_the_outputs(self, net: MaskedNetwork, x: torch.Tensor) -> None:
        """Bit for bit where the method says so; where values are quantised, nearly, and for good from then on."""
        train(net, "first", x)
        before = evaluate(net, "first", x)
        exact = all(mask.exact for _, mask in net.state("first").named_masks())
        net.freeze_task("first")
        after = evaluate(net, "first", x)
        assert torch.equal(after, before) if exact else torch.allclose(after, before, atol=0.02 * before.std().item())
        net.train()
        assert torch.equal(net(x, task="first"), after), "a frozen task runs in evaluation mode"
        assert not any(p.requires_grad for p in net.state("first").parameters())
        net.freeze_task("first")
        assert torch.equal(evaluate(net, "first", x), after), "freezing twice changes nothing"

    def test_a_saved_task_gives_the_same_outputs_on_another_copy_of_the_backbone(
        self, net: MaskedNetwork, x: torch.Tensor, tmp_path: Path, backbone_and_input: tuple[nn.Module, torch.Tensor]
    ) -> None:
        train(net, "first", x)
        net.freeze_task("first")
        before = evaluate(net, "first", x)
        path = net.save_task("first", tmp_path / "first.safetensors", info={"note": 1.5})
        other = network(backbone_and_input[0])
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

    def test_the_density_is_the_fraction_of_ones_before_and_after_freezing(self, net: MaskedNetwork, x: torch.Tensor) -> None:
        train(net, "first", x)
        state, weights = net.state("first"), net.masked_weights()
        before = state.densities()
        ones = {name: mask.clone() for name, mask in state.binaries().items()}
        net.freeze_task("first")
        assert state.densities() == before
        for name, mask in state.binaries().items():
            assert torch.equal(mask, ones[name])
            assert mask.shape == weights[name].shape
            assert before[name] == pytest.approx(mask.double().mean().item())

    def test_a_task_starts_from_anothers_mask_and_continues_from_its_own(self, net: MaskedNetwork, x: torch.Tensor) -> None:
        train(net, "first", x)
        net.freeze_task("first")
        ones = {name: mask.clone() for name, mask in net.state("first").binaries().items()}
        state = net.state("second")
        state.start_from(net.state("first"))
        assert {n: torch.equal(m, ones[n]) for n, m in state.binaries().items()} == dict.fromkeys(ones, True)
        before = evaluate(net, "second", x)
        train(net, "second", x)
        if list(state.parameters()):
            assert not torch.equal(evaluate(net, "second", x), before), "it goes on learning"

    def test_a_deepcopy_gives_the_same_outputs_and_trains_apart(self, net: MaskedNetwork, x: torch.Tensor) -> None:
        train(net, "first", x)
        before = evaluate(net, "first", x)
        twin = copy.deepcopy(net)
        assert torch.equal(evaluate(twin, "first", x), before)
        train(twin, "first", x)
        assert torch.equal(evaluate(net, "first", x), before)
        if list(net.state("first").parameters()):
            assert not torch.equal(evaluate(twin, "first", x), before)

    def test_a_hot_swapped_copy_gives_the_same_outputs(self, net: MaskedNetwork, x: torch.Tensor) -> None:
        for task in ("first", "second"):
            train(net, task, x)
            net.freeze_task(task)
        deployed = net.deploy()
        for task in ("first", "second", "first"):
            deployed.activate(task)
            assert torch.equal(deployed(x), evaluate(net, task, x))
        deployed.deactivate()
        assert hash_tensors(all_tensors(deployed.module).items()) == net.backbone_sha256


ALL_FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)


class TestContractInEveryFormat(Contract):
    @pytest.mark.parametrize(("method", "layers", "memory_format", "precision"), combined(ALL_FORMATS, tuple(PRECISIONS)))
    def test_training_one_task_changes_neither_the_backbone_nor_the_other_task(
        self, net: MaskedNetwork, x: torch.Tensor, memory_format: torch.memory_format, precision: str
    ) -> None:
        if memory_format is not torch.contiguous_format:
            net, x = net.to(memory_format=memory_format), x.to(memory_format=memory_format)
        if precision == "float64":
            net, x = net.double(), x.double() if x.is_floating_point() else x
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

    @pytest.mark.parametrize(("method", "layers", "memory_format"), combined(ALL_FORMATS))
    def test_decoded_masks_write_exactly_the_effective_weights(
        self, net: MaskedNetwork, memory_format: torch.memory_format
    ) -> None:
        net.freeze_task("first")
        net_dimensions = {torch.channels_last: 4, torch.channels_last_3d: 5}.get(memory_format)
        for name, mask in net.state("first").named_masks():
            weight = net.masked_weights()[name]
            if memory_format is not torch.contiguous_format and weight.ndim == net_dimensions:
                weight = weight.to(memory_format=memory_format)
            effective = mask(weight)
            decoded, out = mask.decode(weight), torch.full_like(weight, torch.nan)
            for _ in range(2):
                assert mask.write(weight, decoded, out) is out
                assert torch.equal(out, effective)
            assert effective.stride() == weight.stride()
            assert effective.dtype == weight.dtype


@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_network_trains_as_an_uncompiled_one(method: str) -> None:
    backbone, x = LAYERS["conv2d"]()
    torch.manual_seed(1)
    net = network(backbone)
    net.add_task("first", METHODS[method]())
    twin = copy.deepcopy(net)
    twin.compile(backend="eager", fullgraph=True)
    for n in (net, twin):
        train(n, "first", x)
    assert torch.equal(evaluate(net, "first", x), evaluate(twin, "first", x))


@pytest.mark.parametrize("layers", ["conv2d", "transposed2d", "linear", "attention", "tied"])
@pytest.mark.parametrize("method", METHODS)
def test_weights_given_in_autocasts_type_train_as_those_that_autocast_casts(
    method: str, layers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, x = LAYERS[layers]()
    net = network(backbone)
    net.add_task("first", METHODS[method]())
    twin = copy.deepcopy(net)
    with torch.autocast("cpu", torch.bfloat16):
        train(net, "first", x)
        expected = {"conv2d": 2, "transposed2d": 3, "linear": 2, "attention": 0, "tied": 1}
        trained = any(True for _ in net.state("first").parameters())
        assert len(net.autocast_types()) == (expected[layers] if trained else 0)
        assert set(net.autocast_types().values()) <= {torch.bfloat16}
        monkeypatch.setattr(MaskedNetwork, "autocast_types", lambda self: {})
        train(twin, "first", x)
    monkeypatch.undo()
    assert net.autocast_types() == {}
    theirs = twin.state("first").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in net.state("first").state_dict().items())


class Odd(nn.Module):
    """One layer runs twice, one outside of autocast, one as PyTorch's own do."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.outside, self.once = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.once(self.twice(self.twice(x))).float()
        with torch.autocast("cpu", enabled=False):
            return self.outside(x)


def test_weights_that_autocast_does_not_cast_once_stay_as_they_are() -> None:
    net, x = MaskedNetwork(Odd()), torch.randn(4, 6)
    net.add_task("first", masks.Piggyback())
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            net(x, task="first").sum().backward()
        assert net.autocast_types() == {"once.weight": torch.bfloat16}
        merged = net.merge("first")
    assert torch.equal(merged.once.weight, net.backbone.once.weight), "not rounded"


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


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_seed_draws_the_same_start_in_any_memory_format(method: str) -> None:
    def start(memory_format: torch.memory_format) -> list[torch.Tensor]:
        torch.manual_seed(0)
        net = MaskedNetwork(
            nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=2), nn.Conv2d(6, 2, 1)).to(memory_format=memory_format)
        )
        if "impresslearn" in method:
            net.add_basis("random", masks.Basis.random(net.layers(), count=3, density=0.5, seed=1))
        net.add_task("a", METHODS[method]())
        return [tensor.detach().contiguous() for tensor in all_tensors(net.state("a").masks).values()]

    first, second = start(torch.contiguous_format), start(torch.channels_last)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)  # scales are means of weights, summed in another order
