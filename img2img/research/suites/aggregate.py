"""The metrics of a suite: means and spreads over seeds, skills, bytes, times and learning curves. All functions are pure."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from img2img.errors import InputError
from img2img.metrics.sequence import skill
from img2img.research.suites.suite import Method, Run, Suite, TaskInfo

Tasks = TypeVar("Tasks", frozenset[str], tuple[str, ...])


@dataclass(frozen=True)
class Stat:
    """A metric over the seeds.

    Attributes:
        mean: over the seeds that have it.
        std: their sample standard deviation (divided by n - 1); None with one seed.
        seeds: how many have it.
    """

    mean: float
    std: float | None
    seeds: int


def stat(values: Iterable[float | None]) -> Stat | None:
    """Mean and spread of what is known; None if nothing is."""
    known = [float(value) for value in values if value is not None]
    if not known:
        return None
    # fsum of equal values divided by their number can be one digit off in the last place.
    mean = known[0] if len(set(known)) == 1 else math.fsum(known) / len(known)
    return Stat(mean, statistics.stdev(known) if len(known) > 1 else None, len(known))


def alike(keys: Sequence[Tasks]) -> list[int]:
    """The places of those that have the same tasks, so that nothing is averaged over different ones.

    These are the most tasks that one has; of different ones as many, those that most have, or else the first.
    """
    most = max(keys, key=lambda key: (len(key), keys.count(key)), default=None)
    return [i for i, key in enumerate(keys) if key == most]


def _alike(method: Method) -> list[Run]:
    """The seeds with the same tasks, see `alike`."""
    return [method.runs[i] for i in alike([frozenset(run.tasks) for run in method.runs])]


def whole_runs(method: Method) -> Sequence[Run]:
    """The seeds whose metrics at the end can be averaged: all, or, of a method that forgets, those with the same tasks.

    In a shorter sequence there is less to forget by.
    """
    return _alike(method) if moved(method) else method.runs


def final(method: Method, task: TaskInfo) -> Stat | None:
    """The primary metric after the whole sequence."""
    return stat(run.final(task.name) for run in whole_runs(method))


def learned(method: Method, task: TaskInfo) -> Stat | None:
    """The primary metric when the task was just learned."""
    return stat(run.learned(task.name) for run in whole_runs(method))


def moved(method: Method) -> bool:
    """Whether some task's primary metric at the end differs from the one when it was learned."""
    values = ((run.learned(name), run.final(name)) for run in method.runs for name in run.tasks)
    return any(None not in (new, last) and new != last for new, last in values)


def best(stats: Sequence[Stat | None], *, higher_is_better: bool) -> set[int]:
    """The places of the best mean: one, or several that are exactly equal; none where nothing is known."""
    known = [entry.mean for entry in stats if entry is not None]
    if not known:
        return set()
    top = max(known) if higher_is_better else min(known)
    return {i for i, entry in enumerate(stats) if entry is not None and entry.mean == top}


def skill_of(value: float | None, task: TaskInfo) -> float | None:
    """Where a value lies between the baseline (0) and perfection (1); None where that is not defined."""
    if value is None or task.baseline is None:
        return None
    try:
        return skill(value, task.baseline, higher_is_better=task.higher_is_better)
    except InputError:
        return None  # a metric without a ceiling, such as PSNR, or a baseline that is perfect


def skills(method: Method, task: TaskInfo) -> Stat | None:
    """The skill after the whole sequence."""
    return stat(skill_of(run.final(task.name), task) for run in whole_runs(method))


def mean_skill(method: Method, suite: Suite) -> tuple[Stat, int] | None:
    """The mean skill over the tasks, over seeds, and how many tasks that are; seeds without the same tasks are left out."""
    skills = [{task.name: skill_of(run.final(task.name), task) for task in suite.tasks} for run in method.runs]
    found = [{name: value for name, value in by.items() if value is not None} for by in skills]
    same = [found[i].values() for i in alike([frozenset(by) for by in found]) if found[i]]
    total = stat(math.fsum(known) / len(known) for known in same)
    return None if total is None else (total, len(same[0]))


RELATIVE_FLOOR = 0.02
"""Where the reference itself has a smaller skill, nothing is compared with it: the quotient would be noise."""


