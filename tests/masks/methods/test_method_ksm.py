"""KSM against the paper's equations, transcribed literally."""

import math
from typing import Any

import pytest
import torch
from mask_zoo import layer
from torch import Tensor, nn

from img2img import InputError, MaskedNetwork, masks
from img2img.masks.layers import Layer
from img2img.masks.methods.ksm import KSM, KSMMask, SoftKSMMask, dequantise, normalise, quantise

TABLE_4: dict[str, dict[str, Any]] = {
    "Piggyback": {"granularity": "element", "soft": False, "gradient": "straight_through"},
    "Piggyback - Ker-wise": {"granularity": "kernel", "soft": False, "gradient": "straight_through"},
    "Piggyback - Soft": {"granularity": "element", "soft": True, "gradient": "straight_through"},
    "Ours - Softmax": {"granularity": "element", "soft": False, "gradient": "softmax"},
    "Ours - Ele-wise": {"granularity": "element", "soft": True, "gradient": "softmax"},
    "Ours - Full": {"granularity": "kernel", "soft": True, "gradient": "softmax"},
}
FORMATS = [torch.contiguous_format, torch.channels_last]


def _mask(weight: Tensor, score: Tensor, kernel_dims: int = 0, **options: Any) -> KSMMask:
    method = KSM(**options)
    kind = SoftKSMMask if method.soft else KSMMask
    return kind(layer(weight, kernel_dims=kernel_dims), score.clone(), None, method)


def _gradient(mask: KSMMask, weight: Tensor, upstream: Tensor) -> Tensor:
    mask(weight).backward(upstream)
    assert mask.score is not None
    assert mask.score.grad is not None
    return mask.score.grad


def _trained(weight: Tensor, kernel_dims: int = 2, **options: Any) -> SoftKSMMask:
    """A soft mask with scores on both sides of the threshold."""
    mask = KSM(**options).create({"w": layer(weight, kernel_dims=kernel_dims)}, {})["w"]
    assert isinstance(mask, SoftKSMMask)
    assert mask.score is not None
    with torch.no_grad():
        mask.score.uniform_(-0.02, 0.03)
    return mask


