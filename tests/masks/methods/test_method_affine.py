"""Affine masks against the paper's equations, transcribed literally."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mask_zoo import layer
from torch import Tensor, nn

from img2img import InputError, MaskedNetwork
from img2img.masks.layers import Layer, describe_layers, is_normalisation
from img2img.masks.methods.affine import Affine, AffineMask, K
from img2img.masks.methods.piggyback import Piggyback

PIGGYBACK_START = (0.0, 0.0, 0.0, 1.0)
ROWS: dict[str, dict[str, Any]] = {
    "piggyback": {"learned": (), "start": PIGGYBACK_START},
    "piggyback + k1": {"learned": ("k1",), "start": PIGGYBACK_START},
    "simple without bias": {"learned": ("k2",), "start": (1.0, 0.0, 0.0, 0.0)},
    "simple": {"learned": ("k0", "k1", "k2")},
    "simple with sigmoid": {"learned": ("k0", "k1", "k2"), "surrogate": "sigmoid"},
    "full": {},
    "full with sigmoid": {"surrogate": "sigmoid"},
    "full, channel-wise": {"channel_wise": True},
    "fixed at neither 0 nor 1": {"learned": ("k1",), "start": (0.5, 0.2, -0.7, 0.25)},
}
"""The rows of table 5, and one that no shortcut for 0 and 1 fits."""

LAYERS: dict[str, nn.Module] = {
    "conv": nn.Conv2d(3, 4, 3),
    "grouped conv": nn.Conv2d(4, 6, 3, groups=2),
    "transposed conv": nn.ConvTranspose2d(3, 5, 3),
    "grouped transposed conv": nn.ConvTranspose2d(4, 6, 3, groups=2),
    "linear": nn.Linear(5, 4),
    "embedding": nn.Embedding(7, 4),
}


def _described(module: nn.Module) -> Layer:
    return describe_layers(nn.Sequential(module), ["0.weight"], is_normalisation)["0.weight"]


def _made(described: Layer, score: Tensor | None = None, **options: Any) -> AffineMask:
    mask = Affine(**options).create({"w": described}, {})["w"]
    assert isinstance(mask, AffineMask)
    if score is not None:
        assert mask.score is not None
        mask.score.data.copy_(score)
    return mask


def _shaken(described: Layer, **options: Any) -> AffineMask:
    """A mask of random bits whose learned coefficients have moved."""
    mask = _made(described, torch.randn(described.weight.shape), **options)
    for name in mask.learned:
        k = getattr(mask, name)
        k.data += 0.3 * torch.randn(k.shape)
    return mask


def _reference(weight: Tensor, m: Tensor, k: dict[str, Tensor], described: Layer) -> Tensor:
    """Equation 2, literally."""
    k0, k1, k2, k3 = (described.per_channel(k[n]) if k[n].ndim else k[n] for n in K)
    return k0 * weight + k1 * torch.ones_like(weight) + k2 * m + k3 * (weight * m)


def test_the_effective_weight_on_a_hand_sized_tensor() -> None:
    weight, score = torch.tensor([1.0, -2.0, 4.0, 0.0]), torch.tensor([1e-4, 0.0, -1e-4, -0.0])
    ones = layer(torch.ones(4))  # of a mean of 1, the unit of k1 and k2
    mask = _made(ones, score, learned=("k1",), start=(0.5, 2.0, 3.0, 10.0))
    assert mask.binary().tolist() == [True, True, False, True], "a score of 0 counts as above"
    assert mask(weight).tolist() == [0.5 + 2 + 3 + 10, -1 + 2 + 3 - 20, 2 + 2, 2 + 3]
    simple = _made(ones, score, learned=("k1", "k2"), start=(1.0, 2.0, 3.0, 0.0))
    assert simple(weight).tolist() == [1 + 2 + 3, -2 + 2 + 3, 4 + 2, 2 + 3]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("kind", LAYERS)
def test_forward_and_all_gradients_are_those_of_equation_2(row: str, kind: str) -> None:
    described = _described(LAYERS[kind])
    weight, upstream = described.weight, torch.randn_like(described.weight)
    mask = _shaken(described, **ROWS[row])
    assert mask.score is not None
    score = mask.score.detach()

    k = {name: value.clone().requires_grad_(name in mask.learned) for name, value in mask.values().items()}
    m = (score >= 0).float().requires_grad_()
    expected = _reference(weight, m, k, described)
    expected.backward(upstream)
    assert m.grad is not None
    slope = torch.sigmoid(score) * (1 - torch.sigmoid(score)) if mask.sigmoid else torch.ones_like(score)

    effective = mask(weight)
    torch.testing.assert_close(effective, expected, rtol=1e-5, atol=1e-6)
    effective.backward(upstream)
    torch.testing.assert_close(mask.score.grad, m.grad * slope, rtol=1e-5, atol=1e-6)
    assert {n for n, p in mask.named_parameters() if p.grad is not None} == {"score", *mask.learned}
    for name in mask.learned:
        torch.testing.assert_close(getattr(mask, name).grad, k[name].grad, rtol=1e-4, atol=1e-5)


def test_the_sigmoid_surrogate_is_the_gradient_through_a_sigmoid_and_the_forward_pass_stays_hard() -> None:
    weight, score, upstream = torch.randn(3, 6, 5)
    mask = _made(layer(weight), score, surrogate="sigmoid", start=(1.0, -0.5, 0.5, 0.3))
    reference = score.clone().requires_grad_()
    k = mask.values()
    (k["k2"] * torch.sigmoid(reference) + k["k3"] * weight * torch.sigmoid(reference)).backward(upstream)
    effective = mask(weight)
    zeros = score < 0
    assert torch.equal(effective[zeros], (weight + k["k1"])[zeros])
    effective.backward(upstream)
    torch.testing.assert_close(mask.score.grad, reference.grad)


def test_the_gradient_of_each_channels_coefficients_is_the_change_that_they_make() -> None:
    described = _described(LAYERS["grouped transposed conv"])
    weight = described.weight.double()
    mask = _shaken(described, channel_wise=True)
    probe = torch.randn_like(weight)
    (mask(weight) * probe).sum().backward()
    for name in K:
        k = getattr(mask, name)
        for channel in range(6):
            sums = []
            for step in (-0.5, 0.5):
                with torch.no_grad():
                    before = k[channel].item()
                    k[channel] += step
                    sums.append((mask(weight) * probe).sum())
                    k[channel] = before
            assert k.grad[channel].item() == pytest.approx((sums[1] - sums[0]).item(), rel=1e-4, abs=1e-5)


def _run(module: nn.Module, weight: Tensor) -> Tensor:
    """The layer's outputs with that weight, the output channels first."""
    if isinstance(module, nn.Embedding):
        return F.embedding(torch.arange(7), weight).T
    x = torch.rand(2, module.in_features) if isinstance(module, nn.Linear) else torch.rand(2, module.in_channels, 6, 6)
    return torch.func.functional_call(module, {"weight": weight}, (x,)).transpose(0, 1)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("which", K)
