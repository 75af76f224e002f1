"""Sparse and dense signs against literal transcriptions, and tasks made from fine-tuned networks."""

import copy
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from mask_zoo import LAYERS, WithHead, evaluate, head, layer, network, train
from torch import nn

from img2img import InputError, MaskedNetwork, masks
from img2img.masks.methods.signs import DenseSignsMask
from img2img.masks.methods.sparse_signs import SparseSignsMask
from img2img.masks.storage import read_header


def _sparse(weight: torch.Tensor, score: torch.Tensor, scale: torch.Tensor | None = None, **what: Any) -> SparseSignsMask:
    options = {key: what.pop(key) for key in ("threshold", "share", "scale_per") if key in what}
    method = masks.SparseSigns(**options)
    described = layer(weight, **what)
    scale = method.scales(described) if scale is None else scale
    mask = SparseSignsMask(described, scale, method, score.clone())
    method.prepare({"w": mask})
    return mask


# ---------------------------------------------------------------------- the two forms


def test_sparse_signs_of_a_hand_sized_tensor() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    score = torch.tensor([[0.005, 0.0049, -0.005], [-0.0049, 1.0, 0.0]])
    mask = _sparse(weight, score, torch.tensor([0.5, 0.25]))
    assert mask(weight).tolist() == [[1.5, 2.0, 2.5], [4.0, 5.25, 6.0]]
    upstream = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    mask(weight).backward(upstream)
    assert mask.score.grad.tolist() == [[0.5, 1.0, 1.5], [1.0, 1.25, 1.5]], "s ∘ G, of all weights"
    assert mask.scale.grad.tolist() == [-2.0, 5.0], "Σ G ∘ T of the channel"
    assert mask.binary().tolist() == [[True, False, True], [False, True, False]]
    assert mask.signed().tolist() == [[1, 0, -1], [0, 1, 0]]


