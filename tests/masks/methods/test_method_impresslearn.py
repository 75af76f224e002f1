"""ImpressLearn against the paper's equations 1 and 2, transcribed literally."""

import copy
from pathlib import Path

import pytest
import torch
from mask_zoo import LAYERS, evaluate, layer, train
from torch import Tensor, nn

from img2img import InputError, MaskedNetwork, masks
from img2img.masks import basis_of_tasks
from img2img.masks.basis import Basis, pack
from img2img.masks.methods.impresslearn import ImpressLearn, ImpressMask
from img2img.masks.methods.supsup import SupSup, TopKMask
from img2img.masks.tensors import all_tensors


def _network(layers: str = "conv2d", *, count: int = 5, **options: object) -> tuple[MaskedNetwork, Tensor]:
    """A network with a random basis "b", and a task "t" that combines it."""
    torch.manual_seed(0)
    backbone, x = LAYERS[layers]()
    net = MaskedNetwork(backbone)
    net.add_basis("b", Basis.random(net.layers(), count=count, density=0.4, seed=0))
    net.add_task("t", ImpressLearn(basis="b", **options))  # type: ignore[arg-type]
    return net, x


def _alphas(net: MaskedNetwork, task: str = "t") -> dict[str, Tensor]:
    return {name: mask.alpha for name, mask in net.state(task).named_masks() if isinstance(mask, ImpressMask)}


def _literal(net: MaskedNetwork, alphas: dict[str, Tensor]) -> dict[str, Tensor]:
    """Equation 1: the effective weights, mask by mask."""
    effective = {}
    for name, alpha in alphas.items():
        weight = net.masked_weights()[name]
        found = net.bases()["b"].masks(name).to(weight.dtype)
        effective[name] = sum((a * (m * weight) for a, m in zip(alpha, found, strict=True)), torch.zeros_like(weight))
    return effective


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_a_network_computes_the_combination_of_equation_1_and_its_gradient(layers: str, precision: torch.dtype) -> None:
    net, x = _network(layers)
    net, x = net.to(precision), x.to(precision) if x.is_floating_point() else x
    alphas = _alphas(net)
    with torch.no_grad():
        for alpha in alphas.values():
            alpha.copy_(torch.randn(5))
    net.eval()
    out = net(x, task="t")
    out.square().mean().backward()

    plain = net.copy_backbone().eval().requires_grad_(False)
    references = {name: alpha.detach().clone().requires_grad_() for name, alpha in alphas.items()}
    expected = torch.func.functional_call(plain, _literal(net, references), (x,))
    expected.square().mean().backward()
    assert torch.allclose(out, expected, rtol=1e-4, atol=1e-5)
    for name, alpha in alphas.items():
        assert alpha.dtype == torch.float32
        assert torch.allclose(alpha.grad, references[name].grad, rtol=1e-3, atol=1e-5), name


def test_coefficients_start_alike_and_a_task_owns_nothing_else() -> None:
    net, _ = _network(count=8)
    state = net.state("t")
    alphas = _alphas(net)
    assert alphas.keys() == set(net.roles.masked)
    assert all(alpha.tolist() == [1 / 8] * 8 for alpha in alphas.values())
    assert [tuple(t.shape) for t in all_tensors(state.masks).values()] == [(8,)] * len(alphas), "the basis is no part of a task"
    assert state.binaries() == {}
    assert state.density() is None


def test_the_penalty_on_hand_sized_coefficients_is_that_of_equation_2() -> None:
    basis = Basis.random({"a": layer(torch.ones(4)), "b": layer(torch.ones(6))}, count=3, density=0.5, seed=0)
    method = ImpressLearn(basis="x", penalty_weight=0.5)
    made = method.create({"a": layer(torch.ones(4)), "b": layer(torch.ones(6))}, {"x": basis})
    assert method.penalty(made).item() == pytest.approx(0.0), "the start has unit norm"
    with torch.no_grad():
        made["a"].alpha.copy_(torch.tensor([1.0, -2.0, 0.5]))  # (3.5 - 1)^2 = 6.25
        made["b"].alpha.copy_(torch.tensor([0.1, 0.0, -0.4]))  # (0.5 - 1)^2 = 0.25
    penalty = method.penalty(made)
    assert penalty.item() == pytest.approx(0.5 * 6.5)
    penalty.backward()
    assert made["a"].alpha.grad.tolist() == pytest.approx([2.5, -2.5, 2.5])
    assert made["b"].alpha.grad.tolist() == pytest.approx([-0.5, 0.0, 0.5])
    assert ImpressLearn(basis="x").penalty(made) is None


