"""Figures of quality, forgetting, size and time, a method beside the other; matplotlib figures without pyplot."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from img2img.masks.plots import effect_words
from img2img.reports import text
from img2img.research.suites.aggregate import Matrix, Sizes, Stat, alike
from img2img.research.suites.paired_differences import GainPoint
from img2img.research.suites.plot_style import COLOURS, WIDE, fill, look, new_figure, plain, side_legend, tidy
from img2img.research.suites.suite import Method, TaskInfo

_INK = "#1b1f24"
_NEAR = 9.0
_NAME_HEIGHT = 11.0
_LOGARITHMIC = 20
"""Errors that span more than this factor are drawn on a logarithmic axis."""


def skill_figure(
    methods: Sequence[Method], tasks: Sequence[TaskInfo], skills: Sequence[Sequence[float | None]], *, reference: str | None
) -> Figure:
    """A row a method, a dot a task, a bar for the mean of the methods that have the same tasks.

    Args:
        methods: the rows.
        tasks: the dots.
        skills: `[method][task]`; None is left out.
        reference: the method of which 1 is the skill; None for skills as they are.
    """
    figure = new_figure(WIDE, 1.5 + 0.38 * len(methods))
    axes = figure.subplots()
    tidy(axes, grid="x")
    known = [value for row in skills for value in row if value is not None]
    low, high = (min([0.0, *known]), max([1.0, *known]))
    # A single disaster must not squeeze all others into a corner.
    low, high = max(low, -0.3), min(high, 1.6)
    marks = [(0.0, "baseline"), (1.0, "perfect" if reference is None else reference)]
    for x, name in marks:
        axes.axvline(x, color="0.35", linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(plain(name), (x, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
                      ha="center", va="bottom", fontsize=8, color="0.25")  # fmt: skip
    rows = len(methods)
    same = alike([frozenset(task.name for task, value in zip(tasks, row, strict=True) if value is not None) for row in skills])
    for y in range(rows):
        if y % 2 == 0:
            axes.axhspan(y - 0.5, y + 0.5, color="0.965", zorder=0, linewidth=0)
        values = [value for value in skills[y] if value is not None]
        if values and y in same:
            mean = min(max(sum(values) / len(values), low), high)
            axes.plot([mean, mean], [y - 0.42, y + 0.42], color=_INK, linewidth=2.2, solid_capstyle="butt", zorder=2)
        for i, value in enumerate(skills[y]):
            if value is None:
                continue
            style = look(i)
            inside = low <= value <= high
            place = y + 0.66 * ((i + 0.5) / len(tasks) - 0.5)  # side by side, or equal ones would hide each other
            axes.plot(min(max(value, low), high), place, marker=style["marker"] if inside else "<" if value < low else ">",
                      color=style["color"], markersize=6, markeredgecolor="white", markeredgewidth=0.6,
                      linestyle="none", zorder=3, clip_on=False)  # fmt: skip
            if not inside:
                axes.annotate(text.number(value), (low if value < low else high, place), xytext=(9 if value < low else -9, 0),
                              textcoords="offset points", fontsize=7, color=style["color"], va="center",
                              ha="left" if value < low else "right")  # fmt: skip
    axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_yticks(range(rows), [plain(method.title) for method in methods])
    axes.set_xlabel("skill (0: baseline, 1: perfect)" if reference is None else
                    plain(f"skill relative to {reference} (0: baseline, 1: as good)", 90))  # fmt: skip
    handles = [
        Line2D([], [], **{**look(i), "linestyle": "none", "markersize": 7}, label=plain(task.name))
        for i, task in enumerate(tasks)
    ]
    handles.append(Line2D([], [], color=_INK, linewidth=2.2, label="mean over tasks"))
    axes.legend(handles=handles, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    return figure


def forgetting_figure(method: Method, matrix: Matrix) -> Figure:
    """The matrix of primary metrics as a heat map of what the skill lost or gained since a task was learned."""
    size = len(matrix.tasks)
    figure = new_figure(0.95 + 0.46 * size, 0.95 + 0.27 * size)  # three beside each other with six tasks
    axes = figure.subplots()
    changes = np.array([[math.nan if c is None else c for c in row] for row in matrix.changes])
    axes.imshow(np.ma.masked_invalid(changes), cmap="PuOr", vmin=-1, vmax=1, aspect="auto")
    for t in range(size):
        for i in range(t + 1):
            value = matrix.values[t][i]
            dark = abs(changes[t, i]) > 0.6
            axes.text(i, t, text.number(value), ha="center", va="center", fontsize=6.5,
                      fontweight="bold" if i == t else "normal", color="white" if dark else "black")  # fmt: skip
    names = [plain(task.name, 14) for task in matrix.tasks]
    axes.set_xticks(range(size), names, rotation=30, ha="right", rotation_mode="anchor", fontsize=7)
    axes.set_yticks(range(size), names, fontsize=7)
    axes.set_ylabel("after learning", fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(-0.5, size), minor=True)
    axes.set_yticks(np.arange(-0.5, size), minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    axes.set_title(plain(method.title, 44), loc="left", fontsize=8.5)
    return figure


def curve_figure(task: TaskInfo, curves: Mapping[Method, Sequence[tuple[int, float]]]) -> Figure:
    """The primary metric on the validation images over the steps, a line a method."""
    figure = new_figure(WIDE, 4.4)
    axes = figure.subplots()
    tidy(axes)
    values = [value for points in curves.values() for _, value in points]
    for method, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=plain(method.title), **look(method.index))
    if not task.higher_is_better and min(values) > 0 and max(values) > _LOGARITHMIC * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text.number(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel(plain(task.metric))
    axes.set_title(plain(f"{task.name}: {task.metric} on validation images, {_direction(task)}", 90), loc="left", fontsize=10)
    side_legend(axes)
    return figure


def bytes_figure(methods: Sequence[Method], found: Sequence[Sizes]) -> Figure:
    """What each method stores for all its tasks: once, and for the tasks."""
    figure = new_figure(WIDE, 1.2 + 0.3 * len(methods))
    axes = figure.subplots()
    tidy(axes, grid="x")
    shared = [size.shared for size in found]
    axes.barh(range(len(methods)), shared, color=COLOURS[0], height=0.66, label="stored once for all tasks")
    axes.barh(range(len(methods)), [size.own for size in found], left=shared, color=COLOURS[4], hatch="////", edgecolor="white",
              linewidth=0.4, height=0.66, label="stored for the tasks")  # fmt: skip
    _row_labels(axes, methods, [size.total for size in found], text.size)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text.size(value)))
    axes.set_xlabel("all tasks together")
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure


def time_figure(methods: Sequence[Method], found: Sequence[Stat]) -> Figure:
    """How long each method trained for all its tasks."""
    figure = new_figure(WIDE, 0.9 + 0.3 * len(methods))
    axes = figure.subplots()
    tidy(axes, grid="x")
    means = [stat.mean for stat in found]
    spread = [math.nan if stat.std is None else stat.std for stat in found]
    axes.barh(range(len(methods)), means, color=COLOURS[0], height=0.66)
    axes.errorbar(means, range(len(methods)), xerr=spread, fmt="none", ecolor=_INK, elinewidth=1.2, capsize=2)
    _row_labels(axes, methods, [stat.mean + (stat.std or 0.0) for stat in found], text.duration, shown=means)
    longest = max(means, default=1.0)
    unit, name = (3600, "hours") if longest >= 2 * 3600 else (60, "minutes") if longest >= 120 else (1, "seconds")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:g}"))
    axes.set_xticks([unit * tick for tick in MaxNLocator(nbins=8).tick_values(0, max(means) / unit)][:-1])
    axes.set_xlabel(f"training of all tasks together [{name}]")
    return figure


def _row_labels(
    axes: Axes,
    methods: Sequence[Method],
    ends: Sequence[float],
    show: Callable[[float], str],
    *,
    shown: Sequence[float] | None = None,
) -> None:
    """Names on the left, numbers behind the ends of the bars, the first method on top."""
    axes.set_yticks(range(len(methods)), [plain(method.title) for method in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.set_xlim(0, 1.14 * max([*ends, 1e-9]))
    for y, (end, value) in enumerate(zip(ends, shown or ends, strict=True)):
        axes.annotate(show(value), (end, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)


def quality_bytes_figure(points: Sequence[tuple[Method, float, float]], *, all_tasks: Mapping[Method, bool]) -> Figure:
    """Mean skill against bytes, a point a method with its name beside it.

    Args:
        points: the method, its bytes for all tasks, above 0, and its mean skill.
        all_tasks: whether it learned all the tasks; the others get a star behind their names.
    """
    # A disaster is drawn at the lower edge with its number, or all others would lie in one line.
    floor = min([value for _, _, value in points if value >= 0], default=-math.inf) - 0.1
    figure, axes = _against_bytes([(m, size, max(value, floor)) for m, size, value in points], below=floor)
    axes.set_xlabel("stored for all tasks together (logarithmic)")
    axes.set_ylabel("mean skill over the tasks")
    below = {m: f" ({text.number(y)}, below)" for m, _, y in points if y < floor}
    names = {m: plain(m.title) + below.get(m, "") + ("" if all_tasks[m] else " *") for m, _, _ in points}
    figure.draw_without_rendering()
    _place_names(axes, [(m, x, max(y, floor), names[m]) for m, x, y in points])
    return figure


_LOWEST_GAIN = -0.25
"""Gains below this are drawn there."""


def gain_bytes_figure(points: Sequence[GainPoint], *, reference: str) -> Figure:
    """Mean gain over a reference against the bytes of a task, with the front: no method left of it is as good.

    The front has the methods with the most seeds alone, since one lucky seed is no evidence; the others are drawn hollow, with
    their seeds behind their names.

    Args:
        points: of the methods, bytes above 0.
        reference: the name of what is gained on.
    """
    most = max((point.seeds for point in points if point.seeds is not None), default=0)
    few = {point.method for point in points if point.seeds is not None and point.seeds < most}
    shown = [(point.method, point.bytes, max(point.gain, _LOWEST_GAIN)) for point in points]
    figure, axes = _against_bytes(shown, below=_LOWEST_GAIN, hollow=few)
    low, high = axes.get_ylim()
    inside = [point for point in points if point.gain >= _LOWEST_GAIN]
    bars = [(point.gain - point.error, point.gain + point.error) for point in inside if point.error is not None]
    low, high = min([low, *(end - 0.005 for end, _ in bars)]), max([high, *(end + 0.005 for _, end in bars)])
    axes.set_ylim(low - 0.04 * (high - low) * (len(points) - len(inside)), high)  # room for their names
    axes.axhline(0, color="0.35", linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    for method, size, gain, error, _ in inside:
        if error is not None:
            axes.errorbar(size, gain, yerr=error, color=look(method.index)["color"], elinewidth=1, capsize=2, zorder=2)
    front = pareto_front([(point.bytes, point.gain) for point in points if point.method not in few])
    axes.plot(*zip(*front, strict=True), color="0.55", linewidth=1.2, drawstyle="steps-post", zorder=1)
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], min_n_ticks=3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.3g} %".replace("-", "−") if value else "0"))
    axes.set_xlabel("stored for a task (logarithmic)")
    axes.set_ylabel(plain(f"mean gain over {reference} of the same seed", 90))
    figure.draw_without_rendering()

    def name(point: GainPoint) -> str:
        below = "" if point in inside else f" ({100 * point.gain:+.0f} %, below)".replace("-", "−")
        seeds = f" ({point.seeds} seed{'s' if point.seeds != 1 else ''})" if point.method in few else ""
        return plain(point.method.title) + seeds + below

    _place_names(axes, [(point.method, point.bytes, max(point.gain, _LOWEST_GAIN), name(point)) for point in points])
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (bytes, gain) those that no other beats in one and equals in the other, by bytes."""
    front: list[tuple[float, float]] = []
    for size, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or gain > front[-1][1]:
            front.append((size, gain))
    return front