class OneHot(torch.autograd.Function):
    """The one-hot code in the forward pass, the softmax's gradient in the backward pass."""

    @staticmethod
    def forward(ctx: Any, p: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(p.argmax(0), 2).movedim(-1, 0).to(p.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def _paper(r: Tensor, k: float, temperature: float, tau: float, *, normal: str, soft: bool, through_scale: bool) -> Tensor:
    """Equations 4 to 8 and algorithm 1, for scores in float64."""
    sigma = 1 / (1 + torch.exp(-k * (r - tau)))  # (6)
    pi = torch.stack((sigma, 1 - sigma))  # a one comes first, so that argmax gives it where both are even
    exponential = torch.exp(torch.log(pi) / temperature)
    p = exponential / exponential.sum(0)  # (8), for ones and for zeros
    m = OneHot.apply(p)[0]
    if not soft:
        return m
    d = r.detach()
    scale = d / d.abs().max() if normal == "max" else (d - d.min()) / (d.max() - d.min())
    inverted = 1 - (m if through_scale else m.detach())
    return m + inverted * scale  # (4), (5)


@pytest.mark.parametrize("kernel_dims", [0, 2])
@pytest.mark.parametrize("normal", ["max", "minmax"])
@pytest.mark.parametrize(("soft", "through_scale"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("k", "temperature"), [(200.0, 1.0), (30.0, 0.5), (1000.0, 2.0)])
def test_forward_and_gradient_are_the_papers_equations(
    kernel_dims: int, normal: str, soft: bool, through_scale: bool, k: float, temperature: float
) -> None:
    weight, upstream = torch.randn(2, 6, 5, 3, 3, dtype=torch.float64)
    score = torch.empty(layer(weight, kernel_dims=kernel_dims).kernel_shape).uniform_(-0.03, 0.04)
    options = {"granularity": "kernel" if kernel_dims else "element", "normal": normal, "soft": soft, "start": "uniform"}
    mask = _mask(weight, score, kernel_dims, steepness=k / temperature, through_scale=through_scale, **options)

    r = score.double().requires_grad_()
    m = _paper(r, k, temperature, 5e-3, normal=normal, soft=soft, through_scale=through_scale)
    assert 0 < (m == 1).double().mean() < 1
    assert torch.equal(mask.binary(), (m == 1).expand_as(weight))
    assert torch.allclose(mask(weight), weight * m, rtol=1e-6, atol=1e-8)
    (weight * m).backward(upstream)
    assert torch.allclose(_gradient(mask, weight, upstream).double(), r.grad, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_the_product_that_equations_7_to_10_print() -> None:
    """The paper's p is the probability of a zero, and its derivative has the minus sign; a one's has none."""
    k, temperature, tau = 400.0, 2.0, 5e-3
    r = torch.tensor([0.001, 0.004, 0.005, 0.012], dtype=torch.float64)
    weight, upstream = torch.tensor([1.0, -2.0, 3.0, 0.5]), torch.tensor([1.0, 1.0, -1.0, 2.0])
    sigma = 1 / (1 + torch.exp(-k * (r - tau)))
    zero = torch.exp(torch.log(1 - sigma) / temperature)
    p = zero / (zero + torch.exp(torch.log(sigma) / temperature))
    of_sigma = -p * (1 - p) / (temperature * sigma * (1 - sigma))
    of_r = k * sigma * (1 - sigma)
    expected = upstream * weight * -(of_sigma * of_r)
    mask = _mask(weight, r.float(), granularity="element", steepness=k / temperature)
    assert torch.allclose(_gradient(mask, weight, upstream).double(), expected, rtol=1e-4)


def test_forward_and_gradient_on_hand_computed_numbers() -> None:
    weight = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]], [[5.0, -6.0]], [[7.0, 8.0]]]])
    score = torch.tensor([0.02, 0.005, 0.0, -0.01]).view(1, 4, 1, 1)
    upstream = torch.ones_like(weight)
    mask = _mask(weight, score, 2)
    # max |R| = 0.02: the zeros' scales are 0 and -0.5; a score at the threshold is a one.
    assert mask(weight).flatten().tolist() == pytest.approx([1, 2, 3, 4, 0, 0, -3.5, -4])
    assert mask.scales().tolist() == pytest.approx([0.0, -0.5])
    # 200 (R - 0.005) = 3, 0, -1, -3; 200 p (1 - p) = 9.0353, 50, 39.3224, 9.0353; kernel sums of W are 3, 7, -1, 15.
    assert _gradient(mask, weight, upstream).flatten().tolist() == pytest.approx([27.106, 350, -39.3224, 135.530], rel=1e-4)

    straight = _mask(weight, score, 2, gradient="straight_through")
    assert _gradient(straight, weight, upstream).flatten().tolist() == pytest.approx([3, 7, -1, 15])
    # 1 - normal(R) = 0, 0.75, 1, 1.5.
    scaled = _mask(weight, score, 2, gradient="straight_through", through_scale=True, start="uniform")
    assert _gradient(scaled, weight, upstream).flatten().tolist() == pytest.approx([0, 5.25, -1, 22.5])
    # (R + 0.01) / 0.03 of the zeros: 1/3 and 0.
    assert _mask(weight, score, 2, normal="minmax")(weight).flatten().tolist() == pytest.approx([1, 2, 3, 4, 5 / 3, -2, 0, 0])


def test_the_gradient_does_not_vanish_where_the_probability_rounds_to_one() -> None:
    weight = torch.ones(2)
    mask = _mask(weight, torch.tensor([5e-3 + 0.2, 5e-3 - 0.2]), granularity="element")  # 200 (R - τ) = 40 and -40
    assert _gradient(mask, weight, weight).tolist() == pytest.approx([200 * math.exp(-40)] * 2, rel=1e-3)