def test_the_penalty_on_random_coefficients_is_that_of_equation_2() -> None:
    net, _ = _network(penalty_weight=0.3)
    total = 0.0
    for alpha in _alphas(net).values():
        alpha.data.normal_()
        norm = 0.0
        for a in alpha.tolist():
            norm += abs(a)
        total += (norm - 1) ** 2
    assert net.state("t").penalty().item() == pytest.approx(0.3 * total, rel=1e-5)
    net.freeze_task("t")
    assert net.state("t").penalty() is None


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_freezing_and_hot_swapping_give_the_same_bits(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    weight = torch.randn(6, 4, 3, 3).to(dtype).to(memory_format=memory_format)
    layers = {"w": layer(weight, kernel_dims=2)}
    basis = Basis.random(layers, count=20, density=0.3, seed=0)
    method = ImpressLearn(basis="b")
    mask = method.create(layers, {"b": basis})["w"]
    mask.alpha.data.normal_()
    before = mask(weight).detach()
    mask.freeze()
    assert not mask.alpha.requires_grad
    assert torch.equal(mask(weight), before)
    assert mask(weight).stride() == before.stride() == weight.stride()
    out = torch.full_like(weight, torch.nan)
    decoded = mask.decode(weight)
    assert decoded[0].stride() == weight.stride()
    assert torch.equal(mask.write(weight, decoded, out), before)
    again = method.restore({"w": mask.stored()}, layers, {"b": basis})["w"]
    assert again.frozen
    assert torch.equal(again(weight), before)


# ---------------------------------------------------------------------- the shared basis


def test_tasks_share_one_basis_also_after_a_copy_and_a_move() -> None:
    net, x = _network()
    net.add_task("u", ImpressLearn(basis="b"))
    train(net, "t", x)
    before = evaluate(net, "t", x)
    copied = copy.deepcopy(net)
    for network in (net, copied, copied.double().float(), net.to("cpu")):
        used = {id(mask.basis) for task in ("t", "u") for _, mask in network.state(task).named_masks()}
        assert used == {id(network.bases()["b"])}
        assert torch.equal(evaluate(network, "t", x), before)
    assert copied.bases()["b"] is not net.bases()["b"]
    train(copied, "t", x)
    assert torch.equal(evaluate(net, "t", x), before), "a copy trains alone"


def test_the_basis_moves_with_the_network_and_its_tasks_see_it_there() -> None:
    net, _ = _network()
    net.to("meta")
    for name, mask in net.state("t").named_masks():
        assert mask.alpha.device.type == "meta"
        assert all(b.device.type == "meta" for b in mask.basis.buffers())
        assert mask.basis.combine(name, mask.alpha, net.masked_weights()[name]).shape == net.masked_weights()[name].shape


def test_a_file_of_a_task_is_small_and_needs_its_own_basis(tmp_path: Path) -> None:
    net, x = _network()
    train(net, "t", x)
    before = evaluate(net, "t", x)
    path = net.save_task("t", tmp_path / "t.safetensors")
    basis = net.bases()["b"].save(tmp_path / "b.safetensors")
    for _, mask in net.state("t").named_masks():
        assert [(part, t.dtype, tuple(t.shape)) for part, t in mask.stored().items()] == [("alpha", torch.float32, (5,))]

    other = MaskedNetwork(net.backbone)
    with pytest.raises(InputError, match="'b'"):
        other.load_task(path)
    other.add_basis("b", Basis.random(other.layers(), count=5, density=0.4, seed=1))
    with pytest.raises(InputError, match="the basis that the task was trained with"):
        other.load_task(path)
    other.delete_basis("b")
    other.add_basis("b", Basis.load(basis, other.layers()))
    other.load_task(path)
    assert torch.equal(evaluate(other, "t", x), before)


def test_a_basis_that_is_missing_or_does_not_fit_is_refused() -> None:
    net, _ = _network()
    with pytest.raises(InputError, match=r"basis='c': this network has \['b'\]"):
        net.add_task("u", ImpressLearn(basis="c"))
    with pytest.raises(InputError, match="this network has none"):
        ImpressLearn(basis="c").restore({}, net.layers(), {})
    other = {"w": layer(torch.ones(3, 2))}
    with pytest.raises(InputError, match="no masks for 'w'"):
        ImpressLearn(basis="b").create(other, net.bases())
    turned = {"b": Basis.random({"w": layer(torch.ones(2, 3))}, count=2, density=0.5, seed=0)}
    with pytest.raises(InputError, match=r"\(2, 3\) for w.*\(3, 2\)"):
        ImpressLearn(basis="b").create(other, turned)


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"w": {}},
        {"w": {"alpha": torch.ones(4)}},
        {"w": {"alpha": torch.ones(3).double()}},
        {"w": {"alpha": torch.ones(3), "mask": torch.ones(3, 2).bool()}},
        {"w": {"alpha": torch.ones(3)}, "v": {"alpha": torch.ones(3)}},
    ],
)
def test_stored_parts_that_do_not_fit_are_refused(stored: dict[str, dict[str, Tensor]]) -> None:
    layers = {"w": layer(torch.ones(3, 2))}
    bases = {"b": Basis.random(layers, count=3, density=0.5, seed=0)}
    with pytest.raises(InputError):
        ImpressLearn(basis="b").restore(stored, layers, bases)


