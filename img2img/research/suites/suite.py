"""A suite: runs of several methods and seeds over the same tasks, as a store keeps them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from img2img.errors import InputError
from img2img.files.paths import expanded
from img2img.masks.base import METHODS
from img2img.research.suites.schema import MethodInfo, RunRecord, TaskRecord
from img2img.research.suites.store import read_store
from img2img.training.mask_report import Masks

GROUPS = {"mask": "Masks on the frozen backbone", "comparison": "Comparison methods", "reference": "Reference"}
"""The groups of methods, in the order of the tables, with their headings."""

REFERENCE = "finetune"
"""The label of the method that others are compared with: individually fine-tuned networks."""

_SAME_BASELINE = 1e-3
"""Baselines of one task that differ by more, relatively, were measured on different test images."""


@dataclass(frozen=True)
class Run:
    """One run of a suite.

    Attributes:
        record: its metrics.
        place: where they are stored, for messages.
    """

    record: RunRecord
    place: str

    @property
    def label(self) -> str:
        """Its method's."""
        return self.record.label

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.record.seed

    @property
    def masks(self) -> Masks | None:
        """What its masks look like."""
        return self.record.masks

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of its tasks, in the order of training."""
        return tuple(task.name for task in self.record.tasks)

    def task(self, name: str) -> TaskRecord | None:
        """A task of the run; None if it has no such task."""
        return next((task for task in self.record.tasks if task.name == name), None)

    def final(self, name: str) -> float | None:
        """The primary metric of a task after the whole sequence, so that forgetting counts."""
        return self._cell(-1, name)

    def learned(self, name: str) -> float | None:
        """The primary metric of a task when it was just learned."""
        return self._cell(self.tasks.index(name), name) if name in self.tasks else None

    def _cell(self, row: int, name: str) -> float | None:
        return self.record.value_matrix[row][self.tasks.index(name)] if name in self.tasks else None

    def after(self, t: int, i: int) -> float | None:
        """The primary metric of task number i after task number t; None where it was not measured then."""
        between = i < t < len(self.tasks) - 1
        return None if between and self.record.remeasured == "end" else self.record.value_matrix[t][i]

    @property
    def start(self) -> tuple[int, str | None]:
        """Seed and kind of machine (None if not noted): on another machine the same seed gives another backbone."""
        device = self.record.environment.get("device")
        return self.seed, None if device is None else str(device)

    @property
    def shared_bytes(self) -> float | None:
        """What is stored once for all its tasks."""
        shared = self.record.shared_bytes
        return self.record.backbone.bytes if shared is None else shared


@dataclass(frozen=True, eq=False)  # by identity: it is a key of dicts
class Method:
    """A method of a suite.

    Attributes:
        label: its name in the store.
        title: what it is called on the page.
        group: one of `GROUPS`.
        note: a sentence about it, or "".
        index: its place in the suite, which decides how its lines and points look.
        runs: by seed, at least one.
    """

    label: str
    title: str
    group: str
    note: str
    index: int
    runs: tuple[Run, ...]

    @property
    def masks(self) -> Run | None:
        """The run of the lowest seed with masks."""
        return next((run for run in self.runs if run.masks is not None), None)


@dataclass(frozen=True)
class TaskInfo:
    """A task of a suite, as all its runs agree on it; `baseline` is None where no run measured it."""

    name: str
    kind: str
    metric: str
    higher_is_better: bool
    baseline: float | None
    baseline_name: str | None


@dataclass(frozen=True)
class Suite:
    """Runs of several methods over the same tasks.

    Attributes:
        folder: the store.
        name: a short name.
        title: what its page is called.
        methods: grouped in the order of `GROUPS`, in each group in the suite's own order.
        tasks: those of all runs, in the order of the longest.
    """

    folder: Path
    name: str
    title: str
    methods: tuple[Method, ...]
    tasks: tuple[TaskInfo, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, by method and seed."""
        return tuple(run for method in self.methods for run in method.runs)

    @property
    def reference(self) -> Method | None:
        """The method that others are compared with; None if the suite has none."""
        return next((method for method in self.methods if method.label == REFERENCE), None)

    @property
    def backbone_task(self) -> str | None:
        """The task that trained the backbone, where mask methods have no mask; None if there is none, or not the same for all.

        Runs whose backbone came from elsewhere do not count: they may stand beside the others as an ablation.
        """
        runs = [run for method in self.methods if method.group == "mask" for run in method.runs]
        first = {run.tasks[0] for run in runs if run.record.backbone.mode == "first_task"}
        return first.pop() if len(first) == 1 else None


def read_suite(folder: Path) -> Suite:
    """Read and check a suite.

    Raises:
        InputError: as `store.read_store`; or there is no run, or its runs do not fit together: names the line at fault.
    """
    folder = expanded(folder)
    about, stored = read_store(folder)
    if not stored:
        raise InputError(f"no runs in {folder}: its file has none; add some by pipelines/suite.py --store")
    runs: dict[str, list[Run]] = {}
    for place, record in sorted(stored.items(), key=lambda item: (item[1].label, item[1].seed)):
        runs.setdefault(record.label, []).append(Run(record, place))
    labels = [label for label in about.methods if label in runs] + [label for label in runs if label not in about.methods]
    infos = {label: about.methods.get(label) or _unknown(label, runs[label][0]) for label in labels}
    labels.sort(key=lambda label: list(GROUPS).index(infos[label].group))  # stable: within a group the order stays
    methods = tuple(
        Method(label, infos[label].title, infos[label].group, infos[label].note, i, tuple(runs[label]))
        for i, label in enumerate(labels)
    )
    return Suite(folder, about.suite, about.title, methods, _tasks([run for method in methods for run in method.runs]))


def _unknown(label: str, run: Run) -> MethodInfo:
    return MethodInfo(title=label, group="mask" if run.record.method in METHODS else "comparison")


def _tasks(runs: Sequence[Run]) -> tuple[TaskInfo, ...]:
    names = dict.fromkeys(name for run in sorted(runs, key=lambda run: -len(run.tasks)) for name in run.tasks)
    return tuple(_task(name, [(run, entry) for run in runs if (entry := run.task(name)) is not None]) for name in names)


def _task(name: str, entries: Sequence[tuple[Run, TaskRecord]]) -> TaskInfo:
    first_run, first = entries[0]
    for run, entry in entries:
        for key in ("kind", "primary_metric", "higher_is_better"):
            if getattr(entry, key) != getattr(first, key):
                raise InputError(
                    f"{run.place}: {key} of {name} is {getattr(entry, key)!r}, but {getattr(first, key)!r} in {first_run.place}: "
                    "expected the same in every run of a suite; keep one of them in another store"
                )
    known = [(run, entry.baseline) for run, entry in entries if entry.baseline is not None]
    for run, baseline in known:
        if not math.isclose(baseline, known[0][1], rel_tol=_SAME_BASELINE):
            raise InputError(
                f"{run.place}: the baseline of {name} is {baseline}, but {known[0][1]} in {known[0][0].place}: expected the same "
                "test images in every run of a suite; keep one of them in another store, or run it again on the same data"
            )
    agreed = known[0][1] if known else None
    return TaskInfo(name, first.kind, first.primary_metric, first.higher_is_better, agreed, first.baseline_name)
