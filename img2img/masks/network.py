"""`MaskedNetwork`: one frozen backbone, many tasks, and what is made of them: merged, deployed and trained modules."""

import copy
from typing import Any, Self

import torch
from torch import nn

from img2img.masks.deployed import DeployedNetwork
from img2img.masks.instance_norm import use_instance_statistics
from img2img.masks.task_inference import by_norm_statistics
from img2img.masks.task_network import TaskNetwork
from img2img.masks.task_state import WITHOUT_STATISTICS
from img2img.masks.tensors import copy_into


class TaskModule(nn.Module):
    """One task of a `MaskedNetwork` as a module of its own: what an optimiser, Fabric or DDP is given.

    Inactive tasks' parameters would fail DDP, and the backbone has nothing to train.
    """

    def __init__(self, network: TaskNetwork, task: str) -> None:
        super().__init__()
        self.state = network.state(task)
        self.task = task
        self._network = (network,)  # in a tuple, so that it is not registered

    @property
    def network(self) -> TaskNetwork:
        """The network that the task belongs to."""
        return self._network[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output for this task."""
        return self.network(*args, task=self.task, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Switch the network, and with it the task."""
        self.network.train(mode)
        self.training = mode
        return self


class MaskedNetwork(TaskNetwork):
    """A frozen backbone that runs many tasks, by calls with each task's effective tensors.

    The backbone given is copied and never mutated: no layer is re-written, no flag of the original is touched, and every
    buffer is passed in, so nothing that a forward pass writes can reach it. Nor is the copy, `backbone`: it is there to be
    read, and changes of its modules after the first call are not seen.

    Args:
        backbone: any module.
        head: the name of the submodule that tasks replace, the last operation of `backbone`; None for no head.
        select: which parameters are masked: name patterns, layer types, or a function, see `layers.as_select`; by default the
            weights of convolutions, linear, bilinear, embedding and attention layers, see `layers.is_weight`.
        is_norm: which modules are normalisation, see `layers.is_normalisation`.
        strict: refuse a selection of which a part fits nothing, or weights that cannot be masked. False is for files that were
            written before this was refused.
        cache_bytes: the bound on cached effective weights; the least recently used task is dropped first.
        loaded_bytes: the bound on tasks that were registered from files and read when used, likewise.

    Calls run on a copy of the backbone's modules that shares its tensors (`FunctionalModule`), so one that is broken off leaves
    nothing behind. They are serialised by a lock: a service that runs tasks in parallel runs merged copies (`merge`). Outputs
    are bit-equal for the same batch size, memory format, thread count and grad mode.
    """

    def nearest_task(self, *args: Any, **kwargs: Any) -> str:
        """The task whose normalisation statistics are nearest to those of a batch; a start for a new task on such data.

        Tasks that have none of their own (`norm="frozen"` or "instance"), as imported adapters often do, are left out.

        Args:
            args: a batch of the new task's inputs, as for a call.
            kwargs: further inputs.

        Raises:
            InputError: there are no tasks that have some, or the backbone keeps no running statistics.
        """
        with_some = [name for name in self.tasks() if self.state(name).norm_mode not in WITHOUT_STATISTICS]
        return by_norm_statistics(self, *args, tasks=with_some or None, **kwargs).task

    def task_module(self, task: str) -> TaskModule:
        """`task` alone as a module, for optimisers, Fabric and DDP: its parameters are the task's and no others."""
        return TaskModule(self, task)

    def merge(self, task: str, *, requires_grad: bool = False) -> nn.Module:
        """An ordinary module that gives exactly `task`'s outputs: a copy of the backbone with everything written in.

        It shares nothing with this network and is in evaluation mode.

        Args:
            task: its name.
            requires_grad: whether its parameters do, for training on. PyTorch takes other kernels of linear layers then, even
                without grad, so outputs may differ in the last digits (as may those of a head of `task` while it is in training).
        """
        state = self.state(task)
        with self._lock, torch.no_grad():
            plain = self.copy_backbone(copy.deepcopy(state.head))
            copy_into(plain, self._effective(task, state) | state.norm_tensors())
            if state.norm_mode == "instance":
                use_instance_statistics(plain)
        for parameter in plain.parameters():
            parameter.requires_grad_(requires_grad and parameter.is_floating_point())
        return plain.eval()

    def deploy(self) -> DeployedNetwork:
        """A copy whose task is switched in place, without recompiling; see `DeployedNetwork`."""
        return DeployedNetwork(self)