# ---------------------------------------------------------------------- starting, hybrid, options


def test_a_task_starts_from_the_coefficients_of_another_and_from_nothing_else() -> None:
    net, x = _network()
    train(net, "t", x)
    net.freeze_task("t")
    net.add_task("u", ImpressLearn(basis="b"), start_from="t")
    theirs = _alphas(net)
    for name, alpha in _alphas(net, "u").items():
        assert torch.equal(alpha, theirs[name])
        assert alpha is not theirs[name]
        assert alpha.requires_grad
    assert not any(alpha.requires_grad for alpha in theirs.values())
    net.add_task("binary", masks.Piggyback())
    with pytest.raises(InputError, match="PiggybackMask has no coefficients"):
        net.add_task("v", ImpressLearn(basis="b"), start_from="binary")
    net.add_basis("c", Basis.random(net.layers(), count=5, density=0.4, seed=1))
    with pytest.raises(InputError, match="choose a task of the same basis"):
        net.add_task("v", ImpressLearn(basis="c"), start_from="t")
    with pytest.raises(InputError, match="has no binary mask of kept weights"):
        net.add_task("v", masks.Piggyback(), start_from="t")


def test_a_started_or_continued_task_learns_on_and_leaves_the_other_as_it_is() -> None:
    net, x = _network()
    train(net, "t", x)
    net.freeze_task("t")
    before = evaluate(net, "t", x)
    net.add_task("u", ImpressLearn(basis="b"), start_from="t")
    train(net, "u", x)
    assert torch.equal(evaluate(net, "t", x), before)
    net.continue_task("t")
    assert torch.equal(evaluate(net, "t", x), before)
    train(net, "t", x)
    assert all((alpha.grad != 0).any() for alpha in _alphas(net).values())
    assert not torch.equal(evaluate(net, "t", x), before)


