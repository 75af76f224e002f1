import math

import pytest

from img2img.errors import InputError
from img2img.metrics.sequence import (
    average_skill,
    backward_transfer,
    forgetting,
    forward_transfer,
    skill,
    skill_matrix,
)

# Row: after training that task; column: the task measured.
FULL = [
    [0.8, 0.1, 0.0],
    [0.6, 0.7, -0.2],
    [0.2, 0.9, 0.5],
]
LOWER = [[0.8], [0.6, 0.7], [0.2, 0.9, 0.5]]
HOLES: list[list[float | None]] = [[0.8, None, None], [math.nan, 0.7, -0.2], [0.2, None, 0.5]]


def test_skill_of_scores_runs_from_the_trivial_baseline_to_one() -> None:
    assert skill(0.2, 0.2, higher_is_better=True) == 0.0
    assert skill(1.0, 0.2, higher_is_better=True) == 1.0
    assert skill(0.6, 0.2, higher_is_better=True) == pytest.approx(0.5)
    assert skill(0.0, 0.2, higher_is_better=True) == pytest.approx(-0.25)
    assert skill(1.0000001, 0.2, higher_is_better=True) == 1.0  # a float32 SSIM of a perfect image


def test_skill_of_errors_runs_from_the_trivial_baseline_to_zero_error() -> None:
    assert skill(225.0, 225.0, higher_is_better=False) == 0.0
    assert skill(0.0, 225.0, higher_is_better=False) == 1.0
    assert skill(180.0, 225.0, higher_is_better=False) == pytest.approx(0.2)
    assert skill(450.0, 225.0, higher_is_better=False) == pytest.approx(-1.0)


@pytest.mark.parametrize("missing", [None, math.nan])
@pytest.mark.parametrize("higher", [True, False])
def test_skill_of_what_was_not_measured_is_none(missing: float | None, higher: bool) -> None:
    assert skill(missing, 0.5, higher_is_better=higher) is None
    assert skill(0.5, missing, higher_is_better=higher) is None


@pytest.mark.parametrize(("baseline", "higher"), [(1.0, True), (0.99999999, True), (0.0, False)])
@pytest.mark.parametrize("value", [0.5, 1.0, 0.0, None])
def test_where_doing_nothing_is_perfect_there_is_no_skill(value: float | None, baseline: float, higher: bool) -> None:
    assert skill(value, baseline, higher_is_better=higher) is None
    skills = skill_matrix([[value], [value, 0.6]], [baseline, 0.2], [higher, True])
    assert skills == [[None], [None, pytest.approx(0.5)]]
    assert average_skill(skills) == pytest.approx(0.5)
    assert backward_transfer(skills) is forgetting(skills) is None


def test_a_score_without_a_ceiling_has_no_skill_in_the_matrix() -> None:
    assert skill_matrix([[28.0]], [21.0], [True]) == [[None]]


@pytest.mark.parametrize(
    ("value", "baseline", "higher", "message"),
    [
        (61.45, 0.2, True, "per cent"),
        (0.5, 20.0, True, "20.0 .*at most 1"),
        (3.0, math.inf, False, "inf as baseline"),
        (-0.1, 3.0, False, "at least 0"),
    ],
)
def test_skill_refuses_values_beyond_ceiling_and_floor(value: float, baseline: float, higher: bool, message: str) -> None:
    with pytest.raises(InputError, match=message):
        skill(value, baseline, higher_is_better=higher)


def test_skill_matrix_takes_each_task_in_its_own_unit() -> None:
    values: list[list[float | None]] = [[0.6], [0.2, 180.0], [None, 225.0, 0.5]]
    skills = skill_matrix(values, baseline=[0.2, 225.0, 0.5], higher_is_better=[True, False, True])
    assert skills == [[pytest.approx(0.5)], [0.0, pytest.approx(0.2)], [None, 0.0, 0.0]]


def test_skill_matrix_refuses_more_values_than_tasks() -> None:
    with pytest.raises(InputError, match="one baseline and one direction a task"):
        skill_matrix([[0.1, 0.2]], [0.1], [True])
    with pytest.raises(InputError, match="one baseline and one direction a task"):
        skill_matrix([[0.1]], [0.1], [True, True])


@pytest.mark.parametrize("skills", [FULL, LOWER])
def test_average_backward_transfer_and_forgetting_of_a_hand_computed_matrix(skills: list[list[float]]) -> None:
    assert average_skill(skills) == pytest.approx((0.2 + 0.9 + 0.5) / 3)
    assert backward_transfer(skills) == pytest.approx(((0.2 - 0.8) + (0.9 - 0.7)) / 2)
    assert forgetting(skills) == pytest.approx(((0.8 - 0.2) + (0.7 - 0.9)) / 2)


def test_forgetting_compares_with_the_best_earlier_skill_and_not_with_the_first() -> None:
    assert forgetting([[0.3], [0.9, 0.5], [0.4, 0.5, 0.1]]) == pytest.approx((0.5 + 0.0) / 2)
    assert backward_transfer([[0.3], [0.9, 0.5], [0.4, 0.5, 0.1]]) == pytest.approx((0.1 + 0.0) / 2)


def test_forward_transfer_of_a_hand_computed_matrix() -> None:
    assert forward_transfer(FULL) == pytest.approx((0.1 - 0.2) / 2)


def test_missing_entries_are_left_out_of_the_means() -> None:
    assert average_skill(HOLES) == pytest.approx((0.2 + 0.5) / 2)
    assert backward_transfer(HOLES) == pytest.approx(0.2 - 0.8)
    assert forward_transfer(HOLES) == pytest.approx(-0.2)
    assert forgetting(HOLES) == pytest.approx(0.8 - 0.2)


def test_means_over_nothing_are_none() -> None:
    assert forward_transfer(LOWER) is None
    assert average_skill([[0.5], [None, math.nan]]) is None
    assert backward_transfer([[0.5], [None, 0.2]]) is None
    assert forgetting([[None], [0.5, 0.2]]) is None
    for mean in (backward_transfer, forward_transfer, forgetting):
        assert mean([[0.5]]) is None
    assert average_skill([[0.5]]) == 0.5


def test_where_nothing_moves_nothing_is_forgotten() -> None:
    masks = [[0.8], [0.8, 0.7], [0.8, 0.7, 0.5]]
    assert backward_transfer(masks) == 0.0
    assert forgetting(masks) == 0.0


@pytest.mark.parametrize("skills", [[], [[0.1, 0.2]], [[0.1], [0.1, 0.2, 0.3]]])
def test_matrices_that_are_empty_or_too_wide_are_refused(skills: list[list[float]]) -> None:
    for mean in (average_skill, backward_transfer, forward_transfer, forgetting):
        with pytest.raises(InputError, match="one row a task"):
            mean(skills)
