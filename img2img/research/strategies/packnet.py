"""PackNet (Mallya and Lazebnik, CVPR 2018): each task keeps a part of the weights; the rest is pruned and left to later tasks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.inference.evaluator import Network
from img2img.masks import MaskedNetwork
from img2img.masks.coding import encode
from img2img.research.strategies.shared import SharedNorm, SharedStrategy, within
from img2img.training.config import Experiment
from img2img.training.log import Callback
from img2img.training.strategies import STRATEGIES
from img2img.training.strategy import Context, Phase, in_range
from img2img.validation import one_of

FREE, FIRST = 0, 1
"""The owner of weights that nobody has kept, which are 0, and the first of those who keep some: a task, or the backbone."""
MOST_OWNERS = 255
"""Their numbers have eight bits."""


class Holding(Callback):
    """Puts the weights back that a phase does not train: decay moves them without a gradient.

    After the step rather than in the gradient, which several processes add up and mixed precision scales.

    Args:
        weights: by name.
        trainable: by name, which of a weight's values are trained, bool.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], trainable: Mapping[str, Tensor]) -> None:
        self._held = [(weight, weight.detach().clone(), trainable[name]) for name, weight in weights.items()]

    @torch.no_grad()
    def after_step(self) -> None:
        """Put them back."""
        for weight, value, trainable in self._held:
            weight.copy_(torch.where(trainable, weight, value))


