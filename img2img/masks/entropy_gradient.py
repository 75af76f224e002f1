"""The superposition of tasks: one network that is a bit of each, and how its certainty depends on each one's share."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from img2img.errors import InputError
from img2img.masks.functional_module import FunctionalModule
from img2img.masks.task_network import TaskNetwork
from img2img.masks.task_state import TaskState
from img2img.masks.tensors import all_tensors


def entropy(output: Any, task: str) -> Tensor:
    """The entropy of softmax over axis 1, averaged over the others, by `log C`."""
    if not isinstance(output, Tensor) or output.ndim < 2 or output.shape[1] < 2 or not output.is_floating_point():
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"task {task!r} gives {got}: entropy needs logits over two classes or more on axis 1; use by_norm_statistics instead"
        )
    log_p = output.float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean() / math.log(output.shape[1])


class _ByRunningStatistics(TorchFunctionMode):
    """Makes batch and instance normalisation differentiable by running statistics, which PyTorch's own are not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm or func is F.instance_norm:
            return self._normalise(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _normalise(
        func: Any,
        x: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        by_batch: Any = None,
        momentum: float = 0.1,
        eps: float = 1e-5,
        **named: Any,
    ) -> Tensor:
        by_batch = named.get("training", named.get("use_input_stats", by_batch))
        by_batch = func is F.instance_norm if by_batch is None else by_batch
        if by_batch or running_mean is None or running_var is None:
            out: Tensor = func(x, running_mean, running_var, weight, bias, by_batch, momentum, eps)
            return out
        scale = (running_var + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        shift = -running_mean * scale if bias is None else bias - running_mean * scale
        axes = (1, -1, *[1] * (x.ndim - 2))
        return (x * scale.view(axes) + shift.view(axes)).to(x.dtype)


def check_heads(network: TaskNetwork, tasks: Sequence[str]) -> None:
    """All heads must be of the same class, options and shapes to be superposed."""

    def kind(head: nn.Module | None) -> tuple[Any, ...]:
        return type(head), repr(head), [] if head is None else [(n, t.shape) for n, t in all_tensors(head).items()]

    first = kind(network.state(tasks[0]).head)
    for task in tasks[1:]:
        other = kind(network.state(task).head)
        if other != first:
            raise InputError(
                f"the heads of {tasks[0]!r} and {task!r} differ ({first[1]} and {other[1]}), so they cannot be superposed: use "
                "by_norm_statistics or by_entropy, or name tasks with heads of one kind (tasks=...)"
            )


def _task_tensors(network: TaskNetwork, state: TaskState, task: str) -> dict[str, Tensor]:
    """Every floating tensor that may differ between tasks, as this task has it: weights, norm state, and the head's by
    `<head>.<name>`, which no tensor of the backbone is called, since an identity is in the head's place.
    """
    frozen, roles = network.frozen_tensors(), network.roles
    names = roles.masked + roles.norm_parameters + roles.norm_buffers
    tensors = {name: frozen[name] for name in names} | state.norm_tensors() | network._effective(task, state)
    if state.head is not None:
        tensors |= {f"{network.head_name}.{name}": tensor for name, tensor in all_tensors(state.head).items()}
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def entropy_gradients(
    network: TaskNetwork, tasks: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, float]:
    """`∂H/∂α_i` of the superposition `α_i = 1 / len(tasks)`, by task."""
    for task in tasks:
        if network.state(task).norm_mode == "instance":
            raise InputError(
                f"task {task!r} normalises by each image's own statistics (norm='instance'), so it cannot be superposed with "
                "others: use by_entropy, or name other tasks (tasks=...)"
            )
    total: dict[str, Tensor] = {}
    with torch.no_grad():
        for task in tasks:
            for name, tensor in _task_tensors(network, network.state(task), task).items():
                if name in total:
                    total[name].add_(tensor, alpha=1 / len(tasks))
                else:
                    total[name] = tensor / len(tasks)
    head, prefix = network.state(tasks[0]).head, f"{network.head_name}."
    with torch.enable_grad(), _ByRunningStatistics():
        for tensor in total.values():
            tensor.requires_grad_()
        of_head = {name.removeprefix(prefix): total[name] for name in total if head is not None and name.startswith(prefix)}
        output = network.run_with({n: t for n, t in total.items() if head is None or not n.startswith(prefix)}, args, kwargs)
        if head is not None:
            output = FunctionalModule(head, ())(all_tensors(head) | of_head, (output,), {})
        gradients = torch.autograd.grad(entropy(output, tasks[0]), list(total.values()), allow_unused=True)
    by_tensor = {name: g for name, g in zip(total, gradients, strict=True) if g is not None}
    with torch.no_grad():
        found = {}
        for task in tasks:
            tensors = _task_tensors(network, network.state(task), task)
            found[task] = sum((gradient * tensors[name]).sum().item() for name, gradient in by_tensor.items())
    return found