@pytest.mark.parametrize("granularity", ["element", "kernel"])
def test_hard_and_straight_through_it_is_piggyback(granularity: Any) -> None:
    weight, upstream = torch.randn(2, 6, 5, 3, 3)
    mask = _mask(weight, torch.empty(()), 2, granularity=granularity, soft=False, gradient="straight_through")
    score = torch.randn(mask.mask_shape) * 0.01
    mask.score = nn.Parameter(score.clone())
    piggyback = masks.Piggyback(granularity=granularity).create({"w": layer(weight, kernel_dims=2)}, {})["w"]
    with torch.no_grad():
        piggyback.score.copy_(score)
    assert torch.equal(mask(weight), piggyback(weight))
    piggyback(weight).backward(upstream)
    assert torch.equal(_gradient(mask, weight, upstream), piggyback.score.grad)


def test_normal_keeps_sign_and_zero_or_spans_zero_to_one_and_never_divides_by_zero() -> None:
    score = torch.tensor([0.01, 0.0, -0.04, 0.02])
    assert normalise(score, "max").tolist() == pytest.approx([0.25, 0.0, -1.0, 0.5])
    assert normalise(score, "minmax").tolist() == pytest.approx([5 / 6, 2 / 3, 0.0, 1.0])
    assert normalise(torch.zeros(3), "max").tolist() == [0.0] * 3
    assert normalise(torch.full((3,), 0.01), "minmax").tolist() == [0.0] * 3


def test_nothing_but_the_weight_and_the_scores_is_saved_for_the_backward_pass() -> None:
    saved: list[Tensor] = []
    weight = torch.randn(4, 4, 3, 3)
    mask = _trained(weight)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        mask(weight)
    assert {t.data_ptr() for t in saved} == {weight.data_ptr(), mask.score.data_ptr()}


def test_there_is_one_score_a_kernel_and_one_a_weight_where_there_is_no_kernel() -> None:
    layers = {
        "conv": layer(torch.randn(4, 3, 3, 3), kernel_dims=2),
        "1x1": layer(torch.randn(4, 3, 1, 1), kernel_dims=2),
        "1d": layer(torch.randn(4, 3, 5), kernel_dims=1),
        "linear": layer(torch.randn(5, 4)),
    }
    shapes = {name: tuple(mask.score.shape) for name, mask in KSM().create(layers, {}).items()}
    assert shapes == {"conv": (4, 3, 1, 1), "1x1": (4, 3, 1, 1), "1d": (4, 3, 1), "linear": (5, 4)}


