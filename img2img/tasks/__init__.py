"""The image tasks, one file a kind: what each feeds the network, its loss, its metrics and how a result is shown."""

from collections.abc import Mapping
from typing import Any

from img2img.tasks.base import KINDS, Example, Metrics, Task
from img2img.validation import call_with

__all__ = ["Example", "Metrics", "Task", "build_task", "task_class", "task_kinds"]


def task_kinds() -> list[str]:
    """The kinds of task there are: the modules of this package, and those of the user's own that are imported."""
    return sorted(KINDS)


def task_class(kind: Any) -> type[Task]:
    """The class of a kind: its metric, direction and so on without a task.

    Raises:
        InputError: the kind is unknown.
    """
    return KINDS.find(kind)


def build_task(config: Mapping[str, Any]) -> Task:
    """The task that a config or a bundle describes: `kind` and the options of that kind.

    Raises:
        InputError: the kind or an option is unknown, or a required option is missing.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    task: Task = call_with(task_class(kind), options, what=f"task {kind!r}")
    return task