def test_a_hybrid_learns_a_mask_of_its_own_for_the_last_weight_alone(tmp_path: Path) -> None:
    net, x = _network(hybrid=True, hybrid_density=0.3, penalty_weight=1.0)
    kinds = {name: type(mask) for name, mask in net.state("t").named_masks()}
    assert kinds == {"0.weight": ImpressMask, "3.weight": TopKMask}
    weight = net.masked_weights()["3.weight"]
    assert int(net.state("t").binaries()["3.weight"].sum()) == round(0.3 * weight.numel())
    assert net.state("t").penalty().item() == pytest.approx(0.0)
    train(net, "t", x)
    assert net.state("t").penalty().item() > 0
    before = evaluate(net, "t", x)
    path = net.save_task("t", tmp_path / "t.safetensors")
    assert torch.equal(evaluate(net, "t", x), before)
    other = MaskedNetwork(net.backbone)
    other.add_basis("b", net.bases()["b"])
    other.load_task(path)
    assert torch.equal(evaluate(other, "t", x), before)
    with pytest.raises(InputError, match="on one side only"):
        ImpressLearn(basis="b", hybrid=True).restore(
            {"0.weight": net.state("t").masks["0/weight"].stored()}, net.layers(), net.bases()
        )


def test_a_real_basis_holds_combinations_and_any_other_method_too() -> None:
    net, x = _network()
    train(net, "t", x)
    net.add_task("s", SupSup(density=0.5))
    net.add_basis("r", basis_of_tasks(net, ["t", "s"], kind="real"))
    net.add_task("u", ImpressLearn(basis="r"))
    for alpha, value in ((a, v) for a in _alphas(net, "u").values() for v in (0, 1)):
        alpha.data[value] = 1.0 - value
    first = evaluate(net, "t", x)
    for name, tensor in net.state("u").norm_tensors().items():
        tensor.data.copy_(net.state("t").norm_tensors()[name])
    assert torch.allclose(evaluate(net, "u", x), first, rtol=1e-2, atol=1e-2), "half precision"


@pytest.mark.parametrize("options", [{"penalty_weight": -1.0}, {"penalty_weight": float("nan")}, {"hybrid_density": 0.0}])
def test_options_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        ImpressLearn(basis="b", **options)  # type: ignore[arg-type]


def test_learning_puts_most_of_the_coefficients_on_the_mask_that_fits() -> None:
    """The paper's basis-GN setting: "we expect our algorithm to identify the correct mask among the basis masks"."""
    torch.manual_seed(0)
    net = MaskedNetwork(nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 10)))
    basis = Basis.random(net.layers(), count=8, density=0.3, seed=0)
    net.add_basis("b", basis)
    right = 5
    x = torch.randn(512, 20)
    plain = net.copy_backbone()
    with torch.no_grad():
        for name, weight in net.masked_weights().items():
            plain.get_parameter(name).copy_(weight * basis.masks(name)[right])
        target = plain(x)
    net.add_task("t", ImpressLearn(basis="b", penalty_weight=5e-3))
    optimiser = torch.optim.Adam(net.state("t").parameters(), 2e-2)
    net.train()
    start = (net(x, task="t") - target).square().mean().item()
    for _ in range(150):
        optimiser.zero_grad()
        loss = (net(x, task="t") - target).square().mean()
        (loss + net.state("t").penalty()).backward()
        optimiser.step()
    assert loss.item() < 0.02 * start
    for name, alpha in _alphas(net).items():
        share = alpha.detach().abs() / alpha.detach().abs().sum()
        assert share.argmax() == right, name
        assert share[right] > 0.7, (name, share)


def test_a_basis_made_by_hand_selects_one_of_its_masks_exactly() -> None:
    weight = torch.randn(6, 5)
    found = torch.rand(3, 6, 5) < 0.5
    rows = [pack("binary", mask) for mask in found]
    basis = Basis("binary", ["a", "b", "c"], {"w": weight.shape}, {"w": {"bits": torch.stack([r["bits"] for r in rows])}})
    mask = ImpressLearn(basis="x").create({"w": layer(weight)}, {"x": basis})["w"]
    mask.alpha.data.copy_(torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(mask(weight), weight * found[1])
