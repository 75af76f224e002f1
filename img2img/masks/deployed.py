"""A deployed copy of a network: an ordinary module whose task is switched in place."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.masks.base import Mask
from img2img.masks.task_network import TaskNetwork
from img2img.masks.tensors import all_tensors

_Masks = dict[str, tuple[Mask, tuple[Tensor, ...]]]


@dataclass(frozen=True)
class _Prepared:
    masks: _Masks
    norm: dict[str, Tensor]
    head: nn.Module | None


class DeployedNetwork(nn.Module):
    """A copy of the backbone that runs one task at a time, at the speed of a plain module.

    `activate` writes a task's effective weights and normalisation state into the copy's own tensors: they stay where they
    are, so that a compiled or captured graph stays valid. `deactivate` brings the backbone back, exactly, from the network,
    with which the copy shares its frozen weights (memory: one more set of weights, and for each prepared task one byte a weight
    of an element-wise mask, or the changed weight itself of an affine mask or one of real values).

    Args:
        network: gives the tasks. Tasks are read when they are prepared; changes after that are not seen.
    """

    def __init__(self, network: TaskNetwork) -> None:
        super().__init__()
        self.module = network.copy_backbone().requires_grad_(False).eval()
        self._network = (network,)  # in a tuple, so that it is no part of this module
        self._prepared: dict[str, _Prepared] = {}
        self._whole = True  # false while tensors are written, and after that was broken off
        self._run: Any = self.module
        self.head: nn.Module | None = None
        self.task: str | None = None

    def prepare(self, task: str) -> None:
        """Decode the masks of `task` ahead of its first activation.

        Raises:
            InputError: there is no such task, or it is still in training.
        """
        if task in self._prepared:
            return
        network = self._network[0]
        state = network.state(task)
        if not state.frozen:
            raise InputError(f"task {task!r} is still in training: freeze_task({task!r}) before it is deployed")
        if state.norm_mode == "instance":
            raise InputError(
                f"task {task!r} normalises by each image's own statistics (norm='instance'), which no other tensors bring about: "
                "run it by the network itself, or merge it"
            )
        weights = network.masked_weights()
        masks = {name: (mask, mask.decode(weights[name])) for name, mask in state.named_masks()}
        norm = {name: tensor.detach().clone() for name, tensor in state.norm_tensors().items()}
        self._prepared[task] = _Prepared(masks, norm, copy.deepcopy(state.head))

    def discard(self, task: str) -> None:
        """Forget what was prepared of `task`."""
        self._prepared.pop(task, None)

    @torch.no_grad()
    def activate(self, task: str) -> None:
        """Run as `task` from now on."""
        self.prepare(task)
        prepared = self._prepared[task]
        self._write(prepared.masks, prepared.norm, prepared.head, task)

    @torch.no_grad()
    def deactivate(self) -> None:
        """Bring back the backbone's own weights and normalisation state, bit for bit; there is no head then."""
        self._write({}, {}, None, None)

    def _write(self, masks: _Masks, norm: dict[str, Tensor], head: nn.Module | None, task: str | None) -> None:
        network, tensors = self._network[0], all_tensors(self.module)
        frozen, roles = network.frozen_tensors(), network.roles
        self._whole = False
        for name in roles.masked:
            if name in masks:
                mask, decoded = masks[name]
                mask.write(frozen[name], decoded, tensors[name])
            else:
                tensors[name].copy_(frozen[name])
        for name in roles.norm_parameters + roles.norm_buffers:
            tensors[name].copy_(norm.get(name, frozen[name]))
        self.head, self.task = head, task
        self._whole = True

    def compile(self, **options: Any) -> None:
        """Compile the backbone's call with `torch.compile`, once for all tasks; heads run as they are."""
        self._run = torch.compile(self.module, **options)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of the active task; without one, what the bare backbone gives.

        Raises:
            RuntimeError: a switch was broken off half-way.
        """
        if not self._whole:
            raise RuntimeError("a switch of tasks was broken off half-way: activate(...) or deactivate() this network again")
        features = self._run(*args, **kwargs)
        return features if self.head is None else self.head(features)

    def train(self, mode: bool = True) -> "DeployedNetwork":
        """Evaluation mode always: a deployed copy is no place to train."""
        return super().train(False)
