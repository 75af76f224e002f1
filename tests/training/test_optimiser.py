"""The optimisers of a training against PyTorch's own."""

from typing import Any

import pytest
import torch
from torch import nn

from img2img.training.optimiser import DenseAdam

SHAPES = [(24, 17, 3, 3), (7, 1, 3, 3), (5, 3, 1, 1), (4, 6, 5), (3, 2, 2, 3, 3), (9,), ()]


def _parameters(seed: int = 0) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    tensors = [torch.randn(s).contiguous(memory_format=formats.get(len(s), torch.contiguous_format)) for s in SHAPES]
    tensors[3] = tensors[3].transpose(0, 2)  # another order, as one may be given
    return [nn.Parameter(tensor) for tensor in tensors]


def _steps(optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], seed: int = 1, *, other: Any = None) -> None:
    torch.manual_seed(seed)
    for _ in range(3):
        for parameter in parameters:
            gradient = torch.randn(parameter.shape)
            parameter.grad = gradient if other else torch.empty_like(parameter).copy_(gradient)
        optimiser.step()


def test_parameters_of_every_memory_format_end_as_by_pytorchs_adam() -> None:
    ours, theirs = _parameters(), _parameters()
    shapes, strides = [p.shape for p in ours], [p.stride() for p in ours]
    _steps(DenseAdam(ours, 1e-2, weight_decay=0.1, fused=True), ours)
    _steps(torch.optim.Adam(theirs, 1e-2, weight_decay=0.1, fused=True), theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert ([p.shape for p in ours], [p.stride() for p in ours]) == (shapes, strides)
    assert all(p.grad is not None and p.grad.stride() == p.stride() for p in ours)


def test_a_gradient_of_another_memory_format_is_the_same_gradient() -> None:
    """PyTorch's fused kernel takes its memory as it lies."""
    ours, expected = _parameters(), [nn.Parameter(p.detach().contiguous()) for p in _parameters()]
    _steps(DenseAdam(ours, 1e-2, fused=True), ours, other=True)
    _steps(torch.optim.Adam(expected, 1e-2), expected)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_state_goes_on_bit_equal_and_a_closure_sees_the_parameters_as_they_are() -> None:
    whole, first = _parameters(), _parameters()
    optimiser = DenseAdam(whole, 1e-2, fused=True)
    _steps(optimiser, whole)
    _steps(optimiser, whole, seed=2)
    before = torch.optim.Adam(first, 1e-2, fused=True)  # whose state is of the same form
    _steps(before, first)
    second = [nn.Parameter(p.detach().clone()) for p in first]
    after = DenseAdam(second, 1e-2, fused=True)
    after.load_state_dict(before.state_dict())
    moments = [after.state[p]["exp_avg"] for p in second]
    assert [(m.shape, m.stride()) for m in moments] == [(p.shape, p.stride()) for p in second]
    _steps(after, second, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))

    def closure() -> torch.Tensor:
        assert [p.shape for p in second] == [p.shape for p in first]
        return torch.tensor(5.0)

    assert after.step(closure) == 5


def test_a_step_that_fails_leaves_the_parameters_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = _parameters()
    strides = [p.stride() for p in parameters]
    optimiser = DenseAdam(parameters, 1e-2, fused=True)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _steps(optimiser, parameters)
    assert [p.stride() for p in parameters] == strides