def relative_skill(method: Method, reference: Method, task: TaskInfo) -> float | None:
    """The skill in units of the reference's: 0 is the baseline, 1 as good as the reference.

    Means over the seeds that both ran on one kind of machine, since a lucky seed must not look like a better method; over all
    where they share none.
    """
    own, theirs = _skills_by_start(method, task), _skills_by_start(reference, task)
    both = own.keys() & theirs.keys()
    mine = stat(value for start, value in own.items() if start in both or not both)
    reference_skill = stat(value for start, value in theirs.items() if start in both or not both)
    if mine is None or reference_skill is None or reference_skill.mean < RELATIVE_FLOOR:
        return None
    return mine.mean / reference_skill.mean


def _skills_by_start(method: Method, task: TaskInfo) -> dict[tuple[int, str | None], float]:
    found = {run.start: skill_of(run.final(task.name), task) for run in whole_runs(method)}
    return {start: value for start, value in found.items() if value is not None}


def task_bytes(method: Method, task: TaskInfo) -> int | None:
    """What the task stores beside what is shared: mean over seeds."""
    found = stat(entry.bytes for run in method.runs if (entry := run.task(task.name)) is not None)
    return None if found is None else round(found.mean)


@dataclass(frozen=True)
class Sizes:
    """Bytes of a method for all its tasks: stored once, and for the tasks together; means over seeds."""

    shared: float
    own: float

    @property
    def total(self) -> float:
        """All together."""
        return self.shared + self.own


def sizes(method: Method) -> Sizes | None:
    """What a method stores; None where a size is not known. Seeds without the same tasks are left out."""
    whole = _alike(method)
    shared = [size for run in whole if (size := run.shared_bytes) is not None]
    own = [total for run in whole if (total := _total([task.bytes for task in run.record.tasks])) is not None]
    if len(shared) < len(whole) or len(own) < len(whole):
        return None
    return Sizes(math.fsum(shared) / len(whole), sum(own) / len(whole))


def seconds(method: Method) -> Stat | None:
    """Training time of all tasks together; seeds that lack a time, or that have not the same tasks, are left out."""
    return stat(_total([task.train_seconds for task in run.record.tasks]) for run in _alike(method))


def _total(values: Sequence[float | None]) -> float | None:
    """The sum; None where a value is not known."""
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None


Points = list[tuple[int, float]]
"""(step, value)."""


def mean_curve(method: Method, task: TaskInfo) -> Points:
    """The validations of a task's training: the mean over the seeds that have any, at the steps that all of them measured."""
    curves = [dict(entry.curve) for run in method.runs if (entry := run.task(task.name)) is not None and entry.curve]
    if not curves:
        return []
    means = ((step, stat(curve[step] for curve in curves)) for step in sorted(set.intersection(*map(set, curves))))
    return [(step, mean.mean) for step, mean in means if mean is not None]


TRANSFER = ("average_skill", "forgetting", "backward", "forward")


def transfer(method: Method, key: str) -> Stat | None:
    """One of `TRANSFER`, as the runs measured it over their tasks; seeds without the same tasks are left out."""
    return stat(run.record.transfer.get(key) for run in _alike(method))


@dataclass(frozen=True)
class Matrix:
    """The forgetting matrix of a method: row t, column i is the mean over seeds of task i's primary metric after task t.

    None above the diagonal, and where no seed was measured then.
    """

    tasks: tuple[TaskInfo, ...]
    values: list[list[float | None]]
    changes: list[list[float | None]]
    """The same as the change of skill since the task was learned; None where that is not known, as above the diagonal."""


def matrix(method: Method, suite: Suite) -> Matrix:
    """The mean forgetting matrix, over the seeds that learned the same tasks in the same order."""
    runs = [method.runs[i] for i in alike([run.tasks for run in method.runs])]
    by_name = {task.name: task for task in suite.tasks}
    tasks = tuple(by_name[name] for name in runs[0].tasks)
    size = len(tasks)
    values: list[list[float | None]] = [[None] * size for _ in tasks]
    changes: list[list[float | None]] = [[None] * size for _ in tasks]
    for t in range(size):
        for i in range(t + 1):
            mean = stat(run.after(t, i) for run in runs)
            values[t][i] = None if mean is None else mean.mean
            pairs = [(skill_of(run.after(t, i), tasks[i]), skill_of(run.after(i, i), tasks[i])) for run in runs]
            change = stat(now - new for now, new in pairs if now is not None and new is not None)
            changes[t][i] = None if change is None else change.mean
    return Matrix(tasks, values, changes)
