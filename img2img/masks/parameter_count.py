"""How large tasks are as the papers count: bits of masks and 32-bit numbers, in units of the backbone's parameters."""

import torch

from img2img.errors import InputError
from img2img.masks.network import MaskedNetwork
from img2img.masks.task_state import TaskState

NUMBER = 32
"""Bits of a parameter."""


def task_bits(state: TaskState) -> int:
    """The bits that a trained task adds beside its head.

    One for each value of a binary mask (a kernel-wise one has one a kernel), a second for each sign of a ternary one, and 32 for
    every number: scales and coefficients, soft values, copies of weights, and normalisation parameters; running statistics are no
    parameters. What a task's file takes is another matter: masks are coded at their entropy there, and statistics are in it.

    Raises:
        InputError: the task is still in training.
    """
    if not state.frozen:
        raise InputError(
            "the task is still in training: expected a frozen one, whose masks have their final form; freeze_task it"
        )
    parts = [part for _, mask in state.named_masks() for part in mask.stored().values()]
    bits = sum(part.numel() * (1 if part.dtype == torch.bool else NUMBER) for part in parts)
    return bits + NUMBER * sum(p.numel() for p in state.norm.parameters())


def relative_parameters(network: MaskedNetwork) -> float:
    """The backbone and all of its tasks, without heads, in units of the backbone's parameters.

    So count Piggyback, `(32 n + 9 n) / 32 n = 1.28` for nine tasks (section 6), and the affine paper ("counting all tasks and
    excluding the classifiers", tables 1 to 4). Bases of ImpressLearn, which tasks share, are counted by its table 2, see
    `img2img.research.impresslearn.table2`.

    Raises:
        InputError: a task is still in training.
    """
    parameters = sum(p.numel() for p in network.backbone.parameters())
    return 1 + sum(task_bits(network.state(task)) for task in network.tasks()) / (NUMBER * parameters)
