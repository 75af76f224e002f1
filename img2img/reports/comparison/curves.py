"""Learning curves of a method: the validation figure over the steps, its trainings one after another, the mean over seeds."""

from collections.abc import Sequence

from img2img.reports.read import read_curve
from img2img.research.suites.aggregate import stat
from img2img.research.suites.suite import Method, Run, TaskInfo

PHASES = (".warmup", "", *(f".prune{i}" for i in range(1, 10)), ".retrain")
"""The trainings of one task by the ends of their logs' names, in order: LwF warms up its head, CPG prunes little by little,
PackNet trains again.
"""

Points = list[tuple[int, float]]


def run_curve(run: Run, task: TaskInfo) -> Points:
    """(step, primary metric on the validation set) of one run; empty without a log, or where all tasks were trained at once."""
    points: Points = []
    if any((run.folder / "metrics").glob("*.joint.csv")):
        return points  # the log of its first task is the backbone's
    offset = 0
    for phase in PHASES:
        curve = read_curve(run.folder, f"{task.name}{phase}", task.metric)
        if curve is not None:
            points += [(offset + step, value) for step, value in curve.validation]
            offset += max(step for step, _ in (*curve.loss, *curve.validation))
    return points


def mean_curve(method: Method, task: TaskInfo) -> Points:
    """The mean over the seeds that have a log, at the steps that all of them measured."""
    curves: Sequence[dict[int, float]] = [dict(points) for run in method.runs if (points := run_curve(run, task))]
    if not curves:
        return []
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    means = ((step, stat(curve[step] for curve in curves)) for step in steps)
    return [(step, mean.mean) for step, mean in means if mean is not None]
