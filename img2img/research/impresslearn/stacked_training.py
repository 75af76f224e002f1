"""Several tasks of one network trained at once: each on its own batches, as if alone, in one pass of stacked weights.

The tasks' effective weights are stacked and the backbone runs once over all of them (`torch.vmap`: a linear layer becomes one
batched matrix product); and what tasks of one basis combine (ImpressLearn, equation 1) is one matrix product for all of them,
`(T, K) @ (K, n)`, and so is its gradient, in place of decoding the basis for each task and step. That is where the time is won:
ten tasks over a basis of 100 masks take a fifth of it on a CPU, ten tasks with masks of their own a little more than one by one
(`benchmarks/stacked_training.py`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from img2img.errors import InputError, TrainingDivergedError
from img2img.masks import Basis, MaskedNetwork
from img2img.masks.functional_module import FunctionalModule
from img2img.masks.methods.impresslearn import ImpressMask
from img2img.masks.task_state import TaskState
from img2img.masks.tensors import all_tensors

_CHECK_EVERY = 100
"""Steps between two looks at whether the losses are numbers."""

TABLE_3 = partial(torch.optim.RMSprop, lr=2e-3)
"""The optimiser of ImpressLearn for MNIST (table 3), which gives none for the masks of a basis apart."""

Batch = tuple[Tensor, Tensor]
"""Inputs `(T, N, ...)` and targets `(T, N, ...)`: a batch of N samples for each of T tasks."""


def train_stacked(
    network: MaskedNetwork,
    tasks: Sequence[str],
    batches: Iterable[Batch],
    *,
    steps: int,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    optimiser: Callable[[list[nn.Parameter]], Optimizer] = TABLE_3,
    table_bytes: int = 1 << 30,
    progress: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Train `tasks` of `network` for `steps` steps; they are ordinary tasks before and after, and not frozen here.

    Each task gets what it would get alone from the same batches, up to rounding: the tasks' losses are added up, and none of them
    depends on another's parameters. Random layers, such as dropout, differ from task to task.

    Args:
        network: its backbone keeps no running statistics.
        tasks: names of tasks that are not frozen, of one method, with heads of one kind if any.
        batches: one pair for each step, `Batch`, with the tasks in the order of `tasks`.
        steps: how many.
        loss: `loss(outputs, targets)` of one task's batch, a scalar; a method's penalty is added to it.
        optimiser: makes an optimiser of the parameters of all tasks. It has to treat each value by itself, as RMSprop, Adam and
            SGD do.
        table_bytes: bound on the masks of bases unpacked to float32, 4 bytes a mask value; a weight whose masks do not fit is
            combined task by task.
        progress: called after each step with its number, from 1, and the tasks' losses, (T,).

    Returns:
        The losses, (steps, T), without penalties.

    Raises:
        InputError: the tasks cannot be trained together, or there are not as many batches as steps, or of as many tasks.
        TrainingDivergedError: a loss is NaN or infinite.
    """
    if steps < 1:
        raise InputError(f"steps={steps}: expected at least one training step")
    states = _checked(network, tasks)
    stacked = _Stacked(network, states, table_bytes)
    parameters = [p for state in states for p in state.parameters() if p.requires_grad]
    optimise = optimiser(parameters)
    source = iter(batches)
    losses = []
    with _training(network), torch.inference_mode(False), torch.enable_grad():
        for step in range(1, steps + 1):
            inputs, targets = _next(source, step, steps, len(states))
            optimise.zero_grad()
            outputs = stacked.run(inputs)
            costs = torch.stack([loss(output, target) for output, target in zip(outputs, targets, strict=True)])
            penalties = [penalty for state in states if (penalty := state.penalty()) is not None]
            torch.stack([costs.sum(), *penalties]).sum().backward()
            optimise.step()
            losses.append(costs.detach())
            if step % _CHECK_EVERY == 0 or step == steps:
                _check_finite(torch.stack(losses[-_CHECK_EVERY:]), tasks, step)
            if progress is not None:
                progress(step, losses[-1])
    return torch.stack(losses)