def test_dense_signs_of_a_hand_sized_tensor() -> None:
    method = masks.DenseSigns()
    weight, score = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, -1e-30], [1.0, -2.0]])
    mask = DenseSignsMask(layer(weight), torch.tensor([0.5, 0.25]), method, score)
    assert mask(weight).tolist() == [[1.5, 1.5], [3.25, 3.75]], "sign(0) = +1"
    mask(weight).backward(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert mask.score.grad.tolist() == [[0.5, 1.0], [0.75, 1.0]]
    assert mask.scale.grad.tolist() == [-1.0, -1.0]
    assert (mask.signed().tolist(), mask.binary().tolist()) == ([[1, -1], [1, -1]], [[True, False], [True, False]])


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("method", [masks.SparseSigns, masks.DenseSigns])
@pytest.mark.parametrize("scale_per", ["channel", "layer"])
def test_gradients_are_those_of_the_printed_equations_in_float64(layers: str, method: type, scale_per: str) -> None:
    net = network(LAYERS[layers]()[0])
    made = method(scale_per=scale_per).create(net.layers(), {})
    for name, mask in made.items():
        described = net.layers()[name]
        weight, upstream = described.weight.double(), torch.randn(described.weight.shape, dtype=torch.float64)
        mask.score.data.copy_(torch.randn(weight.shape) * 5e-3)
        mask(weight).backward(upstream)
        # W + s ∘ T by autograd, T a leaf of its own: what reaches T reaches the scores.
        r, s = mask.score.detach(), mask.scale.detach().half().double().requires_grad_()
        hard = (r >= 5e-3).double() - (r <= -5e-3).double() if method is masks.SparseSigns else (r >= 0).double() * 2 - 1
        hard.requires_grad_()
        (weight + (described.per_channel(s) if scale_per == "channel" else s) * hard).backward(upstream)
        assert torch.allclose(mask.score.grad.double(), hard.grad, rtol=1e-6, atol=1e-9), name
        assert torch.allclose(mask.scale.grad.double(), s.grad, rtol=1e-4, atol=1e-5), name
        assert torch.equal(mask(weight), (weight + (described.per_channel(s) if scale_per == "channel" else s) * hard))


@pytest.mark.parametrize("threshold", [5e-3, 1e-30, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_score_at_the_threshold_moves_its_weight_in_every_type(threshold: float, dtype: torch.dtype) -> None:
    at = torch.tensor(threshold)
    scores = torch.stack([torch.nextafter(at, at - 1), at, torch.nextafter(at, at + 1)])
    weight = torch.tensor([1.5, -2.5, 3.5], dtype=dtype)
    for sign in (1, -1):
        mask = _sparse(weight, sign * scores, torch.tensor([0.5] * 3), threshold=threshold)
        assert mask(weight).tolist() == [1.5, -2.5 + sign * 0.5, 3.5 + sign * 0.5]
        assert mask(weight).dtype == dtype


def test_training_starts_at_the_backbone_exactly_and_nothing_of_the_weights_size_but_scores_is_saved() -> None:
    backbone, x = LAYERS["conv2d"]()
    net = network(backbone)
    net.add_task("plain", masks.Identity())
    net.add_task("a", masks.SparseSigns())
    assert torch.equal(evaluate(net, "a", x), evaluate(net, "plain", x))
    assert net.state("a").density() == 0.0

    saved: list[torch.Tensor] = []
    weight = torch.randn(8, 16)
    mask = _sparse(weight, torch.randn(8, 16))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        mask(weight)
    assert [t.data_ptr() for t in saved if t.numel() > 8] == [mask.score.data_ptr()]


def test_scales_start_in_units_of_the_channels_mean_abs_weight_and_never_at_zero() -> None:
    weight = torch.tensor([[1.0, -3.0], [0.0, 0.0], [0.5, 0.5]])
    assert masks.SparseSigns(scale=0.5).scales(layer(weight)).tolist() == pytest.approx([1.0, 0.5 * 5 / 6, 0.25])
    assert masks.SparseSigns(scale=0.5, scale_per="layer").scales(layer(weight)).tolist() == pytest.approx([0.5 * 5 / 6])
    assert masks.SparseSigns(scale=0.3).scales(layer(torch.zeros(3, 4))).tolist() == pytest.approx([0.3 / 2] * 3)
    transposed = layer(torch.randn(6, 3, 3, 3), kernel_dims=2, out_axis=1, groups=2)
    expected = transposed.weight.abs().view(2, 3, 3, 9).mean((1, 3)).flatten()
    assert torch.allclose(masks.SparseSigns(scale=1.0).scales(transposed), expected)


def test_dense_signs_start_as_the_signs_of_the_weights_each_as_far_from_flipping() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.0, 4.0]])
    mask = masks.DenseSigns(scale=0.5, start=0.01).create({"w": layer(weight)}, {})["w"]
    assert mask.score.tolist() == [[pytest.approx(0.01), pytest.approx(-0.01)], [pytest.approx(0.01), pytest.approx(0.01)]]
    assert mask(weight).tolist() == [[1.75, -2.75], [1.0, 5.0]]


# ---------------------------------------------------------------------- what keeps them sparse


def test_the_penalty_is_the_mean_score_in_thresholds_and_bounds_the_share_from_above() -> None:
    net = network(LAYERS["conv2d"]()[0])
    state = net.add_task("a", masks.SparseSigns(penalty_weight=0.5))
    for _, mask in state.named_masks():
        mask.score.data.normal_(0, 4e-3)
    scores = torch.cat([mask.score.flatten() for _, mask in state.named_masks()])
    penalty = state.penalty()
    assert penalty.item() == pytest.approx(0.5 * scores.abs().mean().item() / 5e-3)
    assert penalty.item() > 0.5 * state.density() > 0
    penalty.backward()
    for _, mask in state.named_masks():
        assert torch.allclose(mask.score.grad, mask.score.sign() * 0.5 / 5e-3 / len(scores))
    assert net.add_task("b", masks.SparseSigns()).penalty() is None


@pytest.mark.parametrize("share_of", ["network", "layer"])
def test_no_more_than_the_share_moves_and_those_are_the_largest_scores(share_of: str) -> None:
    net = network(LAYERS["transposed2d"]()[0])
    state = net.add_task("a", masks.SparseSigns(share=0.2, share_of=share_of))
    found = dict(state.named_masks())
    for index, mask in enumerate(found.values()):
        mask.score.data.normal_(0, 0.01 * (index + 1))
    binaries = state.binaries()
    groups = [list(found)] if share_of == "network" else [[name] for name in found]
    for group in groups:
        sizes = torch.cat([found[name].score.detach().abs().flatten() for name in group])
        moved = torch.cat([binaries[name].flatten() for name in group])
        count = round(0.2 * len(sizes))
        assert int(moved.sum()) == count
        assert sizes[moved].min() >= sizes[~moved].max()
    before = {name: mask(net.masked_weights()[name]).detach() for name, mask in found.items()}
    net.freeze_task("a")
    assert all(torch.equal(mask(net.masked_weights()[name]), before[name]) for name, mask in found.items())


