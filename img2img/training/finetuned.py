"""A task from a network that was fine-tuned from the backbone: its start, the training against its outputs, and what each brings.

The network is the "before". Its changes as signs and scales are the start (`masks.delta_from_finetuned`); the normalisation
statistics are then averaged for the weights as they are; a training of what the task has of its own follows. Each is measured on
the validation images.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from img2img.backbones.pretrained import read_tensors
from img2img.errors import InputError
from img2img.files.paths import expanded
from img2img.files.untrusted import naming
from img2img.inference.evaluator import finite
from img2img.masks import MaskedNetwork
from img2img.masks.delta import FinetunedDelta, delta_from_finetuned, finetuned_tensors
from img2img.masks.instance_norm import use_instance_statistics
from img2img.masks.methods.signs import SignsMask
from img2img.tasks.base import Example, Task
from img2img.training.config.experiment import FinetunedOptions
from img2img.training.precise_bn import precise_bn
from img2img.training.results import FinetunedResult
from img2img.training.strategy import Context, evaluated

logger = logging.getLogger("img2img")


class Distilled:
    """A task whose target is what a teacher makes of the same input.

    How outputs are compared is the task's (`Task.distillation`), since only it knows what its raw outputs mean: a squared error
    of images, a cross entropy of class probabilities. The temperature is 1: the answers wanted are the teacher's as they are.
    An `Objective` of the training loop.

    Args:
        task: gives inputs, metric and the distillation loss.
        teacher: a plain module in evaluation mode.
    """

    def __init__(self, task: Task, teacher: nn.Module) -> None:
        self._task = task
        self._teacher = teacher
        self.kind, self.metric, self.higher_is_better = task.kind, task.metric, task.higher_is_better

    def example(self, batch: Any) -> Example:
        """The task's."""
        return self._task.example(batch)

    def loss(self, raw: Tensor, example: Example) -> Tensor:
        """The distillation loss of a raw output."""
        with torch.no_grad():
            target = self._teacher(example.input)
        return self._task.distillation(raw, target, temperature=1.0)

    def adversary(self) -> None:
        """None: what is wanted is the teacher's output, and no other image that looks true."""

    def loss_count(self, example: Example) -> int:
        """The images: every pixel has a target."""
        return len(example.input)


class FinetunedTask:
    """A task of a run that is made of a fine-tuned network.

    Args:
        context: the run.
        name: the task.
        options: as its config has them.

    Attributes:
        teacher: the fine-tuned network, a plain module on the run's device.

    Raises:
        InputError: the file cannot be read, or is no network of the backbone's shapes with a head for the task; names the file.
    """

    def __init__(self, context: Context, name: str, options: FinetunedOptions) -> None:
        self._context, self._name, self._options = context, name, options
        self._file = expanded(options.weights)
        self._tensors = read_finetuned(self._file)
        head = context.head(name)
        with naming(self._file):
            found = finetuned_tensors(context.network, self._tensors, head)
        self.teacher = context.network.copy_backbone(head).requires_grad_(False)
        found.load_into(self.teacher, context.network.head_name)
        if context.task_data[name].config.norm == "instance":
            use_instance_statistics(self.teacher)
        context.place(self.teacher.eval())
        self._val: dict[str, float] = {}
        self._delta: FinetunedDelta | None = None
        self._result: FinetunedResult | None = None

    @staticmethod
    def check(context: Context, name: str, options: FinetunedOptions) -> None:
        """Refuse, before any training, what cannot be made a task; the network stays as it is.

        Raises:
            InputError: see `FinetunedTask`; or a tensor that no task has of its own differs.
        """
        made = FinetunedTask(context, name, options)
        if options.start:
            made._add(context.network)
            context.network.delete_task(name)

    @property
    def starts(self) -> bool:
        """Whether the task starts from the network, see `add`."""
        return self._options.start

    def begin(self) -> None:
        """Measure the network itself."""
        self._measure("finetuned", self.teacher)

    def add(self) -> None:
        """Add the task to the network: its start, with normalisation statistics that fit it. Each step is measured."""
        context, name = self._context, self._name
        self._delta = self._add(context.network)
        context.place(context.network)
        module = context.network.task_module(name)
        self._measure("signs", module)
        task_data, device = context.task_data[name], context.evaluator.device
        batches = task_data.batches(context.experiment.seed_of(name)).iterate(0)
        inputs = (context.evaluator.placed(task_data.task.example(batch.to(device)).input) for batch in batches)
        precise_bn(module, module, inputs, task_data.options.validation.precise_bn_batches)
        self._measure("statistics", module)
        if not self._options.train_signs:
            for mask in module.state.masks.children():
                if isinstance(mask, SignsMask) and mask.score is not None:  # a trained copy has no signs
                    mask.score.requires_grad_(False)

    @property
    def start_value(self) -> float | None:
        """What the start validates as: a training that does not better it is not kept. None where there is no such start."""
        return self._val.get("statistics")

    def objective(self) -> Distilled | None:
        """What the training is for; None for the task's own loss."""
        return Distilled(self._context.task_data[self._name].task, self.teacher) if self._options.distil else None

    def end(self) -> None:
        """Measure the task as it is stored, after it was frozen."""
        self._measure("trained", self._context.network.task_module(self._name))

    def result(self) -> FinetunedResult:
        """What is said of it in a run's results; the network is measured on the test set here, once."""
        task_data, delta = self._context.task_data[self._name], self._delta
        self._result = self._result or FinetunedResult(
            bytes=self._file.stat().st_size,
            metrics=finite(self._context.evaluator.metrics(evaluated(self.teacher), task_data.task, task_data.parts.test)),
            val=finite(self._val),
            moved=None if delta is None else delta.moved,
            explained=None if delta is None else delta.explained,
            not_kept={} if delta is None else delta.not_kept,
        )
        return self._result

    def _add(self, network: MaskedNetwork) -> FinetunedDelta:
        """Add the task with the signs of the network's changes, and no more."""
        name, config = self._name, self._context.task_data[self._name].config
        with naming(self._file):
            return delta_from_finetuned(
                network,
                name,
                self._tensors,
                method=config.method,
                head=self._context.head(name),
                norm=config.norm,
                keep_frozen=self._options.keep_frozen,
            )

    def _measure(self, step: str, module: nn.Module) -> None:
        task_data = self._context.task_data[self._name]
        value = self._context.evaluator.primary_metric(evaluated(module), task_data.task, task_data.parts.val)
        self._val[step] = value
        logger.info("%s: %s: validation %s %.4g", self._name, _MEANS[step], task_data.task.metric, value)


_MEANS = {
    "finetuned": "the fine-tuned network",
    "signs": "the signs of its changes",
    "statistics": "with normalisation statistics of their own",
    "trained": "after the training",
}


def read_finetuned(file: Path) -> dict[str, Tensor]:
    """The tensors of a fine-tuned network's file; nothing is unpickled.

    Raises:
        InputError: there is no such file, or it holds no tensors by name.
    """
    if not file.is_file():
        raise InputError(
            f"no fine-tuned network at {file}: expected a .safetensors file, or what torch.save wrote, of its state dict; check "
            "the path"
        )
    return read_tensors(file)
