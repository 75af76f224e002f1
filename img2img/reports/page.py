"""The page of a run: `report.html`, one file that needs nothing else, from `results.json`, the images and the logs.

`img2img report FOLDER` writes it again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from img2img.files.atomic import write_atomic
from img2img.files.paths import expanded
from img2img.masks import METHODS
from img2img.reports import text
from img2img.reports.read import Training, read_curve, read_image, read_training
from img2img.tasks.segmentation import palette
from img2img.training.results import Results, TaskResult, finetuned_steps, read_results
from img2img.training.strategies import STRATEGIES

_CLASS = "IoU "
"""What the metric of one class begins with, see `metrics.segmentation`."""


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder, from the `results.json`, `images/` and `metrics/` that lie there.

    The page loads nothing from elsewhere and runs no script; the same files give the same page, byte for byte. Images and
    logs that are missing are left out.

    Args:
        folder: the run folder.

    Returns:
        The page's path.

    Raises:
        InputError: `results.json`, an image or a log is missing where it must be or cannot be read.
        OSError: the page cannot be written.
    """
    folder = expanded(folder)
    page = text.page_template("img2img", "reports").render(_view(folder, read_results(folder)))
    return write_atomic(folder / "report.html", lambda path: path.write_text(page, encoding="utf-8"))


def _view(folder: Path, results: Results) -> dict[str, Any]:
    """What the template shows."""
    backbone, forgetting = results.backbone, results.forgetting
    tasks = [_task(folder, task, i, backbone.bytes) for i, task in enumerate(results.tasks)]
    occurring = dict.fromkeys(metric["name"] for task in tasks for metric in task["metrics"])
    rows = _matrix(forgetting.value_matrix, results.tasks, every=forgetting.remeasured == "every")
    below = [cell["state"] for row in rows for cell in row if cell["state"] in ("same", "changed")]
    return {
        "experiment": results.experiment,
        "tasks": tasks,
        "glossary": [(name, *entry) for name in occurring if (entry := text.described(name))],
        "compared": any(task["decoder_only"] is not None for task in tasks),
        "better": sum(is_better(task.value, task.baseline, higher_is_better=task.higher_is_better) for task in results.tasks),
        "matrix": rows,
        "remeasured": forgetting.remeasured,
        "cannot_forget": results.method in METHODS or (results.method in STRATEGIES and STRATEGIES[results.method].cannot_forget),
        "same": below.count("same"),
        "below": len(below),
        "change": forgetting.max_abs_output_change,
        "transfer": results.transfer,
        "disk": _disk(backbone.bytes, results.shared_bytes, results.tasks),
        "backbone": backbone,
        "method": results.method,
        "method_meaning": text.METHODS.get(results.method),
        "comparison": text.COMPARISONS.get(results.method),
        "method_options": _plain(results.method_options),
        "environment": _plain(results.environment),
    }


def _task(folder: Path, task: TaskResult, index: int, backbone_bytes: float | None) -> dict[str, Any]:
    from img2img.reports.figures import learning_curve  # with matplotlib, at the end of a run

    name, primary, higher = task.name, task.primary_metric, task.higher_is_better
    first = [primary, *(key for key in {**task.metrics, **task.baseline_metrics} if key != primary)]
    # The task's own entry decides; the lists beside it may lack the primary metric.
    pairs = {key: (task.metrics.get(key), task.baseline_metrics.get(key)) for key in first}
    pairs[primary] = (task.value, task.baseline)
    classes = [key for key in pairs if key.startswith(_CLASS)] if task.kind == "segmentation" else []
    colours = [_hex(colour) for colour in palette(len(classes)).tolist()] if classes else []
    training = read_training(folder, name, primary)
    ring = None if training is None else _ring(training, task)
    kept = None if ring is None else int(ring["step"])
    other, decoder = read_curve(folder, f"{name}.decoder_only", primary), task.comparisons.get("decoder_only")
    return {
        **task.model_dump(),
        "id": f"task-{index + 1}",
        "arrow": _arrow(higher),
        "decoder_only": None if decoder is None else decoder.value,
        "decoder_only_bytes": None if decoder is None else decoder.bytes,
        "gain": improvement(task.value, task.baseline, higher_is_better=higher),
        "share": task.bytes / backbone_bytes if task.bytes is not None and backbone_bytes else None,
        "metrics": [
            {
                "name": key,
                "arrow": _arrow(higher) if key == primary else (text.described(key) or ("",))[0],
                "value": value,
                "baseline": base,
                "is_primary": key == primary,
            }
            for key, (value, base) in pairs.items()
            if key not in classes
        ],
        "classes": [
            {"name": key.removeprefix(_CLASS), "colour": colour, "value": pairs[key][0], "baseline": pairs[key][1]}
            for key, colour in zip(classes, colours, strict=False)
        ],
        "image": read_image(folder, name),
        "columns": text.COLUMNS.get(task.kind, text.ANY_COLUMNS),
        "curve": training and learning_curve(training.curve, other, metric=primary, kept=kept, key=f"curve-{index + 1}"),
        "ring": ring,
        "steps_from_finetuned": finetuned_steps(task),
        "curve_of_decoder": other is not None,
    }