def test_a_share_is_no_more_than_a_bound_and_equal_scores_count_in_their_order() -> None:
    weight = torch.zeros(2, 4)
    few = torch.tensor([[0.006, 0, 0, 0], [0, 0, -0.02, 0]])
    assert _sparse(weight, few, share=0.5).signed().tolist() == [[1, 0, 0, 0], [0, 0, -1, 0]], "below τ nothing moves"
    tied = torch.tensor([[0.006, -0.01, 0.01, 0.01], [0.01, -0.01, 0.02, 0.0]])
    mask = _sparse(weight, tied, torch.ones(2), share=0.5)
    assert mask.signed().tolist() == [[0, -1, 1, 1], [0, 0, 1, 0]]
    mask(weight).sum().backward()
    assert mask.scale.grad.tolist() == [1.0, 1.0]
    turned = _sparse(weight.t(), tied.t(), torch.ones(4), share=0.5)
    assert turned.signed().tolist() == [[0, 1], [-1, -1], [0, 1], [0, 0]], "row-major, whatever the strides"


def test_under_a_share_training_stays_within_it() -> None:
    backbone, x = LAYERS["conv2d"]()
    net = network(backbone)
    state = net.add_task("a", masks.SparseSigns(share=0.1))
    train(net, "a", x, steps=3)
    weights = sum(w.numel() for w in net.masked_weights().values())
    assert round(state.density() * weights) == round(0.1 * weights)
    net.freeze_task("a")
    before = evaluate(net, "a", x)
    net.continue_task("a")
    assert torch.equal(evaluate(net, "a", x), before)


# ---------------------------------------------------------------------- stored


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5])
def test_a_file_takes_the_entropy_of_the_moves_and_a_bit_for_each_sign(p: float, tmp_path: Path) -> None:
    net = MaskedNetwork(nn.Sequential(nn.Conv2d(64, 512, 3), nn.ReLU(), nn.Conv2d(512, 3, 1)), head="2")
    net.add_task("a", masks.SparseSigns(), head=nn.Conv2d(512, 3, 1))
    (mask,) = net.state("a").masks
    mask = net.state("a").masks[mask]
    moves = torch.rand(mask.score.shape) < p
    mask.score.data.copy_(moves * 0.01 * torch.randn(mask.score.shape).sign())
    storage = read_header(net.save_task("a", tmp_path / "a.safetensors"))["storage"]
    entropy = -p * math.log2(p) - (1 - p) * math.log2(1 - p) + p
    bits = storage["coded_bytes"] * 8 - 512 * 16
    assert bits / storage["weights"] == pytest.approx(entropy, rel=0.02)


def test_scales_are_rounded_while_training_so_that_freezing_changes_nothing(tmp_path: Path) -> None:
    weight = torch.randn(4, 5)
    scale = torch.tensor([0.1, 1e-9, -0.2, 1e6])
    mask = _sparse(weight, torch.randn(4, 5), scale)
    before = mask(weight).detach()
    assert mask.exact
    mask.freeze()
    assert torch.equal(mask(weight), before)
    assert torch.equal(mask.stored()["scale"], torch.tensor([0.1, 1e-9, -0.2, 65504.0]).half())
    again = masks.SparseSigns().restore({"w": mask.stored()}, {"w": layer(weight)}, {})["w"]
    assert torch.equal(again(weight), before)
    assert torch.equal(again.values()["scale"], mask.values()["scale"])


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        (masks.SparseSigns(), {"negative": torch.zeros(3, dtype=torch.bool)}, "3 signs for 2 ones"),
        (masks.SparseSigns(), {"scale": torch.tensor([1.0, math.inf]).half()}, "not a finite number"),
        (masks.SparseSigns(), {"scale": torch.ones(1).half()}, r"expected torch.float16 \(2,\)"),
        (masks.SparseSigns(scale_per="layer"), {}, r"expected torch.float16 \(1,\)"),
        (masks.DenseSigns(), {}, "expected the parts"),
    ],
)
def test_damaged_parts_are_refused(method: masks.MaskMethod, change: dict[str, torch.Tensor], message: str) -> None:
    parts = {
        "mask": torch.tensor([[True, False], [False, True]]),
        "negative": torch.tensor([False, True]),
        "scale": torch.ones(2).half(),
    }
    described = {"w": layer(torch.ones(2, 2))}
    assert masks.SparseSigns().restore({"w": parts}, described, {})["w"](torch.ones(2, 2)).tolist() == [[2.0, 1.0], [1.0, 0.0]]
    with pytest.raises(InputError, match=message):
        method.restore({"w": parts | change}, described, {})


