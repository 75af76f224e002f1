"""An experiment: a sequence of tasks on one backbone, as a config writes it and as everything after it receives it.

`ExperimentConfig` is the form of a config, and holds the defaults. `read_experiment` turns it into an `Experiment`, whose tasks,
methods and options are built and checked; nothing after that sees a mapping of the config.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import ConfigDict, Field, Strict, model_validator

from img2img.backbones import Backbone, build_backbone
from img2img.data import DataSpec
from img2img.data.disk_cache import DiskCache
from img2img.files.paths import expanded
from img2img.masks import MaskMethod
from img2img.masks.random_weights import Kind as RandomInit
from img2img.masks.task_state import NormMode
from img2img.tasks import Task
from img2img.training.config.train_options import TrainOptions
from img2img.training.source import Source
from img2img.validation import Options, Spec

if TYPE_CHECKING:
    from img2img.inference.evaluator import Evaluator
    from img2img.metrics.perceptual import PerceptualMetrics

BackboneMode = Literal["first_task", "pretrained", "random", "bundle"]
"""Where the backbone's weights come from: trained by the first task, pre-trained elsewhere, random, or those of a bundle."""
Names = Annotated[tuple[str, ...], Strict(False)]


class DeviceOptions(Options):
    """On what the run is computed."""

    accelerator: str = "auto"
    """Lightning Fabric's; "auto" takes a GPU when there is one."""
    devices: int | Literal["auto"] = 1
    """Of this machine that train together, a process for each; "auto": all of its GPUs. A launcher such as torchrun says so."""
    nodes: int = 1
    """Machines."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Lightning Fabric's, of training alone; "auto": "bf16-mixed" on a device with instructions for bfloat16, else "32-true".
    Scores are float32 whatever it is.
    """
    threads: int | None = Field(default=None, ge=1)
    """CPU threads, None for all; outputs are bit-equal for one number of threads only."""
    channels_last: bool = True
    """Memory format of weights and images."""


class EvaluationOptions(Options):
    """How tasks are measured and shown."""

    batch_size: int = Field(default=8, ge=1)
    """Images that run together."""
    check_images: int = Field(default=4, ge=1)
    """Test images in the fixed batch whose outputs are compared bit for bit after each later task."""
    remeasure: Literal["auto", "every", "end"] = "auto"
    """When finished tasks are measured on their test sets again: after "every" later task, or at the "end" of the sequence, with
    the outputs of the three newest ones compared after each task in between. "auto": at the end where the method cannot forget.
    """
    panels: int = Field(default=6, ge=1)
    """Test images shown for each task."""
    previews: int = Field(default=0, ge=0)
    """Validation images whose input, output and target `previews/TASK.jpg` shows after each validation; 0 for no such file."""
    metrics: Names = ()
    """Perceptual metrics of the test images, of tasks whose output should look like a photo: `lpips`, `dists` and `kid`."""
    perceptual: Mapping[str, Any] | None = None
    """The network of these metrics: `name`, `weights`, `preprocessing`, see `backbones.perceptual.perceptual_network`."""

    def remeasured(self, *, cannot_forget: bool) -> Literal["every", "end"]:
        """When finished tasks are measured again, by a method that can forget or not."""
        return ("end" if cannot_forget else "every") if self.remeasure == "auto" else self.remeasure

    def perceptual_metrics(self) -> "PerceptualMetrics | None":
        """The metrics that `metrics` names; None for none.

        Raises:
            InputError: see `PerceptualMetrics`.
        """
        if not self.metrics:
            return None
        from img2img.metrics.perceptual import PerceptualMetrics  # torchmetrics' image metrics take a second to import

        return PerceptualMetrics(self.metrics, self.perceptual)


class BasisOfTasks(Options):
    """What tasks with ImpressLearn combine: the masks of tasks, see `basis_of_tasks`."""

    tasks: Names
    """Finished before they are needed."""
    kind: Literal["binary", "signed", "real"] = "binary"


class RandomBasis(Options):
    """Random masks to combine, see `Basis.random`."""

    count: int = Field(ge=1)
    density: float = Field(gt=0, le=1)
    seed: int
    kind: Literal["binary", "signed"] = "binary"
    allocation: Literal["layer", "erdos_renyi"] = "layer"


class MaskOptions(Options):
    """What is masked, and what a masked task has to itself."""

    norm: NormMode = "own"
    """The normalisation state of masked tasks: their own, their own running statistics alone, or the backbone's; "instance":
    their own parameters, with each image's own statistics in place of a batch's.
    """
    select: Names | None = None
    """Patterns of the names of the weights that are masked, such as `["decoder.*"]`; None for all."""
    trainable_copies: Names | float | None = None
    """The weights of which each masked task trains a copy in place of a mask: patterns of their names; or a share of all weights,
    such as 0.01, for the smallest ones, see `Mixed`; None for none.
    """
    bases: Mapping[str, Mapping[str, Any]] = {}
    """By name, what tasks with ImpressLearn combine: the options of `BasisOfTasks` or of `RandomBasis`."""


