"""What a task's file in a bundle says of the task: checked, and made a `Task` that is fit to run and opens nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints

from img2img.data.images.bit_depth import FULL
from img2img.errors import InputError
from img2img.files.untrusted import MAX_NAME, check_plain
from img2img.tasks import build_task, task_class
from img2img.tasks.base import Task
from img2img.validation import Stored, as_model

_SIDE = 1 << 16


class TaskFileInfo(Stored):
    """The fields of a bundle's tasks in the `info` of a task's file; others are kept and not looked at.

    Attributes:
        task: the task's kind and options, see `tasks.build_task`.
        figures: the test set's metrics by name, None where one has no value.
        baseline: the primary metric of the task's trivial baseline there; None where nobody has stored it.
        side: the shorter side in pixels of the images that the task was measured on.
        white: the value that was white in the 16-bit images that it learned from.
    """

    model_config = ConfigDict(extra="allow")

    task: dict[str, Any] = Field(default={})
    figures: dict[Annotated[str, StringConstraints(max_length=MAX_NAME)], float | None] = Field(default={})
    baseline: float | None = None
    side: Annotated[int, Field(ge=1, le=_SIDE)] | None = None
    white: Annotated[int, Field(ge=1, le=FULL)] | None = None


class _Info(Stored):
    info: TaskFileInfo


def check_info(path: Path, info: Mapping[str, Any]) -> None:
    """Refuse a file whose `info` has a field of `TaskFileInfo` that is none.

    Raises:
        InputError: names the field, what was expected and what was got.
    """
    remedy = "the file is damaged or forged, get it again from whoever made it"
    as_model(_Info, {"info": dict(info)}, str(path), remedy=remedy)


def stored_task(info: Mapping[str, Any]) -> Task:
    """The task that the `info` of a task's file describes, of what running it needs and nothing else.

    A path or a name of weights that a forged file has beside that is dropped: whatever is done with the task opens none of it.

    Raises:
        InputError: see `tasks.build_task`; or the options are larger than any are.
    """
    options = info.get("task", {})
    check_plain(options, "info.task")
    if isinstance(options.get("classes"), list):
        options = {**options, "classes": [_class_name(name) for name in options["classes"]]}
    options = {**task_class(options.get("kind")).defaults_of_files, **options}
    return build_task(build_task(options).options())


def stored_baseline(task: Task, info: Mapping[str, Any]) -> float | None:
    """What the task's trivial baseline scores by its primary metric, as its file says.

    None where the file has none, or was measured by another metric: earlier versions chose another one for some tasks.
    """
    return info.get("baseline") if task.metric in info.get("figures", {}) else None


def _class_name(name: Any) -> str:
    if isinstance(name, list | dict):
        raise InputError(f"info.task: the class {name!r:.80} is no name; get the file again from whoever made it")
    return str(name)  # YAML once read `no` and `1` as other things than text
