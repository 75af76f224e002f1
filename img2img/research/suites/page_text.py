"""What a page says in words and numbers: rows of tables as text, for the template."""

from collections.abc import Callable, Sequence
from typing import Any

from img2img.reports import text
from img2img.research.suites.aggregate import Stat, mean_skill, sizes
from img2img.research.suites.paired_differences import compared, gain, in_words, mean_gain, nearest_mask
from img2img.research.suites.suite import GROUPS, Method, Suite, TaskInfo
from img2img.research.suites.tables import baseline_of, metric_names, metric_stat, winners


def spread(found: Stat | None) -> tuple[str, str]:
    """A mean as `text.number` has it, and "± ..." with as many decimals, "" with one seed."""
    if found is None:
        return text.DASH, ""
    mean = text.number(found.mean)
    if found.std is None:
        return mean, ""
    if "e" in mean or mean == "0":
        return mean, f"± {text.number(found.std)}"
    decimals = len(mean.partition(".")[2])
    return mean, f"± {found.std:,.{decimals}f}"


def task_view(task: TaskInfo) -> dict[str, Any]:
    """A task as the page names it."""
    return {
        "name": task.name,
        "kind": task.kind,
        "metric": task.metric,
        "arrow": "↑" if task.higher_is_better else "↓",
        "baseline": task.baseline,
        "baseline_name": task.baseline_name,
    }


def method_view(method: Method) -> dict[str, Any]:
    """A method as the page names it."""
    name = method.runs[0].record.method
    meaning = text.METHODS.get(name) if method.group == "mask" else None
    return {
        "label": method.label,
        "title": method.title,
        "group": GROUPS[method.group],
        "note": method.note or (f"a mask: {meaning}" if meaning else ""),
        "seeds": [run.seed for run in method.runs],
    }


def facts(suite: Suite) -> list[tuple[str, str]]:
    """The few numbers that one should take along: (number, what it is)."""
    masks = [method for method in suite.methods if method.group == "mask"]
    facts = []
    reference = suite.reference
    if reference is not None and (found := nearest_mask(suite)) is not None:
        method, won, of = found
        what = f"tasks on which {method.title} is on average at least as good as {reference.title} of the same seeds"
        facts.append((f"{won} of {of}", what))
    measured = [run.record.max_abs_output_change for method in masks for run in method.runs]
    changes = [change for change in measured if change is not None]
    if masks and len(changes) == len(measured):
        facts.append((text.number(max(changes)), "largest change of an earlier task’s output, over all runs with masks"))
    stored = [(size.total, m) for m in masks if (size := sizes(m)) is not None]
    if stored:
        total, method = min(stored, key=lambda pair: pair[0])
        facts.append((text.size(total), f"all tasks on disk with the smallest masks, {method.title}"))
    if reference is not None and (size := sizes(reference)) is not None:
        facts.append((text.size(size.total), f"all tasks on disk with {reference.title}"))
    return facts


def quality(
    suite: Suite, value_of: Callable[[Method, TaskInfo], Stat | None], methods: Sequence[Method], *, mark: bool
) -> list[dict[str, Any]]:
    """Rows of methods by group, a cell a task."""
    wins = [winners(suite, task) if mark else (set(), set()) for task in suite.tasks]
    groups = []
    for group, heading in GROUPS.items():
        rows = []
        for method in (m for m in methods if m.group == group):
            stats = [value_of(method, task) for task in suite.tasks]
            seeds = sorted({entry.seeds for entry in stats if entry is not None})
            overall, size = mean_skill(method, suite), sizes(method)
            cells = [
                {"shown": spread(entry), "best": method.label in first, "best_mask": method.label in of_masks}
                for entry, (first, of_masks) in zip(stats, wins, strict=True)
            ]
            rows.append(
                {
                    "title": method.title,
                    "cells": cells,
                    "skill": overall and spread(overall[0]),
                    "whole": overall is not None and overall[1] == len(suite.tasks),
                    "size": size and size.total,
                    "seeds": "–".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))) if seeds else text.DASH,
                }
            )
        if rows:
            groups.append({"heading": heading, "rows": rows})
    return groups


def gains(suite: Suite) -> list[dict[str, Any]]:
    """A row a method that shares seeds with the reference: its gain on each task and over all, and in how many pairs it wins."""
    rows: list[dict[str, Any]] = []
    if (compare := compared(suite)) is None:
        return rows
    reference, methods, tasks = compare
    for method in methods:
        found = [*(gain(method, reference, task) for task in tasks), mean_gain(method, reference, tasks)]
        cells = [
            {"shown": text.DASH, "won": "", "ahead": False}
            if entry is None
            else {"shown": in_words(entry), "won": f"{entry.wins} of {entry.pairs}", "ahead": entry.mean >= 0}
            for entry in found
        ]
        rows.append({"title": method.title, "cells": cells})
    return rows


def metrics(suite: Suite, task: TaskInfo) -> dict[str, Any]:
    """All metrics of a task, a row a method."""
    names = metric_names(suite, task)
    return {
        "task": task.name,
        "columns": [
            {"name": name, "arrow": (text.described(name) or ("",))[0] if name != task.metric else task_view(task)["arrow"],
             "primary": name == task.metric}
            for name in names
        ],
        "baseline": [baseline_of(suite, task, name) for name in names],
        "rows": [(method, [spread(entry) for entry in stats])
                 for method in suite.methods
                 if any(stats := [metric_stat(method, task, name) for name in names])],
    }  # fmt: skip


def provenance(suite: Suite) -> list[dict[str, Any]]:
    """A row a run: where its metrics come from."""
    rows = []
    for method in suite.methods:
        for run in method.runs:
            environment = run.record.environment
            steps = list(dict.fromkeys(task.steps for task in run.record.tasks))
            rows.append(
                {
                    "title": method.title,
                    "label": run.label,
                    "seed": run.seed,
                    "commit": environment.get("commit"),
                    "hardware": environment.get("device"),
                    "torch": environment.get("torch"),
                    "steps": ", ".join(text.count(step) for step in steps),
                }
            )
    return rows


def glossary(suite: Suite) -> list[tuple[str, str, str]]:
    """(metric, better direction, meaning) of every metric that is known."""
    names = dict.fromkeys(name for task in suite.tasks for name in metric_names(suite, task))
    return [(name, *entry) for name in names if (entry := text.described(name))]
