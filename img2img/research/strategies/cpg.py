"""CPG (Hung et al., NeurIPS 2019) without growing: PackNet whose later tasks pick among the weights that earlier tasks own."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from img2img.inference.evaluator import Network
from img2img.masks import Mask, Piggyback
from img2img.masks.coding import decode, encode
from img2img.masks.layers import Layer
from img2img.masks.tensors import total_bytes
from img2img.research.strategies.packnet import FIRST, FREE, PackNet
from img2img.research.strategies.shared import SharedNetwork
from img2img.training.config import OptimiserOptions
from img2img.training.mask_strategy import masked_groups
from img2img.training.optimiser import ParameterGroup
from img2img.training.strategies import STRATEGIES
from img2img.training.strategy import Context, Phase, evaluated, in_range


class Picking(nn.Module):
    """A task of a shared network that runs with a mask on the weights of the tasks before it.

    Where an earlier task owns a weight the task runs with `W ∘ M`, and gradients go to the scores of `M` alone; elsewhere
    with `W`, and they go to `W`. So scores elsewhere never move, and `M` stays one there.

    Args:
        model: the network, used as it is.
        name: the task.
        masks: by weight; none for the first task, which has nothing to pick from.
        earlier: by weight, where an earlier task, or the backbone, owns it, bool.
    """

    def __init__(self, model: SharedNetwork, name: str, masks: Mapping[str, Mask], earlier: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.masks = nn.ModuleList(masks.values())
        self._name = name
        self._earlier = {key: earlier[key] for key in masks}

    def weights(self) -> dict[str, Tensor]:
        """The effective weights, differentiable by the scores and the weights."""
        effective = {}
        for (key, earlier), mask in zip(self._earlier.items(), self.masks, strict=True):
            weight = self.model.trunk.get_parameter(key)
            effective[key] = torch.where(earlier, mask(weight.detach()), weight)
        return effective

    def forward(self, x: Tensor) -> Tensor:
        """The raw output of the task."""
        return self.model.run(x, self._name, self.weights())

    def groups(self, options: OptimiserOptions) -> list[ParameterGroup]:
        """What is trained: the masks' scores, the normalisation that is the task's own, its head and the trunk."""

        def trained(*modules: nn.Module) -> list[nn.Parameter]:
            return [p for module in modules for p in module.parameters() if p.requires_grad]

        model, name = self.model, self._name
        norm = [model.norms[name]] if name in model.norms else []
        head, weights = trained(model.heads[name]), trained(model.trunk)
        return masked_groups(options, scores=trained(self.masks), norm=trained(*norm), head=head, weights=weights)


@STRATEGIES.register("cpg")
@dataclass(kw_only=True)
class CPG(PackNet):
    """CPG without expansion: compacting and picking, in a network that does not grow.

    A task after the first trains the free weights, as in PackNet, and with them a binary mask, as Piggyback's, that picks
    among the weights that earlier tasks own, which are fixed. Then its own weights are pruned a little at a time: in each
    layer the smallest are set free, and the others train on with the mask fixed. At last weights and mask train once more.
    The first task is pruned likewise. Task number t runs with its own weights and those of tasks 1 to t - 1 that it picked.

    A backbone that was trained elsewhere is the first owner, as in PackNet: it gives up `first` of its weights, at once, since
    nothing is trained in between, and every task of the sequence is a later one, which picks among those that it keeps too.

    The details are those of the published code (`utils/prune.py`, `models/layers.py` and the scripts of its experiment on
    CIFAR-100), but for what is said to be otherwise:

    - Scores start at 1e-2 with the threshold 5e-3 and are trained by Adam, at 5e-4, in the last retraining at 1e-4; every
      earlier weight is picked at the start. Here their rate is `mask_lr`, and `retrain_lr` times that.
    - Pruning raises the share that is free by 0.1 from one run of 20 epochs to the next, at a tenth of the first rate; within
      a run the share rises over 4 epochs. Here `prunings` equal parts share out the steps of `retrain`, each beginning with a
      pruning: a training keeps the state that validated best, and all its states must be pruned alike.
    - The last retraining starts from a mask of ones again and counts if it validates better. Here the mask trains on, so that
      its few steps need not find it anew.
    - Each task has an accuracy goal, that of a network of its own. Pruning goes on until the goal is missed, and the network
      grows where a task misses it before any pruning. Here the shares are fixed, as PackNet's. The goal would need a second
      network for each task, which no other method here is given; it is a classification's accuracy, where tasks here are
      judged by errors and scores alike; and with neither growth nor a bound one task could keep all weights. Where the
      published network may grow no more, it too leaves a set share to the tasks to come.
    - Biases are each task's own. Here they are shared and fixed after the first task, as for all masks.

    Attributes:
        first: the fraction of the weights that the first owner gives up.
        later: the fraction of the free weights that a later task leaves free.
        prunings: in how many steps these fractions are reached; 1 prunes all at once, as PackNet does.
        retrain: the share of the steps after the first pruning; the first task, trained already, gets these alone.
        retrain_lr: the factor on the learning rates of these steps.
        threshold: τ of the picking mask.
        init: its starting score.
        norm: each task its own, as published, or the backbone's for good.
    """

    prunings: int = 4
    threshold: float = 5e-3
    init: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self.name, "prunings", self.prunings, 1, 100)
        self._picker = Piggyback(threshold=self.threshold, init=self.init)

    def begin(self, context: Context) -> None:
        """No task has picked any weight."""
        super().begin(context)
        self.picks: dict[str, dict[str, Mask]] = {}

    def adopt(self, name: str, head: nn.Module) -> Iterator[Phase]:
        """Prune what the first task trained, and train what it keeps, in turn."""
        self.add(name, head)
        self.order.append(name)
        self.picks[name] = {}
        yield from self._compact(name, self.first)

    def learn(self, name: str) -> Iterator[Phase]:
        """Train the free weights and a mask on the others, prune and train in turn, fix the mask."""
        self.add(name, self.context.head(name))
        self.order.append(name)
        is_first = self.owners == FIRST
        self.picks[name] = {} if is_first else self._picker.create(self._layers(), {})
        self._trainable = {key: owner == FREE for key, owner in self.owner.items()}
        steps = self.context.steps(name, 1) - self.context.steps(name, self.retrain)
        yield self._phase(name, "", max(1, steps))
        yield from self._compact(name, self.first if is_first else self.later)
        for mask in self.picks[name].values():
            mask.freeze()

    def _compact(self, name: str, fraction: float) -> Iterator[Phase]:
        steps, count = self.context.steps(name, self.retrain), self.prunings
        for k in range(1, count + 1):
            self.prune(fraction * (k / count))
            yield self._phase(name, ".retrain" if k == count else f".prune{k}", steps * k // count - steps * (k - 1) // count)

    def _phase(self, name: str, suffix: str, steps: int) -> Phase:
        phase = super()._phase(name, suffix, steps)
        module = self._picking(name)
        module.masks.requires_grad_(not suffix.startswith(".prune"))
        return replace(phase, module=module, groups=module.groups)

    def _picking(self, name: str) -> Picking:
        return Picking(self.model, name, self.picks[name], self._earlier(name))

    def _earlier(self, name: str) -> dict[str, Tensor]:
        """By weight, where an owner before this task has it, bool."""
        number = self.number(name)
        return {key: (owner != FREE) & (owner < number) for key, owner in self.owner.items()}

    def _masks(self, name: str) -> dict[str, Tensor]:
        """By weight, the task's mask, bool; none for the first task."""
        found = {key: mask.binary() for key, mask in self.picks[name].items()}
        return {key: mask for key, mask in found.items() if mask is not None}

    def _layers(self) -> dict[str, Layer]:
        """The layers with the weights as they are now, so that masks are made on their device and in their format."""
        weights = self.weights()
        return {key: replace(layer, weight=weights[key].detach()) for key, layer in self.context.network.layers().items()}

    def prune(self, fraction: float) -> None:
        """As PackNet's, but what the newest owner has already may be set free again: `fraction` is of all that it could own."""
        number = self.owners
        for owner in self.owner.values():
            owner.masked_fill_(owner == number, FREE)  # the weights pruned before are 0, so the smallest still
        super().prune(fraction)

    def used(self, name: str) -> dict[str, Tensor]:
        """By weight, which ones a task runs with, bool: its own, and those that it picked of the owners before it."""
        used, earlier = super().used(name), self._earlier(name)
        # A score outside `earlier` decides nothing, and weight decay may have moved it.
        return used | {key: used[key] & (mask | ~earlier[key]) for key, mask in self._masks(name).items()}

    def network(self, name: str) -> Network:
        """As PackNet's; the newest task runs with its mask as it is at the time."""
        return evaluated(self._picking(name)) if name == self.order[-1] else super().network(name)

    def own_bytes(self, name: str) -> int:
        """Head, normalisation, which of the weights are the task's own, and which of the earlier tasks' it picked, all coded."""
        return super().own_bytes(name) + total_bytes(self.own_tensors(name))

    def relative_parameters(self) -> float:
        """As PackNet's, and a bit for each weight and owner after the first, of what that one picks."""
        owned = sum(owner.numel() for owner in self.owner.values())
        trunk = sum(p.numel() for p in self.model.trunk.parameters())
        return super().relative_parameters() + owned * max(0, self.owners - 1) / (32 * trunk)

    def own_tensors(self, name: str) -> dict[str, Tensor]:
        """Which weights the task picked of those that it could, by weight, coded at their entropy."""
        earlier = self._earlier(name)
        return {key: encode(mask[earlier[key]]) for key, mask in self._masks(name).items()}

    def restore(self, own: Mapping[str, Mapping[str, Tensor]], shared: Mapping[str, Tensor]) -> None:
        """The network, the owners and the masks."""
        super().restore(own, shared)
        for name, blobs in own.items():
            masks = {}
            for key, earlier in self._earlier(name).items():
                if key in blobs:
                    mask = torch.ones_like(earlier)
                    mask[earlier] = decode(blobs[key], torch.bool, (int(earlier.sum()),)).to(mask.device)
                    masks[key] = {"mask": mask}
            self.picks[name] = self._picker.restore(masks, self._layers(), {}) if blobs else {}
