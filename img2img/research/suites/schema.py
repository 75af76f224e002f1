"""What the files of a suite hold: one typed schema for whoever writes them and whoever reads them.

    SUITE/runs.jsonl      first line: `About`; then one `RunRecord` a line, by label and seed
    SUITE/summary.json    `Summary`
    SUITE/images/*.webp   see `sheets`

Values that a run did not measure are null, or left out.
"""

import json
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, Field, Strict, model_validator

from img2img.errors import InputError
from img2img.files.json_files import parse_json
from img2img.training.mask_report import Masks
from img2img.validation import Exact, Number, Size, as_model
from img2img.validation.stored import Model

VERSION: Final = 1
"""Of both files. Raise it with every change that a reader of today could not follow."""
RUNS = "runs.jsonl"
SUMMARY = "summary.json"


# ------------------------------------------------------------------ runs.jsonl


class MethodInfo(Exact):
    """How reports present a method.

    Attributes:
        title: its name there.
        group: "mask", "comparison" (learns the sequence in one network, or parts of one) or "reference" (a network a task).
        note: one sentence, or "".
    """

    title: str
    group: Literal["mask", "comparison", "reference"]
    note: str = ""


class About(Exact):
    """The first line of `runs.jsonl`.

    Attributes:
        version: `VERSION`.
        suite: a short name.
        title: what the page is called.
        methods: by label, in the order of the tables. Methods that have runs and no entry come last.
    """

    version: Literal[1] = VERSION
    suite: str
    title: str
    methods: dict[str, MethodInfo] = Field(default={})


class Backbone(Exact):
    """The network that the methods share; see `training.results`."""

    name: str
    mode: str | None = None
    parameters: int | None
    masked_parameters: int | None = None
    copied_parameters: int | None = None
    bytes: Size | None = None
    sha256: str


class TaskRecord(Exact):
    """A task of a run.

    Attributes:
        name: of the task.
        kind: of the task, such as "segmentation".
        primary_metric: the name of the metric by which the task is judged.
        higher_is_better: its direction.
        value: the primary metric on the test images when the task was just learned.
        baseline: the primary metric of the task's baseline, such as a grey copy.
        baseline_name: what the baseline does.
        before: the primary metric with the task's start, before any training.
        method: its own mask method, where it differs from the run's.
        decoder_only: the primary metric of the same task with a trained decoder and no mask.
        decoder_only_bytes: what that stores.
        bytes: what the task stores beside what is shared.
        density: share of ones in its mask.
        train_seconds: of its training, validations included.
        steps: of its training.
        best_step: the step that validation chose, counted within the last of the task's trainings.
        val: the primary metric on the validation images, of the state that was kept; left out by earlier versions.
        test_images: how many images the metrics are of.
        data_sha256: of the files that it was learned from.
        metrics: all metrics on the test images when the task was just learned.
        baseline_metrics: the baseline's.
        curve: (step, primary metric on the validation images), the phases of a training one after another.
    """

    name: str
    kind: str
    primary_metric: str
    higher_is_better: bool
    value: Number | None
    baseline: Number | None
    baseline_name: str | None = None
    before: Number | None = None
    method: str | None = None
    decoder_only: Number | None = None
    decoder_only_bytes: Size | None = None
    bytes: Size | None
    density: Number | None = None
    train_seconds: Number | None
    steps: int | None = None
    best_step: int | None = None
    val: Number | None = None
    test_images: int | None = None
    data_sha256: str | None = None
    metrics: dict[str, Number | None] = Field(default={})
    baseline_metrics: dict[str, Number | None] = Field(default={})
    curve: list[Annotated[tuple[int, Number], Strict(False)]] = Field(default=[])


class RunRecord(Exact):
    """One run.

    Attributes:
        label: its method's, in the suite.
        seed: of the run.
        experiment: the experiment's name.
        method: the method's name.
        method_options: the method's options.
        norm: whose the normalisation state is.
        backbone: the network.
        shared_bytes: what is stored once for all tasks; the backbone's size where it is not given.
        relative_parameters: of all tasks together, in units of one backbone.
        environment: commit, device, versions.
        transfer: average skill, forgetting, backward and forward transfer.
        max_abs_output_change: the largest change of an earlier task's output.
        value_matrix: row t, column i: the primary metric of task i after task t was learned, as it was last measured.
        remeasured: when earlier tasks were measured again: after "every" task or at the "end"; rows before it repeat values then.
        tasks: in the order of training.
        config: as it was when the run was made, without paths of the machine. Nothing here reads it: its keys change.
        masks: what the masks look like.
    """

    label: str
    seed: Size
    experiment: str | None = None
    method: str
    method_options: dict[str, Any] = Field(default={})
    norm: str | None = None
    backbone: Backbone
    shared_bytes: Size | None = None
    relative_parameters: Number | None = None
    environment: dict[str, str | Number | None] = Field(default={})
    transfer: dict[str, Number | None] = Field(default={})
    max_abs_output_change: Number | None
    value_matrix: list[list[Number | None]]
    remeasured: Literal["every", "end"] = "every"
    tasks: list[TaskRecord] = Field(min_length=1)
    config: dict[str, Any] | None = None
    masks: Masks | None = None

    @model_validator(mode="after")
    def _square(self) -> Self:
        side = len(self.tasks)
        if len(self.value_matrix) != side or any(len(row) != side for row in self.value_matrix):
            raise ValueError(f"value_matrix: expected {side} rows of {side} values, one for each task")
        return self


# ------------------------------------------------------------------ summary.json


class SummaryTask(Exact):
    """A task of a suite."""

    name: str
    primary_metric: str
    higher_is_better: bool
    baseline: Number | None


class SummaryCell(Exact):
    """The primary metric of a method on a task, after the whole sequence.

    Attributes:
        mean: over the seeds.
        std: their sample standard deviation; None with one seed.
        seeds: how many.
        bytes: what the task stores beside what is shared.
    """

    mean: Number
    std: Number | None
    seeds: int
    bytes: int | None


class Summary(Exact):
    """The metrics of a suite in one small object. Tasks that a method lacks have no entry."""

    version: Literal[1] = VERSION
    suite: str
    commit: str | None
    hardware: str | None
    tasks: list[SummaryTask]
    methods: dict[str, dict[str, SummaryCell]]


# ------------------------------------------------------------------ text and back


def parse(model: type[Model], text: str, where: str, remedy: str) -> Model:
    """An object from JSON, or one message that names the place.

    Raises:
        InputError: no JSON, another version, or a value that the schema does not allow; begins with `where`, ends with `remedy`.
    """
    try:
        content = parse_json(text)
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON ({error}); {remedy}") from error
    version = content.get("version") if isinstance(content, dict) else VERSION
    if "version" in model.model_fields and version != VERSION:
        raise InputError(f"{where} has the version {version!r:.40}: this program reads version {VERSION}; {remedy}")
    return as_model(model, content, where, remedy=remedy)


def line(model: BaseModel) -> str:
    """An object as one line of JSON, without the values that are defaults."""
    given = {"version": VERSION} if "version" in type(model).model_fields else {}
    return json.dumps(given | model.model_dump(exclude_defaults=True), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
