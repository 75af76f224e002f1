"""Piggyback against the paper's equations, transcribed literally."""

import pytest
import torch
from mask_zoo import layer

from img2img import InputError, masks
from img2img.masks.methods.piggyback import PiggybackMask, TernaryPiggybackMask, select


def _mask(score: torch.Tensor, **options: object) -> PiggybackMask:
    method = masks.Piggyback(**options)  # type: ignore[arg-type]
    kind = TernaryPiggybackMask if method.ternary else PiggybackMask
    return kind(layer(score), score.clone(), None, method)


def _gradient(mask: PiggybackMask, weight: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    mask(weight).backward(upstream)
    assert mask.score is not None
    assert mask.score.grad is not None
    return mask.score.grad


def test_forward_and_gradient_on_a_hand_sized_tensor() -> None:
    weight = torch.tensor([0.1, 0.9, -0.5, 1.0])
    mask = _mask(torch.tensor([0.01, 0.0049, 0.005, -3.0]))
    assert mask(weight).tolist() == pytest.approx([0.1, 0.0, -0.5, 0.0])
    gradient = _gradient(mask, weight, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert gradient.tolist() == pytest.approx([0.1, 1.8, -1.5, 4.0]), "masked-out weights get a gradient too"


def test_forward_is_exact_and_the_gradient_is_the_straight_through_one() -> None:
    weight, score, upstream = torch.randn(3, 64, 33)
    mask = _mask(score * 0.01)
    effective = mask(weight)
    hard = (score * 0.01 >= 5e-3).float()
    assert torch.equal(effective, torch.where(hard.bool(), weight, torch.zeros(())))
    # Equations 4 to 7: y = (W ∘ m) x, and dL/dm^r := dL/dm = dL/d(W ∘ m) ∘ W.
    reference = hard.clone().requires_grad_()
    (weight * reference).backward(upstream)
    assert torch.equal(_gradient(mask, weight, upstream), reference.grad)


@pytest.mark.parametrize("threshold", [5e-3, 0.0, -1.0, 1e-30, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_score_at_the_threshold_counts_as_above_in_every_type(threshold: float, dtype: torch.dtype) -> None:
    at = torch.tensor(threshold)
    scores = torch.stack([torch.nextafter(at, at - 1), at, torch.nextafter(at, at + 1)])
    weight = torch.tensor([1.5, -2.5, 3.5], dtype=dtype)
    assert select(weight, scores, threshold).tolist() == [0.0, -2.5, 3.5]


@pytest.mark.parametrize(("scaling", "expected"), [("average", [0.4, 3.6, -3.0]), ("individual", [2.0, 2.0, -3.0])])
def test_the_gradient_may_be_divided_by_the_mean_or_by_each_absolute_weight(scaling: str, expected: list[float]) -> None:
    weight = torch.tensor([0.1, 0.9, -0.5])  # mean |W| = 0.5
    upstream = torch.tensor([2.0, 2.0, 3.0])
    mask = _mask(torch.zeros(3), gradient_scaling=scaling)
    assert _gradient(mask, weight, upstream).tolist() == pytest.approx(expected)


def test_individual_scaling_divides_by_every_absolute_weight() -> None:
    weight, score, upstream = torch.randn(3, 20, 5)
    expected = upstream * weight / weight.abs()
    assert torch.allclose(_gradient(_mask(score, gradient_scaling="individual"), weight, upstream), expected)


def test_nothing_but_the_weight_is_saved_for_the_backward_pass() -> None:
    saved: list[torch.Tensor] = []
    weight = torch.randn(8, 8)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        _mask(torch.zeros(8, 8))(weight)
    assert [t.data_ptr() for t in saved] == [weight.data_ptr()]


@pytest.mark.parametrize("ternary", [False, True])
def test_one_score_a_kernel_masks_all_of_it_and_gets_the_sum_of_its_gradients(ternary: bool) -> None:
    weight, upstream = torch.randn(2, 4, 3, 3, 3)
    score = torch.randn(4, 3, 1, 1) * 0.01
    method = masks.Piggyback(granularity="kernel", ternary=ternary)
    kind = TernaryPiggybackMask if ternary else PiggybackMask
    mask = kind(layer(weight, kernel_dims=2), score, None, method)
    hard = (score >= 5e-3).float() - (score <= -5e-3).float() * ternary
    assert torch.equal(mask(weight), weight * hard)
    reference = hard.clone().requires_grad_()
    (weight * reference).backward(upstream)
    assert torch.allclose(_gradient(mask, weight, upstream), reference.grad, rtol=1e-5, atol=1e-6)


def test_kernel_wise_is_element_wise_where_there_is_no_kernel() -> None:
    layers = {"w": layer(torch.randn(5, 4))}
    mask = masks.Piggyback(granularity="kernel").create(layers, {})["w"]
    assert mask.score.shape == (5, 4)


def test_a_ternary_mask_cuts_at_both_thresholds_and_keeps_signs_when_frozen() -> None:
    weight = torch.tensor([2.0, 3.0, 4.0, 5.0, 6.0])
    mask = _mask(torch.tensor([0.005, 0.0049, -0.0049, -0.005, 1.0]), ternary=True)
    assert mask(weight).tolist() == [2.0, 0.0, 0.0, -5.0, 6.0]
    assert _gradient(mask, weight, torch.ones(5)).tolist() == weight.tolist()
    assert mask.binary().tolist() == [True, False, False, True, True]
    parts = mask.stored()
    assert parts["negative"].tolist() == [False, True, False]
    assert mask(weight).tolist() == [2.0, 0.0, 0.0, -5.0, 6.0]
    again = masks.Piggyback(ternary=True).restore({"w": parts}, {"w": layer(weight)}, {})["w"]
    assert torch.equal(again(weight), mask(weight))


def test_signs_that_do_not_fit_their_mask_are_refused() -> None:
    parts = {"mask": torch.tensor([True, True, False]), "negative": torch.tensor([False])}
    with pytest.raises(InputError, match="1 signs for 2 ones"):
        masks.Piggyback(ternary=True).restore({"w": parts}, {"w": layer(torch.ones(3))}, {})


def test_the_effective_weight_keeps_the_memory_format_before_and_after_freezing() -> None:
    weight = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    mask = masks.Piggyback(start="uniform").create({"w": layer(weight, kernel_dims=2)}, {})["w"]
    before = mask(weight).detach()
    mask.freeze()
    after = mask(weight)
    assert before.stride() == after.stride() == weight.stride()
    assert torch.equal(before, after)


def test_the_paper_starts_with_every_weight_kept_and_uniform_with_about_half() -> None:
    layers = {"w": layer(torch.randn(200, 200))}
    assert masks.Piggyback().create(layers, {})["w"].binary().all()
    half = masks.Piggyback(start="uniform").create(layers, {})["w"].binary().float().mean().item()
    assert half == pytest.approx(0.5, abs=0.01)
    thirds = masks.Piggyback(start="uniform", ternary=True).create(layers, {})["w"].ternary()
    assert [(thirds == v).float().mean().item() for v in (-1, 0, 1)] == pytest.approx([1 / 3] * 3, abs=0.01)


def test_proportional_scores_are_above_the_threshold_in_proportion_to_the_weight() -> None:
    layers = {"a": layer(torch.tensor([0.1, -0.3])), "b": layer(torch.tensor([0.2, 0.2]))}  # mean |W| = 0.2
    made = masks.Piggyback(start="proportional").create(layers, {})
    assert (made["a"].score - 5e-3).tolist() == pytest.approx([0.0025, 0.0075])
    assert (made["b"].score - 5e-3).tolist() == pytest.approx([0.005, 0.005])
    assert all(m.binary().all() for m in made.values())


def test_a_margin_is_the_number_of_steps_that_flip_a_bit() -> None:
    mask = masks.Piggyback(threshold=0.0, margin=3.5, step=1e-2).create({"w": layer(torch.ones(1))}, {})["w"]
    optimiser = torch.optim.Adam(mask.parameters(), 1e-2)
    alive = []
    for _ in range(5):
        optimiser.zero_grad()
        mask(torch.ones(1)).sum().backward()
        optimiser.step()
        alive.append(bool(mask.binary()))
    assert alive == [True, True, True, False, False]


@pytest.mark.parametrize("ternary", [False, True])
def test_a_warm_start_begins_with_the_other_mask_as_far_from_flipping_as_a_fresh_one(ternary: bool) -> None:
    weight = torch.randn(6, 5)
    method = masks.Piggyback(start="uniform", ternary=ternary)
    other = method.create({"w": layer(weight)}, {})["w"]
    expected = other(weight).detach()
    other.freeze()
    mine = masks.Piggyback(ternary=ternary).create({"w": layer(weight)}, {})["w"]
    mine.start_from(other)
    assert torch.equal(mine(weight), expected)
    scores = sorted({round(abs(score), 6) for score in mine.score.flatten().tolist()})
    assert scores == [0.0, 0.01], "zeros lie in the middle between the thresholds, or as far below the one"
    assert mine.score.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": 1e-3}, "not above threshold"),
        ({"margin": -1.0}, "not above threshold"),
        ({"start": "half"}, "'ones', 'uniform', 'proportional'"),
        ({"gradient_scaling": "mean"}, "'none', 'average', 'individual'"),
        ({"granularity": "channel"}, "expected one of 'element', 'kernel'"),
        ({"threshold": 0.0, "ternary": True}, "must be above 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        masks.Piggyback(**options)  # type: ignore[arg-type]
