"""Methods against a reference seed by seed: without the luck of a backbone and of an order of images."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.figure import Figure

from img2img.formatting import markdown_table
from img2img.reports import text
from img2img.research.suites.aggregate import task_bytes, whole_runs
from img2img.research.suites.plot_style import WIDE, look, new_figure, plain, tidy
from img2img.research.suites.suite import Method, Suite, TaskInfo

_EDGE = 0.25
"""The figure shows gains up to this; beyond are arrowheads."""


@dataclass(frozen=True)
class Pair:
    """A method and the reference on one task, from one seed on one kind of machine.

    Attributes:
        seed: of both.
        value: the method's primary metric after the whole sequence.
        reference: the reference's.
        gain: by how much the method is better, as a fraction of the reference's metric; below 0 it is worse.
    """

    seed: int
    value: float
    reference: float
    gain: float


@dataclass(frozen=True)
class Gain:
    """The gains of a method on one task over its pairs.

    Attributes:
        mean: of the gains.
        error: the standard error of the mean; None with one pair.
        wins: pairs in which the method is at least as good.
        pairs: how many there are.
    """

    mean: float
    error: float | None
    wins: int
    pairs: int


def pairs(method: Method, reference: Method, task: TaskInfo) -> list[Pair]:
    """The pairs of the seeds that both ran on one kind of machine, by seed: on another, the same seed gives another backbone.

    Where the reference's metric is 0 there is no gain and no pair.
    """
    theirs = {run.start: run.final(task.name) for run in whole_runs(reference)}
    found = []
    for run in whole_runs(method):
        value, base = run.final(task.name), theirs.get(run.start)
        if value is not None and base:
            better = value - base if task.higher_is_better else base - value
            found.append(Pair(run.seed, value, base, better / abs(base)))
    return found


def gain(method: Method, reference: Method, task: TaskInfo) -> Gain | None:
    """What `pairs` come to; None where there are none."""
    return _gain([pair.gain for pair in pairs(method, reference, task)])


def _gain(gains: Sequence[float]) -> Gain | None:
    if not gains:
        return None
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None
    return Gain(math.fsum(gains) / len(gains), error, sum(g >= 0 for g in gains), len(gains))


def mean_gain(method: Method, reference: Method, tasks: Sequence[TaskInfo]) -> Gain | None:
    """The gain over all tasks: the mean over the tasks of each seed, then over the seeds; None unless a seed has all tasks.

    `wins` are the seeds in which that mean is at least 0.
    """
    found = [{pair.seed: pair.gain for pair in pairs(method, reference, task)} for task in tasks]
    seeds = set.intersection(*map(set, found)) if found else set()
    return _gain([math.fsum(each[seed] for each in found) / len(found) for seed in sorted(seeds)])


class Compared(NamedTuple):
    """What is compared: the reference, the methods that share a seed with it, and the tasks but that of the backbone."""

    reference: Method
    methods: tuple[Method, ...]
    tasks: tuple[TaskInfo, ...]


def compared(suite: Suite) -> Compared | None:
    """What there is to compare; None without a reference, or without another method of its seeds."""
    reference = suite.reference
    if reference is None:
        return None
    tasks = tuple(t for t in suite.tasks if t.name != suite.backbone_task and any(pairs(reference, reference, t)))
    methods = tuple(m for m in suite.methods if m is not reference and any(pairs(m, reference, t) for t in tasks))
    return Compared(reference, methods, tasks) if methods else None


def nearest_mask(suite: Suite) -> tuple[Method, int, int] | None:
    """The mask method that holds its own on the most tasks: (method, tasks with a mean gain of at least 0, tasks).

    Of those with the most pairs alone, since one lucky seed is no evidence. None where there is nothing to compare.
    """
    if (found := compared(suite)) is None:
        return None
    reference, methods, tasks = found
    masks = [method for method in methods if method.group == "mask"]
    if not masks:
        return None
    gains = {m: [g for t in tasks if (g := gain(m, reference, t)) is not None] for m in masks}
    most = max(min(g.pairs for g in each) for each in gains.values())
    known = [m for m in masks if min(g.pairs for g in gains[m]) == most and len(gains[m]) == len(tasks)]
    if not known:
        return None
    best = max(known, key=lambda m: (sum(g.mean >= 0 for g in gains[m]), sum(g.mean for g in gains[m])))
    return best, sum(g.mean >= 0 for g in gains[best]), len(tasks)


def pair_rows(suite: Suite) -> Iterator[tuple[str, str, int, float, float, float]]:
    """(task, method, seed, value, the reference's, gain) of every pair."""
    found = compared(suite)
    if found is None:
        return
    for task in found.tasks:
        for method in found.methods:
            for pair in pairs(method, found.reference, task):
                yield task.name, method.label, pair.seed, pair.value, pair.reference, pair.gain


def pairs_figure(suite: Suite) -> Figure | None:
    """A row a method, a panel a task: a dot a seed, a bar for the mean; None where there is nothing to compare."""
    if (found := compared(suite)) is None:
        return None
    reference, methods, tasks = found
    figure = new_figure(WIDE, 1.3 + 0.26 * len(methods))
    for axes, task in zip(figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0], tasks, strict=True):
        tidy(axes, grid="x")
        axes.axvline(0, color="0.35", linewidth=1.1, zorder=1)
        for y, method in enumerate(methods):
            colour = look(method.index)["color"]
            gains = [pair.gain for pair in pairs(method, reference, task)]
            for value in gains:
                marker = "o" if abs(value) <= _EDGE else "<" if value < 0 else ">"
                axes.plot(max(-_EDGE, min(_EDGE, value)), y, marker, color=colour, markersize=4.5, alpha=0.75, clip_on=False)
            if gains and abs(mean := math.fsum(gains) / len(gains)) <= _EDGE:
                axes.plot([mean, mean], [y - 0.36, y + 0.36], color="#1b1f24", linewidth=2, solid_capstyle="butt")
        axes.set_xlim(-1.06 * _EDGE, 1.06 * _EDGE)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set_xticks([-0.2, 0, 0.2], ["−20 %", "0", "+20 %"])
        axes.set_title(plain(task.name, 20), fontsize=9, loc="left")
    figure.axes[0].set_yticks(range(len(methods)), [plain(method.title) for method in methods])
    figure.supxlabel(plain(f"better (right) or worse (left) than {reference.title} of the same seed", 90), fontsize=9)
    return figure


