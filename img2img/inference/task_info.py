"""What a model says of its tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from img2img.data.images.bit_depth import check_white
from img2img.errors import InputError
from img2img.masks.base import affected
from img2img.masks.task_state import TaskState
from img2img.tasks import Task
from img2img.tasks.stored import stored_baseline, stored_task


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """What a model says of one of its tasks.

    Attributes:
        name: its name.
        kind: "segmentation", "colourisation" and so on.
        forms: what `run` can give, the usual one first.
        classes: of segmentation and classification, else empty.
        method: the mask method's name; "identity" runs on the bare backbone.
        primary_metric: the metric that chooses between states and decides comparisons.
        metrics: the values that were measured on the test set when the task was learned.
        baseline: the primary metric of its trivial baseline there, such as the majority class; None where the file has none.
        options: those of its kind, such as the `sigma` of denoising, without the classes.
        density: the fraction of ones in its masks; None where it has none.
        effect: what the masks do to weights, such as "zeroed" or "moved"; None likewise.
        affected: the fraction of the weights that they do that to.
        bytes: of its file; None where the model has none.
        side: the shorter side in pixels of the images that it was measured on, see `prediction.measured_side`; None where the
            file does not say. Of a task whose images were made squares, both sides.
        white: the value that was white in the 16-bit images that it learned from; None for 65535, or where none was given.
    """

    name: str
    kind: str
    forms: tuple[str, ...]
    classes: tuple[str, ...]
    method: str
    primary_metric: str
    metrics: Mapping[str, float | None]
    baseline: float | None
    options: Mapping[str, Any]
    density: float | None
    effect: str | None
    affected: float | None
    bytes: int | None
    side: int | None
    white: int | None = None

    @classmethod
    def of(cls, name: str, task: Task, state: TaskState, file: Path) -> "TaskInfo":
        """What there is to say of a task.

        Args:
            name: its name.
            task: the task.
            state: of the masked network that holds it.
            file: the task's file, which need not be there.
        """
        density, effect = state.density(), state.effect()
        return cls(
            name=name,
            kind=task.kind,
            forms=task.forms,
            classes=tuple(getattr(task, "classes", ())),
            method=state.method.inner.name,
            primary_metric=task.metric,
            metrics=state.info.get("figures", {}),
            baseline=stored_baseline(task, state.info),
            options={key: value for key, value in task.options().items() if key not in ("kind", "classes")},
            density=density,
            effect=effect,
            affected=None if effect is None else affected(effect, density),
            bytes=file.stat().st_size if file.is_file() else None,
            side=state.info.get("side"),
            white=check_white(state.info.get("white"), "white"),
        )


class TaskInfos(Mapping[str, TaskInfo]):
    """The tasks of a model by name: each is described when it is asked for.

    Args:
        names: of the tasks, in order.
        describe: gives what there is to say of one.
    """

    def __init__(self, names: Sequence[str], describe: Callable[[str], TaskInfo]) -> None:
        self._names = dict.fromkeys(names)
        self._describe = describe

    def __getitem__(self, name: str) -> TaskInfo:
        if name not in self._names:
            raise KeyError(name)
        return self._describe(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What running a task needs to know of it beside its network, so that its file need not be read again for that.

    Attributes:
        task: the task.
        by_instance: its network normalises by each image's own statistics.
        head: a description of its head: equal for heads that take the same memory.
        side: as of `TaskInfo`, as is `white`.
        white: as it stands in the file, not yet checked.
    """

    task: Task
    by_instance: bool
    head: str
    side: int | None
    white: Any

    @classmethod
    def of(cls, state: TaskState) -> "TaskFacts":
        """Of a task in a masked network."""
        info = state.info
        by_instance = state.norm_mode == "instance"
        head, side, white = repr(state.head), info.get("side"), info.get("white")
        return cls(task=stored_task(info), by_instance=by_instance, head=head, side=side, white=white)

    @property
    def shape(self) -> tuple[Any, ...]:
        """What the memory that its network takes depends on; equal for tasks that take the same."""
        return type(self.task), self.task.compact_channels, self.by_instance, self.head


class TaskFileError(InputError):
    """A task's file, which could be read before, cannot be read again: it has gone, or is another one by now."""


@dataclass(frozen=True)
class BundleChanges:
    """How a bundle differs from what a model has of it.

    Attributes:
        added: tasks that came.
        removed: tasks that went.
        replaced: tasks of the same name with another file.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.replaced)
