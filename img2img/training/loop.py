"""The training loop of one task: any module, any task, resumable at any step."""

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from img2img.data.loader import timed
from img2img.errors import InputError, TrainingDivergedError, memory_explained
from img2img.masks.tensors import all_finite
from img2img.tasks.adversary import Adversary
from img2img.tasks.base import Example
from img2img.training.adversarial_training import AdversarialTraining
from img2img.training.average import WeightAverage
from img2img.training.checkpoint import load_checkpoint, random_states, save_checkpoint, set_random_states
from img2img.training.config import TrainOptions
from img2img.training.distributed import Fabric, Processes
from img2img.training.log import Callback, TrainingLog, check_callbacks, load_states
from img2img.training.optimiser import (
    Groups,
    all_groups,
    all_of,
    build_optimisers,
    check_one_optimiser,
    schedule,
    schedulers,
    start_momentum,
)
from img2img.training.precise_bn import precise_bn

logger = logging.getLogger("img2img")


class Objective(Protocol):
    """What is trained for: a `Task`, or several as one."""

    @property
    def kind(self) -> str:
        """What messages call it."""

    @property
    def metric(self) -> str:
        """The name of the primary metric."""

    @property
    def higher_is_better(self) -> bool:
        """Its direction."""

    def example(self, batch: Any) -> Example:
        """Input and target of a batch."""

    def loss(self, raw: Tensor, example: Example) -> Tensor:
        """The scalar loss of a raw output."""

    def loss_count(self, example: Example) -> Tensor | int:
        """What that loss is a mean over, see `Task.loss_count`."""

    def adversary(self) -> Adversary | None:
        """What it is trained against, see `Task.adversary`."""


class Batches(Protocol):
    """The training images."""

    def iterate(self, start_step: int = 0) -> Iterator[Any]:
        """The batches from a step on, without end."""

    def part(self, number: int, count: int) -> Self:
        """The same of part `number` of `count` equal parts of each batch."""


class Progress(Protocol):
    """A callback that shows how a training run gets on."""

    def __call__(self, step: int, *, loss: float, best: float | None) -> None:
        """After each logged step."""


@dataclass(frozen=True)
class Fitted:
    """The outcome of a training; the module holds the state that was kept.

    Attributes:
        metric: the name of the objective's primary metric.
        best: that metric on the validation set of the state that was kept.
        best_step: the step after which it was measured.
        seconds: time in the loop, validations included, over all resumptions.
        steps: how many there were.
    """

    metric: str
    best: float
    best_step: int
    seconds: float
    steps: int