@pytest.mark.parametrize("options", TABLE_4.values(), ids=TABLE_4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_weights_of_any_type_and_format_are_masked_in_their_own(
    options: dict[str, Any], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    weight = torch.randn(6, 5, 3, 3).to(dtype=dtype, memory_format=memory_format)
    mask = KSM(**options, start="uniform").create({"w": layer(weight, kernel_dims=2)}, {})["w"]
    assert mask.score.dtype == torch.float32
    normal = mask.score.detach() / mask.score.detach().abs().max()
    below = mask.score.detach() < 5e-3
    soft = torch.where(below, normal if options["soft"] else torch.zeros(()), 1.0)
    before = mask(weight)
    assert before.dtype == dtype
    assert before.stride() == weight.stride()
    assert torch.equal(before, weight * soft.to(dtype))
    before.backward(torch.ones_like(weight))
    assert mask.score.grad.dtype == torch.float32
    mask.freeze()
    after = mask(weight)
    assert after.dtype == dtype
    assert after.stride() == weight.stride()
    if not options["soft"]:
        assert mask.exact
        assert torch.equal(before, after)
    else:
        assert not mask.exact
        frozen = torch.ones_like(soft).masked_scatter_(below, mask.values()["scale"])
        assert torch.equal(after, weight * frozen.to(dtype)), "in the order of training's operations"
        (decoded,) = mask.decode(weight)
        assert decoded.dtype == dtype
        assert decoded.shape != weight.shape or decoded.stride() == weight.stride()
        assert torch.allclose(before, after, rtol=0.02 if dtype == torch.bfloat16 else 1e-4, atol=0.01)


# ---------------------------------------------------------------- the frozen form


@pytest.mark.parametrize("normal", ["max", "minmax"])
@pytest.mark.parametrize("granularity", ["kernel", "element"])
def test_freezing_keeps_the_ones_and_moves_a_scale_by_half_a_step_at_most(normal: str, granularity: str) -> None:
    weight = torch.randn(20, 30, 3, 3)
    mask = _trained(weight, normal=normal, granularity=granularity)
    ones, scales = mask.hard().clone(), mask.values()["scale"].clone()
    before = mask(weight).detach()
    assert scales.shape == (int((~ones).sum()),)
    parts = mask.stored()
    assert torch.equal(parts["mask"], ones)
    assert parts["codes"].dtype == torch.uint8
    assert (int(parts["codes"].min()), int(parts["codes"].max())) == (0, 255)
    low, step = parts["range"].tolist()
    assert low == scales.min()
    assert step == pytest.approx((scales.max() - scales.min()).item() / 255)
    assert (mask.values()["scale"] - scales).abs().max() <= step / 2 + 1e-6
    assert torch.equal(mask(weight)[ones.expand_as(weight)], weight[ones.expand_as(weight)])
    assert ((mask(weight) - before).abs() <= weight.abs() * (step / 2 + 1e-6)).all()
    assert mask.score is None


@pytest.mark.parametrize("memory_format", FORMATS)
def test_codes_belong_to_the_zeros_in_row_major_order(memory_format: torch.memory_format) -> None:
    weight = torch.randn(2, 2, 2, 2).to(memory_format=memory_format)
    bits = torch.tensor([[[[1, 0], [1, 1]], [[1, 1], [0, 1]]], [[[1, 1], [1, 1]], [[1, 1], [1, 0]]]]).bool()
    parts = {"mask": bits, "codes": torch.tensor([0, 2, 255]).byte(), "range": torch.tensor([-0.5, 0.25])}
    mask = KSM(granularity="element").restore({"w": parts}, {"w": layer(weight, kernel_dims=2)}, {})["w"]
    expected = torch.ones(2, 2, 2, 2)
    expected[0, 0, 0, 1], expected[0, 1, 1, 0], expected[1, 1, 1, 1] = -0.5, 0.0, 63.25
    assert torch.equal(mask(weight), weight * expected)
    assert mask.stored()["codes"].tolist() == [0, 2, 255]
    assert mask.values()["scale"].tolist() == [-0.5, 0.0, 63.25]


@pytest.mark.parametrize("options", TABLE_4.values(), ids=TABLE_4)
def test_a_stored_mask_comes_back_bit_for_bit(options: dict[str, Any]) -> None:
    layers = {"w": layer(torch.randn(7, 5, 3, 3), kernel_dims=2), "linear": layer(torch.randn(5, 9))}
    method = KSM(**options, start="uniform")
    made = method.create(layers, {})
    stored = {name: mask.stored() for name, mask in made.items()}
    assert stored["w"].keys() == ({"mask", "codes", "range"} if options["soft"] else {"mask"})
    again = method.restore(stored, layers, {})
    for name, mask in again.items():
        weight = layers[name].weight
        assert torch.equal(mask(weight), made[name](weight))
        parts = mask.stored()
        assert all(torch.equal(parts[part], tensor) for part, tensor in stored[name].items())


@pytest.mark.parametrize("score", [1e-2, 1e-3])
def test_a_mask_without_zeros_or_without_ones_is_frozen_too(score: float) -> None:
    weight = torch.randn(3, 2, 3, 3)
    mask = _mask(weight, torch.full((3, 2, 1, 1), score), 2)
    before = mask(weight).detach()
    parts = mask.stored()
    assert len(parts["codes"]) == (0 if score == 1e-2 else 6)
    assert torch.equal(mask(weight), before)
    assert torch.equal(KSM().restore({"w": parts}, {"w": layer(weight, kernel_dims=2)}, {})["w"](weight), before)


def test_quantised_values_are_the_nearest_of_256() -> None:
    values = torch.randn(1000)
    codes, steps = quantise(values)
    nearest = torch.linspace(values.min().item(), values.max().item(), 256)
    expected = (values[:, None] - nearest).abs().min(1).values
    assert torch.allclose((dequantise(codes, steps) - values).abs(), expected, atol=1e-6)


def _parts(**change: Tensor) -> dict[str, Tensor]:
    parts = {"mask": torch.tensor([True, False, False]), "codes": torch.tensor([1, 2]).byte(), "range": torch.tensor([0.0, 0.1])}
    return parts | change


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (_parts(codes=torch.tensor([1]).byte()), "1 codes for 2 zeros"),
        (_parts(range=torch.tensor([0.0, math.nan])), "not finite"),
        (_parts(range=torch.zeros(3)), "'range' is"),
        (_parts(codes=torch.zeros(2)), "'codes' is"),
        (_parts(mask=torch.zeros(4, dtype=torch.bool)), "'mask' is"),
        ({"mask": torch.zeros(3, dtype=torch.bool)}, "expected the parts"),
    ],
)
def test_damaged_parts_are_refused(parts: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        KSM().restore({"w": parts}, {"w": layer(torch.ones(3))}, {})


def test_a_hard_mask_has_no_codes() -> None:
    with pytest.raises(InputError, match="expected the parts"):
        KSM(soft=False).restore({"w": _parts()}, {"w": layer(torch.ones(3))}, {})


# ---------------------------------------------------------------- the start, and starting from another mask


def test_a_fresh_task_is_the_backbone_or_half_of_it() -> None:
    weight = torch.randn(100, 100, 3, 3)
    layers = {"w": layer(weight, kernel_dims=2)}
    assert torch.equal(KSM().create(layers, {})["w"](weight), weight)
    assert torch.equal(KSM(normal="minmax").create(layers, {})["w"](weight), weight)
    half = KSM(start="uniform").create(layers, {})["w"]
    assert half.binary().float().mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("start", ["ones", "uniform"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("granularity", ["kernel", "element"])
@pytest.mark.parametrize("normal", ["max", "minmax"])
def test_a_soft_mask_is_continued_with_its_own_ones_and_scales(start: Any, frozen: bool, granularity: Any, normal: Any) -> None:
    weight = torch.randn(8, 6, 3, 3)
    other = _trained(weight, granularity=granularity, normal=normal)
    if frozen:
        other.freeze()
    ones, scales = other.hard().clone(), other.scales().clone()
    effective = other(weight).detach()
    method = KSM(granularity=granularity, normal=normal, start=start)
    mine = method.create({"w": layer(weight, kernel_dims=2)}, {})["w"]
    for mask in (mine, other):  # another task, and the task itself
        mask.start_from(other)
        assert not mask.frozen
        assert mask.codes is None
        assert mask.score.requires_grad
        assert torch.equal(mask.hard(), ones)
        assert torch.allclose(mask.scales(), scales, atol=1e-5)
        assert torch.allclose(mask(weight), effective, atol=1e-4)
        assert mask.score[ones].max() <= 1e-2


def test_scales_above_what_the_threshold_allows_are_cut_and_the_ones_stay_exact() -> None:
    weight = torch.ones(4)
    bits, steps = torch.tensor([True, False, False, False]), torch.tensor([0.0, 0.1])
    other = SoftKSMMask(layer(weight), None, bits, KSM(), torch.tensor([2, 9, 0]).byte(), steps)
    mine = _mask(weight, torch.zeros(4))
    mine.start_from(other)  # threshold / init = 0.5
    assert mine(weight).tolist() == pytest.approx([1.0, 0.2, 0.5, 0.0])
    assert mine.hard().tolist() == bits.tolist()


def test_minmax_scales_up_to_one_are_met_by_scores_far_below() -> None:
    weight = torch.ones(4)
    method = KSM(normal="minmax")
    bits, codes = torch.tensor([True, False, False, False]), torch.tensor([250, 100, 0]).byte()
    for step, largest in ((1 / 255, 250 / 255), (1 / 250, 0.999)):
        mine = _mask(weight, torch.zeros(4), normal="minmax")
        mine.start_from(SoftKSMMask(layer(weight), None, bits, method, codes, torch.tensor([0.0, step])))
        assert mine.hard().tolist() == bits.tolist()
        assert mine(weight).tolist() == pytest.approx([1.0, largest, 100 * step, 0.0], abs=1e-3)


@pytest.mark.parametrize("normal", ["max", "minmax"])
def test_a_mask_without_ones_is_continued(normal: Any) -> None:
    weight = torch.ones(3)
    other = _mask(weight, torch.tensor([0.004, 0.001, -0.002]), normal=normal)
    mine = _mask(weight, torch.zeros(3), normal=normal)
    mine.start_from(other)
    assert not mine.hard().any()
    assert torch.allclose(mine(weight), other(weight), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"normal": "minmax"}, {"soft": False}, {"start": "uniform"}, {"init": 0.03}], ids=str)
@pytest.mark.parametrize("method", [masks.Piggyback(start="uniform", granularity="kernel"), KSM(soft=False, start="uniform")])
def test_a_warm_start_from_a_binary_mask_begins_with_that_masks_weights(method: Any, options: dict[str, Any]) -> None:
    weight = torch.randn(8, 6, 3, 3)
    layers: dict[str, Layer] = {"w": layer(weight, kernel_dims=2)}
    other = method.create(layers, {})["w"]
    expected = other(weight).detach()
    other.freeze()
    mine = KSM(**options).create(layers, {})["w"]
    mine.start_from(other)
    assert torch.equal(mine(weight), expected)
    assert mine.score.requires_grad


def test_a_kernel_starts_as_the_majority_of_its_weights() -> None:
    weight = torch.randn(8, 6, 3, 3)
    layers = {"w": layer(weight, kernel_dims=2)}
    other = KSM(granularity="element", start="uniform").create(layers, {})["w"]
    mine = KSM().create(layers, {})["w"]
    mine.start_from(other)
    assert torch.equal(mine.hard(), other.hard().float().mean((2, 3), keepdim=True) >= 0.5)


# ---------------------------------------------------------------- options and learning


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "channel"}, "expected one of 'kernel', 'element'"),
        ({"gradient": "gumbel"}, "'softmax', 'straight_through'"),
        ({"normal": "mean"}, "expected one of 'max', 'minmax'"),
        ({"start": "half"}, "expected one of 'ones', 'uniform'"),
        ({"steepness": 0.0}, "steepness=0.0: .*above 0"),
        ({"threshold": 0.0}, "threshold=0.0: .*above 0"),
        ({"init": math.inf}, "init=inf: .*above 0"),
        ({"init": 5e-3}, "not above threshold"),
        ({"through_scale": True, "soft": False}, "there is no scale"),
        ({"through_scale": True}, "choose start='uniform'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        KSM(**options)


LEARNING = TABLE_4 | {
    "minmax": {"normal": "minmax"},
    "through scale": {"through_scale": True, "start": "uniform"},
    "through scale, minmax": {"through_scale": True, "start": "uniform", "normal": "minmax"},
}


@pytest.mark.parametrize("options", LEARNING.values(), ids=LEARNING)
def test_every_row_of_the_ablation_learns_by_its_masks_alone(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(2, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU())
    x = torch.randn(16, 2, 8, 8)
    net = MaskedNetwork(nn.Sequential(backbone, nn.Conv2d(24, 1, 1)))
    net.add_task("t", KSM(**options))
    target = x[:, :1] - 0.5 * x[:, 1:].roll(1, 3)
    parameters = list(net.state("t").parameters())
    assert all(name.endswith("score") for name, _ in net.state("t").named_parameters())
    optimiser = torch.optim.Adam(parameters, 1e-3)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (net(x, task="t") - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
