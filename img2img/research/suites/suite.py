"""A suite: runs of several methods and seeds over the same tasks, as they lie on disk.

SUITE/suite.json            titles, groups and the order of the methods (optional)
SUITE/runs/LABEL/SEED/      one run: results.json and, where there are any, config.yaml, metrics/, masks.json, outputs/, ...
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from img2img.errors import InputError
from img2img.files.json_files import read_json
from img2img.files.paths import expanded
from img2img.masks.base import METHODS
from img2img.training.mask_report import read_masks
from img2img.training.results import read_results

GROUPS = {"mask": "Masks on the frozen backbone", "comparison": "Comparison methods", "reference": "Reference"}
"""The groups of methods, in the order of the tables, with their headings."""

REFERENCE = "finetune"
"""The label of the method that others are compared with: individually fine-tuned networks."""

_SAME_TRIVIAL = 1e-3
"""Trivial baselines of one task that differ by more, relatively, were measured on different test pictures."""


@dataclass(frozen=True, eq=False)  # by identity: it is a key of dicts
class Run:
    """One stored run.

    Attributes:
        label: its method's.
        seed: of the run.
        folder: `SUITE/runs/LABEL/SEED`.
        results: its `results.json`, checked.
        masks: its `masks.json`, checked, or None.
    """

    label: str
    seed: int
    folder: Path
    results: Mapping[str, Any]
    masks: Mapping[str, Any] | None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of its tasks, in the order of training."""
        return tuple(task["name"] for task in self.results["tasks"])

    def task(self, name: str) -> Mapping[str, Any] | None:
        """The entry of a task in its results; None if it has none."""
        return next((task for task in self.results["tasks"] if task["name"] == name), None)

    def final(self, name: str) -> float | None:
        """The primary metric of a task after the whole sequence, so that what was forgotten counts."""
        return self._cell(-1, name)

    def learned(self, name: str) -> float | None:
        """The primary metric of a task when it was just learned."""
        return self._cell(self.tasks.index(name), name) if name in self.tasks else None

    def _cell(self, row: int, name: str) -> float | None:
        if name not in self.tasks:
            return None
        value: float | None = self.results["forgetting"]["value_matrix"][row][self.tasks.index(name)]
        return value

    @property
    def start(self) -> tuple[int, str | None]:
        """Seed and kind of machine (None if not noted): on another machine the same seed gives another backbone."""
        return self.seed, self.results.get("environment", {}).get("device")

    @property
    def shared_bytes(self) -> float | None:
        """What is stored once for all its tasks: `shared_bytes` of its results, or else the backbone's size."""
        shared: float | None = self.results.get("shared_bytes", self.results["backbone"].get("bytes"))
        return shared


@dataclass(frozen=True, eq=False)  # by identity: it is a key of dicts
class Method:
    """A method of a suite.

    Attributes:
        label: its folder's name.
        title: what it is called on the page.
        group: one of `GROUPS`.
        note: a sentence about it, or "".
        index: its place in the suite, which decides how its lines and points look.
        runs: by seed.
    """

    label: str
    title: str
    group: str
    note: str
    index: int
    runs: tuple[Run, ...]

    @property
    def masks(self) -> Run | None:
        """The run of the lowest seed that has a `masks.json`."""
        return next((run for run in self.runs if run.masks is not None), None)


@dataclass(frozen=True)
class TaskInfo:
    """A task of a suite, as all its runs agree on it; `trivial` is None where no run measured the trivial baseline."""

    name: str
    kind: str
    metric: str
    higher_is_better: bool
    trivial: float | None
    baseline_name: str | None


