"""A network of its own for each task, trained whole or in its last parts only: nothing can be forgotten."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn

from img2img.backbones import build_backbone
from img2img.bundle import HEAD, stored_bytes
from img2img.errors import InputError
from img2img.inference.evaluator import Network
from img2img.masks import MaskedNetwork
from img2img.masks.frozen_backbone import FrozenBackbone
from img2img.masks.instance_norm import use_instance_statistics
from img2img.masks.tensors import total_bytes
from img2img.training.config import Experiment
from img2img.training.strategies import STRATEGIES
from img2img.training.strategy import Context, Phase, Strategy, evaluated


class PartlyTrained(nn.Module):
    """A copy of the backbone of which some children are trained; the others stay in evaluation mode, normalisation included.

    Args:
        backbone: gives the copy.
        head: the task's head, used as it is.
        trained: names of children, such as ("decoder", "head"); None for all.
    """

    def __init__(self, backbone: FrozenBackbone, head: nn.Module, trained: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.model = backbone.copy_backbone(head).requires_grad_(True)
        # In a tuple, since they are registered already.
        self._fixed = tuple(child for name, child in self.model.named_children() if trained is not None and name not in trained)
        self._trained = trained
        for child in self._fixed:
            child.requires_grad_(False)
        if trained is not None:
            for _, parameter in self.model.named_parameters(recurse=False):
                parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """The raw output."""
        y: Tensor = self.model(x)
        return y

    @property
    def head(self) -> nn.Module:
        """The task's head."""
        return self.model.get_submodule(HEAD)

    def own_tensors(self) -> dict[str, Tensor]:
        """What the task has to store: the trained children, with their normalisation state, by name."""
        tensors = self.model.state_dict()
        return {name: t for name, t in tensors.items() if self._trained is None or name.partition(".")[0] in self._trained}

    def train(self, mode: bool = True) -> Self:
        """As any module's, but what is fixed stays in evaluation mode."""
        super().train(mode)
        for child in self._fixed:
            child.train(False)
        return self


@dataclass(kw_only=True)
class SeparateNetworks(Strategy):
    """What the methods below share: each task trains `trained` children of a copy of the backbone."""

    cannot_forget: ClassVar[bool] = True
    trained: ClassVar[tuple[str, ...] | None] = None

    def check(self, experiment: Experiment, network: MaskedNetwork) -> None:
        """Refuse a start from another task that the method cannot have."""
        for task in experiment.tasks:
            if task.start_from is not None and (self.learns_first or task.start_from == "nearest"):
                expected = "none with this method" if self.learns_first else "the name of an earlier task with this method"
                raise InputError(
                    f"tasks.{task.name}.start_from={task.start_from!r} and method {self.name!r}: expected {expected}"
                )

    def begin(self, context: Context) -> None:
        """No network yet."""
        super().begin(context)
        self._networks: dict[str, PartlyTrained] = {}

    def adopt(self, name: str, head: nn.Module) -> Iterator[Phase]:
        """The backbone itself is the first task's network."""
        self._add(name, head)
        return iter(())

    def learn(self, name: str) -> Iterator[Phase]:
        """Train a copy of the backbone, or of the network of the task that `start_from` names, with a fresh head."""
        network = self._add(name, self.context.head(name))
        start_from = self.context.task_data[name].config.start_from
        if start_from in self._networks:  # it is not where a task is learned on its own, for comparison (`compare`)
            tensors = self._networks[start_from].model.state_dict()
            network.model.load_state_dict({k: t for k, t in tensors.items() if k.partition(".")[0] != HEAD}, strict=False)
        yield Phase(module=network, head=None if self.learns_first else network.head)  # from scratch all of it is fresh

    def _add(self, name: str, head: nn.Module) -> PartlyTrained:
        network = self._networks[name] = PartlyTrained(self._start(), head, self.trained)
        if self.context.task_data[name].config.norm == "instance":
            use_instance_statistics(network.model)
        self.context.place(network)
        return network

    def _start(self) -> FrozenBackbone:
        return self.context.network

    def network(self, name: str) -> Network:
        """The task's own."""
        return evaluated(self._networks[name])

    def own_bytes(self, name: str) -> int:
        """The trained children."""
        return total_bytes(self._networks[name].own_tensors())

    def shared_bytes(self) -> int:
        """What no task trains of the backbone, as it is stored; nothing where tasks train all of it."""
        if self.trained is None:
            return 0
        tensors = self.context.network.backbone.state_dict()
        return stored_bytes({name: t for name, t in tensors.items() if name.partition(".")[0] not in self.trained})

    def relative_parameters(self) -> float:
        """What is shared once, and the trained children of each task; of a backbone trained elsewhere its own children besides.

        It is a network that is kept, as masks keep theirs, and the papers count it: individual networks are 6 for ImageNet and
        five tasks (affine paper, tables 1 and 2), and 10 for the Decathlon, where ImageNet is one of ten tasks (table 3);
        classifiers alone are 1. A random backbone is nothing that anyone runs, and networks from scratch take nothing from any:
        both are n for n tasks.
        """
        backbone = dict(self.context.network.backbone.named_parameters())
        trained = [name for name in backbone if self.trained is None or name.partition(".")[0] in self.trained]
        share = sum(backbone[name].numel() for name in trained) / sum(p.numel() for p in backbone.values())
        kept = self.context.experiment.backbone.trained_elsewhere and not self.learns_first
        return 1 - share + share * (len(self._networks) + kept)

    def own_tensors(self, name: str) -> dict[str, Tensor]:
        """The trained children."""
        return self._networks[name].own_tensors()

    def restore(self, own: Mapping[str, Mapping[str, Tensor]], shared: Mapping[str, Tensor]) -> None:
        """Every network from its file.

        Raises:
            InputError: a file has other tensors than its network's.
        """
        for name, tensors in own.items():
            network = self._add(name, self.context.head(name))
            differ = sorted(tensors.keys() ^ network.own_tensors().keys())
            if differ:
                raise InputError(
                    f"what was stored of {name!r} and its network differ in {differ[:3]}: expected the same tensors in both; "
                    "choose another run folder (out=...)"
                )
            network.model.load_state_dict(tensors, strict=False)  # what is fixed is the backbone's


@STRATEGIES.register("finetune")
@dataclass(kw_only=True)
class FineTune(SeparateNetworks):
    """Individual fine-tuning: a copy of the backbone a task, all of it trained."""


@STRATEGIES.register("decoder_only")
@dataclass(kw_only=True)
class DecoderOnly(SeparateNetworks):
    """The encoder frozen, normalisation included; a decoder and a head a task (the poster's "decoder")."""

    trained: ClassVar[tuple[str, ...] | None] = ("decoder", HEAD)


@STRATEGIES.register("head_only")
@dataclass(kw_only=True)
class HeadOnly(SeparateNetworks):
    """All but the head frozen: what the backbone's features alone are worth."""

    trained: ClassVar[tuple[str, ...] | None] = (HEAD,)


@STRATEGIES.register("scratch")
@dataclass(kw_only=True)
class Scratch(SeparateNetworks):
    """An independent network a task, from random weights: the encoder has none of ImageNet's either."""

    learns_first: ClassVar[bool] = True

    def _start(self) -> FrozenBackbone:
        spec = {"out_channels": 1, **self.context.backbone.spec, "weights": None}
        network = self.context.network
        return type(network)(build_backbone(spec), head=HEAD)
