"""The tables of a comparison as data: CSV and JSON files with one row a fact."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from img2img.files.atomic import write_atomic
from img2img.research.suites.aggregate import (
    TRANSFER,
    Points,
    Stat,
    best,
    final,
    learned,
    matrix,
    mean_skill,
    moved,
    relative_skill,
    seconds,
    sizes,
    skills,
    stat,
    task_bytes,
    transfer,
)
from img2img.research.suites.paired_differences import pair_rows
from img2img.research.suites.suite import REFERENCE, Method, Suite, TaskInfo


@dataclass(frozen=True)
class Table:
    """Rows of plain values under named columns; None where something is not known."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write `NAME.csv` (empty for None) and `NAME.json` (a list of objects), numbers in full."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_cell(value) for value in row] for row in table.rows)
    objects = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    lines = ",\n".join("  " + json.dumps(entry, ensure_ascii=False, allow_nan=False) for entry in objects)
    texts = {"csv": buffer.getvalue(), "json": f"[\n{lines}\n]\n" if lines else "[]\n"}
    return [_write(folder / f"{table.name}.{kind}", text) for kind, text in texts.items()]


def _write(path: Path, text: str) -> Path:
    return write_atomic(path, lambda p: p.write_text(text, encoding="utf-8"))


def _cell(value: Any) -> Any:
    return {None: "", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else value


def winners(suite: Suite, task: TaskInfo) -> tuple[set[str], set[str]]:
    """The labels of the best methods of a task, and of the best mask methods; none of these on the task without masks.

    Only methods with as many seeds as any stand for it: one lucky seed is no better than the mean of several.
    """

    def of(methods: Sequence[Method]) -> set[str]:
        stats = [final(method, task) for method in methods]
        most = max((stat.seeds for stat in stats if stat is not None), default=0)
        standing = [stat if stat is not None and stat.seeds == most else None for stat in stats]
        return {methods[i].label for i in best(standing, higher_is_better=task.higher_is_better)}

    masked = [method for method in suite.methods if method.group == "mask" and task.name != suite.backbone_task]
    return of(suite.methods), of(masked)


def all_tables(suite: Suite, curves: Mapping[str, Mapping[str, Points]]) -> list[Table]:
    """Every table of a suite; `curves[task][label]` are the learning curves. Those without rows are left out."""
    reference = suite.reference
    pairs = [(method, task) for task in suite.tasks for method in suite.methods]
    wins = {task.name: winners(suite, task) for task in suite.tasks}
    runs = [(method, run) for method in suite.methods for run in method.runs]
    tables = [
        Table(
            "headline",
            ("task", "metric", "higher_is_better", "baseline", *(method.label for method in suite.methods)),
            tuple(
                (task.name, task.metric, task.higher_is_better, task.baseline,
                 *(None if (s := final(method, task)) is None else s.mean for method in suite.methods))
                for task in suite.tasks
            ),
        ),
        Table(
            "final",
            ("task", "metric", "higher_is_better", "baseline", "method", "mean", "std", "seeds", "bytes", "best", "best_mask"),
            tuple(
                (task.name, task.metric, task.higher_is_better, task.baseline, method.label, *_parts(s), task_bytes(method, task),
                 method.label in wins[task.name][0], method.label in wins[task.name][1])
                for method, task in pairs
                if (s := final(method, task)) is not None
            ),
        ),
        Table(
            "just_learned",
            ("task", "method", "mean", "std", "seeds"),
            tuple(
                (task.name, method.label, *_parts(s))
                for method, task in pairs
                if moved(method) and (s := learned(method, task)) is not None
            ),
        ),
        Table(
            "skill",
            ("task", "method", "mean", "std", "seeds", f"relative_to_{REFERENCE}"),
            tuple(
                (task.name, method.label, *_parts(s), None if reference is None else relative_skill(method, reference, task))
                for method, task in pairs
                if (s := skills(method, task)) is not None
            ),
        ),
        Table("pairs", ("task", "method", "seed", "value", REFERENCE, "gain"), tuple(pair_rows(suite))),
        Table(
            "transfer",
            ("method", *(f"{key}_{part}" for key in TRANSFER for part in ("mean", "std"))),
            tuple(
                (method.label, *(part for key in TRANSFER for part in _parts(transfer(method, key))[:2]))
                for method in suite.methods
            ),
        ),
        Table("forgetting", ("method", "after", "task", "value", "skill_change"), tuple(_forgetting(suite))),
        Table("sizes", ("method", "shared_bytes", "task_bytes", "total_bytes", "mean_skill", "tasks"), tuple(_sizes(suite))),
        Table(
            "time",
            ("method", "seconds_mean", "seconds_std", "seeds"),
            tuple((method.label, *_parts(s)) for method in suite.methods if (s := seconds(method)) is not None),
        ),
        Table("metrics", ("task", "metric", "method", "mean", "std", "seeds", "baseline"), tuple(_metrics(suite))),
        Table(
            "curves",
            ("task", "method", "step", "value"),
            tuple((task, label, *point) for task, by in curves.items() for label, points in by.items() for point in points),
        ),
        Table("masks_affected", ("method", "seed", "task", "mask", "density", "effect", "affected"), tuple(_affected(suite))),
        Table("masks_similarity", ("method", "seed", "a", "b", "equal", "kappa"), tuple(_similarity(suite))),
        Table(
            "masks_layers",
            ("method", "seed", "task", "depth", "layer", "part", "weights", "quantity", "value"),
            tuple(_layers(suite)),
        ),
        Table(
            "runs",
            ("method", "seed", "commit", "hardware", "python", "torch", "steps", "train_seconds"),
            tuple(
                (method.label, run.seed,
                 *(run.record.environment.get(key) for key in ("commit", "device", "python", "torch")),
                 *(_sum([getattr(task, key) for task in run.record.tasks]) for key in ("steps", "train_seconds")))
                for method, run in runs
            ),
        ),
    ]  # fmt: skip
    return [table for table in tables if table.rows]


def _parts(found: Stat | None) -> tuple[Any, ...]:
    return (None, None, 0) if found is None else (found.mean, found.std, found.seeds)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _forgetting(suite: Suite) -> Iterator[tuple[Any, ...]]:
    for method in suite.methods:
        found = matrix(method, suite)
        for t, after in enumerate(found.tasks):
            for i, task in enumerate(found.tasks[: t + 1]):
                yield method.label, after.name, task.name, found.values[t][i], found.changes[t][i]


def _sizes(suite: Suite) -> Iterator[tuple[Any, ...]]:
    for method in suite.methods:
        size, value = sizes(method), mean_skill(method, suite)
        bytes_ = (None,) * 3 if size is None else (round(size.shared), round(size.own), round(size.total))
        yield method.label, *bytes_, *((None, 0) if value is None else (value[0].mean, value[1]))


def metric_names(suite: Suite, task: TaskInfo) -> list[str]:
    """The names of all metrics of a task, the primary one first."""
    entries = [entry for run in suite.runs if (entry := run.task(task.name)) is not None]
    return list(dict.fromkeys([task.metric, *(name for entry in entries for name in entry.metrics)]))


def metric_stat(method: Method, task: TaskInfo, name: str) -> Stat | None:
    """A metric of a task when it was just learned, over seeds; the primary one after the whole sequence."""
    if name == task.metric:
        return final(method, task)
    return stat(entry.metrics.get(name) for run in method.runs if (entry := run.task(task.name)) is not None)


def baseline_of(suite: Suite, task: TaskInfo, name: str) -> float | None:
    """The baseline's value of a metric, of the first run that has it."""
    if name == task.metric:
        return task.baseline
    entries = (entry.baseline_metrics for run in suite.runs if (entry := run.task(task.name)) is not None)
    return next((value for found in entries if (value := found.get(name)) is not None), None)


def _metrics(suite: Suite) -> Iterator[tuple[Any, ...]]:
    for task in suite.tasks:
        for name in metric_names(suite, task):
            for method in suite.methods:
                if (found := metric_stat(method, task, name)) is not None:
                    yield task.name, name, method.label, *_parts(found), baseline_of(suite, task, name)


def _affected(suite: Suite) -> Iterator[tuple[Any, ...]]:
    for run in suite.runs:
        for task, entry in run.masks.tasks.items() if run.masks is not None else ():
            yield run.label, run.seed, task, entry.method, entry.density, entry.effect, entry.affected


def _similarity(suite: Suite) -> Iterator[tuple[Any, ...]]:
    for run in suite.runs:
        if run.masks is not None:
            tables = run.masks.similarity
            for i, a in enumerate(tables.names):
                for j, b in enumerate(tables.names[:i]):
                    yield run.label, run.seed, a, b, tables.equal[i][j], tables.kappa[i][j]


def _layers(suite: Suite) -> Iterator[tuple[Any, ...]]:
    for run in suite.runs:
        if run.masks is None:
            continue
        for task, entry in run.masks.tasks.items():
            for name, values in entry.by_layer().items():
                for depth, (layer, value) in enumerate(zip(run.masks.layers, values, strict=True)):
                    if value is not None:
                        yield run.label, run.seed, task, depth, layer.name, layer.part, layer.weights, name, value