@dataclass(frozen=True)
class Suite:
    """Runs of several methods over the same tasks.

    Attributes:
        folder: where it lies.
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
        first = {run.tasks[0] for run in runs if run.results["backbone"].get("mode") == "first_task"}
        return first.pop() if len(first) == 1 else None


def read_suite(folder: Path) -> Suite:
    """Read and check a suite.

    Raises:
        InputError: there is no run in it, a file of it is damaged, or its runs do not fit together; names the path at fault.
    """
    folder = expanded(folder)
    runs: dict[str, tuple[Run, ...]] = {}
    for path in _folders(folder / "runs"):
        if found := tuple(sorted((_run(path.name, seed) for seed in _folders(path)), key=lambda run: run.seed)):
            runs[path.name] = found
    if not runs:
        found_there = "no such folder" if not folder.is_dir() else "the folder has no runs/LABEL/SEED/results.json"
        raise InputError(f"no runs in {folder}: {found_there}; give the folder of a suite, or store a run there with store_run")
    about = _about(folder / "suite.json")
    methods = []
    for label in _order(folder / "suite.json", about["order"], runs):
        given = about["methods"].get(label, {})
        group = given.get("group", "mask" if runs[label][0].results["method"] in METHODS else "comparison")
        methods.append((label, given.get("title", label), group, given.get("note", "")))
    methods.sort(key=lambda method: list(GROUPS).index(method[2]))  # stable: within a group the order stays
    return Suite(
        folder,
        about["name"],
        about["title"],
        tuple(Method(*method, index=i, runs=runs[method[0]]) for i, method in enumerate(methods)),
        _tasks([run for label, *_ in methods for run in runs[label]]),
    )


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _run(label: str, folder: Path) -> Run:
    if not (folder.name.isascii() and folder.name.isdigit()):
        raise InputError(f"{folder} is not named by a seed: expected a whole number such as 0; rename it or move it away")
    results = read_results(folder).model_dump()
    path = folder / "masks.json"
    return Run(label, int(folder.name), folder, results, read_masks(path) if path.is_file() else None)


def _about(path: Path) -> dict[str, Any]:
    name = path.parent.resolve().name
    given = read_json(path) if path.is_file() else {}
    if not isinstance(given, dict):
        raise InputError(f"{path}: expected an object with name, title, methods and order, got {given!r:.60}; correct it")
    about = {"name": name, "title": given.get("name", name), "methods": {}, "order": []} | given
    for key, kind in (("name", str), ("title", str), ("methods", dict), ("order", list)):
        if not isinstance(about[key], kind):
            raise InputError(f"{path}, {key}: expected {_KINDS[kind]}, got {about[key]!r:.60}; correct it")
    for label, method in about["methods"].items():
        if not isinstance(method, dict) or not all(isinstance(method.get(key, ""), str) for key in ("title", "group", "note")):
            raise InputError(f"{path}, methods, {label}: expected an object with title, group and note, all text; correct it")
        if method.get("group", "mask") not in GROUPS:
            raise InputError(
                f"{path}, methods, {label}: the group {method['group']!r} is unknown: expected one of {', '.join(GROUPS)}; "
                "correct it"
            )
    return about


_KINDS = {str: "text", dict: "an object", list: "a list"}


def _order(path: Path, order: Sequence[Any], runs: Mapping[str, Any]) -> list[str]:
    """The labels that have runs: those of `order` first, then the others sorted."""
    if not all(isinstance(label, str) for label in order) or len(set(order)) != len(order):
        raise InputError(f"{path}, order: expected a list of labels, each once, got {order!r:.60}; correct it")
    return [label for label in order if label in runs] + sorted(runs.keys() - set(order))


def _tasks(runs: Sequence[Run]) -> tuple[TaskInfo, ...]:
    names = dict.fromkeys(name for run in sorted(runs, key=lambda run: -len(run.tasks)) for name in run.tasks)
    return tuple(_task(name, [(run, entry) for run in runs if (entry := run.task(name)) is not None]) for name in names)


def _task(name: str, entries: Sequence[tuple[Run, Mapping[str, Any]]]) -> TaskInfo:
    first_run, first = entries[0]
    for run, entry in entries:
        for key in ("kind", "primary_metric", "higher_is_better"):
            if entry[key] != first[key]:
                raise InputError(
                    f"{run.folder / 'results.json'}: the {key} of {name} is {entry[key]!r}, but {first[key]!r} in "
                    f"{first_run.folder / 'results.json'}: expected the same in every run of a suite; move one of them away"
                )
    known = [(run, entry["baseline"]) for run, entry in entries if entry["baseline"] is not None]
    for run, trivial in known:
        if not math.isclose(trivial, known[0][1], rel_tol=_SAME_TRIVIAL):
            raise InputError(
                f"{run.folder / 'results.json'}: the trivial baseline of {name} is {trivial}, but {known[0][1]} in "
                f"{known[0][0].folder / 'results.json'}: expected the same test pictures in every run of a suite; move one of "
                "them away, or run it again on the same data"
            )
    return TaskInfo(
        name,
        first["kind"],
        first["primary_metric"],
        first["higher_is_better"],
        known[0][1] if known else None,
        first.get("baseline_name"),
    )
