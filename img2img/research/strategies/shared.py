"""One network that all tasks train, with a head for each, and sequential fine-tuning, the plainest method that uses it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from img2img.errors import InputError
from img2img.inference.evaluator import Network
from img2img.masks.frozen_backbone import FrozenBackbone
from img2img.masks.tensors import all_tensors, total_bytes
from img2img.training.strategies import STRATEGIES
from img2img.training.strategy import Context, Phase, Strategy
from img2img.validation import one_of

SharedNorm = Literal["shared", "own", "frozen"]
"""Whose the normalisation parameters and statistics are: all tasks' together, each task's own, or the backbone's for good."""


class NormState(nn.Module):
    """A task's own normalisation parameters and buffers, started from those of a trunk."""

    def __init__(self, trunk: nn.Module, parameters: tuple[str, ...], buffers: tuple[str, ...]) -> None:
        super().__init__()
        tensors = all_tensors(trunk)
        self._names = (*parameters, *buffers)
        for i, name in enumerate(self._names):
            value = tensors[name].detach().clone()
            if name in parameters:
                self.register_parameter(f"n{i}", nn.Parameter(value))
            else:
                self.register_buffer(f"n{i}", value)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors themselves by their names in the trunk."""
        return {name: getattr(self, f"n{i}") for i, name in enumerate(self._names)}


class SharedNetwork(nn.Module):
    """A trunk that all tasks share and train, with a head, and with `norm="own"` a normalisation state, for each.

    Args:
        backbone: gives the trunk, a copy.
        norm: whose the normalisation is.

    Attributes:
        active: the task that `forward` runs.
        features: the trunk's output in the last `forward`.
    """

    def __init__(self, backbone: FrozenBackbone, norm: SharedNorm) -> None:
        super().__init__()
        self.trunk = backbone.copy_backbone().requires_grad_(True)
        self.heads = nn.ModuleDict()
        self.norms = nn.ModuleDict()
        self.roles = backbone.roles
        self._norm = norm
        self._trains_trunk = True
        self._norm_modules = tuple(self.trunk.get_submodule(name) for name in backbone.norm_modules())
        self.active = ""
        self.features = torch.empty(0)

    def add(self, name: str, head: nn.Module) -> None:
        """Add a task."""
        self.heads[name] = head
        if self._norm == "own":
            self.norms[name] = NormState(self.trunk, self.roles.norm_parameters, self.roles.norm_buffers)

    def own(self, name: str) -> dict[str, Tensor]:
        """The task's normalisation tensors; none unless they are its own."""
        norm = self.norms[name] if self._norm == "own" else None
        return norm.tensors() if isinstance(norm, NormState) else {}

    def train_only(self, *names: str, trunk: bool = True) -> None:
        """Let gradients reach the trunk and what the named tasks own, and nothing else.

        A trunk that is not trained stays in evaluation mode, so that its features do not change by running statistics either.
        """
        self._trains_trunk = trunk
        self.requires_grad_(False)
        self.trunk.requires_grad_(trunk)
        if self._norm != "shared":
            tensors = dict(self.trunk.named_parameters())
            for name in self.roles.norm_parameters:
                tensors[name].requires_grad_(False)
        for name in names:
            self.heads[name].requires_grad_(True)
            if self._norm == "own":
                self.norms[name].requires_grad_(trunk)

    def run(self, x: Tensor, name: str, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """The raw output of a task; `weights` stand in for the trunk's of the same names."""
        own = {**(weights or {}), **self.own(name)}
        self.features = functional_call(self.trunk, own, (x,)) if own else self.trunk(x)
        y: Tensor = self.heads[name](self.features)
        return y

    def forward(self, x: Tensor) -> Tensor:
        """The raw output of the active task."""
        return self.run(x, self.active)

    def train(self, mode: bool = True) -> Self:
        """As any module's, but what is not trained, the trunk or its normalisation, stays in evaluation mode."""
        super().train(mode)
        if not self._trains_trunk:
            self.trunk.train(False)
        if self._norm == "frozen":
            for module in self._norm_modules:
                module.train(False)
        return self


@dataclass(kw_only=True)
class SharedStrategy(Strategy):
    """What the methods with a `SharedNetwork` have in common.

    Attributes:
        norm: "shared" as the methods are published; "own" and "frozen" as masks have it, for a fair comparison.
    """

    norm: SharedNorm = "shared"

    def __post_init__(self) -> None:
        one_of(f"{self.name} norm", self.norm, ("shared", "own", "frozen"))

    def begin(self, context: Context) -> None:
        """The trunk is a copy of the backbone."""
        super().begin(context)
        if by_instance := [name for name, data in context.task_data.items() if data.config.norm == "instance"]:
            raise InputError(
                f"tasks.{by_instance[0]} has norm='instance', and {self.name!r} runs all tasks on one network: expected "
                "the method's own; leave norm out, or choose masks or method=finetune"
            )
        self.model = SharedNetwork(context.network, self.norm)
        context.place(self.model)

    def add(self, name: str, head: nn.Module) -> None:
        """Add a task and make it the active one."""
        self.model.add(name, head)
        self.model.active = name
        self.context.place(self.model)

    def adopt(self, name: str, head: nn.Module) -> Iterator[Phase]:
        """The trunk is as the first task left it."""
        self.add(name, head)
        return iter(())

    def network(self, name: str) -> Network:
        """The trunk as it is now, with the task's head."""

        def run(x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.model.eval().run(x, name)

        return run

    def own_bytes(self, name: str) -> int:
        """The task's head, and its normalisation where that is its own."""
        return total_bytes(self.model.heads[name].state_dict()) + total_bytes(self.model.own(name))

    def shared_bytes(self) -> int:
        """The trunk."""
        return total_bytes(self.model.trunk.state_dict())

    def relative_parameters(self) -> float:
        """The trunk, and the normalisation parameters of each task where they are its own."""
        trunk = sum(p.numel() for p in self.model.trunk.parameters())
        own = sum(p.numel() for name in self.model.norms for p in self.model.norms[name].parameters())
        return 1 + own / trunk

    def shared_tensors(self) -> dict[str, Tensor]:
        """The whole network: later tasks change what earlier ones left."""
        return {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}

    def restore(self, own: Mapping[str, Mapping[str, Tensor]], shared: Mapping[str, Tensor]) -> None:
        """The network with the heads of the finished tasks."""
        for name in own:
            self.add(name, self.context.head(name))
        self.model.load_state_dict(within("model", shared))


def within(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors whose names begin with `prefix.`, without it."""
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


@STRATEGIES.register("sequential")
@dataclass(kw_only=True)
class Sequential(SharedStrategy):
    """Sequential fine-tuning: one network is trained on task after task, which shows what forgetting is."""

    def learn(self, name: str) -> Iterator[Phase]:
        """Train everything that is shared, and the new head."""
        self.add(name, self.context.head(name))
        self.model.train_only(name)
        yield Phase(module=self.model, head=self.model.heads[name])
