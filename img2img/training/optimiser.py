"""What is trained at which rate, by which optimiser, and how rates change over the steps."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from img2img.masks import TaskModule, TrainableCopy
from img2img.training.options import OptimiserName, TrainOptions

Roles = dict[str, list[nn.Parameter]]
"""The parameters that are trained, by "scores" (all that masks learn), "norm", "head" and "weights"."""


def parameter_roles(module: nn.Module) -> Roles:
    """What a module trains, by role.

    A module that knows better says so by a method `parameter_roles()`. Of a masked task the copies of weights that it has to
    itself are "weights"; of any other module all is, its head too.
    """
    own_roles = getattr(module, "parameter_roles", None)
    if own_roles is not None:
        roles: Roles = own_roles()
        return roles
    trained = [p for p in module.parameters() if p.requires_grad]
    if not isinstance(module, TaskModule):
        return {"weights": trained}
    masks = list(module.state.masks.children())
    own = {id(p) for mask in masks if isinstance(mask, TrainableCopy) for p in mask.parameters()}
    scores = {id(p) for p in module.state.masks.parameters()} - own
    head = set() if module.state.head is None else {id(p) for p in module.state.head.parameters()}
    norm = {id(p) for p in trained} - own - scores - head
    sets = {"scores": scores, "norm": norm, "head": head, "weights": own}
    return {role: [p for p in trained if id(p) in wanted] for role, wanted in sets.items()}


def build_optimisers(module: nn.Module, options: TrainOptions) -> list[torch.optim.Optimizer]:
    """One optimiser for each kind that is needed. Groups carry their rate as `base_lr`.

    Scores are always trained by Adam and never decay: weight decay would pull them to the threshold.
    """
    roles = parameter_roles(module)
    head_lr = options.lr if options.head_lr is None else options.head_lr
    norm_lr = head_lr if options.norm_lr is None else options.norm_lr
    head = options.optimiser if options.head_optimiser is None else options.head_optimiser
    settings: list[tuple[str, OptimiserName, float, float]] = [
        ("scores", "adam", options.mask_lr, 0.0),
        ("norm", options.optimiser, norm_lr, 0.0),
        ("head", head, head_lr, options.weight_decay),
        ("weights", options.optimiser, options.lr, options.weight_decay),
    ]
    groups: dict[OptimiserName, list[dict[str, Any]]] = {}
    for role, kind, lr, decay in settings:
        if roles.get(role):
            groups.setdefault(kind, []).append({"params": roles[role], "lr": lr, "base_lr": lr, "weight_decay": decay})
    return [_build(kind, of_kind, options) for kind, of_kind in groups.items()]


def _build(kind: OptimiserName, groups: list[dict[str, Any]], options: TrainOptions) -> torch.optim.Optimizer:
    if kind == "adam":
        return torch.optim.Adam(groups, fused=True)
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, fused=True)
    return torch.optim.RMSprop(groups)


def start_momentum(optimisers: list[torch.optim.Optimizer]) -> None:
    """Give parameters that waited while others of their group were trained by SGD a momentum of zero, which is how one starts.

    The fused kernel takes a momentum for each parameter of a group, or for none of them.
    """
    for optimiser in optimisers:
        for group in optimiser.param_groups if isinstance(optimiser, torch.optim.SGD) else ():
            late = [p for p in group["params"] if optimiser.state.get(p, {}).get("momentum_buffer") is None]
            for parameter in late if len(late) < len(group["params"]) else ():
                optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def all_groups(optimisers: list[torch.optim.Optimizer]) -> Iterator[dict[str, Any]]:
    """Every parameter group."""
    for optimiser in optimisers:
        yield from optimiser.param_groups


def schedule(step: int, options: TrainOptions) -> float:
    """The factor on the learning rates at `step`: a linear rise over `warmup` steps, times what `options.schedule` says."""
    rise = min(1.0, (step + 1) / options.warmup) if options.warmup else 1.0
    if options.schedule == "cosine":
        return rise * 0.5 * (1 + math.cos(math.pi * step / options.steps))
    passed = sum(step >= round(at * options.steps) for at in options.decay_at)
    return float(rise * options.decay**passed)