def test_a_coefficient_of_a_channel_moves_that_output_channel_alone(kind: str, which: str) -> None:
    module = LAYERS[kind].requires_grad_(False)
    described = _described(module)
    mask = _made(described, channel_wise=True)
    for channel in range(described.out_channels):
        with torch.no_grad():
            torch.manual_seed(0)
            before = _run(module, mask(described.weight))
            getattr(mask, which)[channel] += 1
            torch.manual_seed(0)
            after = _run(module, mask(described.weight))
        moved = [bool((a != b).any()) for a, b in zip(after, before, strict=True)]
        assert moved == [c == channel for c in range(described.out_channels)]


def test_channel_sums_of_a_vector_are_the_vector() -> None:
    x = torch.randn(5)
    assert torch.equal(layer(x).channel_sums(x), x)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.startswith("fixed")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_row_of_table_5_starts_at_the_backbone_exactly(row: str, dtype: torch.dtype) -> None:
    weight = (torch.randn(8, 4, 3, 3) * 0.05).to(dtype)
    mask = _made(layer(weight, kernel_dims=2), **ROWS[row])
    assert mask.binary().all()
    assert torch.equal(mask(weight), weight)


def test_k1_and_k2_start_in_proportion_to_the_layers_mean_absolute_weight() -> None:
    layers = {"a": layer(torch.tensor([[1.0, -3.0]])), "b": layer(torch.tensor([[0.01], [0.03]]))}
    made = Affine(start=(1.0, -0.5, 0.25, 0.125)).create(layers, {})
    assert [k.item() for k in made["a"].values().values()] == pytest.approx([1, -1, 0.5, 0.125])
    assert [k.item() for k in made["b"].values().values()] == pytest.approx([1, -0.01, 0.005, 0.125])


def test_fresh_scores_are_uniform_between_the_papers_bounds() -> None:
    score = _made(layer(torch.ones(100, 100))).score
    assert score is not None
    assert 1e-4 <= score.min() < 1.01e-4
    assert 1.99e-4 < score.max() <= 2e-4
    assert score.mean().item() == pytest.approx(1.5e-4, rel=0.01)