# ---------------------------------------------------------------------- from other tasks


@pytest.mark.parametrize("method", [masks.SparseSigns(), masks.DenseSigns()])
def test_a_warm_start_has_the_signs_and_scales_each_as_far_from_flipping_as_a_fresh_one(method: masks.MaskMethod) -> None:
    weight = torch.randn(6, 5)
    other, mine = (method.create({"w": layer(weight)}, {})["w"] for _ in range(2))
    other.score.data.copy_(torch.randn(6, 5) * 5e-3)
    other.scale.data.uniform_(-1, 1)
    expected = other(weight).detach()
    other.freeze()
    mine.start_from(other)
    assert torch.equal(mine(weight), expected)
    sizes = {round(abs(score), 6) for score in mine.score.flatten().tolist()}
    assert sizes == ({0.0, 0.01} if isinstance(mine, SparseSignsMask) else {0.005})
    assert all(p.requires_grad for p in mine.parameters())


def test_more_moves_than_the_share_are_thinned_at_random_and_a_scale_a_layer_is_the_channels_mean() -> None:
    weight = torch.randn(40, 50)
    other = _sparse(weight, torch.full((40, 50), 0.01), torch.linspace(0.1, 0.3, 40))
    method = masks.SparseSigns(share=0.25, scale_per="layer")
    mine = method.create({"w": layer(weight)}, {})["w"]
    mine.start_from(other)
    method.prepare({"w": mine})
    assert int(mine.binary().sum()) == 500
    rows = mine.binary().sum(1)
    assert rows.max() < 30, "not the first rows alone"
    assert mine.scale.tolist() == pytest.approx([0.2], rel=1e-3)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (masks.SparseSigns(), masks.Piggyback()),
        (masks.SparseSigns(), masks.DenseSigns()),
        (masks.DenseSigns(), masks.SparseSigns()),
        (masks.Piggyback(), masks.SparseSigns()),
        (masks.Affine(), masks.DenseSigns()),
    ],
)
def test_masks_that_keep_weights_and_masks_that_move_them_do_not_start_from_each_other(
    mine: masks.MaskMethod, theirs: masks.MaskMethod
) -> None:
    layers = {"w": layer(torch.randn(3, 4))}
    first, second = (method.create(layers, {})["w"] for method in (mine, theirs))
    with pytest.raises(InputError, match="start_from=None"):
        first.start_from(second)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: masks.SparseSigns(threshold=0.0), "above 0"),
        (lambda: masks.SparseSigns(scale=0.0), "above 0"),
        (lambda: masks.SparseSigns(scale_per="kernel"), "'channel', 'layer'"),  # type: ignore[arg-type]
        (lambda: masks.SparseSigns(penalty_weight=-1.0), "penalty_weight=-1.0"),
        (lambda: masks.SparseSigns(share=0.0), "share=0.0"),
        (lambda: masks.SparseSigns(share=1.5), "share=1.5"),
        (lambda: masks.SparseSigns(share_of="all"), "'network', 'layer'"),  # type: ignore[arg-type]
        (lambda: masks.DenseSigns(start=0.0), "start=0.0"),
        (lambda: masks.DenseSigns(scale=math.nan), "scale=nan"),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


# ---------------------------------------------------------------------- from a fine-tuned network