class GainPoint(NamedTuple):
    """A method's place among gains against bytes.

    Attributes:
        method: of the suite.
        bytes: the mean over its tasks.
        gain: the mean over the tasks, and seeds, as a fraction of the reference.
        error: the standard error of the gain; None with one seed, and of the reference.
        seeds: how many have all tasks; None of the reference.
    """

    method: Method
    bytes: float
    gain: float
    error: float | None
    seeds: int | None


def gain_points(suite: Suite) -> list[GainPoint]:
    """A point for every method that a seed has all tasks of; the reference is the last, with a gain of 0."""
    if (found := compared(suite)) is None:
        return []
    points: list[GainPoint] = []
    for method in found.methods:
        overall = mean_gain(method, found.reference, found.tasks)
        size = mean_bytes(method, found.tasks)
        if overall is not None and size:
            points.append(GainPoint(method, size, overall.mean, overall.error, overall.pairs))
    if points and (size := mean_bytes(found.reference, found.tasks)):
        points.append(GainPoint(found.reference, size, 0.0, None, None))
    return points


def mean_bytes(method: Method, tasks: Sequence[TaskInfo]) -> float | None:
    """The mean size of a task's own file over the tasks whose size is known; None where none is."""
    sizes = [size for task in tasks if (size := task_bytes(method, task)) is not None]
    return sum(sizes) / len(sizes) if sizes else None


def pairs_markdown(suite: Suite) -> str:
    """The gains as a table for documents: methods x tasks, bold where the mean is at least 0; "" where there are none.

    In brackets: pairs in which the method is at least as good, of all. Bytes are the mean over the tasks compared.
    """
    if (found := compared(suite)) is None:
        return ""
    reference, methods, tasks = found
    head = [f"better than {reference.title} by", *(task.name for task in tasks), "all", "a task"]
    rows = []
    for method in methods:
        size = mean_bytes(method, tasks)
        cells = [_cell(gain(method, reference, task)) for task in tasks]
        overall = [_cell(mean_gain(method, reference, tasks))]
        rows.append([method.title, *cells, *overall, text.DASH if size is None else text.size(round(size))])
    return markdown_table(head, rows)


def _cell(found: Gain | None) -> str:
    if found is None:
        return text.DASH
    shown = in_words(found)
    return f"{f'**{shown}**' if found.mean >= 0 else shown} ({found.wins}/{found.pairs})"


def in_words(found: Gain) -> str:
    """A gain in per cent with its sign and its standard error."""
    mean = f"{100 * found.mean:+.1f}".replace("-", "−")
    return f"{mean} %" if found.error is None else f"{mean} ± {100 * found.error:.1f} %"
