"""A suite in short: `summary.json`, and its headline table as Markdown for documents."""

import statistics
from pathlib import Path

from img2img.files.json_files import write_json
from img2img.files.lock import hold
from img2img.files.paths import expanded
from img2img.formatting import markdown_table
from img2img.reports import text
from img2img.research.suites.aggregate import Stat, final, learned, mean_skill, moved, seconds, sizes, task_bytes
from img2img.research.suites.schema import SUMMARY, Summary, SummaryCell, SummaryTask
from img2img.research.suites.sheets import update_sheets
from img2img.research.suites.store import PATIENCE
from img2img.research.suites.suite import Method, Run, Suite, read_suite
from img2img.research.suites.tables import winners


def finish(store: Path, runs: Path) -> Suite:
    """Write a store's `summary.json` and bring its images up to date with run folders.

    Args:
        store: the folder.
        runs: where the run folders are, `runs/LABEL/SEED`; methods whose folders are gone keep their images.

    Raises:
        InputError: the store is damaged, or its runs or their images do not fit together.
        FolderInUseError: another process keeps the store for a minute.
    """
    store = expanded(store)
    with hold(store, wait=PATIENCE):
        suite = read_suite(store)
        write_summary(suite, store)
        update_sheets(suite, expanded(runs))
    return suite


def write_summary(suite: Suite, folder: Path) -> Path:
    """Write `FOLDER/summary.json` and return its path."""
    return write_json(folder / SUMMARY, summary_of(suite).model_dump())


def summary_of(suite: Suite) -> Summary:
    """The metrics of a suite in one small object."""
    methods: dict[str, dict[str, SummaryCell]] = {}
    for method in suite.methods:
        stats = {task.name: (final(method, task), task_bytes(method, task)) for task in suite.tasks}
        methods[method.label] = {
            name: SummaryCell(mean=stat.mean, std=stat.std, seeds=stat.seeds, bytes=size)
            for name, (stat, size) in stats.items()
            if stat is not None
        }
    tasks = [
        SummaryTask(
            name=task.name, primary_metric=task.metric, higher_is_better=task.higher_is_better, baseline=task.baseline
        )
        for task in suite.tasks
    ]  # fmt: skip
    return Summary(
        suite=suite.name,
        commit=environment_of(suite, "commit"),
        hardware=environment_of(suite, "device"),
        tasks=tasks,
        methods=methods,
    )


def environment_of(suite: Suite, key: str) -> str | None:
    """What the runs say of their environment: one value, several as "a, b", or None."""
    values = [run.record.environment.get(key) for run in suite.runs]
    return ", ".join(dict.fromkeys(str(value) for value in values if value)) or None


def chosen_by_validation(suite: Suite) -> dict[str, tuple[str, float]]:
    """By task, the label of the method that validates best, as a mean over its seeds, and that value. The test plays no part.

    Methods with the most seeds alone, since one lucky seed is no evidence, and those that keep what they learned, since a task
    is validated when it is learned. Of equal methods the first counts. Tasks that were never validated have no entry.
    """
    found: dict[str, tuple[str, float]] = {}
    lasting = [method for method in suite.methods if not moved(method)]
    for task in suite.tasks:
        values = {m: [value for run in m.runs if (value := _validated(run, task.name)) is not None] for m in lasting}
        most = max(map(len, values.values()), default=0)
        for method, known in values.items():
            if not known or len(known) < most:
                continue
            mean = statistics.fmean(known)
            before = found.get(task.name)
            if before is None or (mean > before[1] if task.higher_is_better else mean < before[1]):
                found[task.name] = (method.label, mean)
    return found


_IN_PHASES = ("lwf", "packnet", "cpg")
"""Methods with several trainings of a task: `best_step` counts within the last of them, `curve` over all."""


def _validated(run: Run, name: str) -> float | None:
    """The validation of the state that was kept; None where the run lacks the task, or an earlier version did not store it."""
    task = run.task(name)
    if task is None or task.val is not None:
        return None if task is None else task.val
    if run.record.method in _IN_PHASES:
        return None
    return next((value for step, value in task.curve if step == task.best_step), None)


def headline(suite: Suite) -> str:
    """A row a method, a column a task: mean ± standard deviation of the primary metric after the whole sequence.

    In brackets: when the task was just learned, for methods that forget. Bytes for a task are the mean over the tasks.
    """
    columns = [f"{task.name} {task.metric} {'↑' if task.higher_is_better else '↓'}" for task in suite.tasks]
    rows = [["baseline", *(text.number(task.baseline) for task in suite.tasks), "0", "", "", "", ""]]
    wins = {task.name: winners(suite, task)[0] for task in suite.tasks}
    for method in suite.methods:
        cells = []
        for task in suite.tasks:
            cell = _spread(final(method, task))
            cell = f"**{cell}**" if method.label in wins[task.name] else cell
            cells.append(f"{cell} ({_spread(learned(method, task))})" if moved(method) else cell)
        rows.append([method.title, *cells, *_sums(method, suite)])
    return markdown_table(["method", *columns, "mean skill", "stored once", "a task", "training", "seeds"], rows)


def _sums(method: Method, suite: Suite) -> list[str]:
    skill, stored, time = mean_skill(method, suite), sizes(method), seconds(method)
    tasks = max(len(run.tasks) for run in method.runs)
    return [
        text.DASH if skill is None else text.number(skill[0].mean),
        text.DASH if stored is None else text.size(round(stored.shared)),
        text.DASH if stored is None else text.size(round(stored.own / tasks)),
        text.DASH if time is None else text.duration(time.mean),
        str(len(method.runs)),
    ]


def _spread(value: Stat | None) -> str:
    if value is None:
        return text.DASH
    mean = text.number(value.mean)
    return mean if value.std is None else f"{mean} ± {float(f'{value.std:.2g}'):,g}"
