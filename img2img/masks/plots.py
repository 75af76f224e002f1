"""Figures of the tables in `analysis` and `flips`, by matplotlib (an extra, imported when a figure is drawn).

Each function returns a `matplotlib.figure.Figure` of its own, which `figure.savefig` writes; pyplot's global state is not used.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from img2img.errors import InputError
from img2img.fonts import complete_fonts
from img2img.masks.analysis import DensityRow, ValueRow
from img2img.masks.flips import FlipRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which people of all kinds of colour vision tell apart; the markers and dashes differ too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_DASHES = ("-", "--", ":", "-.")
_NAMED_LAYERS = 20
"""Up to so many layers are named on an axis; more are numbered."""


def density_figure(rows: Sequence[DensityRow]) -> "Figure":
    """The fraction of weights that are zeroed, or moved, and so on, over the layers, one line a task.

    Args:
        rows: of `analysis.density_table`, of any number of tasks.

    Raises:
        InputError: no row has a binary mask.
    """
    known = [row for row in rows if row.affected is not None]
    if not known:
        raise InputError("density_figure got no rows with a density: expected those of tasks with binary masks")
    layers = {row.depth: row.layer for row in rows}
    effects = {row.task: row.effect for row in known}
    words = effect_words(effects.values())
    figure, (axes,) = _figure(layers, panels=1)
    for index, (task, effect) in enumerate(effects.items()):
        points = [(row.depth, 100 * (row.affected or 0.0)) for row in known if row.task == task]
        label = task if len(set(effects.values())) == 1 else f"{task} ({effect})"
        axes.plot(*zip(*points, strict=True), label=label, **_line(index))
    axes.set_ylim(-3, 103)
    axes.set_ylabel(f"{words} weights [%]")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_title(f"{words.capitalize()} weights by layer", loc="left", fontsize=10)
    complete_fonts(figure)
    return figure


def effect_words(effects: Iterable[str | None]) -> str:
    """What masks do to weights in words: "zeroed", or "zeroed or moved" where they differ."""
    return " or ".join(dict.fromkeys(effect for effect in effects if effect is not None))


def similarity_figure(
    names: Sequence[str], matrix: Sequence[Sequence[float | None]], *, chance_corrected: bool = False
) -> "Figure":
    """The similarity matrix of tasks as a heat map with its numbers.

    Args:
        names: of the tasks, as `analysis.similarity` gives them.
        matrix: its values; None is left blank.
        chance_corrected: whether they are Cohen's κ, in -1..1, or ratios of equal values, in 0..1.

    Raises:
        InputError: the matrix is not one of as many tasks.
    """
    if not names or len(matrix) != len(names) or any(len(row) != len(names) for row in matrix):
        raise InputError(f"similarity_figure got {len(names)} names and {len(matrix)} rows: expected a square matrix")
    from matplotlib.figure import Figure

    values = np.array(matrix, dtype=float)
    low = -1.0 if chance_corrected else 0.0
    side = 2.2 + 0.62 * len(names)
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.subplots()
    # Both ends are dark in the diverging map, so that κ = 0 is the light middle.
    image = axes.imshow(values, vmin=low, vmax=1.0, cmap="PuOr" if chance_corrected else "cividis")
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = abs(value) > 0.6 if chance_corrected else value < 0.5
            text = f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    slanted = max(map(len, names)) > 5
    axes.set_xticks(range(len(names)), names, rotation=35 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    measure = "Cohen's κ (0: as by chance)" if chance_corrected else "ratio of equal mask values"
    figure.colorbar(image, ax=axes, label=measure, shrink=0.8)
    axes.set_title("Similarity of masks", loc="left", fontsize=10)
    complete_fonts(figure)
    return figure


def flips_figure(history: Sequence[Sequence[FlipRow]]) -> "Figure":
    """How many mask values flipped from look to look: in all, above, and by layer, below.

    Args:
        history: what `FlipMeter.update` returned each time, such as once an epoch.

    Raises:
        InputError: there is nothing to draw.
    """
    if not history or not history[0]:
        raise InputError("flips_figure got no rows: expected what FlipMeter.update returned, once or more, for binary masks")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    layers = {row.depth: row.layer for row in history[0]}
    height = 0.17 * min(max(len(layers), 6), 24)
    figure = Figure(figsize=(6.4, 2.2 + height), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.3, height))
    looks = range(1, len(history) + 1)
    totals = [100 * sum(row.flips for row in rows) / sum(row.weights for row in rows) for rows in history]
    upper.plot(looks, totals, **_line(0))
    upper.set_ylim(bottom=0)
    upper.set_ylabel("all layers [%]")
    _style(upper)
    upper.set_title("Mask values that flipped since the last look", loc="left", fontsize=10)
    grid = 100 * np.array([[row.ratio for row in rows] for rows in history]).T
    edges = (0.5, len(history) + 0.5, len(layers) - 0.5, -0.5)
    image = lower.imshow(grid, aspect="auto", cmap="cividis", vmin=0, interpolation="nearest", extent=edges)
    figure.colorbar(image, ax=lower, label="of the layer [%]")
    lower.set_xlabel("look (such as an epoch)")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(layers) <= _NAMED_LAYERS:
        lower.set_yticks(range(len(layers)), _labels(layers), fontsize=7)
    else:
        lower.set_ylabel("layer, by depth")
        lower.yaxis.set_major_locator(MaxNLocator(integer=True))
    complete_fonts(figure)
    return figure


def value_figure(rows: Sequence[ValueRow]) -> "Figure":
    """The values of a task's masks over the layers, one panel a name: mean, standard deviation (dark) and range (light).

    Args:
        rows: of `analysis.value_table`.

    Raises:
        InputError: there are no values.
    """
    known = [row for row in rows if row.count]
    if not known:
        raise InputError("value_figure got no values: expected rows of a method that has some, such as affine or ksm")
    names = list(dict.fromkeys(row.name for row in known))
    layers = {row.depth: row.layer for row in rows}
    figure, panels = _figure(layers, panels=len(names))
    for axes, (index, name) in zip(panels, enumerate(names), strict=True):
        line = _line(index)
        of_name = [row for row in known if row.name == name]
        depth = [row.depth for row in of_name]
        values = [(row.mean, row.std, row.min, row.max) for row in of_name]
        mean, std, low, high = np.array(values, dtype=float).T
        axes.vlines(depth, low, high, color=line["color"], alpha=0.3, linewidth=2)
        axes.vlines(depth, mean - std, mean + std, color=line["color"], alpha=0.45, linewidth=4)
        axes.plot(depth, mean, **line)
        axes.set_ylabel(name)
    panels[0].set_title("Values by layer: mean, standard deviation, range", loc="left", fontsize=10)
    complete_fonts(figure)
    return figure


def _figure(layers: Mapping[int, str], *, panels: int) -> tuple["Figure", list["Axes"]]:
    """Panels one above the other over the layers by depth, named below the last."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    named = len(layers) <= _NAMED_LAYERS
    figure = Figure(figsize=(6.8, 1.4 + (2.4 if panels == 1 else 1.3 * panels) + (0.6 if named else 0)), layout="constrained")
    found = list(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])
    for axes in found:
        _style(axes)
    if named:
        found[-1].set_xticks(list(layers), _labels(layers), rotation=40, ha="right", rotation_mode="anchor", fontsize=7)
    else:
        found[-1].set_xlabel("layer, by depth")
        found[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, found


def _labels(layers: Mapping[int, str]) -> list[str]:
    return [name.removesuffix(".weight") for name in layers.values()]


def _line(index: int) -> dict[str, Any]:
    """How the line of a task or value looks, by its number."""
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _DASHES[index % len(_DASHES)],
        "markersize": 4,
        "linewidth": 1.4,
    }


def _style(axes: "Axes") -> None:
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("0.6")
    axes.tick_params(length=3, color="0.6")
