"""The page of a comparison: `index.html`, one file that needs nothing else, with its figures as PNG and its tables as data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from img2img.files.atomic import write_atomic, write_bytes
from img2img.files.paths import expanded
from img2img.files.writable import check_writable
from img2img.masks.plots import effect_words
from img2img.reports import text
from img2img.research.suites import mask_figures, page_text, quality_figures
from img2img.research.suites.aggregate import (
    TRANSFER,
    Points,
    final,
    learned,
    matrix,
    mean_curve,
    mean_skill,
    moved,
    relative_skill,
    seconds,
    sizes,
    skills,
    transfer,
)
from img2img.research.suites.paired_differences import compared, gain_points, pairs_figure, pairs_markdown
from img2img.research.suites.plot_style import Gallery, Shown, styled
from img2img.research.suites.sheets import overview, task_grid
from img2img.research.suites.suite import Method, Suite, TaskInfo, read_suite
from img2img.research.suites.summary import environment_of, headline, write_summary
from img2img.research.suites.tables import all_tables, write_table


def write_comparison(suite: Path, out: Path) -> Path:
    """Write the page of a suite: `OUT/index.html`, `OUT/figures/*.png`, `OUT/tables/*.csv` and `*.json`, `OUT/summary.json`.

    The page loads nothing and runs no script; the same suite gives the same files, byte for byte. Whatever a suite lacks (masks,
    images, logs, a task of a method, all seeds but one) is left out.

    Args:
        suite: a store, see `schema` and `store.store_run`.
        out: where the page goes; files of an earlier page there are written over.

    Returns:
        The page's path.

    Raises:
        InputError: there are no runs, a file is damaged, or the runs do not fit together; names the path at fault.
        OSError: a file cannot be written.
    """
    check_writable(out, "--out", "figures", "tables")
    read, out = read_suite(expanded(suite)), expanded(out)
    curves = {task.name: {m.label: points for m in read.methods if (points := mean_curve(m, task))} for task in read.tasks}
    everything = overview(read)
    grids = {task.name: grid for task in read.tasks if (grid := task_grid(read, task)) is not None}
    tables = all_tables(read, curves)
    # All that can be damaged has been read: from here on files are written.
    with styled():
        gallery = Gallery(out / "figures")
        view = _view(read, gallery, curves, grids)
        view["overview"] = None if everything is None else gallery.add_image(everything, "overview")
    for table in tables:
        write_table(table, out / "tables")
    view["tables"] = [table.name for table in tables]
    for name, table_text in (("headline", headline(read)), ("pairs", pairs_markdown(read))):
        if table_text:
            write_bytes(out / "tables" / f"{name}.md", table_text.encode())
    write_summary(read, out)
    page = text.page_template(__name__.rpartition(".")[0], ".").render(view)
    return write_atomic(out / "index.html", lambda path: path.write_text(page, encoding="utf-8"))


def _view(
    suite: Suite,
    gallery: Gallery,
    curves: Mapping[str, Mapping[str, Points]],
    grids: Mapping[str, tuple[Image.Image, tuple[Method, ...]]],
) -> dict[str, Any]:
    """What the template shows."""
    seeds = sorted({run.seed for run in suite.runs})
    return {
        "title": suite.title,
        "name": suite.name,
        "tasks": [page_text.task_view(task) for task in suite.tasks],
        "methods": [page_text.method_view(method) for method in suite.methods],
        "runs": len(suite.runs),
        "seeds": seeds,
        "most_seeds": max(len(method.runs) for method in suite.methods),
        "facts": page_text.facts(suite),
        "backbone_task": suite.backbone_task,
        "final": page_text.quality(suite, final, suite.methods, mark=True),
        "learned": page_text.quality(suite, learned, [m for m in suite.methods if moved(m)], mark=False),
        "skill": _skill(suite, gallery),
        "reference": None if suite.reference is None else suite.reference.title,
        "pairs": _pairs(suite, gallery),
        "transfer": [(m, [transfer(m, key) for key in TRANSFER[:3]]) for m in suite.methods],
        "matrices": [(m, gallery.add(quality_figures.forgetting_figure(m, matrix(m, suite)), "forgetting", m.label))
                     for m in suite.methods if max(len(run.tasks) for run in m.runs) > 1],
        "sizes": _sizes(suite, gallery),
        "grids": [_grid(task, *grids[task.name], gallery) for task in suite.tasks if task.name in grids],
        "masks": _masks(suite, gallery),
        "curves": _curves(suite, gallery, curves),
        "time": _time(suite, gallery),
        "metrics": [page_text.metrics(suite, task) for task in suite.tasks],
        "provenance": page_text.provenance(suite),
        "commit": environment_of(suite, "commit"),
        "hardware": environment_of(suite, "device"),
        "glossary": page_text.glossary(suite),
        "pm": page_text.spread,
    }  # fmt: skip


def _skill(suite: Suite, gallery: Gallery) -> dict[str, Any] | None:
    reference = suite.reference
    if reference is None:
        rows = [[None if (s := skills(m, task)) is None else s.mean for task in suite.tasks] for m in suite.methods]
    else:
        rows = [[relative_skill(m, reference, task) for task in suite.tasks] for m in suite.methods]
    if not any(value is not None for row in rows for value in row):
        return None
    title = None if reference is None else reference.title
    figure = quality_figures.skill_figure(suite.methods, suite.tasks, rows, reference=title)
    missing = [task.name for i, task in enumerate(suite.tasks) if all(row[i] is None for row in rows)]
    return {"figure": gallery.add(figure, "skill"), "missing": missing, "relative": reference is not None}


def _pairs(suite: Suite, gallery: Gallery) -> dict[str, Any] | None:
    found = compared(suite)
    if found is None:
        return None
    figure = gallery.add(pairs_figure(suite), "pairs")
    points = gain_points(suite)
    front = gallery.add(quality_figures.gain_bytes_figure(points, reference=found.reference.title), "pareto") if points else None
    return {"figure": figure, "front": front, "tasks": [task.name for task in found.tasks], "rows": page_text.gains(suite)}


def _sizes(suite: Suite, gallery: Gallery) -> dict[str, Any] | None:
    known = [(method, size) for method in suite.methods if (size := sizes(method)) is not None]
    if not known:
        return None
    points = [
        (method, size.total, value[0].mean, value[1] == len(suite.tasks))
        for method, size in known
        if size.total > 0 and (value := mean_skill(method, suite)) is not None
    ]
    scatter = None
    if points:
        scatter = quality_figures.quality_bytes_figure([p[:3] for p in points], all_tasks={p[0]: p[3] for p in points})
    bars = quality_figures.bytes_figure([method for method, _ in known], [size for _, size in known])
    return {
        "bars": gallery.add(bars, "bytes"),
        "scatter": gallery.add(scatter, "quality_against_bytes"),
        "starred": any(not p[3] for p in points),
    }


def _grid(task: TaskInfo, image: Image.Image, methods: Sequence[Method], gallery: Gallery) -> dict[str, Any]:
    columns = text.COLUMNS.get(task.kind, text.ANY_COLUMNS)
    shown = gallery.add_image(image, "grid", task.name)
    return {"task": task.name, "figure": shown, "columns": columns, "methods": [method.title for method in methods]}


def _masks(suite: Suite, gallery: Gallery) -> dict[str, Any] | None:
    entries = []
    affected: dict[Method, dict[str, float | None]] = {}
    effects: dict[Method, str] = {}
    for method in suite.methods:
        run = method.masks
        if run is None or run.masks is None:
            continue
        masks = run.masks
        masked = [task for task in masks.tasks.values() if task.affected is not None]
        entry = {
            "title": method.title,
            "seed": run.seed,
            "effect": effect_words(task.effect for task in masked),
            "equal": gallery.add(mask_figures.similarity(masks, "equal"), "similarity", method.label),
            "kappa": gallery.add(mask_figures.similarity(masks, "kappa"), "kappa", method.label),
            "layers": gallery.add(mask_figures.affected_by_layer(masks), "affected_by_layer", method.label),
            "k": gallery.add(mask_figures.k_by_layer(masks), "k_by_layer", method.label),
            "kernels": gallery.add(mask_figures.kernels_by_layer(masks), "kernels_by_layer", method.label),
        }
        if any(isinstance(part, Shown) for part in entry.values()):
            entries.append(entry)
        if masked:
            affected[method] = {name: task.affected for name, task in masks.tasks.items()}
            effects[method] = effect_words(task.effect for task in masked)
    if not entries:
        return None
    names = [task.name for task in suite.tasks if any(by.get(task.name) is not None for by in affected.values())]
    bars = quality_figures.affected_figure(effects, names, affected) if names else None
    words = effect_words(effects.values())
    return {"entries": entries, "affected": gallery.add(bars, "affected_by_task"), "effect": words}


def _curves(suite: Suite, gallery: Gallery, curves: Mapping[str, Mapping[str, Points]]) -> list[dict[str, Any]]:
    by_label = {method.label: method for method in suite.methods}
    return [
        {
            "task": task.name,
            "metric": task.metric,
            "figure": gallery.add(
                quality_figures.curve_figure(task, {by_label[label]: points for label, points in curves[task.name].items()}),
                "curve",
                task.name,
            ),
        }
        for task in suite.tasks
        if curves[task.name]
    ]


def _time(suite: Suite, gallery: Gallery) -> Shown | None:
    known = [(method, found) for method in suite.methods if (found := seconds(method)) is not None]
    if not known:
        return None
    return gallery.add(quality_figures.time_figure([m for m, _ in known], [s for _, s in known]), "time")