class _Stacked:
    """The backbone with the tensors of several tasks, stacked along a new first axis."""

    def __init__(self, network: MaskedNetwork, states: Sequence[TaskState], table_bytes: int) -> None:
        self.network = network
        self.states = states
        self.weights = network.masked_weights()
        self.masks = [dict(state.named_masks()) for state in states]
        head = states[0].head
        self._head = None if head is None else FunctionalModule(head, ())  # no swap within the task's own
        self.tables: dict[str, Tensor] = {}
        for name, mask in self.masks[0].items():
            if isinstance(mask, ImpressMask):
                needed = 4 * mask.basis.count * self.weights[name].numel()
                if needed <= table_bytes - sum(4 * table.numel() for table in self.tables.values()):
                    self.tables[name] = unpacked(mask.basis, name, self.weights[name])

    def run(self, inputs: Tensor) -> Tensor:
        """Outputs (T, N, ...) of inputs (T, N, ...)."""
        own = self.effective()
        if norm := self.states[0].norm_tensors():
            every = [state.norm_tensors() for state in self.states]
            own |= {name: torch.stack([tensors[name] for tensors in every]) for name in norm}
        head = self._head
        heads: dict[str, Tensor] = {}
        if head is not None:
            every = [all_tensors(state.head) for state in self.states if state.head is not None]
            heads = {name: torch.stack([tensors[name] for tensors in every]) for name in every[0]}

        def one(own: dict[str, Tensor], heads: dict[str, Tensor], x: Tensor) -> Any:
            features = self.network.run_with(own, (x,), {})
            return features if head is None else head(heads, (features,), {})

        outputs: Tensor = torch.vmap(one, randomness="different")(own, heads, inputs)
        return outputs

    def effective(self) -> dict[str, Tensor]:
        """The effective weights, (T, *shape) by name."""
        for state in self.states:
            state.prepare()
        found = {}
        for name, first in self.masks[0].items():
            weight = self.weights[name]
            if name in self.tables:
                assert isinstance(first, ImpressMask)
                alphas = torch.stack([masks[name].get_parameter("alpha") for masks in self.masks])
                found[name] = (alphas @ self.tables[name]).view(len(self.states), *weight.shape)
            else:
                found[name] = torch.stack([masks[name](weight) for masks in self.masks])
        return found


def unpacked(basis: Basis, name: str, weight: Tensor) -> Tensor:
    """`M_i ∘ W` for each mask of a basis, (K, n) float32, in row-major order of the weight's shape."""
    return basis.masks(name).flatten(1).float().mul_(weight.float().reshape(-1))


def _checked(network: MaskedNetwork, tasks: Sequence[str]) -> list[TaskState]:
    """The states of tasks that can be trained together."""
    if isinstance(tasks, str) or not tasks or len(set(tasks)) < len(tasks):
        raise InputError(f"training together the tasks {tasks!r}: expected one or more names, each once")
    states = [network.state(task) for task in tasks]
    if network.roles.norm_buffers:
        raise InputError(
            f"the backbone keeps running statistics ({network.roles.norm_buffers[0]} for one), which tasks that run at once "
            "cannot update: train the tasks one by one, or take a backbone without them"
        )
    for task, state in zip(tasks, states, strict=True):
        if state.frozen:
            raise InputError(f"task {task!r} is frozen: continue_task it first, or leave it out")
        if state.head is not None and list(state.head.buffers()):
            raise InputError(f"the head of task {task!r} has buffers, which could not be updated: train such tasks one by one")
        if _kind(state) != _kind(states[0]):
            raise InputError(
                f"the tasks {tasks[0]!r} ({states[0].method}) and {task!r} ({state.method}) differ in their method, norm state "
                "or head: train tasks of one kind together"
            )
    return states


def _kind(state: TaskState) -> tuple[Any, ...]:
    """What tasks that are trained together have in common."""
    head = state.head
    tensors = [] if head is None else [(name, tensor.shape) for name, tensor in all_tensors(head).items()]
    return state.method, state.norm_mode, repr(head), tensors


def _next(source: Iterator[Batch], step: int, steps: int, count: int) -> Batch:
    batch = next(source, None)
    if batch is None:
        raise InputError(f"the batches ended after {step - 1} steps of {steps}: give one for each step")
    inputs, targets = batch
    if len(inputs) != count or len(targets) != count:
        raise InputError(
            f"step {step}: got inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)} for {count} tasks: expected the "
            "tasks' batches stacked along the first axis"
        )
    return inputs, targets


def _check_finite(losses: Tensor, tasks: Sequence[str], step: int) -> None:
    bad = (~losses.isfinite()).any(0).nonzero().flatten().tolist()
    if bad:
        raise TrainingDivergedError(
            f"the loss of task {tasks[bad[0]]!r} is no longer a number by step {step}: lower the learning rate or look at "
            "its data"
        )


@contextmanager
def _training(network: MaskedNetwork) -> Iterator[None]:
    """The network in training mode; its own mode restored."""
    before = network.training
    network.train()
    try:
        yield
    finally:
        network.train(before)