def fit(
    module: nn.Module,
    task: Objective,
    batches: Batches,
    validate: Callable[[], float],
    options: TrainOptions,
    *,
    fabric: Fabric,
    log: TrainingLog,
    checkpoint: Path,
    fingerprint: str,
    extra: Callable[[Tensor, Tensor], Tensor | None] | None = None,
    head: nn.Module | None = None,
    groups: Groups | None = None,
    callbacks: Sequence[Callback] = (),
    start_value: float | None = None,
    progress: Progress | None = None,
    channels_last: bool = False,
) -> Fitted:
    """Train `module` on `task` and leave it with the state that validated best, or the last, see `ValidationOptions.keep`.

    With `AverageOptions.decay` the states that are validated and kept are those of the averaged weights, see `WeightAverage`.

    If `checkpoint` exists the training goes on from it, and ends as it would have ended without the interruption: bit for bit
    on a CPU. The last checkpoint holds the end; the caller removes it once the outcome is safe elsewhere.

    Several processes share each batch out and end with the same state; the first of them validates and writes.

    Args:
        module: from inputs (N, 3, H, W) to raw outputs; what requires grad is trained.
        task: gives the loss.
        batches: the training images by step.
        validate: measures the primary metric on the validation set, with `module` in evaluation mode.
        options: steps, rates and so on.
        fabric: device, precision and processes.
        log: where rows go.
        checkpoint: the file of the running training.
        fingerprint: a hash of whatever the training depends on; a checkpoint of another one is refused.
        extra: `extra(input, output)` is added to the loss, a penalty or a distillation; None for nothing.
        head: the part of `module` that is trained alone at first, see `ScheduleOptions.head_first`; None: all from the start.
        groups: the parameter groups, with an optimiser and a rate each; None: one group of all that requires grad.
        callbacks: told of steps and validations; their state is part of the checkpoint.
        start_value: what the state at the start validates as, where that is a state to keep if no later one is better.
        progress: told about each logged step.
        channels_last: run images in this memory format; the module's weights should be in it.

    Raises:
        TrainingDivergedError: the loss or the validation is NaN or infinite; nothing is saved of it.
        OutOfMemoryError: names the batch size and crop to try.
        InputError: the checkpoint is damaged or of another configuration, or the precision cannot have several optimisers.
    """
    processes = Processes(fabric)
    against = task.adversary()
    adversary = None if against is None else AdversarialTraining(against, options, fabric, processes)
    if adversary is not None:
        callbacks = [*callbacks, adversary]  # its state is part of the checkpoint
    if processes.world_size > 1:
        batches = batches.part(processes.rank, processes.world_size)
        processes.own_randomness()
    optimisers = build_optimisers((groups or all_of(module))(options.optimiser), options.optimiser)
    check_one_optimiser(optimisers, fabric)
    wrapped, *fabric_optimisers = fabric.setup(module, *optimisers)
    trained = [p for group in all_groups(optimisers) for p in group["params"]]
    average = None
    if options.average.decay:
        average = WeightAverage(module, trained, options.average)
        callbacks = [*callbacks, average]  # last: what the others set right after a step is averaged
    check_callbacks(callbacks)
    averaged = nullcontext if average is None else average.applied
    start, seconds, since = 0, 0.0, 0
    rows: list[dict[str, Any]] = []
    tables: dict[str, list[dict[str, Any]]] = {}
    running = torch.zeros((), device=fabric.device)
    kept = _Kept()
    if start_value is not None and options.validation.keep == "best":
        kept = _Kept(start_value, 0, copy.deepcopy(module.state_dict()))
    if checkpoint.exists():
        saved = load_checkpoint(checkpoint, fingerprint=fingerprint)
        module.load_state_dict(saved["module"])
        for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        # A process that was not there before draws on from its own.
        for state in [saved["random"], *saved.get("others", ())][processes.rank :][:1]:
            set_random_states(state)
        start, seconds, rows, kept = saved["step"], saved["seconds"], saved["rows"], _Kept(**saved["best"])
        running, since, tables = saved["running"].to(fabric.device), saved["since"], saved["tables"]
        fabric.strategy.precision.load_state_dict(saved["precision"])
        load_states(callbacks, saved["callbacks"], checkpoint)
        logger.info("%s: goes on from its checkpoint, at step %d of %d", checkpoint.stem, start, options.steps)
    rates = schedulers(optimisers, options, start=start)
    processes.broadcast(module)
    log.start(rows, tables)
    began = time.monotonic() - seconds
    learns = head is not None and any(p.requires_grad for p in head.parameters())
    alone = int(options.schedule.head_first * options.steps) if learns else 0
    waiting = _all_but(head, module) if head is not None and start < alone else []
    for parameter in waiting:
        parameter.requires_grad_(False)

    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    gradients = _Gradients(
        wrapped=wrapped,
        task=task,
        fabric=fabric,
        processes=processes,
        optimisers=fabric_optimisers,
        trained=trained,
        extra=extra,
        adversary=adversary,
        memory_format=memory_format,
    )
    intervals = (options.log_every, options.validation.every, options.checkpoint_every)
    module.train()

    stream = timed(batches.iterate(start), checkpoint.stem, workers=options.workers)
    for step, batch in zip(range(start, options.steps), stream, strict=False):
        if step == alone:
            for parameter in waiting:
                parameter.requires_grad_(True)
            start_momentum(optimisers)
        with explained(options):
            running += gradients(batch, step)
        since += 1
        # Before the step, so that the weights are still those of the last good one. On a GPU looking is a
        # synchronisation, so there it happens with the log, a validation or a checkpoint.
        done = step + 1
        last = done == options.steps
        logged, validated, saves = (last or done % every == 0 for every in intervals)
        if logged or validated or saves or fabric.device.type == "cpu":
            _require_finite(float(running), task, step, options)
        for optimiser in fabric_optimisers:
            optimiser.step()
        for rate in rates:
            rate.step()
        for callback in callbacks:
            callback.after_step()

        value = None
        if (validated or saves) and not all_finite(trained):  # before the last good checkpoint is replaced
            raise TrainingDivergedError(_diverged("a trained weight or score", task, step, options))
        if validated:
            examples = (task.example(batch.to(fabric.device)) for batch in batches.iterate(done))
            inputs = (example.input.contiguous(memory_format=memory_format) for example in examples)
            with averaged():
                with explained(options):
                    precise_bn(module, wrapped, inputs, options.validation.precise_bn_batches)
                processes.average_statistics(module)
                module.eval()
                value = processes.on_rank_zero(validate)
                module.train()
                if not math.isfinite(value):
                    raise TrainingDivergedError(_diverged(f"the validation's {task.metric}", task, step, options))
                if options.validation.keep == "last" or kept.is_surpassed(value, higher_is_better=task.higher_is_better):
                    kept = _Kept(value, done, copy.deepcopy(module.state_dict()))
        if logged or validated:
            mean = float(running) / max(since, 1)
            log.add({"step": done, "loss": mean, "rate": schedule(step, options), f"val {task.metric}": value})
            for callback in callbacks if validated else ():
                callback.after_validation(done, log)
            running.zero_()
            since = 0
            if progress is not None:
                progress(done, loss=mean, best=kept.value)
        if saves:
            log.write()  # first: a run that was killed after its last checkpoint does no more steps
            processes.average_statistics(module)  # one state is saved, and all go on from it
            if average is not None:
                with average.applied():
                    processes.average_statistics(module)
            own, *others = processes.each(random_states())
            saving = {
                "fingerprint": fingerprint,
                "step": done,
                "module": module.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in optimisers],
                "random": own,
                "others": others,
                "best": vars(kept),
                "seconds": time.monotonic() - began,
                "rows": log.rows,
                "tables": log.tables,
                "callbacks": {type(callback).__name__: callback.state() for callback in callbacks},
                "precision": fabric.strategy.precision.state_dict(),  # the scale of the loss under 16-mixed
                "running": running,
                "since": since,
            }
            if processes.is_rank_zero:
                save_checkpoint(checkpoint, saving)

    stream.close()
    assert kept.value is not None
    assert kept.state is not None
    module.load_state_dict(kept.state)
    processes.broadcast(module)
    module.eval()
    return Fitted(task.metric, kept.value, kept.step, time.monotonic() - began, options.steps)


