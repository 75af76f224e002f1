"""SupSup against edge-popup's algorithm, transcribed literally."""

import pytest
import torch
from mask_zoo import LAYERS, evaluate, layer, train
from torch import Tensor

from img2img import InputError, MaskedNetwork
from img2img.masks import Layer
from img2img.masks.layers import erdos_renyi
from img2img.masks.methods.supsup import SupSup, TopKMask, above, cut_at, in_memory


def _mask(score: Tensor, count: int) -> TopKMask:
    return TopKMask(layer(score), score.clone(), None, count)


def _network(method: SupSup, layers: str = "conv2d") -> tuple[MaskedNetwork, Tensor]:
    backbone, x = LAYERS[layers]()
    net = MaskedNetwork(backbone)
    net.add_task("t", method)
    return net, x


def _scores(net: MaskedNetwork, task: str = "t") -> dict[str, Tensor]:
    return {name: mask.score.detach() for name, mask in net.state(task).named_masks()}  # type: ignore[union-attr, misc]


def _edge_popup(scores: Tensor, count: int) -> Tensor:
    """Sort the scores, zero the first, set the rest to one; of a tensor whose flattened form is a view."""
    out = scores.clone(memory_format=torch.contiguous_format)
    _, order = scores.flatten().sort()
    j = scores.numel() - count
    flat = out.view(-1)
    flat[order[:j]] = 0
    flat[order[j:]] = 1
    return out


def test_forward_and_gradient_on_a_hand_sized_tensor() -> None:
    weight = torch.tensor([0.1, 0.9, -0.5, 1.0])
    mask = _mask(torch.tensor([-0.3, 0.2, -0.1, -9.0]), 2)
    assert mask(weight).tolist() == pytest.approx([0.0, 0.9, -0.5, 0.0]), "the sign counts: -9 is the lowest"
    mask(weight).backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert mask.score.grad.tolist() == pytest.approx([0.1, 1.8, -1.5, 4.0]), "masked-out weights get a gradient too"


@pytest.mark.parametrize("density", [0.001, 0.1, 0.3, 0.5, 0.999, 1.0])
def test_the_mask_and_its_gradient_are_edge_popups(density: float) -> None:
    weight, upstream = torch.randn(2, 16, 5, 3, 3)
    made = SupSup(density=density).create({"w": layer(weight, kernel_dims=2)}, {})["w"]
    assert isinstance(made, TopKMask)
    count = max(1, round(density * weight.numel()))
    reference = _edge_popup(made.score.detach(), count).requires_grad_()
    assert torch.equal(made.binary(), reference.detach().bool())
    assert int(made.binary().sum()) == count
    effective = made(weight)
    assert torch.equal(effective, weight * reference)
    effective.backward(upstream)
    (weight * reference).backward(upstream)
    assert torch.equal(made.score.grad, reference.grad)


def test_the_number_of_ones_is_rounded_once_and_never_zero() -> None:
    def ones(density: float, size: int) -> int:
        return int(SupSup(density=density).create({"w": layer(torch.ones(size, 1))}, {})["w"].binary().sum())

    # int((1 - 0.9) * 10) is 0, which would keep all ten.
    assert [ones(0.9, 10), ones(0.1, 14), ones(0.1, 16), ones(0.01, 10)] == [9, 1, 2, 1]


@pytest.mark.parametrize("values", ["distinct", "few", "constant"])
def test_the_mask_is_the_same_in_any_memory_format_and_ties_go_to_the_first_in_row_major_order(values: str) -> None:
    shape = (6, 5, 3, 2)
    score = {"distinct": torch.randn(shape), "few": torch.randint(3, shape).float(), "constant": torch.ones(shape)}[values]
    plain = _mask(score, 37)
    order = sorted(range(180), key=lambda i: (-score.flatten()[i].item(), i))
    expected = torch.zeros(180, dtype=torch.bool)
    expected[order[:37]] = True
    assert torch.equal(plain.binary().flatten(), expected)

    last = TopKMask(layer(score), score.to(memory_format=torch.channels_last), None, 37)
    assert last.score.stride() != plain.score.stride()
    assert torch.equal(last.binary(), plain.binary())
    weight = torch.randn(shape).to(memory_format=torch.channels_last)
    for mask in (plain, last):
        effective = mask(weight)
        assert effective.stride() == weight.stride()
        assert torch.equal(effective, weight * expected.view(shape))
        mask.freeze()
        assert torch.equal(mask(weight), effective)
        assert mask(weight).stride() == weight.stride()