def _against_bytes(
    points: Sequence[tuple[Method, float, float]], *, below: float, hollow: Collection[Method] = ()
) -> tuple[Figure, Axes]:
    """Points over a logarithmic axis of bytes, with room for their names; those at `below` as arrowheads downwards."""
    figure = new_figure(WIDE, max(5.6, 0.2 * len(points)))  # a name needs 0.15 inches
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    tidy(axes)
    axes.set_xscale("log")
    for method, size, value in points:
        marker = {} if value > below else {"marker": "v"}
        fill_style = {"markerfacecolor": "white"} if method in hollow else {}
        axes.plot(size, value, **{**look(method.index), "linestyle": "none", "markersize": 8, **marker, **fill_style})
    sizes, values = [size for _, size, _ in points], [value for _, _, value in points]
    low, high = min(sizes), max(sizes)
    axes.set_xlim(low / 1.6, high * max(2.0, (high / low) ** 0.45))  # room for the names
    room = 0.08 * max(max(values) - min(values), 0.05)
    axes.set_ylim(min(values) - room, max(values) + 1.6 * room)
    factors = (1, 2, 5) if high < 1e3 * low else (1, 3)
    ticks = [f * 10.0**e for e in range(int(math.log10(low)) - 1, int(math.log10(high)) + 2) for f in factors]
    axes.set_xticks([t for t in ticks if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text.size(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    axes.annotate("better: higher and further left", (0.01, 0.99), xycoords="axes fraction", va="top", fontsize=8, color="0.35")
    return figure, axes


def _place_names(axes: Axes, points: Sequence[tuple[Method, float, float, str]]) -> None:
    """Names right of their points; where they would overlap, left or moved down, with a thin line back to the point."""
    scale = 72 / axes.figure.dpi
    at = {m: scale * np.asarray(axes.transData.transform((x, y))) for m, x, y, _ in points}
    edge, leftmost = scale * axes.bbox.x0, min(x for _, x, _, _ in points)
    placed: list[tuple[float, float, float, float]] = [(*(p - 4), *(p + 4)) for p in at.values()]
    for method, x, y, name in sorted(points, key=lambda point: -at[point[0]][1]):
        width = 5.5 * len(name) + 4
        # From top to bottom and downwards only, so that the names stand in the order of their points.
        places: list[tuple[float, bool]] = [(-k * _NAME_HEIGHT / 4, False) for k in range(200)]
        if x <= 1.02 * leftmost:
            places.insert(6, (0.0, True))
        for shift, left in places:
            start, middle = at[method][0] + _gap(shift), at[method][1] + shift
            start = at[method][0] - _NEAR - width if left else start
            box = (start, middle - _NAME_HEIGHT / 2 + 1, start + width, middle + _NAME_HEIGHT / 2 - 1)
            if start > edge and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in placed):
                break
        placed.append(box)
        line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4, "relpos": (0, 0.5)}
        away = -_NEAR if left else _gap(shift)
        axes.annotate(name, (x, y), xytext=(away, shift), textcoords="offset points", va="center", fontsize=8.5,
                      ha="right" if left else "left", color=_INK,
                      bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
                      arrowprops=line if away > _NEAR else None)  # fmt: skip


def _gap(shift: float) -> float:
    """Points between a point and its name: more where a line has to be drawn between them."""
    return _NEAR if abs(shift) <= _NAME_HEIGHT / 2 else 3 * _NEAR


def affected_figure(
    effects: Mapping[Method, str], tasks: Sequence[str], affected: Mapping[Method, Mapping[str, float | None]]
) -> Figure:
    """The fraction of weights that masks zero, or move, a group of bars a task, a bar a method.

    Args:
        effects: what each method's masks do, see `img2img.masks.Mask`.
        tasks: their names.
        affected: by method and task the fraction of weights that they do it to.
    """
    methods = list(effects)
    figure = new_figure(WIDE, max(3.4, 0.1 * len(methods)))  # no more than two columns of names
    axes = figure.subplots()
    tidy(axes, grid="y")
    width = 0.82 / len(methods)
    for j, method in enumerate(methods):
        bars = [(i, value) for i, task in enumerate(tasks) if (value := affected[method].get(task)) is not None]
        places = [i + (j - (len(methods) - 1) / 2) * width for i, _ in bars]
        title = plain(method.title) if len(set(effects.values())) == 1 else f"{plain(method.title)} ({effects[method]})"
        axes.bar(places, [100 * value for _, value in bars], width=width, label=title, **fill(method.index))
    axes.set_xticks(range(len(tasks)), [plain(task, 16) for task in tasks])
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, None)
    axes.set_ylabel(f"{effect_words(effects.values())} weights [%]")
    side_legend(axes)
    return figure


def _direction(task: TaskInfo) -> str:
    return "higher is better" if task.higher_is_better else "lower is better"
