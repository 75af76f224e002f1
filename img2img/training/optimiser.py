"""Parameter groups, an optimiser for each kind that they name, and how rates change over the steps."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from img2img.backbones import EncoderDecoder
from img2img.errors import InputError
from img2img.training.config import OptimiserName, OptimiserOptions, TrainOptions
from img2img.training.distributed import Fabric


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained alike.

    Attributes:
        parameters: of the module.
        optimiser: by which they are trained.
        lr: their learning rate, before the schedule.
        weight_decay: of these alone.
    """

    parameters: Sequence[nn.Parameter]
    optimiser: OptimiserName
    lr: float
    weight_decay: float = 0.0


Groups = Callable[[OptimiserOptions], Sequence[ParameterGroup]]
"""`groups(options)`: the groups of a training. Empty ones are left out."""


def all_of(module: nn.Module) -> Groups:
    """Whatever of a module requires grad, as one group; its encoder as another where that has a rate of its own.

    `groups` raises InputError where there is such a rate and no encoder.
    """

    def groups(options: OptimiserOptions) -> list[ParameterGroup]:
        trained = [p for p in module.parameters() if p.requires_grad]
        if options.encoder_lr is None:
            return [ParameterGroup(trained, options.name, options.lr, options.weight_decay)]
        networks = [network for network in module.modules() if isinstance(network, EncoderDecoder)]
        if not networks:
            raise InputError(
                f"train.optimiser.encoder_lr={options.encoder_lr:g}: expected a network with an encoder and a decoder, and this "
                "one has none; leave it out"
            )
        encoder = {id(p) for network in networks for p in network.encoder.parameters()}
        return [
            ParameterGroup([p for p in trained if id(p) not in encoder], options.name, options.lr, options.weight_decay),
            ParameterGroup([p for p in trained if id(p) in encoder], options.name, options.encoder_lr, options.weight_decay),
        ]

    return groups


def build_optimisers(groups: Sequence[ParameterGroup], options: OptimiserOptions) -> list[torch.optim.Optimizer]:
    """One optimiser for each kind that the groups name."""
    of_kind: dict[OptimiserName, list[dict[str, Any]]] = {}
    for group in groups:
        if group.parameters:
            settings = {"params": list(group.parameters), "lr": group.lr, "weight_decay": group.weight_decay}
            of_kind.setdefault(group.optimiser, []).append(settings)
    return [_build(kind, settings, options) for kind, settings in of_kind.items()]


def check_one_optimiser(optimisers: Sequence[torch.optim.Optimizer], fabric: Fabric) -> None:
    """Refuse several optimisers where the loss is scaled: the step of the first may change the scale of the others' gradients.

    Raises:
        InputError: names the precision and the ways out.
    """
    precision = fabric.strategy.precision.precision
    if precision == "16-mixed" and len(optimisers) > 1:
        raise InputError(
            f"device.precision={precision} with {len(optimisers)} optimisers: expected one, as it scales the loss; give "
            "device.precision=bf16-mixed or 32-true, or one optimiser for all (train.optimiser.mask, head and name)"
        )


def _build(kind: OptimiserName, groups: list[dict[str, Any]], options: OptimiserOptions) -> torch.optim.Optimizer:
    if kind in ("adam", "adamw"):
        return DenseAdam(groups, fused=True, decoupled_weight_decay=kind == "adamw")
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=options.nesterov, fused=True)
    return torch.optim.RMSprop(groups)


class DenseAdam(torch.optim.Adam):
    """Fused Adam that sees contiguous tensors, whatever memory format the parameters have.

    On a CPU PyTorch's fused kernel copies each tensor that is not contiguous before and after its work: with channels_last the
    step takes 1.6 times as long. It also takes a gradient of another memory format than its parameter's for one of the same,
    without an error (seen in PyTorch 2.14). So the kernel is given contiguous views of the same memory: of each parameter, its
    gradient and its moments, with the dimensions in the order of the parameter's strides. Adam works element by element: the
    results are the same bit for bit, and parameters and state keep their form.
    """

    def _init_group(self, group: dict[str, Any], params: list[Tensor], *lists: list[Tensor]) -> bool:
        """What PyTorch's own collects for its kernel, as contiguous views."""
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None and parameter.device.type == "cpu" and not _lie_alike(gradient, parameter):
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
        has_complex: bool = super()._init_group(group, params, *lists)
        *tensors, _ = lists  # the last are the steps
        for i, parameter in enumerate(params):
            if parameter.device.type == "cpu" and not parameter.is_contiguous():
                order = sorted(range(parameter.ndim), key=parameter.stride, reverse=True)
                for of_kind in (params, *tensors):
                    if of_kind:  # there are no maxima without amsgrad
                        of_kind[i] = of_kind[i].detach().permute(order)
        return has_complex


def _lie_alike(one: Tensor, other: Tensor) -> bool:
    """Whether the values of two tensors of one shape lie alike in memory; strides along axes of length 1 say nothing."""
    strides = zip(one.shape, one.stride(), other.stride(), strict=True)
    return all(ours == theirs for length, ours, theirs in strides if length > 1)


def start_momentum(optimisers: Sequence[torch.optim.Optimizer]) -> None:
    """Give parameters that waited while others of their group were trained by SGD a momentum of zero, which is how one starts.

    The fused kernel takes a momentum for each parameter of a group, or for none of them.
    """
    for optimiser in optimisers:
        for group in optimiser.param_groups if isinstance(optimiser, torch.optim.SGD) else ():
            late = [p for p in group["params"] if optimiser.state.get(p, {}).get("momentum_buffer") is None]
            for parameter in late if len(late) < len(group["params"]) else ():
                optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def all_groups(optimisers: Sequence[torch.optim.Optimizer]) -> Iterator[dict[str, Any]]:
    """Every parameter group of the optimisers."""
    for optimiser in optimisers:
        yield from optimiser.param_groups


def schedulers(optimisers: Sequence[torch.optim.Optimizer], options: TrainOptions, *, start: int) -> list[LambdaLR]:
    """A scheduler for each optimiser, which sets the rates of step `start` at once and of the next with each of its steps."""
    made = []
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group.setdefault("initial_lr", group["lr"])
        made.append(LambdaLR(optimiser, lambda step: schedule(step, options), last_epoch=start - 1))
    return made


def schedule(step: int, options: TrainOptions) -> float:
    """The factor on the learning rates at `step`: a linear rise over the warmup, times what the schedule says."""
    chosen = options.schedule
    warmup = min(chosen.warmup, options.steps // 2)  # a shorter training would never reach its rates
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if chosen.name == "cosine":
        return rise * 0.5 * (1 + math.cos(math.pi * step / options.steps))
    passed = sum(step >= round(at * options.steps) for at in chosen.decay_at)
    return float(rise * chosen.decay**passed)