class FinetunedOptions(Options):
    """A network that was fine-tuned from the backbone, of which a masked task is made, or from which it learns."""

    weights: str
    """A file of its state dict: the backbone's names, and those of the task's head. `.safetensors`, or of `torch.save`."""
    start: bool = True
    """The task starts from the signs of its weights' changes (`masks.delta_from_finetuned`), its normalisation state and its
    head; the method is `sparse_signs` or `dense_signs`. False: from what the method starts from.
    """
    distil: bool = True
    """The training's target is the network's output, by the distillation loss of the task's kind. False: the task's own loss."""
    train_signs: bool = True
    """The signs are trained too. False: the scales, the normalisation state and the head alone."""
    keep_frozen: bool = False
    """The network may differ from the backbone in tensors that no task has of its own; the task keeps the backbone's."""

    @model_validator(mode="after")
    def _is_used(self) -> Self:
        if not (self.start or self.distil):
            raise ValueError("got start=false and distil=false: expected one of them true, or the network is used for nothing")
        return self


class TaskTemplate(Options):
    """One task as a config has it; with `count`, the tasks NAME_1 to NAME_count, whose data get their number as `number`."""

    task: Mapping[str, Any] = {}
    """`kind` and options, see `tasks.build_task`."""
    data: Mapping[str, Any] = {}
    """`kind` and options, see `data.build_data`."""
    train: Mapping[str, Any] = {}
    """`TrainOptions` that differ from the experiment's."""
    method: Mapping[str, Any] | None = None
    """The task's own mask method in place of the experiment's."""
    norm: NormMode | None = None
    """The normalisation state of this task in place of `masks.norm`, such as "instance" for a style; with methods that train a
    network for each task "instance" alone has a meaning.
    """
    start_from: str | None = None
    """An earlier task, of the sequence or of the bundle that the backbone is from, whose masks and normalisation state this one
    starts from; "nearest": the one whose normalisation statistics are nearest to those of this task's images. With methods
    that train a network for each task: an earlier task of the sequence, whose network this one starts from.
    """
    finetuned: FinetunedOptions | None = None
    """A fine-tuned network that the task is made of; null for none."""
    count: int | None = Field(default=None, ge=1)
    """How many tasks it stands for; None: the one of its name."""


class Run(Options):
    """What an experiment's config and the experiment made of it share."""

    name: str
    """What reports call it."""
    out: str
    """The run folder."""
    seed: int = 0
    """Of everything random."""
    resume: Literal["auto", "never", "anyway"] = "auto"
    """What is in the run folder: "auto" goes on with it; "never" refuses a folder that holds a run; "anyway" goes on though the
    files that its tasks were learned from have changed.
    """
    cache_dir: str | None = None
    """A folder on a local disk where decoded and resized images are kept, for every epoch, task, process and later run; null:
    in memory, as many as fit there.
    """
    cache_gb: float = Field(default=50.0, ge=0)
    """The bound on that folder, in gigabytes."""
    imports: Names = ()
    """Modules of the user's own, or .py files, that define kinds or methods: imported when the config is read."""
    backbone_from: str | None = None
    """The folder of another run with the same first task and seed, from which the trained backbone is taken in place of training
    it again: so that several methods start from the very same one.
    """
    device: DeviceOptions = DeviceOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    masks: MaskOptions = MaskOptions()
    train: TrainOptions = TrainOptions()
    """Of every task."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return expanded(self.out)

    def image_cache(self) -> DiskCache | None:
        """Where `cache_dir` keeps decoded images; None for memory.

        Raises:
            InputError: see `DiskCache`.
        """
        return None if self.cache_dir is None else DiskCache(self.cache_dir, int(self.cache_gb * 1e9))


class ExperimentConfig(Run):
    """The form of a config: what `configs/` compose, and what Python may give."""

    backbone: Mapping[str, Any]
    """`mode`, `half` and `init`, see `BackboneConfig`; a backbone's `kind` and options with `weights`, see
    `backbones.build_backbone`. With the mode "bundle" only `weights`, a bundle's folder or a run's: the backbone and what of it
    is masked are that bundle's.
    """
    method: Mapping[str, Any]
    """`name` and options of the mask method of every task that does not train the backbone, or of a comparison method."""
    tasks: Mapping[str, TaskTemplate]
    """By name; names of letters, digits, - and _."""
    sequence: Names
    """The names of the tasks to learn, in order; any subset, in any order. A template's name stands for all of its tasks."""
    first_train: Mapping[str, Any] = {}
    """`TrainOptions` that differ for the first task where it trains the backbone; `tasks.NAME.train` goes before them."""
    compare: Mapping[str, Names] = {}
    """By comparison method, tasks that are also learned by it, on their own and under the same budget."""


