"""`results.json`, the outcome of a sequence: one schema for what writes it and what reads it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, model_validator

from img2img.errors import InputError
from img2img.files.json_files import read_json
from img2img.formatting import count, percent
from img2img.validation import Number, Size, Stored, as_model

VERSION: Literal[2] = 2
"""Of the schema."""
LONGEST_NAME = 200
"""Letters of a task's name, which files are named by."""
_AGAIN = "run the experiment again, which writes it anew"

Metrics = dict[str, Number | None]
"""By name; null where nothing was measured."""


def _task_name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable() or len(name) > LONGEST_NAME:
        raise ValueError(f"has the name {name!r:.60}: expected a task's name without slashes")
    return name


class ComparisonResult(Stored):
    """A task that was also learned by another method, on its own."""

    value: Number | None
    """The primary metric on the test set."""
    bytes: Size | None = None
    """What is stored for the task alone."""


class FinetunedResult(Stored):
    """A fine-tuned network that a task was made of, and what each step from it to the task brought."""

    bytes: Size
    """Of the network's file."""
    metrics: Metrics
    """The network's own on the test set."""
    val: Metrics
    """The primary metric on the validation set: `finetuned`, the network; `signs`, the signs of its changes; `statistics`, these
    with normalisation statistics of their own; `trained`, the task as it is stored.
    """
    moved: Number | None = None
    """The share of the weights with signs that its changes move, before the training."""
    explained: Number | None = None
    """What of the changes' squared norm the signs keep."""
    not_kept: dict[str, Number] = Field(default_factory=dict)
    """The largest difference of each tensor that the task has from the backbone and the network does not."""


class TaskResult(Stored):
    """A task of the sequence."""

    name: Annotated[str, AfterValidator(_task_name)]
    kind: str
    primary_metric: str
    """The metric that chooses the state and decides comparisons."""
    higher_is_better: bool
    """Its direction."""
    value: Number | None
    """The primary metric on the test set."""
    baseline: Number | None
    """That of the task's baseline."""
    baseline_name: str | None = None
    comparisons: dict[str, ComparisonResult] = Field(default_factory=dict)
    """By method."""
    method: str | None = None
    """The task's own mask method; null: the run's."""
    before: Number | None = None
    """The primary metric on the test set before the task was trained."""
    bytes: Size | None
    """What is stored for the task alone."""
    density: Number | None
    """The fraction of ones in its masks; null where it has none."""
    train_seconds: Number | None
    steps: Number | None = None
    best_step: Number | None = None
    """The step whose state was kept, counted within the last of the task's trainings."""
    val: Number | None = None
    """The primary metric on the validation set, of the state that was kept; null where another metric chose it."""
    test_images: Number | None
    metrics: Metrics = Field(default_factory=dict)
    """All of the task's metrics on the test set."""
    finetuned: FinetunedResult | None = None
    """The fine-tuned network that it was made of; null where there was none."""
    baseline_metrics: Metrics = Field(default_factory=dict)
    data_sha256: str | None = None
    """Of the files that it was learned from; null where its images are made."""


class FinetunedStep(NamedTuple):
    """A step from a fine-tuned network to a task, for people; None where there is nothing to show."""

    text: str
    val: float | None
    test: float | None
    bytes: float | None


def finetuned_steps(task: TaskResult) -> list[FinetunedStep]:
    """The steps of a task that was made of a fine-tuned network, in order; none for another task."""
    made = task.finetuned
    if made is None:
        return []
    network, trained = made.metrics.get(task.primary_metric), made.val.get("trained")
    steps = [FinetunedStep("the fine-tuned network", made.val.get("finetuned"), network, made.bytes)]
    if "signs" in made.val:
        text = f"the signs of {percent(made.moved)} of its weights' changes"
        steps.append(FinetunedStep(text, made.val["signs"], None, None))
        steps.append(FinetunedStep("+ normalisation statistics", made.val.get("statistics"), task.before, None))
    return [*steps, FinetunedStep(f"+ training, {count(task.steps)} steps", trained, task.value, task.bytes)]


class BackboneResult(Stored):
    """The network that all tasks share."""

    name: str
    mode: str | None = None
    parameters: Number | None
    masked_parameters: Number | None = None
    copied_parameters: Number | None = None
    """Of which each masked task trains a copy."""
    bytes: Size | None = None
    sha256: str


class ForgettingResult(Stored):
    """What became of earlier tasks."""

    value_matrix: list[list[Number | None]]
    """`[t][i]`: the primary metric of task i on its test set after task t was learned, null above the diagonal."""
    max_abs_output_change: Number | None
    """Over the outputs of all earlier tasks, see `Progress.largest_output_change`."""
    remeasured: Literal["every", "end"] = "every"
    """Whether earlier tasks were measured again after every task, or at the end; rows before it repeat what was measured."""


class TransferResult(Stored):
    """Means over the tasks, see `metrics.sequence`."""

    average_skill: Number | None = None
    backward: Number | None = None
    forward: Number | None = None
    forgetting: Number | None = None


