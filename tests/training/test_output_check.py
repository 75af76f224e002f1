import math

import pytest
import torch
from torch import Tensor

from img2img.errors import InputError
from img2img.training.output_check import max_abs_difference


def test_equal_outputs_have_changed_by_exactly_zero() -> None:
    outputs = torch.randn(2, 3, 4, 4)
    assert max_abs_difference(outputs, outputs.clone()) == 0.0
    assert max_abs_difference(torch.tensor([math.inf, -0.0]), torch.tensor([math.inf, 0.0])) == 0.0


def test_the_largest_change_counts_in_either_direction() -> None:
    before = torch.tensor([1.0, 2.0, 3.0])
    assert max_abs_difference(before, torch.tensor([1.5, 2.0, 0.0])) == 3.0
    assert max_abs_difference(before, torch.tensor([1.5, 7.0, 3.0])) == 5.0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.tensor([1.0]), torch.nextafter(torch.tensor([1.0]), torch.tensor([2.0]))),
        (torch.tensor([0.0]), torch.tensor([1e-45])),  # the smallest denormal
        (torch.tensor([0.0], dtype=torch.float64), torch.tensor([5e-324], dtype=torch.float64)),
        (torch.tensor([2**60]), torch.tensor([2**60 + 1])),  # equal as float64
    ],
)
def test_one_last_bit_is_a_change(before: Tensor, after: Tensor) -> None:
    assert max_abs_difference(before, after) > 0.0
    assert max_abs_difference(after, before) > 0.0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([1.0, math.nan], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, math.nan]),
        ([1.0, math.nan], [1.0, math.nan]),
        ([1.0, math.inf], [1.0, 2.0]),
        ([math.inf], [-math.inf]),
    ],
)
def test_nan_in_either_output_and_lost_infinities_are_infinite_changes(before: list[float], after: list[float]) -> None:
    assert max_abs_difference(torch.tensor(before), torch.tensor(after)) == math.inf


def test_an_infinity_that_stays_does_not_hide_the_change_beside_it() -> None:
    assert max_abs_difference(torch.tensor([math.inf, 1.0]), torch.tensor([math.inf, 1.25])) == 0.25


def test_outputs_that_cannot_be_compared_are_refused() -> None:
    for before, after in (
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(0), torch.zeros(0)),
    ):
        with pytest.raises(InputError, match="expected one shape and type"):
            max_abs_difference(before, after)