@STRATEGIES.register("packnet")
@dataclass(kw_only=True)
class PackNet(SharedStrategy):
    """PackNet: train the free weights, prune the smallest of them by magnitude in each layer, and train what is left again.

    Task number t runs with the weights owned by tasks 1 to t, and zeros elsewhere; its own never change again. The trunk's
    biases are the first task's, or those of a backbone that no task trained. The last task in the sequence is pruned too, so
    that another may follow.

    A backbone that was trained elsewhere (`backbone.mode` "pretrained" or "bundle") is the first owner: it gives up `first` of
    its weights, every task runs with the rest, which never change, and the first task of the sequence is a later one. Those of a
    random backbone belong to nobody: they are where the first task's training starts.

    Protocol of Piggyback's comparison (section 4): 50 % of the first task's weights are pruned, there ImageNet's ("a 50% pruned
    initial network"), 75 % of the free ones after each later task, and retraining takes half as many epochs as training, at a
    tenth of its rate. Here both share the task's budget. A backbone that was trained elsewhere is pruned and not trained again,
    since what it was trained on is no task of the sequence: for that give `backbone.weights` the file of a network that was
    pruned, layer by layer, and retrained before. Its zeros are its smallest weights, so that it keeps what it kept.

    Attributes:
        first: the fraction of the weights that the first owner gives up.
        later: the fraction of the free weights that a later task leaves free.
        retrain: the share of the steps after pruning; the first task, which is trained already, gets these alone.
        retrain_lr: the factor on the learning rates of these steps.
        retrain_decay_at: shares of these steps at which `train.schedule.decay` multiplies their rates: none in Piggyback's
            comparison, (0.8333,) in CPG's (25 of 30 epochs).
        norm: the published code freezes normalisation after the first task; masks are given their own.
    """

    norm: SharedNorm = "own"
    first: float = 0.5
    later: float = 0.75
    retrain: float = 0.3333
    retrain_lr: float = 0.1
    retrain_decay_at: Sequence[float] = ()

    def __post_init__(self) -> None:
        one_of(f"{self.name} norm", self.norm, ("own", "frozen"))  # shared, it would move under the earlier tasks
        for option in ("first", "later", "retrain"):
            in_range(self.name, option, getattr(self, option), 0, 0.999)
        in_range(self.name, "retrain_lr", self.retrain_lr, 1e-6, 1)
        for share in self.retrain_decay_at:
            in_range(self.name, "retrain_decay_at", share, 0, 1)

    def check(self, experiment: Experiment, network: MaskedNetwork) -> None:
        """Refuse more tasks than there are numbers for owners."""
        self._check_owners(len(experiment.sequence) + experiment.backbone.trained_elsewhere)

    def _check_owners(self, count: int) -> None:
        if count > MOST_OWNERS:
            raise InputError(
                f"method {self.name!r} got {count} owners of weights (tasks, and a backbone that was trained elsewhere): "
                f"expected {MOST_OWNERS} at most, since their numbers have eight bits; learn fewer tasks, or choose masks"
            )

    def begin(self, context: Context) -> None:
        """Every weight is free, but for those that a backbone which was trained elsewhere keeps."""
        super().begin(context)
        weights = self.weights()
        self.owner = {name: torch.zeros_like(w, dtype=torch.uint8, requires_grad=False) for name, w in weights.items()}
        self.order: list[str] = []
        self._trainable: dict[str, Tensor] = {}
        for name, weight in weights.items():
            weight.register_hook(lambda gradient, name=name: self._only_trainable(name, gradient))
        self.backbone_owns = context.experiment.backbone.trained_elsewhere
        if self.backbone_owns:
            self.prune(self.first)

    @property
    def owners(self) -> int:
        """How many there are: the tasks so far, and before them the backbone if it was trained elsewhere."""
        return len(self.order) + self.backbone_owns

    def number(self, name: str) -> int:
        """A task's number among the owners."""
        return FIRST + self.backbone_owns + self.order.index(name)

    def weights(self) -> dict[str, nn.Parameter]:
        """The weights that tasks own: those that masks select."""
        parameters = dict(self.model.trunk.named_parameters())
        return {name: parameters[name] for name in self.model.roles.masked}

    def _only_trainable(self, name: str, gradient: Tensor) -> Tensor:
        # Optimisers leave a weight whose gradients have all been zero exactly where it is, but for decay, see `Holding`.
        return gradient * self._trainable[name] if name in self._trainable else gradient

    def adopt(self, name: str, head: nn.Module) -> Iterator[Phase]:
        """Prune what the first task trained, and train what it keeps again."""
        self.add(name, head)
        self.order.append(name)
        self.prune(self.first)
        yield self._phase(name, ".retrain", self.context.steps(name, self.retrain))

    def learn(self, name: str) -> Iterator[Phase]:
        """Train the free weights, prune, train again."""
        self.add(name, self.context.head(name))
        self.order.append(name)
        self._trainable = {key: owner == FREE for key, owner in self.owner.items()}
        retraining = self.context.steps(name, self.retrain)
        yield self._phase(name, "", max(1, self.context.steps(name, 1) - retraining))
        self.prune(self.first if self.owners == FIRST else self.later)
        yield self._phase(name, ".retrain", retraining)

    def _phase(self, name: str, suffix: str, steps: int) -> Phase:
        self.model.train_only(name)
        for key in self.model.roles.fixed_parameters:
            self.model.trunk.get_parameter(key).requires_grad_(False)
        options = self.context.options(name, steps=steps, rate=self.retrain_lr if suffix else 1.0)
        if suffix:
            options = options.changed(schedule={"decay_at": tuple(self.retrain_decay_at)})
        return Phase(
            module=self.model,
            head=None if suffix else self.model.heads[name],
            suffix=suffix,
            options=options,
            callbacks=[Holding(self.weights(), self._trainable)] if options.optimiser.weight_decay else (),
        )

    @torch.no_grad()
    def prune(self, fraction: float) -> None:
        """Give the newest owner the largest free weights of each layer, and set the others, `fraction` of them, to zero."""
        number = self.owners
        self._check_owners(number)
        for name, weight in self.weights().items():
            owner = self.owner[name]
            free = owner == FREE
            sizes = weight.abs()[free]
            count = round(fraction * len(sizes))
            kept = torch.ones_like(sizes, dtype=torch.bool)
            kept[sizes.argsort(stable=True)[:count]] = False  # exactly so many, also where sizes are equal
            owner[free] = torch.where(kept, number, FREE).to(torch.uint8)
            weight.masked_fill_(owner == FREE, 0)
        self._trainable = {key: owner == number for key, owner in self.owner.items()}

    def used(self, name: str) -> dict[str, Tensor]:
        """By weight, which ones a task runs with, bool: those of its own and of the owners before it."""
        number = self.number(name)
        return {key: (owner != FREE) & (owner <= number) for key, owner in self.owner.items()}

    def network(self, name: str) -> Network:
        """The trunk with the weights that the task uses. In the middle of its training that is all of them."""
        used, weights = self.used(name), self.weights()
        # Free weights are zero except while the newest task trains them.
        tensors = {} if name == self.order[-1] else {k: w.detach() * used[k] for k, w in weights.items()}

        def run(x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.model.eval().run(x, name, tensors)

        return run

    def density(self, name: str) -> float | None:
        """The fraction of the weights that the task uses."""
        used = self.used(name).values()
        return sum(int(u.sum()) for u in used) / sum(u.numel() for u in used)

    def own_bytes(self, name: str) -> int:
        """Head, normalisation, and which of the weights are the task's own, coded at their entropy."""
        return super().own_bytes(name) + self._map_bytes(self.number(name))

    def shared_bytes(self) -> int:
        """The trunk, and which of its weights the backbone keeps if it was trained elsewhere."""
        return super().shared_bytes() + (self._map_bytes(FIRST) if self.backbone_owns else 0)

    def _map_bytes(self, number: int) -> int:
        """Which weights an owner has, coded at their entropy."""
        return sum(len(encode(owner == number)) for owner in self.owner.values())

    def relative_parameters(self) -> float:
        """Also, for each weight, its owner's number or 0, in as few bits as hold it.

        1.09 for five tasks and a first one or a backbone, where the affine paper has 1.10.
        """
        owned = sum(owner.numel() for owner in self.owner.values())
        trunk = sum(p.numel() for p in self.model.trunk.parameters())
        return super().relative_parameters() + owned * self.owners.bit_length() / (32 * trunk)

    def shared_tensors(self) -> dict[str, Tensor]:
        """The network and who owns which weight."""
        return super().shared_tensors() | {f"owner.{name}": owner for name, owner in self.owner.items()}

    def restore(self, own: Mapping[str, Mapping[str, Tensor]], shared: Mapping[str, Tensor]) -> None:
        """The network and the owners; the order of the tasks numbers them.

        Raises:
            InputError: the backbone was trained elsewhere, and what is stored does not know the weights that it keeps.
        """
        super().restore(own, shared)
        self.order = list(own)
        for name, stored in within("owner", shared).items():
            owner = self.owner[name]
            if self.backbone_owns and not torch.equal(owner == FIRST, stored.to(owner.device) == FIRST):
                raise InputError(
                    f"what was learned has {name} with other weights of the backbone than the backbone keeps, as by a version of "
                    "img2img that left all of them to the first task: choose another run folder (out=...)"
                )
            owner.copy_(stored)