class Results(Stored):
    """The outcome of a sequence."""

    version: Literal[2]
    experiment: str | None = None
    backbone: BackboneResult
    method: str
    method_options: dict[str, Any] = Field(default_factory=dict)
    norm: str | None = None
    seed: Number | None = None
    shared_bytes: Size | None = None
    """What is stored once for all tasks."""
    relative_parameters: Number | None = None
    """All tasks without their heads, in units of one network's parameters."""
    tasks: list[TaskResult]
    forgetting: ForgettingResult
    transfer: TransferResult = TransferResult()
    environment: dict[str, str | Number | None] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_a_row_a_task(self) -> Self:
        count = len(self.tasks)
        if not count:
            raise ValueError("has no tasks: expected one or more; run the experiment until its first task is finished")
        matrix = self.forgetting.value_matrix
        if len(matrix) != count or any(len(row) != count for row in matrix):
            raise ValueError(f"value_matrix: expected {count} rows of {count} numbers or nulls")
        return self


def read_results(folder: Path) -> Results:
    """`results.json` of a run folder.

    Raises:
        InputError: no folder, no file, or not what a run writes, such as NaN; names the place at fault.
    """
    path = folder / "results.json"
    if not path.is_file():
        found = "no such folder" if not folder.is_dir() else "the folder has no results.json"
        raise InputError(f"no results in {folder}: {found}; give the folder of a finished run, or run the experiment to its end")
    return results_of(read_json(path), str(path))


def results_of(value: Any, where: str) -> Results:
    """A JSON value as results; see `read_results`."""
    if isinstance(value, dict) and value.get("version") != VERSION:
        raise InputError(f"{where} has the version {value.get('version')!r:.40}: expected {VERSION}; {_AGAIN}")
    return as_model(Results, value, where, remedy=_AGAIN)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is kept of a task's trainings, see `TaskRecord`."""

    before: float | None
    val: float | None
    best_step: float | None
    train_seconds: float
    steps: float
    test_images: float


class TaskRecord(Stored):
    """What `progress.json` keeps of a finished task; the keys mean what they do in `TaskResult`."""

    before: Number | None
    val: Number | None
    best_step: Number | None
    train_seconds: Number
    steps: Number
    test_images: Number
    value: Number | None
    metrics: Metrics
    baseline: Metrics
    density: Number | None
    bytes: Size
    finetuned: FinetunedResult | None = None


class ComparisonRecord(Stored):
    """What `progress.json` keeps of a comparison."""

    value: Number | None
    metrics: Metrics
    train_seconds: Number
    bytes: Size


class Progress(Stored):
    """`progress.json`: which tasks of a run are finished; what a later run goes on from."""

    version: Literal[2] = 2
    fingerprints: dict[str, str] = Field(default_factory=dict)
    """Of the finished tasks' configurations."""
    planned: list[str] = Field(default_factory=list)
    """The sequence that the run was last started with: no other task may take such a name in its bundle."""
    backbone: str | None = None
    """The fingerprint of its training."""
    tasks: dict[str, TaskRecord] = Field(default_factory=dict)
    comparisons: dict[str, dict[str, ComparisonRecord]] = Field(default_factory=dict)
    """By method and task."""
    shared_bytes: Size = 0
    rows: list[list[Number | None]] = Field(default_factory=list)
    """After each task the primary metric of the newest tasks until then, those that were measured: one at least, in order. Those
    before are as in the row above. So the file grows with what was measured, and not with the square of the tasks.
    """
    changes: list[dict[str, Number]] = Field(default_factory=list)
    """After each task the largest change of an output of each earlier task whose outputs were compared."""
    environment: dict[str, Any] = Field(default_factory=dict)
    """What the last task was measured on."""

    @model_validator(mode="after")
    def _has_a_row_a_task(self) -> Self:
        count = len(self.tasks)
        for name, rows in (("rows", self.rows), ("changes", self.changes)):
            if len(rows) != count:
                raise ValueError(f"{name}: expected one for each of {count} tasks, got {len(rows)}")
        for index, row in enumerate(self.rows):
            if not 1 <= len(row) <= index + 1:
                raise ValueError(f"rows[{index}]: expected one number a task that was measured, 1 to {index + 1}, got {len(row)}")
        return self

    def largest_output_change(self) -> float | None:
        """The largest change of an output of an earlier task; None where one was not compared after the last task, or
        there is none."""
        if not self.changes or not self.changes[-1].keys() >= set(list(self.tasks)[:-1]):
            return None
        found = [change for row in self.changes for change in row.values()]
        return None if None in found else max(found, default=None)

    def value_matrix(self) -> list[list[float | None]]:
        """`[t][i]`: the primary metric of task i as it was last measured when task t was learned, null above the diagonal."""
        matrix: list[list[float | None]] = []
        for index, row in enumerate(self.rows):
            known = matrix[-1][: index + 1 - len(row)] if matrix else []
            matrix.append([*known, *row, *[None] * (len(self.rows) - index - 1)])
        return matrix
