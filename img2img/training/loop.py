"""The training loop of one task: any module, any task, resumable at any step."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from img2img.errors import InputError, TrainingDivergedError, memory_explained
from img2img.masks import TaskModule
from img2img.masks.flips import FlipMeter
from img2img.tasks.base import Example
from img2img.training.checkpoint import load_checkpoint, random_states, save_checkpoint, set_random_states
from img2img.training.distributed import Processes
from img2img.training.log import TrainingLog
from img2img.training.optimiser import all_groups, build_optimisers, schedule, start_momentum
from img2img.training.options import TrainOptions
from img2img.training.precise_bn import precise_bn


class Objective(Protocol):
    """What is trained for: a `Task`, or several as one."""

    @property
    def kind(self) -> str:
        """What messages call it."""

    @property
    def metric(self) -> str:
        """The figure that decides."""

    @property
    def higher_is_better(self) -> bool:
        """Its direction."""

    def example(self, batch: Any) -> Example:
        """Input and target of a batch."""

    def loss(self, raw: Tensor, example: Example) -> Tensor:
        """The scalar loss of a raw output."""

    def loss_count(self, example: Example) -> Tensor | int:
        """What that loss is a mean over, see `Task.loss_count`."""


class Batches(Protocol):
    """The training pictures."""

    def iterate(self, start_step: int = 0) -> Iterator[Any]:
        """The batches from a step on, without end."""

    def part(self, number: int, count: int) -> Self:
        """The same of part `number` of `count` equal parts of each batch."""


class Progress(Protocol):
    """What is told about a running training."""

    def __call__(self, step: int, *, loss: float, best: float | None) -> None:
        """After each logged step."""


@dataclass(frozen=True)
class Fitted:
    """The outcome of a training; the module holds the state that was kept.

    Attributes:
        best: the primary metric on the validation set of the state that was kept.
        best_step: the step after which it was measured.
        seconds: time in the loop, validations included, over all resumptions.
        steps: how many there were.
    """

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
    fingerprint: str | Sequence[str],
    extra: Callable[[Tensor, Tensor], Tensor | None] | None = None,
    head: nn.Module | None = None,
    after_step: Callable[[], None] | None = None,
    progress: Progress | None = None,
    channels_last: bool = False,
) -> Fitted:
    """Train `module` on `task` and leave it with the state that validated best, or the last, see `TrainOptions.keep`.

    If `checkpoint` exists the training goes on from it, and ends as it would have ended without the interruption: bit for bit
    on a CPU. The last checkpoint holds the end; the caller removes it once the outcome is safe elsewhere.

    Several processes share each batch out and end with the same state; the first of them validates and writes.

    Args:
        module: from inputs (N, 3, H, W) to raw outputs; what requires grad is trained.
        task: gives the loss.
        batches: the training pictures by step.
        validate: measures the primary metric on the validation set, with `module` in evaluation mode.
        options: steps, rates and so on.
        fabric: device, precision and processes.
        log: where rows go.
        checkpoint: the file of the running training.
        fingerprint: a hash of whatever the training depends on; a checkpoint of another one is refused. Of several, which all
            are accepted, the first is written.
        extra: `extra(input, output)` is added to the loss, a penalty or a distillation; None for nothing.
        head: the part of `module` that is trained alone at first, see `TrainOptions.head_first`; None: all from the start.
        after_step: called after each step of the optimisers, to set right what they may not change; None for nothing.
        progress: told about each logged step.
        channels_last: run pictures in this memory format; the module's weights should be in it.

    Raises:
        TrainingDivergedError: the loss or the validation is NaN or infinite; nothing is saved of it.
        OutOfMemoryError: names the batch size and crop to try.
        InputError: the checkpoint is damaged or of another configuration.
    """
    processes = Processes(fabric)
    if processes.world_size > 1:
        batches = batches.part(processes.rank, processes.world_size)
        processes.own_randomness()
    optimisers = build_optimisers(module, options)
    wrapped, *fabric_optimisers = fabric.setup(module, *optimisers)
    start, seconds, since = 0, 0.0, 0
    rows: list[dict[str, Any]] = []
    mask_rows: list[dict[str, Any]] = []
    flips = FlipMeter(module.state) if isinstance(module, TaskModule) else None
    running = torch.zeros((), device=fabric.device)
    best: dict[str, Any] = {"value": None, "step": 0, "state": None}
    if checkpoint.exists():
        saved = load_checkpoint(checkpoint, fingerprint=fingerprint)
        module.load_state_dict(saved["module"])
        for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        # A process that was not there before draws on from its own.
        for state in [saved["random"], *saved.get("others", ())][processes.rank :][:1]:
            set_random_states(state)
        start, seconds, rows, best = saved["step"], saved["seconds"], saved["rows"], saved["best"]
        running, since, mask_rows = saved["running"].to(fabric.device), saved["since"], saved["mask_rows"]
        if flips is not None:
            flips.load_state_dict(saved["seen"])
    processes.broadcast(module)
    log.start(rows, mask_rows)
    began = time.monotonic() - seconds
    alone = 0 if head is None else int(options.head_first * options.steps)
    waiting = _all_but(head, module) if head is not None and start < alone else []
    for parameter in waiting:
        parameter.requires_grad_(False)

    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    module.train()

    for step, batch in zip(range(start, options.steps), batches.iterate(start), strict=False):
        factor = schedule(step, options)
        for group in all_groups(optimisers):
            group["lr"] = group["base_lr"] * factor
        if step == alone:
            for parameter in waiting:
                parameter.requires_grad_(True)
            start_momentum(optimisers)
        with explained(options):
            example = task.example(batch.to(fabric.device))
            input = example.input.contiguous(memory_format=memory_format)
            output = wrapped(input)
            loss = task.loss(output, example)
            with fabric.autocast():  # as the module runs in: what is added may run parts of it again
                more = None if extra is None else extra(input, output)
            if processes.world_size > 1:
                loss, whole = processes.share(loss, task.loss_count(example), more)
            else:
                loss = loss if more is None else loss + more
                whole = loss.detach()
            for optimiser in fabric_optimisers:
                optimiser.zero_grad()
            fabric.backward(loss)
            processes.add_gradients(p for group in all_groups(optimisers) for p in group["params"])
        running += whole
        since += 1
        # Before the step, so that the weights are still those of the last good one. On a GPU looking is a
        # synchronisation, so there it happens with the log.
        done = step + 1
        logged = done % options.log_every == 0 or done == options.steps
        if logged or fabric.device.type == "cpu":
            _require_finite(float(running), task, step, options)
        for optimiser in fabric_optimisers:
            optimiser.step()
        if after_step is not None:
            after_step()

        validated = done % options.val_every == 0 or done == options.steps
        value = None
        if validated:
            examples = (task.example(batch.to(fabric.device)) for batch in batches.iterate(done))
            inputs = (example.input.contiguous(memory_format=memory_format) for example in examples)
            with explained(options):
                precise_bn(module, wrapped, inputs, options.norm_batches)
            processes.average_statistics(module)
            module.eval()
            value = processes.on_rank_zero(validate)
            module.train()
            if not math.isfinite(value):
                raise TrainingDivergedError(_diverged(f"the validation's {task.metric}", task, step, options))
            if best["value"] is None or options.keep == "last":
                better = True
            else:
                better = value > best["value"] if task.higher_is_better else value < best["value"]
            if better:
                best = {"value": value, "step": done, "state": copy.deepcopy(module.state_dict())}
        if logged or validated:
            mean = float(running) / max(since, 1)
            log.add({"step": done, "loss": mean, "rate": factor, f"val {task.metric}": value})
            if validated and flips is not None:
                log.add_masks(done, flips.update())
            running.zero_()
            since = 0
            if progress is not None:
                progress(done, loss=mean, best=best["value"])
        if done % options.checkpoint_every == 0 or done == options.steps:
            log.write()  # first: a run that was killed after its last checkpoint does no more steps
            processes.average_statistics(module)  # one state is saved, and all go on from it
            own, *others = processes.each(random_states())
            saving = {
                "fingerprint": fingerprint if isinstance(fingerprint, str) else fingerprint[0],
                "step": done,
                "module": module.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in optimisers],
                "random": own,
                "others": others,
                "best": best,
                "seconds": time.monotonic() - began,
                "rows": log.rows,
                "mask_rows": log.mask_rows,
                "seen": {} if flips is None else flips.state_dict(),
                "running": running,
                "since": since,
            }
            if processes.is_rank_zero:
                save_checkpoint(checkpoint, saving)

    assert best["state"] is not None
    module.load_state_dict(best["state"])
    processes.broadcast(module)
    module.eval()
    return Fitted(best["value"], best["step"], time.monotonic() - began, options.steps)


def _all_but(head: nn.Module, module: nn.Module) -> list[nn.Parameter]:
    """What is trained of `module`, less `head`."""
    known = {id(p) for p in head.parameters()}
    return [p for p in module.parameters() if p.requires_grad and id(p) not in known]


def _require_finite(loss: float, task: Objective, step: int, options: TrainOptions) -> None:
    if not math.isfinite(loss):
        raise TrainingDivergedError(_diverged("the loss", task, step, options))


def _diverged(what: str, task: Objective, step: int, options: TrainOptions) -> str:
    return (
        f"{what} of the {task.kind} task is not a finite number at step {step + 1}: lower train.lr (now {options.lr:g}), "
        f"train.head_lr or train.mask_lr (now {options.mask_lr:g}), or look for broken pictures. Nothing of this step was saved; "
        "finished tasks and the last checkpoint are kept"
    )


@contextmanager
def explained(options: TrainOptions) -> Iterator[None]:
    """Turn what a step cannot do with its batch, on a GPU or a CPU, into an error that names the batch size and crop to try.

    Raises:
        OutOfMemoryError: the block ran out of memory.
        InputError: normalisation found a single value to normalise.
    """
    batch, crop = max(1, options.batch_size // 2), max(32, options.crop * 3 // 4 // 32 * 32)
    doing = f"with train.batch_size={options.batch_size} at train.crop={options.crop}"
    remedy = (
        f"try train.batch_size={batch}, or train.crop={crop}. Finished tasks and the last checkpoint are kept; run the same "
        "command again"
    )
    try:
        with memory_explained(doing, remedy):
            yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1"):  # PyTorch's batch and instance normalisation
            raise
        raise InputError(
            f"train.batch_size={options.batch_size} at train.crop={options.crop} leaves the network's normalisation a single "
            f"value of each channel ({error}), and it needs two or more: raise train.batch_size or train.crop, or freeze it with "
            "norm=frozen"
        ) from error