def test_the_values_in_memory_are_no_copy() -> None:
    strange = torch.randn(4, 3, 5, 2).permute(2, 0, 3, 1)
    for scores in (torch.randn(3, 4), torch.randn(4, 3, 1, 1).to(memory_format=torch.channels_last), strange):
        assert in_memory(scores).data_ptr() == scores.data_ptr()
        assert sorted(in_memory(scores).tolist()) == sorted(scores.flatten().tolist())


class _Elsewhere:
    """A tensor that says that it is on another device, so that its code runs here."""

    device = torch.device("cuda")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def __ge__(self, other: Tensor) -> Tensor:
        return self.tensor >= other

    def topk(self, *args: object, **kwargs: object) -> object:
        return self.tensor.topk(*args, **kwargs)  # type: ignore[call-overload]


@pytest.mark.parametrize("count", [1, 7, 99, 100])
@pytest.mark.parametrize("distinct", [True, False])
def test_the_cut_is_the_same_on_a_cpu_and_elsewhere(count: int, distinct: bool) -> None:
    scores = torch.randn(100) if distinct else torch.randint(4, (100,)).float()
    cut = cut_at(scores, count)
    assert cut_at(_Elsewhere(scores), count) == cut  # type: ignore[arg-type]
    assert int(above(scores, cut).sum()) == count
    assert cut.score == scores.sort(descending=True).values[count - 1].item()


_MANY = 200_000  # enough for a sample to say where about the cut lies

LARGE = {
    "normal": lambda: torch.randn(_MANY),
    "ascending": lambda: torch.linspace(-1, 1, _MANY),
    "four values": lambda: torch.randint(4, (_MANY,)).float(),
    "all equal": lambda: torch.full((_MANY,), 0.5),
    # Every twelfth value, which is the sample here, is far above the others: it says nothing of them.
    "a sample that misleads": lambda: torch.rand(_MANY) + 10 * (torch.arange(_MANY) % (_MANY >> 14) == 0),
    "with infinities": lambda: torch.randn(_MANY).masked_fill(torch.arange(_MANY) % 5 == 1, -torch.inf),
}


@pytest.mark.parametrize("count", [1, 2, 10_000, 20_000, 100_000, 180_000, _MANY - 1, _MANY])
@pytest.mark.parametrize("kind", LARGE)
def test_the_cut_of_many_scores_is_that_of_their_sorted_list(kind: str, count: int) -> None:
    scores = LARGE[kind]()
    ordered = scores.sort(descending=True).values
    cut = cut_at(scores, count)
    assert cut.score == ordered[count - 1].item()
    equal = int((ordered[:count] == cut.score).sum())
    assert cut.ties == (equal if count < _MANY and ordered[count] == cut.score else None)
    assert int(above(scores, cut).sum()) == count


def test_of_many_scores_those_that_are_not_numbers_lie_above_all() -> None:
    """As NumPy sorts them, and as they do among few."""
    scores = torch.randn(_MANY)
    scores[::3] = torch.nan
    lost = int(scores.isnan().sum())
    assert cut_at(scores, lost + 1000).score == scores.nan_to_num(-torch.inf).sort(descending=True).values[999].item()


