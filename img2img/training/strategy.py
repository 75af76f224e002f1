"""How a sequence is learned: what is trained for each task, what runs it afterwards, and what it stores."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from img2img.backbones import Backbone
from img2img.data import Parts
from img2img.data.loader import TrainBatches
from img2img.data.pad_crop import PadCrop
from img2img.errors import InputError
from img2img.inference.evaluator import Evaluator, Network
from img2img.masks import MaskedNetwork
from img2img.tasks import Task
from img2img.training.config import Experiment, TaskConfig, TrainOptions
from img2img.training.log import Callback
from img2img.training.loop import Batches, Fitted, Objective
from img2img.training.optimiser import Groups
from img2img.training.results import FinetunedResult, Outcome
from img2img.training.strategies import AnyStrategy
from img2img.training.strategy_files import read_learned, write_learned

if TYPE_CHECKING:
    from img2img.data.augment import Augment

ExtraLoss = Callable[[Tensor, Tensor], Tensor | None]
"""`extra(input, raw output)`: what a method adds to the task's loss on a training batch, a scalar; None for nothing."""


@dataclass(frozen=True)
class TaskData:
    """A task of the sequence with its data, built once.

    Attributes:
        config: what the experiment says of it.
        task: built.
        parts: its data, opened.
        options: of its training, in steps.
    """

    config: TaskConfig
    task: Task
    parts: Parts
    options: TrainOptions

    @property
    def name(self) -> str:
        """The task's name."""
        return self.config.name

    def batches(self, seed: int, *, batch_size: int | None = None) -> TrainBatches:
        """The training images, augmented, in the order of `seed`; `batch_size` in place of the task's."""
        options, augment = self.options, self._augment()
        size = options.batch_size if batch_size is None else batch_size
        return TrainBatches(self.parts.train, augment, batch_size=size, seed=seed, workers=options.workers)

    def outcome(self, before: float | None, fitted: Sequence[Fitted]) -> Outcome:
        """What is kept of the task's trainings; the last one's validation counts, if it is of the task's metric.

        Args:
            before: the primary metric before any of them, None where there is none.
            fitted: their outcomes.
        """
        last = fitted[-1] if fitted else None
        return Outcome(
            before=None if before is None or not math.isfinite(before) else before,
            val=None if last is None or last.metric != self.task.metric else last.best,
            best_step=None if last is None else last.best_step,
            train_seconds=sum(f.seconds for f in fitted),
            steps=sum(f.steps for f in fitted),
            test_images=len(self.parts.test),
        )

    def _augment(self) -> "Augment | PadCrop":
        """Of images with a category that keep their scale and colours, by whole batches; else one by one."""
        options = self.options.augmentation
        zoom = options.zoom_for(original_pixels=self.task.original_pixels)
        plain = zoom == (1, 1) and not options.jitter and not options.rotate and self.parts.train.categories is not None
        if options.pad and options.rotate:
            raise InputError(
                f"tasks.{self.name} has train.augmentation.pad={options.pad} and rotate: true: expected one of them; a turned "
                "image has no border to be shifted in"
            )
        if options.pad or plain:
            return PadCrop(options.crop, pad=options.pad, flip=options.flip, cutout=options.cutout)
        if options.cutout:
            raise InputError(
                f"tasks.{self.name} has train.augmentation.cutout={options.cutout}: expected 0 unless images have one category "
                "each and keep their scale, colours and direction (zoom: [1, 1], jitter: 0, rotate: false)"
            )
        from img2img.data.augment import Augment  # with albumentations, so only where it is used

        return Augment(options.crop, zoom=zoom, flip=options.flip, rotate=options.rotate, jitter=options.jitter)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a strategy works with.

    Attributes:
        experiment: the whole of it.
        network: the frozen backbone that every method of one seed starts from; mask methods add their tasks to it.
        backbone: the same as a plain module, of which `spec` and `make_head` are used.
        task_data: the tasks by name.
        evaluator: runs networks of this backbone over images.
        place: moves a module to the device, in the memory format of the experiment.
        folder: the run folder.
    """

    experiment: Experiment
    network: MaskedNetwork
    backbone: Backbone
    task_data: Mapping[str, TaskData]
    evaluator: Evaluator
    place: Callable[[nn.Module], None]
    folder: Path

    def options(self, name: str, *, steps: int, rate: float = 1.0) -> TrainOptions:
        """A task's options for a part of its steps, one at least, with `rate` times its learning rates, all of them."""
        return self.task_data[name].options.at_rate(rate).changed(steps=max(1, steps))

    def steps(self, name: str, share: float) -> int:
        """A share of a task's steps, one at least."""
        return max(1, round(self.task_data[name].options.steps * share))

    def head(self, name: str) -> nn.Module:
        """A fresh head for a task."""
        return self.backbone.make_head(self.task_data[name].task.out_channels)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One training: what requires grad in `module` is trained.

    Attributes:
        module: from inputs to the raw output of the task.
        extra: what is added to the task's loss.
        head: the part of `module` that `train.schedule.head_first` trains alone at first; None where the head is not fresh.
        suffix: tells the trainings of one task apart, in the names of logs and checkpoints.
        options: steps, rates and so on, in place of the task's; methods with several phases share its steps out.
        objective: what is trained for, `batches` and `validate` with it, where that is not the task alone.
        batches: its training images.
        validate: its primary metric on the validation images.
        groups: what is trained by which optimiser at which rate; None: all of `module` that requires grad, as `train.optimiser`
            says.
        callbacks: told of each step and validation, in this order.
        start_value: what `module` validates as at the start, where that is worth keeping; None where it is not.
    """

    module: nn.Module
    extra: ExtraLoss | None = None
    head: nn.Module | None = None
    suffix: str = ""
    options: TrainOptions | None = None
    objective: Objective | None = None
    batches: Batches | None = None
    validate: Callable[[], float] | None = None
    groups: Groups | None = None
    callbacks: Sequence[Callback] = ()
    start_value: float | None = None


@dataclass(kw_only=True)
class Strategy(AnyStrategy):
    """One way to learn a sequence; subclasses are dataclasses whose fields are the options of a config.

    `strategies.STRATEGIES.register` makes one known to configs.

    The runner calls `begin` once the backbone exists, then `adopt` for a first task that trained the backbone, and `learn`
    for every other one. Both give the trainings to be done, one after another, and go on when each is done. `store` then writes
    what was learned, and `load` reads it in a later run.

    See `AnyStrategy` for what a class says of itself.
    """

    context: Context = field(init=False, repr=False)

    def check(self, experiment: Experiment, network: MaskedNetwork) -> None:
        """Refuse, before any training, an experiment that does not fit the backbone.

        Raises:
            InputError: it does not.
        """

    def begin(self, context: Context) -> None:
        """Start from the backbone, with no task learned."""
        self.context = context

    @abstractmethod
    def adopt(self, name: str, head: nn.Module) -> Iterator[Phase]:
        """Take over the first task, which trained the backbone, with its trained `head`; mostly without more training."""

    @abstractmethod
    def learn(self, name: str) -> Iterator[Phase]:
        """Learn a task; what follows the last phase ends it."""

    def abandon(self, name: str) -> None:
        """Undo what `learn` began, after its training failed: by default the process ends and there is nothing to undo."""
        return

    @abstractmethod
    def network(self, name: str) -> Network:
        """The trained network of a task as it is now, in evaluation mode."""

    @abstractmethod
    def own_bytes(self, name: str) -> int:
        """What is stored for this task alone."""

    @abstractmethod
    def shared_bytes(self) -> int:
        """What is stored once for all tasks."""

    @abstractmethod
    def relative_parameters(self) -> float:
        """All finished tasks without their heads, in units of one network's parameters, as the papers count."""

    def density(self, name: str) -> float | None:
        """The fraction of ones in the task's masks; None where it has none."""
        return None

    def finetuned(self, name: str) -> FinetunedResult | None:
        """The measured results of the fine-tuned network that the task was made of; None where there was none."""
        return None

    def store(self, names: Sequence[str], metrics: Mapping[str, float | None], baseline: float | None) -> None:
        """Write what was learned of the newest of the tasks `names`, and what it changed.

        Args:
            names: all tasks so far.
            metrics: of the newest, on its test set.
            baseline: the primary metric of its baseline there.
        """
        write_learned(self.context.folder, names, self.own_tensors(names[-1]), self.shared_tensors())

    def load(self, names: Sequence[str]) -> None:
        """Take up the finished tasks `names`, after `begin`, from what `store` wrote.

        Raises:
            InputError: a file is missing or damaged.
        """
        self.restore(*read_learned(self.context.folder, names))

    def own_tensors(self, name: str) -> dict[str, Tensor]:
        """What a task's file holds, written once, after the task was learned."""
        return {}

    def shared_tensors(self) -> dict[str, Tensor]:
        """What every later task may change: written after each."""
        return {}

    def restore(self, own: Mapping[str, Mapping[str, Tensor]], shared: Mapping[str, Tensor]) -> None:
        """Take up finished tasks, after `begin`, from their `own_tensors` by name and the last `shared_tensors`."""
        raise NotImplementedError


def in_range(method: str, option: str, value: float, low: float, high: float) -> None:
    """Raise an `InputError` unless `low <= value <= high`."""
    if not low <= value <= high:
        raise InputError(f"method {method!r} got {option}={value}: expected {low:g} to {high:g}; correct it")


def evaluated(module: nn.Module) -> Network:
    """A module as a network to be evaluated."""
    return partial(_evaluate, module)


def _evaluate(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = module.eval()(x)
    return y
