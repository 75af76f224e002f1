"""A basis made of the masks that tasks have learned."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from img2img.errors import InputError
from img2img.masks.basis import Basis, pack, stack
from img2img.masks.basis_file import MAX_MEMBERS, PARTS, Kind
from img2img.masks.task_network import TaskNetwork
from img2img.masks.task_state import TaskState
from img2img.validation import one_of


@torch.no_grad()
def basis_of_tasks(network: TaskNetwork, tasks: Sequence[str], *, kind: Kind = "binary") -> Basis:
    """A basis of the masks that `tasks` have now: different tasks (heterogeneous), or one task with several seeds (homogeneous).

    Args:
        network: where the tasks are; it stays as it is.
        tasks: their names.
        kind: "binary" takes the tasks' binary masks; "signed" keeps the signs of ternary ones; "real" takes of any method
            the multiplier `Weff / W`, 0 where W is 0, within what half precision holds.

    Raises:
        InputError: no tasks, one twice, or one without such a mask for some weight.
    """
    one_of("basis of tasks kind", kind, tuple(PARTS))
    if isinstance(tasks, str) or not 1 <= len(tasks) <= MAX_MEMBERS or len(set(tasks)) < len(tasks):
        raise InputError(f"basis of the tasks {tasks!r}: expected one or more names, {MAX_MEMBERS} at most, each once")
    weights = network.masked_weights()
    rows: dict[str, list[dict[str, Tensor]]] = {name: [] for name in weights}
    for task in tasks:
        state = network.state(task)
        found = _multipliers(state, weights) if kind == "real" else _discrete(state, kind)
        for name in weights:
            if name not in found:
                hint = "or take the multipliers of any method, kind='real'" if kind != "real" else "which leaves that weight"
                raise InputError(f"task {task!r} ({state.method.name}) has no {kind} mask for {name}: choose other tasks, {hint}")
            rows[name].append(pack(kind, found[name]))
    shapes = {name: weight.shape for name, weight in weights.items()}
    return Basis(kind, tasks, shapes, {name: stack(masks) for name, masks in rows.items()})


def _discrete(state: TaskState, kind: Kind) -> dict[str, Tensor]:
    """The binary masks of a task, with their signs if `kind` is "signed", of the weights' shapes, by name."""
    state.prepare()
    found = {name: mask.signed() if kind == "signed" else mask.binary() for name, mask in state.named_masks()}
    return {name: mask for name, mask in found.items() if mask is not None}


def _multipliers(state: TaskState, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`Weff / W` of a task, 0 where `W` is, by name."""
    limit = torch.finfo(torch.float16).max
    return {
        name: (effective / weights[name]).masked_fill_(weights[name] == 0, 0).clamp_(-limit, limit)
        for name, effective in state.effective(weights).items()
    }