def _finetuned(backbone: nn.Module, size: float = 0.1, seed: int = 1) -> nn.Module:
    """A copy whose weights, normalisation and head differ, and whose biases do not."""
    torch.manual_seed(seed)
    other = copy.deepcopy(backbone)
    norms = {n for n, m in other.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, tensor in other.state_dict().items():
        owner = name.rpartition(".")[0]
        if tensor.is_floating_point() and (not name.endswith("bias") or owner in norms or owner == "head"):
            tensor.add_(size * torch.rand(tensor.shape) * (torch.rand(tensor.shape) - 0.3).sign())
    return other


def _with_head() -> tuple[nn.Module, MaskedNetwork, nn.Module]:
    backbone = WithHead()
    return backbone, MaskedNetwork(backbone, head="head"), _finetuned(backbone)


@pytest.mark.parametrize("scale_per", ["layer", "channel"])
def test_dense_signs_of_a_finetuned_network_are_bitdeltas(scale_per: str) -> None:
    backbone, net, finetuned = _with_head()
    found = masks.delta_from_finetuned(
        net, "a", finetuned.state_dict(), method=masks.DenseSigns(scale_per=scale_per), head=head()
    )
    effective = found.state.effective(net.masked_weights())
    for name, weight in effective.items():
        base = backbone.get_parameter(name).detach()
        delta = finetuned.get_parameter(name).detach() - base
        sign = torch.where(delta >= 0, torch.ones(()), -torch.ones(()))
        alpha = delta.abs().mean() if scale_per == "layer" else delta.abs().mean((1, 2, 3), keepdim=True)
        assert torch.allclose(weight, base + alpha * sign, atol=6e-4 * alpha.max().item())
    assert found.moved == 1.0


@pytest.mark.parametrize("share_of", ["network", "layer"])
def test_the_largest_changes_are_kept_and_the_rest_stays_the_backbones(share_of: str) -> None:
    backbone, net, finetuned = _with_head()
    with torch.no_grad():
        finetuned.body[3].weight.sub_(backbone.body[3].weight).mul_(3).add_(backbone.body[3].weight)
    method = masks.SparseSigns(share_of=share_of)
    found = masks.delta_from_finetuned(net, "a", finetuned.state_dict(), method=method, share=0.25, head=head())
    deltas = {name: finetuned.get_parameter(name).detach() - w for name, w in net.masked_weights().items()}
    signed = {name: mask.signed() for name, mask in found.state.named_masks()}
    for group in [list(deltas)] if share_of == "network" else [[name] for name in deltas]:
        sizes = torch.cat([deltas[name].abs().flatten() for name in group])
        moved = torch.cat([signed[name].flatten() for name in group]) != 0
        assert int(moved.sum()) == round(0.25 * len(sizes))
        assert sizes[moved].min() >= sizes[~moved].max()
    for name, codes in signed.items():
        assert torch.equal(codes, (deltas[name].sign() * (codes != 0)).to(torch.int8))
    weights = sum(delta.numel() for delta in deltas.values())
    assert found.moved * weights == pytest.approx(sum(row.moved for row in found.rows))
    effective = found.state.effective(net.masked_weights())
    left = sum((finetuned.get_parameter(n) - w).double().square().sum().item() for n, w in effective.items())
    assert found.explained == pytest.approx(1 - left / sum(d.double().square().sum().item() for d in deltas.values()), rel=1e-5)


@pytest.mark.parametrize("scale_per", ["channel", "layer"])
@pytest.mark.parametrize("layers", ["transposed2d", "grouped", "tied"])
def test_scales_are_the_least_squares_optimum(layers: str, scale_per: str) -> None:
    backbone, _ = LAYERS[layers]()
    net = MaskedNetwork(backbone)
    torch.manual_seed(2)
    state_dict = {
        name: t + 0.1 * torch.randn(t.shape) if name in net.roles.masked or name == "output.weight" else t
        for name, t in backbone.state_dict().items()
    }
    if layers == "tied":
        state_dict["output.weight"] = state_dict["embedding.weight"]
    for method in (masks.SparseSigns(share=0.3, scale_per=scale_per), masks.DenseSigns(scale_per=scale_per)):
        state = masks.delta_from_finetuned(net, method.name, state_dict, method=method).state
        for name, mask in state.named_masks():
            described = net.layers()[name]
            delta = (state_dict[name] - described.weight).flatten().double()
            # One column a scale: the weights that it multiplies.
            ones = torch.eye(described.out_channels, dtype=torch.float64)
            columns = [described.per_channel(row).expand(described.weight.shape).flatten() for row in ones]
            design = torch.stack(columns if scale_per == "channel" else [sum(columns)], 1)
            design = design * mask.signed().flatten().double()[:, None]
            used = design.abs().sum(0) > 0
            best = torch.linalg.lstsq(design[:, used], delta).solution
            assert torch.allclose(mask.scale[used].double(), best, rtol=1e-5), name


def test_the_task_has_the_networks_norm_state_and_head_and_trains_on() -> None:
    _, net, finetuned = _with_head()
    given = head()
    found = masks.delta_from_finetuned(net, "a", finetuned.state_dict(), head=given)
    expected = finetuned.state_dict()
    for name, tensor in found.state.norm_tensors().items():
        assert torch.equal(tensor, expected[name]), name
    assert found.state.head is given
    assert torch.equal(given.weight, finetuned.head.weight)
    assert torch.equal(given.bias, finetuned.head.bias)
    assert found.moved == pytest.approx(0.1, abs=0.01)
    for _, mask in found.state.named_masks():
        assert {round(x, 6) for x in mask.score.abs().flatten().tolist()} == {0.0, 0.01}
    x = torch.randn(2, 3, 8, 8)
    before = evaluate(net, "a", x)
    train(net, "a", x)
    assert not torch.equal(evaluate(net, "a", x), before)
    trained = evaluate(net, "a", x)
    net.freeze_task("a")
    assert torch.equal(evaluate(net, "a", x), trained)
    assert net.hash_backbone() == net.backbone_sha256


def test_an_unchanged_network_moves_nothing_and_all_of_a_change_of_one_size_is_met() -> None:
    backbone, net, _ = _with_head()
    found = masks.delta_from_finetuned(net, "same", backbone.state_dict(), head=head())
    assert (found.moved, found.explained) == (0.0, None)
    assert all(mask.scale.min() > 0 for _, mask in found.state.named_masks()), "scores get gradients all the same"
    state_dict = backbone.state_dict()
    name = "body.0.weight"
    state_dict[name] = state_dict[name] + 0.25 * (torch.rand(state_dict[name].shape) < 0.05)
    exact = masks.delta_from_finetuned(net, "a", state_dict, share=0.5, head=head())
    assert torch.allclose(exact.state.effective(net.masked_weights())[name], state_dict[name], atol=1e-6)
    assert exact.explained == pytest.approx(1.0)


def test_copies_of_a_mixed_method_are_the_networks_weights() -> None:
    _, net, finetuned = _with_head()
    method = masks.Mixed(method=masks.SparseSigns(), trainable_copies=["body.3.*"])
    found = masks.delta_from_finetuned(net, "a", finetuned.state_dict(), method=method, head=head())
    assert torch.equal(found.state.effective(net.masked_weights())["body.3.weight"], finetuned.body[3].weight)
    assert [row.layer for row in found.rows] == ["body.0.weight"]


def test_equal_changes_count_in_the_order_of_the_layers_in_every_memory_format() -> None:
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        backbone = WithHead().to(memory_format=memory_format)
        net = MaskedNetwork(backbone, head="head")
        state_dict = {n: t + 0.125 if n in net.roles.masked else t for n, t in backbone.state_dict().items()}
        delta = masks.delta_from_finetuned(net, "a", state_dict, share=0.3, head=head())
        found.append(torch.cat([mask.binary().flatten() for _, mask in delta.state.named_masks()]))
    assert torch.equal(*found)
    count = round(0.3 * len(found[0]))
    assert int(found[0].sum()) == count


def test_a_half_precision_backbone_gets_the_change_in_full_precision() -> None:
    backbone = WithHead().bfloat16()
    net = MaskedNetwork(backbone, head="head")
    weight = backbone.body[0].weight.detach().float()
    state_dict = {**backbone.state_dict(), "body.0.weight": weight + 1e-4}
    found = masks.delta_from_finetuned(net, "a", state_dict, share=1.0, head=head().bfloat16())
    assert dict(found.state.named_masks())["body.0.weight"].scale.tolist() == pytest.approx([1e-4] * 8, rel=1e-2)


def _state(change: str) -> dict[str, Any]:
    """The state dict of a fine-tuned network with something amiss."""
    torch.manual_seed(0)
    tensors: dict[str, Any] = _finetuned(WithHead()).state_dict()
    match change:
        case "missing":
            del tensors["body.1.running_mean"]
        case "shape":
            tensors["body.3.weight"] = torch.zeros(8, 8, 1, 1)
        case "nan":
            tensors["body.3.weight"][0, 0, 0, 0] = math.nan
        case "head":
            tensors["head.weight"] = torch.zeros(3, 8, 1, 1)
        case "no head":
            tensors = OrderedDict((n, t) for n, t in tensors.items() if not n.startswith("head."))
        case "nan head":
            tensors["head.bias"] = torch.tensor([math.inf, 0.0])
        case "prefix":
            tensors = {f"module.{name}": t for name, t in tensors.items()}
        case "checkpoint":
            tensors = {"state_dict": tensors, "epoch": 3}
        case "bias":
            tensors["body.0.bias"] = tensors["body.0.bias"] + 0.5
    return tensors


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("missing", {}, "body.1.running_mean"),
        ("shape", {}, r"body.3.weight has shape \(8, 8, 1, 1\)"),
        ("nan", {}, "body.3.weight .* no finite numbers"),
        ("head", {}, "head.*weight has shape"),
        ("no head", {}, "head"),
        ("nan head", {}, "head.bias .* no finite numbers"),
        ("prefix", {}, "'module.'"),
        ("checkpoint", {}, r"checkpoint\['state_dict'\]"),
        ("bias", {}, r"body.0.bias \(by up to 0.5\).*keep_frozen=True"),
        ("", {"head": None}, "give `head`"),
        ("", {"method": masks.Piggyback()}, "'piggyback': expected sparse_signs or dense_signs"),
        ("", {"method": masks.DenseSigns(), "share": 0.1}, "moves every weight"),
        ("", {"share": 0.0}, "share=0.0"),
        ("", {"share": 0.2, "method": masks.SparseSigns(share=0.1)}, "share=0.1"),
        ("", {"task": "taken"}, "taken"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(change: str, options: dict[str, Any], message: str) -> None:
    torch.manual_seed(0)
    net = MaskedNetwork(WithHead(), head="head")
    net.add_task("taken", masks.Identity(), head=head())
    given = head()
    before = given.weight.clone()
    with pytest.raises(InputError, match=message):
        masks.delta_from_finetuned(net, **({"task": "a", "state_dict": _state(change), "head": given} | options))
    assert net.tasks() == ("taken",)
    assert torch.equal(given.weight, before)


def test_frozen_tensors_that_differ_are_listed_where_that_is_allowed() -> None:
    torch.manual_seed(0)
    net = MaskedNetwork(WithHead(), head="head")
    found = masks.delta_from_finetuned(net, "a", _state("bias"), head=head(), keep_frozen=True)
    assert found.not_kept == {"body.0.bias": pytest.approx(0.5)}


def test_tied_weights_that_differ_are_refused() -> None:
    backbone, _ = LAYERS["tied"]()
    net = MaskedNetwork(backbone)
    state_dict = {**backbone.state_dict(), "output.weight": torch.zeros(10, 8)}
    with pytest.raises(InputError, match=r"'embedding.weight' and 'output.weight' are one tensor"):
        masks.delta_from_finetuned(net, "a", state_dict)


def test_normalisation_that_is_not_the_tasks_own_has_to_be_the_backbones() -> None:
    _, net, finetuned = _with_head()
    with pytest.raises(InputError, match=r"1\.weight.*keep_frozen"):
        masks.delta_from_finetuned(net, "a", finetuned.state_dict(), head=head(), norm="statistics")
    assert net.tasks() == ()
    found = masks.delta_from_finetuned(net, "a", finetuned.state_dict(), head=head(), norm="statistics", keep_frozen=True)
    assert found.state.norm_mode == "statistics"
    assert found.not_kept.keys() == set(net.roles.norm_parameters)
    assert all(torch.equal(t, finetuned.state_dict()[name]) for name, t in found.state.norm_tensors().items())
