"""One task of a network as a module of its own."""

from typing import Any, Self

from torch import nn

from img2img.masks.task_network import TaskNetwork


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
