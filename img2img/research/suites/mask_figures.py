"""Figures of what masks look like by layer, as runs describe them; see `masks.plots` for those of a network at hand."""

from collections.abc import Callable, Mapping
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from img2img.masks.analysis import DensityRow
from img2img.masks.base import affected
from img2img.masks.plots import density_figure, similarity_figure
from img2img.research.suites.plot_style import WIDE, look, new_figure, plain, side_legend, tidy
from img2img.training.mask_report import Masks, TaskMasks, Values

K = ("k0", "k1", "k2", "k3")
_K_MEANING = ("weight", "constant", "mask", "masked weight")


def similarity(masks: Masks, measure: str) -> Figure | None:
    """The similarity matrix of a method's tasks, `measure` "equal" or "kappa"; None with fewer than two masked tasks."""
    tables = masks.similarity
    if len(tables.names) < 2:
        return None
    names = [plain(name, 16) for name in tables.names]
    return similarity_figure(names, tables.kappa if measure == "kappa" else tables.equal, chance_corrected=measure == "kappa")


def affected_by_layer(masks: Masks) -> Figure | None:
    """The fraction of weights that are zeroed, or moved, over the layers, a line a task; None without binary masks."""
    rows = [
        DensityRow(plain(task), layer.name, depth, layer.weights, density, entry.effect, affected(entry.effect, density))
        for task, entry in masks.tasks.items()
        for depth, (layer, density) in enumerate(zip(masks.layers, entry.densities, strict=True))
    ]
    if all(row.density is None for row in rows):
        return None
    figure = density_figure(rows)
    figure.set_size_inches(WIDE, 3.4)
    _mark_parts(figure.axes[0], masks)
    return figure


def k_by_layer(masks: Masks) -> Figure | None:
    """Affine's k0 to k3, a panel each, over the layers, a line a task; None for other methods."""
    panels = {
        f"{k}: {meaning}": lines for k, meaning in zip(K, _K_MEANING, strict=True) if (lines := _lines(masks, partial(_value, k)))
    }
    return _panels(panels, masks, symmetric=True) if panels else None


def kernels_by_layer(masks: Masks) -> Figure | None:
    """KSM's ratios of ones, scaled and zero kernels and the mean scale, a panel each; None for other methods."""
    keys = {"ones [%]": "ones", "scaled [%]": "scaled", "zero [%]": "zero"}
    panels = {label: _lines(masks, partial(_ratio, key), factor=100) for label, key in keys.items()}
    if not any(panels.values()):
        return None
    scales = _lines(masks, lambda entry: entry.values.get("scale") if entry.kernels is not None else None)
    return _panels(panels | ({"mean scale": scales} if scales else {}), masks)


def _value(name: str, entry: TaskMasks) -> Values | None:
    return entry.values.get(name)


def _ratio(name: str, entry: TaskMasks) -> Values | None:
    return None if entry.kernels is None else entry.kernels.model_dump()[name]


Lines = dict[str, list[tuple[int, float]]]


def _lines(masks: Masks, values_of: Callable[[TaskMasks], Values | None], *, factor: float = 1.0) -> Lines:
    """By task the points (depth, value) that are known."""
    lines = {}
    for task, entry in masks.tasks.items():
        values = values_of(entry) or ()
        if points := [(depth, factor * value) for depth, value in enumerate(values) if value is not None]:
            lines[task] = points
    return lines


def _panels(panels: Mapping[str, Lines], masks: Masks, *, symmetric: bool = False) -> Figure:
    figure = new_figure(WIDE, 0.9 + 1.45 * len(panels))
    found = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    tasks = list(masks.tasks)
    for axes, (label, lines) in zip(found, panels.items(), strict=True):
        tidy(axes)
        for task, points in lines.items():
            style = {**look(tasks.index(task)), "markersize": 3.5}
            axes.plot(*zip(*points, strict=True), label=plain(task), **style)
        if symmetric:
            axes.axhline(0, color="0.5", linewidth=0.8, zorder=1)
        elif label.endswith("[%]"):
            axes.set_ylim(-4, 104)
        axes.set_ylabel(label.replace(": ", "\n"), fontsize=8)
    found[-1].set_xlabel("layer, by depth")
    found[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in found:
        _mark_parts(axes, masks, named=axes is found[0])
    side_legend(max(found, key=lambda axes: len(axes.get_lines())) if not found[0].get_lines() else found[0])
    return figure


def _mark_parts(axes: Axes, masks: Masks, *, named: bool = True) -> None:
    """Thin lines where one part of the network ends and the next begins, with the parts' names above."""
    parts = [layer.part for layer in masks.layers]
    starts = [i for i, part in enumerate(parts) if i == 0 or part != parts[i - 1]]
    if len(starts) > 6:
        return  # a backbone without large parts
    for i in starts:
        if i:
            axes.axvline(i - 0.5, color="0.35", linewidth=0.9, linestyle=(0, (1, 2)))
        if named and len(starts) > 1:
            axes.annotate(plain(parts[i], 18), (max(i - 0.4, -0.4), 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
                          textcoords="offset points", fontsize=7, color="0.35", va="bottom")  # fmt: skip
    if named and len(starts) > 1:
        axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=10, pad=13)
