"""The image tasks, one file a kind: what each feeds the network, its loss, its metrics and how a result is shown."""

from collections.abc import Mapping
from typing import Any

from img2img.tasks.base import TASKS, Example, Metrics, Task
from img2img.tasks.check import check_samples, check_task
from img2img.validation import call_with

__all__ = ["TASKS", "Example", "Metrics", "Task", "build_task", "check_samples", "check_task", "task_class", "task_kinds"]


def task_kinds() -> list[str]:
    """The names in `TASKS`: img2img's own kinds, and those of the user's own modules that are imported."""
    return sorted(TASKS)


def task_class(kind: Any) -> type[Task]:
    """The class of a kind: its metric, direction and so on without a task.

    Raises:
        InputError: the kind is unknown.
    """
    return TASKS.find(kind)


def build_task(config: Mapping[str, Any]) -> Task:
    """The task that a config or a bundle describes: `kind` and the options of that kind.

    Raises:
        InputError: the kind or an option is unknown, or a required option is missing.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    task: Task = call_with(task_class(kind), options, what=f"task {kind!r}")
    return task