@pytest.mark.parametrize("cut", [0.0, -1.0, 1e-30, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_lowest_score_kept_is_kept_in_every_type(cut: float, dtype: torch.dtype) -> None:
    at = torch.tensor(cut)
    scores = torch.stack([torch.nextafter(at, at - 1), at, torch.nextafter(at, at + 1)])
    weight = torch.tensor([1.5, -2.5, 3.5], dtype=dtype)
    mask = _mask(scores, 2)
    effective = mask(weight)
    assert effective.tolist() == [0.0, -2.5, 3.5]
    assert effective.dtype == dtype
    effective.sum().backward()
    assert mask.score.grad.dtype == torch.float32
    assert mask.score.grad.tolist() == [1.5, -2.5, 3.5]


@pytest.mark.parametrize("tied", [False, True])
def test_nothing_but_the_weight_is_saved_for_the_backward_pass(tied: bool) -> None:
    saved: list[Tensor] = []
    weight = torch.randn(8, 8)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        _mask(torch.zeros(8, 8) if tied else torch.randn(8, 8), 9)(weight)
    assert [t.data_ptr() for t in saved] == [weight.data_ptr()]


@pytest.mark.parametrize("values", ["distinct", "few"])
def test_global_takes_the_highest_scores_of_the_concatenation(values: str) -> None:
    net, _ = _network(SupSup(density=0.2, allocation="global"), "transposed2d")
    if values == "few":
        with torch.no_grad():
            for score in _scores(net).values():
                score.copy_(torch.randint(4, score.shape))
    together = torch.cat([score.flatten() for score in _scores(net).values()])
    order = sorted(range(len(together)), key=lambda i: (-together[i].item(), i))
    expected = torch.zeros(len(together), dtype=torch.bool)
    expected[order[: round(0.2 * len(together))]] = True
    found = net.state("t").binaries()
    assert torch.equal(torch.cat([mask.flatten() for mask in found.values()]), expected)
    net = net.to(memory_format=torch.channels_last)
    assert all(torch.equal(mask, found[name]) for name, mask in net.state("t").binaries().items())


def test_fresh_global_masks_are_cut_already() -> None:
    layers = {"a": layer(torch.randn(30, 20)), "b": layer(torch.randn(10, 40))}
    made = SupSup(density=0.2, allocation="global").create(layers, {})
    assert sum(int(mask.binary().sum()) for mask in made.values()) == 200


@pytest.mark.parametrize("allocation", ["layer", "global", "erdos_renyi"])
def test_the_density_holds_after_every_training_step(allocation: str) -> None:
    net, x = _network(SupSup(density=0.3, allocation=allocation))  # type: ignore[arg-type]
    state = net.state("t")
    before = state.binaries()
    total = sum(mask.numel() for mask in before.values())
    for _ in range(3):
        train(net, "t", x, steps=1)
        assert abs(sum(int(mask.sum()) for mask in state.binaries().values()) - 0.3 * total) <= 0.5 * len(before)
    assert not all(torch.equal(mask, before[name]) for name, mask in state.binaries().items()), "bits flipped"
    effective = {name: mask != 0 for name, mask in state.effective(net.masked_weights()).items()}
    assert all(torch.equal(effective[name], mask) for name, mask in state.binaries().items())
    if allocation == "layer":
        assert all(d == pytest.approx(0.3, abs=0.5 / 200) for d in state.densities().values())


def test_erdos_renyi_densities_of_a_hand_computed_network() -> None:
    # Ratios: (4+4+3+3) / 144 = 14/144; (10+40) / 400 = 50/400; (2+5) / 10 = 7/10. Total 554 weights, 0.2 of them 110.8.
    shapes = {"conv": torch.Size([4, 4, 3, 3]), "linear": torch.Size([10, 40]), "small": torch.Size([2, 5])}
    # ε = 110.8 / (14 + 50 + 7) = 1.5606 would ask for 1.09 of "small", so it is full; then ε = (110.8 - 10) / (14 + 50).
    found = erdos_renyi(shapes, 0.2)
    assert found == pytest.approx({"conv": 1.575 * 14 / 144, "linear": 1.575 * 50 / 400, "small": 1.0})
    found = erdos_renyi(shapes, 0.1)
    scale = 55.4 / 71
    assert found == pytest.approx({"conv": scale * 14 / 144, "linear": scale * 50 / 400, "small": scale * 0.7})
    assert erdos_renyi(shapes, 1.0) == {"conv": 1.0, "linear": 1.0, "small": 1.0}


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.95])
def test_erdos_renyi_masks_have_the_density_all_together(density: float) -> None:
    shapes = [(64, 3, 7, 7), (64, 64, 3, 3), (128, 64, 1, 1), (10, 128), (300,) * 2, (4, 4)]
    layers = {str(i): Layer(torch.zeros(shape)) for i, shape in enumerate(shapes)}
    masks = SupSup(density=density, allocation="erdos_renyi").create(layers, {})
    expected = erdos_renyi({name: x.weight.shape for name, x in layers.items()}, density)
    for name, mask in masks.items():
        assert int(mask.binary().sum()) == pytest.approx(expected[name] * mask.binary().numel(), abs=0.5)
    total = sum(x.weight.numel() for x in layers.values())
    assert sum(expected[n] * x.weight.numel() for n, x in layers.items()) == pytest.approx(density * total)


