"""What a sequence of tasks gained and lost, from the metrics measured after each task.

The input is a matrix of which row t, column i is task i's primary metric measured after training task t, in the order of
training. Each task has its own metric and unit, so all means are taken over *skills*: 0 is what the task's baseline
gets, 1 is perfect, below 0 is worse than the baseline. A value that was not measured is None or NaN, or the row ends before
it; pairs with one missing are left out of a mean, and a mean over nothing is None. Where the baseline is perfect, as on
test images of one class, no skill can be told, and it counts as not measured.
"""

import math
from collections.abc import Iterable, Sequence

from img2img.errors import InputError

Row = Sequence[float | None]

_SLACK = 1e-6
"""For a float32 score of a perfect image."""


def skill(value: float | None, baseline: float | None, *, higher_is_better: bool) -> float | None:
    """Where `value` lies between the baseline (0) and perfection (1).

    For a score, whose ceiling is 1: (value - baseline) / (1 - baseline).
    For an error, whose floor is 0: (baseline - value) / baseline.

    Args:
        value: a score of at most 1 (mIoU, SSIM, accuracy, as fractions) or an error of at least 0; None or NaN: not measured.
        baseline: the baseline's value, in the same unit; None or NaN: not measured.
        higher_is_better: whether it is a score.

    Returns:
        The skill, at most 1, or None if one of them was not measured, or the baseline is perfect already.

    Raises:
        InputError: a value is beyond the ceiling (a percentage, a PSNR) or the floor.
    """
    known = [number for number in (value, baseline) if number is not None and not math.isnan(number)]
    if higher_is_better and any(number > 1 + _SLACK for number in known):
        raise InputError(
            f"got a score of {value} and {baseline} as baseline: expected at most 1, the ceiling; give fractions rather "
            "than per cent, and no metric without a ceiling, such as PSNR"
        )
    if not higher_is_better and any(not 0 <= number < math.inf for number in known):
        raise InputError(
            f"got an error of {value} and {baseline} as baseline: expected numbers of at least 0; is higher_is_better right?"
        )
    if len(known) < 2:
        return None
    value, baseline = known
    if higher_is_better:
        return None if baseline >= 1 - _SLACK else (min(value, 1.0) - baseline) / (1 - baseline)
    return None if baseline == 0 else (baseline - value) / baseline


def skill_matrix(values: Sequence[Row], baseline: Row, higher_is_better: Sequence[bool]) -> list[list[float | None]]:
    """The matrix of skills from the matrix of values; `baseline` and `higher_is_better` have one entry a column (task).

    A metric that no skill can be told from, such as a score without a ceiling, counts as not measured.

    Raises:
        InputError: a row with more entries than there are tasks.
    """
    if len(baseline) != len(higher_is_better) or any(len(row) > len(baseline) for row in values):
        raise InputError(
            f"got rows of {[len(row) for row in values]} values, {len(baseline)} baselines and {len(higher_is_better)} "
            "directions: expected one baseline and one direction a task, and no row longer; give one of each for every task"
        )
    columns = list(zip(baseline, higher_is_better, strict=True))
    return [
        [skill_or_none(value, base, higher_is_better=higher) for value, (base, higher) in zip(row, columns, strict=False)]
        for row in values
    ]


def skill_or_none(value: float | None, baseline: float | None, *, higher_is_better: bool) -> float | None:
    """`skill`, or None too for a metric from which none can be told, such as a score without a ceiling (PSNR)."""
    try:
        return skill(value, baseline, higher_is_better=higher_is_better)
    except InputError:
        return None


def average_skill(skills: Sequence[Row]) -> float | None:
    """The mean over the tasks of the skill after the last one (ACC of Lopez-Paz & Ranzato 2017, eq. 2, on skills).

    Args:
        skills: T rows of at most T skills.

    Returns:
        At most 1, or None if nothing was measured after the last task.

    Raises:
        InputError: the matrix is empty or a row has more entries than there are rows.
    """
    last = _square(skills)[-1]
    return _mean(last)


def backward_transfer(skills: Sequence[Row]) -> float | None:
    """How later tasks changed earlier ones: mean over i < T of R[T, i] - R[i, i].

    Lopez-Paz & Ranzato 2017, eq. 3, on skills.
    0 where nothing moves, as with masks; negative where tasks are forgotten.

    Args:
        skills: T rows of at most T skills.

    Returns:
        A difference of skills, or None with one task or where no pair was measured.

    Raises:
        InputError: as `average_skill`.
    """
    R = _square(skills)
    return _mean(_minus(R[-1][i], R[i][i]) for i in range(len(R) - 1))


def forward_transfer(skills: Sequence[Row]) -> float | None:
    """What earlier tasks gave a task before its own training: mean over i > 1 of R[i-1, i] - b_i.

    Lopez-Paz & Ranzato 2017, eq. 4, on skills.
    The reference b_i, a random network's accuracy in the paper, is here the baseline, whose skill is 0 by definition.

    Args:
        skills: T rows of at most T skills; row i-1, column i is task i measured just before its training.

    Returns:
        A skill, or None if no task was measured before its training (a mask of its own exists only after it).

    Raises:
        InputError: as `average_skill`.
    """
    R = _square(skills)
    return _mean(R[i - 1][i] for i in range(1, len(R)))


def forgetting(skills: Sequence[Row]) -> float | None:
    """Mean over the tasks but the last of the best earlier skill minus the last (Chaudhry et al. 2018, Riemannian Walk, eq. 3).

    0 where nothing moves; 1 is a perfect task thrown back to its baseline; negative where the last task helped.

    Args:
        skills: T rows of at most T skills.

    Returns:
        A difference of skills, or None with one task or where no pair was measured.

    Raises:
        InputError: as `average_skill`.
    """
    R = _square(skills)

    def drop(i: int) -> float | None:
        earlier = [value for row in R[:-1] if (value := row[i]) is not None]
        return _minus(max(earlier), R[-1][i]) if earlier else None

    return _mean(drop(i) for i in range(len(R) - 1))


def _square(skills: Sequence[Row]) -> list[list[float | None]]:
    """The matrix with None for whatever is missing: absent, None or NaN."""
    size = len(skills)
    if size == 0 or any(len(row) > size for row in skills):
        raise InputError(
            f"got {size} rows of {[len(row) for row in skills]} skills: expected one row a task, none longer than "
            "there are rows; cut the tasks that were not trained"
        )
    known = [[None if value is None or math.isnan(value) else float(value) for value in row] for row in skills]
    return [row + [None] * (size - len(row)) for row in known]


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