@pytest.mark.parametrize("kind", ["conv", "linear", "grouped transposed conv"])
def test_piggyback_is_a_special_case(kind: str) -> None:
    described = _described(LAYERS[kind])
    weight, upstream = described.weight, torch.randn_like(described.weight)
    bits = torch.rand(weight.shape) < 0.5
    other = Piggyback().create({"w": described}, {})["w"]
    mask = Affine.piggyback().create({"w": described}, {})["w"]
    for m in (mask, other):
        m.score.data.copy_(m.scores_for(bits))
        m(weight).backward(upstream)
    assert torch.equal(mask(weight), other(weight))
    assert torch.equal(mask.score.grad, other.score.grad)
    assert [name for name, _ in mask.named_parameters()] == ["score"]
    other.freeze()
    mask.freeze()
    assert torch.equal(mask(weight), other(weight))


def test_k0_is_learned_only_where_no_normalisation_follows() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    net = MaskedNetwork(backbone)
    for name, method, fixed in (("full", Affine(), 1.0), ("piggyback", Affine.piggyback(), 0.0)):
        net.add_task(name, method)
        first, last = (m for _, m in net.state(name).named_masks())
        assert (first.k0 is None, last.k0 is None) == (True, name == "piggyback")
        assert first.values()["k0"].item() == fixed


def test_coefficients_that_are_fixed_stay_while_the_others_learn() -> None:
    weight = torch.randn(6, 5)
    mask = _made(layer(weight), learned=("k1",), start=(1.0, -0.3, 0.3, 0.5))
    before = {name: value.clone() for name, value in mask.values().items()}
    optimiser = torch.optim.AdamW(mask.parameters(), 0.1, weight_decay=0.1)
    for _ in range(3):
        mask(weight).square().sum().backward()
        optimiser.step()
    assert {n for n, value in mask.values().items() if not torch.equal(value, before[n])} == {"k1"}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_training_a_frozen_mask_and_a_restored_one_give_the_same_bits(row: str, dtype: torch.dtype, channels_last: bool) -> None:
    weight = (torch.randn(8, 5, 3, 3) * 0.05).to(dtype)
    weight = weight.to(memory_format=torch.channels_last) if channels_last else weight
    described = layer(weight, kernel_dims=2)
    mask = _shaken(described, **ROWS[row])
    k = {name: value.half().float() if mask.channel_wise else value for name, value in mask.values().items()}
    for name in mask.learned:  # what half precision can hold, so that freezing changes nothing here
        getattr(mask, name).data.copy_(k[name])
    before = mask(weight).detach()
    expected = _reference(weight.double(), mask.binary().double(), {n: v.double() for n, v in k.items()}, described)
    torch.testing.assert_close(before, expected.to(dtype), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
    parts = mask.stored()
    restored = Affine(**ROWS[row]).restore({"w": parts}, {"w": described}, {})["w"]
    for frozen in (mask, restored):
        after = frozen(weight)
        assert torch.equal(after, before)
        assert after.stride() == before.stride() == weight.stride()
        assert after.dtype == before.dtype == dtype
        assert torch.equal(torch.stack(list(frozen.values().values())), torch.stack(list(k.values())))
    assert mask.exact == restored.exact == (not mask.channel_wise)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channel_wise", [False, True])
def test_other_types_get_float32_gradients_of_the_same_values(dtype: torch.dtype, channel_wise: bool) -> None:
    weight, upstream = torch.randn(2, 8, 5, 3, 3).to(torch.bfloat16).float()
    described = layer(weight, kernel_dims=2)
    mask = _shaken(described, channel_wise=channel_wise)
    mask(weight).backward(upstream)
    expected = {name: p.grad.clone() for name, p in mask.named_parameters()}
    mask.zero_grad(set_to_none=True)
    mask(weight.to(dtype)).backward(upstream.to(dtype))
    for name, p in mask.named_parameters():
        assert p.grad.dtype == torch.float32
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-4, atol=1e-4)


def test_nothing_of_the_weights_size_but_weight_and_scores_is_saved_for_the_backward_pass() -> None:
    saved: list[Tensor] = []
    weight = torch.randn(8, 8)
    mask = _made(layer(weight))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        mask(weight)
    assert mask.score is not None
    assert [t.data_ptr() for t in saved if t.ndim] == [weight.data_ptr(), mask.score.data_ptr()]


