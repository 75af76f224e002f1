"""The figures of a study, after figures 2, 3 and 6 to 8 of ImpressLearn."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from img2img.research.impresslearn.options import KINDS
from img2img.research.suites.plot_style import look, new_figure, save_png, side_legend, styled, tidy

Row = Mapping[str, Any]
_LEVELS = {"own": ("own mask (SupSup)", "-", "0.15"), "wrong": ("another task's mask", ":", "0.45")}


def draw(folder: Path, results: Mapping[str, Any]) -> list[Path]:
    """Write the figures that the results have rows for, as PNG files in `folder`."""
    figures = {"accuracy.png": _accuracy, "basis_tasks.png": _basis_tasks, "overlap.png": _overlap, "variants.png": _variants}
    needs = {"basis_tasks.png": "basis", "overlap.png": "overlaps", "variants.png": "variants"}
    written = []
    for name, figure in figures.items():
        if name not in needs or results.get(needs[name]):
            with styled():
                written.append(save_png(figure(results), folder / name))
    return written


def by_count(rows: Sequence[Row], key: str) -> dict[int, list[float]]:
    """By number of basis masks, the mean over tasks for each seed."""
    grouped: dict[int, dict[int, list[float]]] = {}
    for row in rows:
        grouped.setdefault(row["count"], {}).setdefault(row["seed"], []).append(float(row[key]))
    return {count: [statistics.fmean(values) for values in seeds.values()] for count, seeds in sorted(grouped.items())}


def mean_of(rows: Sequence[Row]) -> float:
    """The mean accuracy."""
    return statistics.fmean(float(row["accuracy"]) for row in rows)


def at(rows: Sequence[Row], **values: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def _line(axes: Axes, index: int, label: str, points: Mapping[int, Sequence[float]]) -> None:
    """Means over seeds, and from the lowest to the highest seed in a lighter tone."""
    counts, style = list(points), look(index)
    axes.plot(counts, [100 * statistics.fmean(points[c]) for c in counts], label=label, **style)
    lows, highs = ([100 * pick(points[c]) for c in counts] for pick in (min, max))
    axes.fill_between(counts, lows, highs, color=style["color"], alpha=0.18, linewidth=0)


def _over_counts(axes: Axes, counts: Sequence[int], title: str) -> None:
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("basis masks")
    axes.set_title(title, loc="left", fontsize=10)
    tidy(axes)


def _panels(results: Mapping[str, Any], rows: Sequence[Row]) -> tuple[Any, list[tuple[float, Axes]]]:
    """A panel for each density that the rows have, side by side."""
    densities = list(dict.fromkeys(row["density"] for row in rows))
    figure = new_figure(1.9 + 3.1 * len(densities), 3.4)
    axes = figure.subplots(1, len(densities), sharey=True, squeeze=False)[0]
    return figure, list(zip(densities, axes, strict=True))


def _accuracy(results: Mapping[str, Any]) -> Any:
    figure, panels = _panels(results, results["own"])
    counts = sorted({row["count"] for row in results["combined"]})
    for density, axes in panels:
        here = at(results["combined"], density=density)
        for index, kind in enumerate(kind for kind in KINDS if at(here, kind=kind)):
            _line(axes, index, kind, by_count(at(here, kind=kind), "accuracy"))
        for measured, (label, dash, colour) in _LEVELS.items():
            level = mean_of(at(results[measured], density=density))
            axes.axhline(100 * level, label=label, linestyle=dash, color=colour, linewidth=1.3)
        _over_counts(axes, counts, f"density {density:g}")
    panels[0][1].set_ylabel("test accuracy on new tasks [%]")
    panels[0][1].set_ylim(0, 100)
    side_legend(panels[-1][1])
    return figure


def _basis_tasks(results: Mapping[str, Any]) -> Any:
    figure, panels = _panels(results, results["basis"])
    counts = sorted({row["count"] for row in results["basis"]})
    lines = {
        "own": "own mask (SupSup GG)",
        "one_shot": "mask found in one shot (SupSup GN)",
        "every_mask": "mask found by running every one",
        "alpha": "combination (basis-GN)",
    }
    for density, axes in panels:
        for index, (key, label) in enumerate(lines.items()):
            _line(axes, index, label, by_count(at(results["basis"], density=density), key))
        _over_counts(axes, counts, f"density {density:g}")
    panels[0][1].set_ylabel("test accuracy on basis tasks [%]")
    side_legend(panels[-1][1])
    return figure


def _overlap(results: Mapping[str, Any]) -> Any:
    kinds = list(dict.fromkeys(row["kind"] for row in results["overlaps"]))
    figure = new_figure(1.9 + 3.1 * len(kinds), 3.2)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for kind, axes in zip(kinds, panels, strict=True):
        rows = at(results["overlaps"], kind=kind)
        densities = sorted({row["density"] for row in rows})
        for index, layer in enumerate(dict.fromkeys(row["layer"] for row in rows)):
            means = [statistics.fmean(row["overlap"] for row in at(rows, layer=layer, density=d)) for d in densities]
            axes.plot(densities, means, label=layer, **look(index))
        axes.axhline(1, label="by chance", linestyle="-", color="0.15", linewidth=1.0)
        axes.set_xticks(densities, [f"{density:g}" for density in densities])
        axes.set_xlabel("density")
        axes.set_title(f"{kind} masks", loc="left", fontsize=10)
        tidy(axes)
    panels[0].set_ylabel("ones in common, relative to chance")
    panels[0].set_ylim(0, 1.1 * max(1.0, *(row["overlap"] for row in results["overlaps"])))
    side_legend(panels[-1])
    return figure


def _variants(results: Mapping[str, Any]) -> Any:
    density = results["variants"][0]["density"]
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    counts = sorted({row["count"] for row in results["variants"]})
    plain = [row for row in at(results["combined"], density=density) if row["count"] in counts]
    for index, kind in enumerate(kind for kind in KINDS if at(plain, kind=kind)):
        _line(axes, index, kind, by_count(at(plain, kind=kind), "accuracy"))
    for index, variant in enumerate(dict.fromkeys(row["variant"] for row in results["variants"]), start=len(KINDS)):
        _line(axes, index, variant, by_count(at(results["variants"], variant=variant), "accuracy"))
    _over_counts(axes, counts, f"variants, density {density:g}")
    axes.set_ylabel("test accuracy on new tasks [%]")
    side_legend(axes)
    return figure
