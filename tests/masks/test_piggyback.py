"""Piggyback against the paper's equations, transcribed literally."""

import pytest
import torch

from img2img import InputError, masks
from img2img.masks.base import pack_bits, unpack_bits
from img2img.masks.piggyback import PiggybackMask


def _mask(score: torch.Tensor, threshold: float = 5e-3) -> PiggybackMask:
    return PiggybackMask(score.clone(), None, score.shape, threshold)


def test_forward_and_gradient_on_a_hand_sized_tensor() -> None:
    weight = torch.tensor([0.1, 0.9, -0.5, 1.0])
    mask = _mask(torch.tensor([0.01, 0.0049, 0.005, -3.0]))
    effective = mask(weight)
    assert effective.tolist() == pytest.approx([0.1, 0.0, -0.5, 0.0])
    effective.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert mask.score is not None
    assert mask.score.grad is not None
    assert mask.score.grad.tolist() == pytest.approx([0.1, 1.8, -1.5, 4.0]), "masked-out weights get a gradient too"


def test_forward_is_exact_and_the_gradient_is_the_straight_through_one() -> None:
    weight, score, upstream = torch.randn(3, 64, 33)
    mask = _mask(score * 0.01)
    effective = mask(weight)
    hard = (score * 0.01 >= 5e-3).float()
    assert torch.equal(effective, torch.where(hard.bool(), weight, torch.zeros(())))
    effective.backward(upstream)
    # Equations 4 to 7: y = (W ∘ m) x, and dL/dm^r := dL/dm = dL/d(W ∘ m) ∘ W.
    reference = hard.clone().requires_grad_()
    (weight * reference).backward(upstream)
    assert mask.score is not None
    assert torch.equal(mask.score.grad, reference.grad)


def test_nothing_but_the_weight_is_saved_for_the_backward_pass() -> None:
    saved: list[torch.Tensor] = []
    weight = torch.randn(8, 8)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        _mask(torch.zeros(8, 8))(weight)
    assert [t.data_ptr() for t in saved] == [weight.data_ptr()]


def test_the_effective_weight_keeps_the_memory_format_before_and_after_freezing() -> None:
    weight = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    mask = masks.Piggyback(start="uniform").create({"w": weight})["w"]
    before = mask(weight).detach()
    mask.freeze()
    after = mask(weight)
    assert before.stride() == after.stride() == weight.stride()
    assert torch.equal(before, after)


def test_the_paper_starts_with_every_weight_kept_and_uniform_with_about_half() -> None:
    weights = {"w": torch.randn(200, 200)}
    assert masks.Piggyback().create(weights)["w"].binary().all()
    half = masks.Piggyback(start="uniform").create(weights)["w"].binary().float().mean().item()
    assert half == pytest.approx(0.5, abs=0.01)


def test_scores_below_the_threshold_at_the_start_are_refused() -> None:
    with pytest.raises(InputError, match="not above threshold"):
        masks.Piggyback(init=1e-3)
    with pytest.raises(InputError, match="expected 'ones' or 'uniform'"):
        masks.Piggyback(start="half")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5), (2, 3, 3, 3), (0,)])
def test_packed_bits_are_an_eighth_and_come_back(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape) < 0.3
    bits = pack_bits(mask)
    assert bits.numel() == (mask.numel() + 7) // 8
    assert torch.equal(unpack_bits(bits, mask.shape), mask)


def test_packed_bits_are_in_row_major_order_lowest_first() -> None:
    mask = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 1, 0]]).bool()
    assert pack_bits(mask).tolist() == [0b10000001, 0b0]
    assert torch.equal(pack_bits(mask.t().contiguous().t()), pack_bits(mask))