def test_channel_wise_coefficients_are_stored_in_half_precision_and_others_as_they_are() -> None:
    described = layer(torch.randn(6, 5) * 1e-3)
    whole, channels = _shaken(described), _shaken(described, channel_wise=True)
    k = torch.stack(list(channels.values().values()))
    assert torch.equal(whole.stored()["k"], torch.stack(list(whole.values().values())))
    assert channels.stored()["k"].shape == (4, 6)
    assert torch.equal(channels.stored()["k"], k.to(torch.float16))
    assert list(channels.values()) == list(K)
    assert channels.values()["k2"].shape == (6,)


@pytest.mark.parametrize("channel_wise", [False, True])
@pytest.mark.parametrize(("theirs", "mine"), [("simple", "full"), ("fixed at neither 0 nor 1", "fixed at neither 0 nor 1")])
def test_continuing_from_a_frozen_affine_mask_starts_at_its_effective_weight(theirs: str, mine: str, channel_wise: bool) -> None:
    weight = torch.randn(6, 5)
    other = _shaken(layer(weight), channel_wise=channel_wise, **ROWS[theirs])
    other.freeze()
    expected = other(weight)
    fresh, itself = _made(layer(weight), channel_wise=channel_wise, **ROWS[mine]), other
    for mask in (fresh, itself):
        mask.start_from(other)
        assert torch.equal(mask(weight), expected)
        assert mask.score.abs().flatten().tolist() == pytest.approx([1.5e-4] * 30)
        assert all(p.requires_grad for p in mask.parameters())
        mask(weight).sum().backward()
        assert {name for name, p in mask.named_parameters() if p.grad is not None} == {"score", *mask.learned}


def test_a_start_from_coefficients_that_do_not_fit_takes_the_mask_alone() -> None:
    weight = torch.randn(6, 5)
    piggyback = Piggyback(start="uniform").create({"w": layer(weight)}, {})["w"]
    special = _shaken(layer(weight), **ROWS["piggyback"])
    whole = _shaken(layer(weight))
    for other, options in ((piggyback, {}), (special, {"learned": K[:3]}), (whole, {"channel_wise": True})):
        mask = _made(layer(weight), **options)
        fresh = {name: value.clone() for name, value in mask.values().items()}
        mask.start_from(other)
        assert torch.equal(mask.binary(), other.binary())
        assert all(torch.equal(value, fresh[name]) for name, value in mask.values().items())


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({}, {"k": torch.tensor([1.0, torch.nan, 0.0, 0.0])}, "not a finite number"),
        ({}, {"k": torch.tensor([1.0, torch.inf, 0.0, 0.0])}, "not a finite number"),
        ({"learned": K[:3]}, {"k": torch.tensor([1.0, 0.1, 0.1, 0.2])}, "k3 is not 0, as the options say"),
        ({}, {"k": torch.zeros(4, 5)}, "part 'k' is torch.float32"),
        ({"channel_wise": True}, {"k": torch.zeros(4, 5)}, "expected torch.float16"),
        ({}, {"mask": torch.ones(5, 3, dtype=torch.bool)}, "part 'mask'"),
        ({}, {"scale": torch.ones(1)}, r"expected the parts \['k', 'mask'\]"),
    ],
)
def test_damaged_parts_are_refused(options: dict[str, Any], change: dict[str, Tensor], message: str) -> None:
    described = layer(torch.randn(5, 4))
    parts = _made(described, **options).stored() | change
    with pytest.raises(InputError, match=message):
        Affine(**options).restore({"w": parts}, {"w": described}, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learned": ("k4",)}, "expected one of 'k0', 'k1', 'k2', 'k3'"),
        ({"learned": ("k1", "k1")}, "name each coefficient once"),
        ({"start": (1.0, 0.0, 0.0)}, "expected four finite numbers"),
        ({"start": (1.0, 0.0, 0.0, float("nan"))}, "expected four finite numbers"),
        ({"start": (1.0, 0.0, 0.0, "1")}, "expected four finite numbers"),
        ({"learned": ("k0", "k1"), "start": (1.0, 0.1, 0.0, 0.0)}, "the mask has no effect"),
        ({"surrogate": "tanh"}, "expected one of 'identity', 'sigmoid'"),
        ({"score_low": 0.0}, "0 < score_low <= score_high"),
        ({"score_low": 1e-3}, "0 < score_low <= score_high"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Affine(**options)


def test_options_come_back_as_plain_lists_and_make_an_equal_method() -> None:
    method = Affine.simple(channel_wise=True)
    assert method.options()["learned"] == ["k0", "k1", "k2"]
    assert isinstance(method.options()["start"], list)
    again = Affine(**method.options())
    assert again == method
    assert hash(again) == hash(method)