def test_fresh_scores_are_kaiming_uniform_by_the_true_fan_in_and_the_same_in_any_memory_format() -> None:
    weight = torch.zeros(50, 20, 3, 3)
    convolution, transposed = layer(weight, kernel_dims=2), layer(weight, kernel_dims=2, out_axis=1)
    for described, fan_in in ((convolution, 180), (transposed, 450)):
        score = SupSup().create({"w": described}, {})["w"].score
        assert score.abs().max().item() == pytest.approx(fan_in**-0.5, rel=0.01)
        assert score.mean().item() == pytest.approx(0, abs=0.05 * fan_in**-0.5)
        assert score.std().item() == pytest.approx(fan_in**-0.5 / 3**0.5, rel=0.02)
    reference = torch.empty_like(weight)
    torch.nn.init.kaiming_uniform_(reference, a=5**0.5)
    assert reference.abs().max().item() == pytest.approx(180**-0.5, rel=0.01), "as PyTorch's, where that knows the fan-in"

    torch.manual_seed(3)
    plain = SupSup().create({"w": convolution}, {})["w"].score
    torch.manual_seed(3)
    last = SupSup().create({"w": layer(weight.to(memory_format=torch.channels_last), kernel_dims=2)}, {})["w"].score
    assert torch.equal(plain, last)
    assert plain.stride() != last.stride()


@pytest.mark.parametrize("allocation", ["layer", "global", "erdos_renyi"])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_warm_start_begins_with_the_other_mask_and_goes_on_learning(allocation: str, frozen: bool) -> None:
    method = SupSup(density=0.3, allocation=allocation)  # type: ignore[arg-type]
    net, x = _network(method)
    train(net, "t", x)
    if frozen:
        net.freeze_task("t")
    expected = net.state("t").binaries()
    state = net.add_task("second", method)
    for start in (net.state("t"), state):
        state.start_from(start)
        found = state.binaries()
        assert all(torch.equal(found[name], mask) for name, mask in expected.items())
    out = evaluate(net, "second", x)
    train(net, "second", x)
    assert not torch.equal(evaluate(net, "second", x), out)


def test_warm_scores_are_as_large_as_fresh_ones_positive_for_ones() -> None:
    other = SupSup(density=0.5).create({"w": layer(torch.randn(100, 25))}, {})["w"]
    mine = SupSup(density=0.5).create({"w": layer(torch.randn(100, 25))}, {})["w"]
    mine.start_from(other)
    assert torch.equal(mine.score > 0, other.binary())
    assert not (mine.score == 0).any()
    assert mine.score.abs().max().item() == pytest.approx(0.2, rel=0.01)
    assert mine.score.abs().mean().item() == pytest.approx(0.1, rel=0.05)
    assert mine.score.requires_grad


def test_a_mask_that_starts_warm_is_the_others_before_the_network_cuts_again() -> None:
    method = SupSup(density=0.3, allocation="global")
    mine, other = (method.create({"w": layer(torch.randn(100, 25))}, {})["w"] for _ in range(2))
    mine.start_from(other)
    assert torch.equal(mine.binary(), other.binary())


def test_a_warm_score_is_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = SupSup(density=0.5).create({"w": layer(torch.randn(4, 5))}, {})["w"]
    assert isinstance(mask, TopKMask)
    monkeypatch.setattr(torch, "rand", torch.zeros)  # the lowest that it may draw
    assert mask.scores_for(torch.tensor([True, False])).tolist() == pytest.approx([5**-0.5, -(5**-0.5)])


def test_a_warm_start_from_another_density_keeps_the_others_ones_as_the_highest() -> None:
    layers = {"w": layer(torch.randn(40, 25))}
    dense, sparse = (SupSup(density=d).create(layers, {})["w"] for d in (0.5, 0.1))
    ones = dense.binary()
    few = sparse.binary()
    sparse.start_from(dense)
    assert int(sparse.binary().sum()) == 100
    assert not (sparse.binary() & ~ones).any(), "fewer: some of its ones"
    dense.start_from(SupSup(density=0.1).restore({"w": {"mask": few}}, layers, {})["w"])
    assert int(dense.binary().sum()) == 500
    assert (dense.binary() | ~few).all(), "more: all of its ones"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, "above 0 and up to 1"),
        ({"density": 1.5}, "above 0 and up to 1"),
        ({"density": float("nan")}, "above 0 and up to 1"),
        ({"allocation": "network"}, "'layer', 'global', 'erdos_renyi'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SupSup(**options)  # type: ignore[arg-type]


def test_a_stored_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match="another network"):
        SupSup().restore({"w": {"mask": torch.ones(3, 2, dtype=torch.bool)}}, {"w": layer(torch.ones(2, 3))}, {})


def test_a_score_that_is_not_a_number_is_never_a_one() -> None:
    """A training that diverged shows in its loss; freezing it must still work."""
    scores = torch.tensor([torch.nan, 1.0, 2.0, 3.0])
    assert above(scores, cut_at(scores, 2)).tolist() == [False, False, False, True]
    assert not above(scores * torch.nan, cut_at(scores * torch.nan, 2)).any()