@dataclass(frozen=True)
class _Kept:
    """The state that a training ends with, so far.

    Attributes:
        value: what it validated as; None before the first validation.
        step: the step after which it did.
        state: the module's.
    """

    value: float | None = None
    step: int = 0
    state: dict[str, Any] | None = None

    def is_surpassed(self, value: float, *, higher_is_better: bool) -> bool:
        """Whether a state that validates as `value` is better."""
        if self.value is None:
            return True
        return value > self.value if higher_is_better else value < self.value


@dataclass(frozen=True, kw_only=True)
class _Gradients:
    """A step up to its gradients; the fields are those of `fit` and what it made of them.

    Attributes:
        wrapped: the module in its precision.
    """

    wrapped: nn.Module
    task: Objective
    fabric: Fabric
    processes: Processes
    optimisers: Sequence[Any]
    trained: Sequence[nn.Parameter]
    extra: Callable[[Tensor, Tensor], Tensor | None] | None
    adversary: AdversarialTraining | None
    memory_format: torch.memory_format

    def __call__(self, batch: Any, step: int) -> Tensor:
        """Add a batch's gradients to zero; returns its loss over all processes, detached."""
        example = self.task.example(batch.to(self.fabric.device))
        input = example.input.contiguous(memory_format=self.memory_format)
        output = self.wrapped(input)
        loss = self.task.loss(output, example)
        with self.fabric.autocast():  # as the module runs in: what is added may run parts of it again
            more = None if self.extra is None else self.extra(input, output)
        if self.adversary is not None:
            term = self.adversary.step(output, example, step)
            more = term if more is None else more + term
        if self.processes.world_size > 1:
            loss, whole = self.processes.share(loss, self.task.loss_count(example), more)
        else:
            loss = loss if more is None else loss + more
            whole = loss.detach()
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        self.fabric.backward(loss)
        self.processes.add_gradients(self.trained)
        return whole


def _all_but(head: nn.Module, module: nn.Module) -> list[nn.Parameter]:
    """What is trained of `module`, less `head`."""
    known = {id(p) for p in head.parameters()}
    return [p for p in module.parameters() if p.requires_grad and id(p) not in known]


def _require_finite(loss: float, task: Objective, step: int, options: TrainOptions) -> None:
    if not math.isfinite(loss):
        raise TrainingDivergedError(_diverged("the loss", task, step, options))


def _diverged(what: str, task: Objective, step: int, options: TrainOptions) -> str:
    return (
        f"{what} of the {task.kind} task is not a finite number at step {step + 1}: lower train.optimiser.lr (now "
        f"{options.optimiser.lr:g}), head_lr or mask_lr (now {options.optimiser.mask_lr:g}), or look for broken images. Nothing "
        "of this step was saved; finished tasks and the last checkpoint are kept"
    )


@contextmanager
def explained(options: TrainOptions) -> Iterator[None]:
    """Turn what a step cannot do with its batch, on a GPU or a CPU, into an error that names the batch size and crop to try.

    Raises:
        OutOfMemoryError: the block ran out of memory.
        InputError: normalisation found a single value to normalise.
    """
    crop = options.augmentation.crop
    batch, smaller = max(1, options.batch_size // 2), max(32, crop * 3 // 4 // 32 * 32)
    doing = f"with train.batch_size={options.batch_size} at train.augmentation.crop={crop}"
    remedy = (
        f"try train.batch_size={batch}, or train.augmentation.crop={smaller}. Finished tasks and the last checkpoint "
        "are kept; run the same command again"
    )
    try:
        with memory_explained(doing, remedy):
            yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1"):  # PyTorch's batch and instance normalisation
            raise
        raise InputError(
            f"train.batch_size={options.batch_size} at train.augmentation.crop={crop} leaves the network's normalisation a "
            f"single value of each channel ({error}), and it needs two or more: raise train.batch_size or "
            "train.augmentation.crop, or freeze it with masks.norm=frozen"
        ) from error
