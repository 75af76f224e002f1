"""Joint training: all tasks at once, each in turn: what sharing all weights costs where nothing is learned in sequence."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from img2img.data.base import Batch
from img2img.data.loader import TrainBatches
from img2img.errors import InputError
from img2img.metrics.sequence import skill_or_none
from img2img.research.strategies.shared import SharedNetwork, SharedNorm, SharedStrategy, within
from img2img.tasks import Task
from img2img.tasks.base import Example
from img2img.training.strategies import STRATEGIES
from img2img.training.strategy import Context, Phase


@dataclass(frozen=True)
class TaskBatch(Batch):
    """A batch of one of several tasks."""

    task: str = ""


class JointBatches:
    """Batches of several tasks in turn: step s is task number s mod n's own batch s div n."""

    def __init__(self, batches: Mapping[str, TrainBatches]) -> None:
        self._batches = batches

    def part(self, number: int, count: int) -> "JointBatches":
        """Part `number` of `count` of each batch, see `TrainBatches.part`."""
        return JointBatches({name: batches.part(number, count) for name, batches in self._batches.items()})

    def iterate(self, start_step: int = 0) -> Iterator[TaskBatch]:
        """The batches from `start_step` on, without end."""
        names = list(self._batches)
        # The tasks before the one that is next have had one batch more.
        begun = {name: (start_step + len(names) - 1 - i) // len(names) for i, name in enumerate(names)}
        streams = {name: self._batches[name].iterate(begun[name]) for name in names}
        for step in itertools.count(start_step):
            name = names[step % len(names)]
            batch = next(streams[name])
            yield TaskBatch(**{f.name: getattr(batch, f.name) for f in fields(Batch)}, task=name)


class JointTask:
    """Several tasks as one, as far as the training loop asks: the loss of a batch, and the mean skill that decides.

    Args:
        tasks: by name.
        model: its active task is set to that of each batch, since it is called with the input only.
    """

    kind = "joint"
    metric = "mean skill"
    higher_is_better = True

    def __init__(self, tasks: Mapping[str, Task], model: SharedNetwork) -> None:
        self._tasks = tasks
        self._model = model

    def example(self, batch: Any) -> Example:
        """Input and target of the batch's task, which becomes the active one."""
        self._model.active = batch.task
        return self._tasks[batch.task].example(batch)

    def loss(self, raw: Tensor, example: Example) -> Tensor:
        """The active task's loss."""
        return self._tasks[self._model.active].loss(raw, example)

    def adversary(self) -> None:
        """None.

        Raises:
            InputError: a task asks for one.
        """
        asking = [name for name, task in self._tasks.items() if task.adversary() is not None]
        if asking:
            raise InputError(
                f"joint training has no discriminators, and the loss of {', '.join(asking)} asks for one: leave loss.gan out of "
                "it, or choose another method, such as method=finetune"
            )

    def loss_count(self, example: Example) -> Tensor | int:
        """The active task's."""
        return self._tasks[self._model.active].loss_count(example)


@STRATEGIES.register("joint")
@dataclass(kw_only=True)
class Joint(SharedStrategy):
    """One network trained on all tasks of the sequence at once, each in turn, for the sum of their steps.

    That happens when the first of them is due; it starts where the other methods start. Tasks cannot be added afterwards. Rates
    and so on are those of the whole experiment, not of a task; validations come as often in a task's own steps as when it is
    trained alone, and as many batches of each task serve precise batch normalisation.

    Attributes:
        norm: "own", since batches of one task at a time fit no common running statistics.
    """

    learns_together: ClassVar[bool] = True
    norm: SharedNorm = "own"

    def begin(self, context: Context) -> None:
        """All heads from the start."""
        super().begin(context)
        self._names = list(context.experiment.sequence)
        for name in self._names:
            self.add(name, context.head(name))
        self._trained = False
        self._baselines: dict[str, float] = {}

    def adopt(self, name: str, head: nn.Module) -> Iterator[Phase]:
        """Train all tasks, the first again."""
        self.model.heads[name] = head
        self.context.place(self.model)
        return self.learn(name)

    def learn(self, name: str) -> Iterator[Phase]:
        """Train all tasks, if that has not been done."""
        if self._trained:
            return
        self.model.train_only(*self._names)
        self.model.active = name
        task_data, experiment, count = self.context.task_data, self.context.experiment, len(self._names)
        common = experiment.train.in_steps(len(task_data[self._names[0]].parts.train))
        yield Phase(
            module=self.model,
            head=self.model.heads,
            suffix=".joint",
            options=common.changed(
                steps=sum(task_data[n].options.steps for n in self._names),
                validation={
                    "every": common.validation.every * count,
                    "precise_bn_batches": common.validation.precise_bn_batches * count,
                },
            ),
            objective=JointTask({n: task_data[n].task for n in self._names}, self.model),
            batches=JointBatches({n: task_data[n].batches(experiment.seed_of(n)) for n in self._names}),
            validate=self._mean_skill,
        )
        self._trained = True

    def _mean_skill(self) -> float:
        """The mean over the tasks of the skill on the validation images, see `metrics.sequence.skill`.

        Tasks whose baseline is perfect there, or whose metric has no ceiling, such as PSNR, are left out. NaN where a task's
        metric is not finite: the loop then ends the training, as it does when a task is trained alone.

        Raises:
            InputError: no task is left.
        """
        skills, evaluator = [], self.context.evaluator
        for name in self._names:
            task, images = self.context.task_data[name].task, self.context.task_data[name].parts.val
            if name not in self._baselines:  # measured once, since it never changes
                self._baselines[name] = evaluator.primary_metric(None, task, images)
            value = evaluator.primary_metric(self.network(name), task, images)
            if not math.isfinite(value):
                return math.nan
            skills.append(skill_or_none(value, self._baselines[name], higher_is_better=task.higher_is_better))
        known = [s for s in skills if s is not None]
        if not known:
            raise InputError(
                f"none of {', '.join(self._names)} has a skill on its validation images, since the baseline is perfect there "
                "or the metric has no ceiling: expected at least one, which chooses the state; add validation images of other "
                "classes"
            )
        return sum(known) / len(known)

    def restore(self, own: Mapping[str, Mapping[str, Tensor]], shared: Mapping[str, Tensor]) -> None:
        """The network; its tasks must be the sequence's.

        Raises:
            InputError: the sequence has other tasks than were trained together.
        """
        trained = {name.partition(".")[0]: None for name in within("model.heads", shared)}
        if trained.keys() != set(self._names):
            raise InputError(
                f"{list(trained)} were trained together, the sequence has {self._names}, and joint training adds no task "
                "afterwards and drops none: choose another run folder (out=...), or the sequence that was trained"
            )
        self.model.load_state_dict(within("model", shared))
        self._trained = True