def _ring(training: Training, task: TaskResult) -> dict[str, Any] | None:
    """The step of the curve whose state was kept, which the results count within the last training; None if it is not there."""
    if training.last is None or task.best_step is None:
        return None
    step = training.last + int(task.best_step)
    values = {at: value for at, value in training.curve.validation if at > training.last}
    if step not in values or task.val not in (None, values[step]):
        return None
    best = max(values.values()) if task.higher_is_better else min(values.values())
    return {"step": step, "best": values[step] == best, "of_several": training.last > 0}


def improvement(value: float | None, baseline: float | None, *, higher_is_better: bool) -> float | None:
    """How much better than the baseline, as a fraction of it: a score's rise or an error's fall.

    Returns:
        0.1 is 10 % better, negative is worse; None if either is missing or the baseline is 0.
    """
    if value is None or not baseline:
        return None
    return (value - baseline if higher_is_better else baseline - value) / abs(baseline)


def is_better(value: float | None, baseline: float | None, *, higher_is_better: bool) -> bool:
    """Whether a value is better than the baseline, which may be 0; not where either is missing."""
    if value is None or baseline is None:
        return False
    return value > baseline if higher_is_better else value < baseline


def _matrix(values: list[list[float | None]], tasks: list[TaskResult], *, every: bool) -> list[list[dict[str, Any]]]:
    """Cells with how they stand to the diagonal, the metric when the task was new: "same" is exactly equal.

    Unless tasks were measured again after `every` task, rows before the last have the diagonal alone.
    """
    rows = []
    for t, row in enumerate(values):
        cells = []
        for i, value in enumerate(row):
            new = values[i][i]
            cell: dict[str, Any] = {"value": value, "difference": None, "better": None, "state": "none"}
            if i > t or (i < t < len(values) - 1 and not every):
                cell["state"] = "unmeasured"
            elif i == t:
                cell["state"] = "new"
            elif value is not None and new is not None:
                better = (value > new) == tasks[i].higher_is_better
                cell |= {"difference": value - new, "better": better, "state": "same" if value == new else "changed"}
            cells.append(cell)
        rows.append(cells)
    return rows


def _disk(backbone: float | None, shared: float | None, tasks: list[TaskResult]) -> dict[str, Any] | None:
    """Sizes as bars, whose width is in per cent of the longest; None if a size is not known.

    Args:
        backbone: bytes of one network.
        shared: bytes stored once for all tasks; None for the backbone's.
        tasks: with the bytes of each.
    """
    sizes = [task.bytes for task in tasks if task.bytes is not None]
    if not backbone or len(sizes) < len(tasks):
        return None
    shared = backbone if shared is None else shared
    total, separate = shared + sum(sizes), backbone * len(tasks)
    bars = [("shared by all", shared, "part")] if shared else []
    bars += [(task.name, size, "part") for task, size in zip(tasks, sizes, strict=True)]
    bars += [("all together", total, "total"), (f"one network a task ({len(tasks)} × backbone)", separate, "separate")]
    longest = max(total, separate)
    return {
        "bars": [
            {"label": label, "bytes": size, "width": f"{100 * size / longest:.3f}", "kind": kind} for label, size, kind in bars
        ],
        "total": total,
        "separate": separate,
        "saving": 1 - total / separate,
    }


def _plain(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Keys and values as text."""
    shown = {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in values.items()}
    return [(key.replace("_", " "), text.DASH if value == "null" else value) for key, value in shown.items()]


def _arrow(higher_is_better: bool) -> str:
    return "↑" if higher_is_better else "↓"


def _hex(colour: list[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)