@dataclass(frozen=True)
class BackboneConfig:
    """Where the backbone comes from.

    Attributes:
        mode: see `BackboneMode`.
        spec: what builds it, its weights included; of a bundle None.
        source: the bundle that it is taken from; None with other modes.
        half: its weights are rounded to half precision once they are final, so that a bundle stores them in half the bytes.
        init: the distribution of a random backbone's weights, see `masks.randomise`.
    """

    mode: BackboneMode
    spec: Spec[Backbone] | None
    source: Source | None
    half: bool = False
    init: RandomInit = "kaiming_normal"

    def options(self) -> dict[str, Any]:
        """The kind and options."""
        if self.spec is not None:
            return self.spec.plain()
        assert self.source is not None
        return dict(self.source.spec)

    def given(self) -> dict[str, Any]:
        """As a config has it, with the files that it names."""
        if self.source is not None:
            return {"mode": self.mode, "weights": str(self.source.folder)}
        return {"mode": self.mode, **self.options(), **({"half": True} if self.half else {}), **self._drawn()}

    def _drawn(self) -> dict[str, str]:
        return {} if self.init == "kaiming_normal" else {"init": self.init}

    def plain(self) -> dict[str, Any]:
        """What a training depends on, wherever a bundle's folder is."""
        return self.given() if self.source is None else self.source.fingerprint()

    def build(self, out_channels: int) -> Backbone:
        """A network of that kind."""
        return build_backbone({**self.options(), "out_channels": out_channels})

    @property
    def trained_elsewhere(self) -> bool:
        """Whether it is a trained network that no task of the sequence trains.

        A bundle does not say how its backbone came about; it is taken for a trained one.
        """
        return self.mode in ("pretrained", "bundle")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task of the sequence.

    Attributes:
        name: of the task.
        task: what it is.
        data: its images.
        train: how it is trained: the experiment's options with its own on top.
        method: the mask method; None where a comparison method learns all tasks.
        method_spec: the method's name and options.
        own_method: it is the task's own, in place of the experiment's.
        norm: the normalisation state; `own_norm` where it is the task's own, in place of the experiment's.
        own_norm: see `norm`.
        start_from: see `TaskTemplate`.
        finetuned: likewise.
        compare: comparison methods by which it is also learned.
    """

    name: str
    task: Spec[Task]
    data: DataSpec
    train: TrainOptions
    method: MaskMethod | None
    method_spec: Spec[Any]
    own_method: bool = False
    norm: NormMode = "own"
    own_norm: bool = False
    start_from: str | None = None
    finetuned: FinetunedOptions | None = None
    compare: tuple[Spec[Any], ...] = ()

    def plain(self) -> dict[str, Any]:
        """What its training depends on, as plain values."""
        train = self.train.plain()
        own = self.method_spec.plain() if self.own_method else None
        finetuned = {} if self.finetuned is None else {"finetuned": self.finetuned.model_dump()}
        return {
            "task": self.task.plain(), "data": self.data.plain(), "train": train, "method": own, "start_from": self.start_from,
        } | finetuned | ({"norm": self.norm} if self.own_norm else {})  # fmt: skip


class Experiment(Run):
    """A sequence of tasks on one backbone, checked and built as far as no data is needed. Made by `read_experiment`."""

    model_config: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True)

    backbone: BackboneConfig
    method: Spec[Any]
    """The method's name and options."""
    strategy: Spec[Any]
    """How the sequence is learned: by masks, or by a comparison method."""
    bases: Mapping[str, BasisOfTasks | RandomBasis]
    """What tasks with ImpressLearn combine, by name."""
    tasks: Annotated[tuple[TaskConfig, ...], Strict(False)]
    """In the order in which they are learned."""

    @property
    def sequence(self) -> tuple[str, ...]:
        """The names of the tasks, in order."""
        return tuple(task.name for task in self.tasks)

    @property
    def first_trains_backbone(self) -> bool:
        """Whether the backbone is what the first task trains."""
        return self.backbone.mode == "first_task"

    @property
    def selected(self) -> tuple[str, ...] | None:
        """Patterns of the weights that are masked: `masks.select`, or those of the bundle that the backbone is from."""
        source = self.backbone.source
        if source is None:
            return self.masks.select
        return None if source.select is None else tuple(source.select)

    def evaluator(self, backbone: Backbone, device: torch.device) -> "Evaluator":
        """What measures networks of this backbone, as the experiment has it.

        Args:
            backbone: gives the sizes that it takes.
            device: where the networks are.
        """
        from img2img.inference.evaluator import Evaluator  # what reads images takes seconds to import

        return Evaluator(
            stride=backbone.stride,
            min_size=backbone.min_size,
            device=device,
            batch_size=self.evaluation.batch_size,
            channels_last=self.device.channels_last,
            perceptual=self.evaluation.perceptual_metrics(),
        )

    def seed_of(self, name: str) -> int:
        """A seed for one task: the same wherever it stands in the sequence and whatever ran before."""
        return int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:4], "big")
