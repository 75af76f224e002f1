"""Mask options that cannot work are found before any training: the masks of each task are made once, on untrained weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from img2img.errors import InputError
from img2img.files.untrusted import naming
from img2img.masks import METHODS, Basis, Identity, MaskedNetwork, basis_of_tasks
from img2img.masks.contract import check_gradients, check_restored
from img2img.masks.task_state import WITHOUT_STATISTICS
from img2img.training.config import BasisOfTasks, Experiment, TaskConfig


def check_masks(experiment: Experiment, network: MaskedNetwork) -> None:
    """Make the masks of every task once, with its start and its basis, and forget them. The network stays as it is.

    Those of a method of the user's own are frozen, stored and restored too.

    What starts from a task of the bundle that the backbone is from, or uses a basis of it, is left out: they are not there yet.

    Raises:
        InputError: names the task, and says what of its method, start or basis cannot be used.
    """
    tasks = {task.name: task for task in experiment.tasks if task.method is not None}
    checked = set[str]()
    with torch.random.fork_rng(devices=[]):  # some scores are drawn: what is checked changes no training
        for place, task in enumerate(tasks.values()):
            if place == 0 and experiment.backbone.mode == "first_task":
                continue
            earlier = list(tasks.values())[:place]
            key = repr((task.method, task.norm, task.start_from and [(t.name, t.method, t.norm) for t in earlier]))
            if key in checked:
                continue
            checked.add(key)
            with naming(f"tasks.{task.name}"):
                _check_task(experiment, network, task, earlier)


def _check_task(experiment: Experiment, network: MaskedNetwork, task: TaskConfig, earlier: list[TaskConfig]) -> None:
    assert task.method is not None
    if task.start_from == "nearest":
        _check_nearest(network, earlier)
    name = task.method.basis_name()
    options = None if name is None else experiment.bases.get(name)
    if name is not None and (options is None or name in network.bases()):
        return
    sources = {each.name: each for each in earlier}
    needed = list(options.tasks) if isinstance(options, BasisOfTasks) else []
    needed += [] if task.start_from in (None, "nearest") else [str(task.start_from)]
    if not all(each in sources for each in needed):
        return
    first = earlier[0].name if earlier and experiment.backbone.mode == "first_task" else None
    with _forgotten(network):
        for each in dict.fromkeys(needed):
            method = Identity() if each == first else sources[each].method
            assert method is not None
            if method.basis_name() is not None:
                return
            network.add_task(each, method, head=nn.Identity(), norm=sources[each].norm)
            network.freeze_task(each)
        if isinstance(options, BasisOfTasks):
            network.add_basis(str(name), basis_of_tasks(network, options.tasks, kind=options.kind))
        elif options is not None:
            network.add_basis(str(name), Basis.random(network.layers(), **{**vars(options), "count": 1}))
        start = None if task.start_from == "nearest" else task.start_from
        network.add_task(task.name, task.method, head=nn.Identity(), norm=task.norm, start_from=start)
        if not METHODS.has_own(task.method.inner.name):  # img2img's own keep their contract, as its tests show
            state = network.state(task.name)
            state.prepare()
            check_gradients(dict(state.named_masks()), network.masked_weights())
            network.freeze_task(task.name)
            check_stored(network, task.name)


def check_stored(network: MaskedNetwork, name: str) -> None:
    """Check that the masks of a frozen task come back from what they store, where their method is one of the user's own.

    Raises:
        InputError: they have other effective weights.
    """
    state = network.state(name)
    if not METHODS.has_own(state.method.inner.name):
        weights, layers, bases = network.masked_weights(), network.layers(), network.bases()
        check_restored(state.method, dict(state.named_masks()), weights, layers, bases)


def _check_nearest(network: MaskedNetwork, earlier: list[TaskConfig]) -> None:
    """Refuse `start_from=nearest` where tasks have no running statistics to be compared by."""
    remedy = "name the task to start from, or leave start_from out"
    if not any(name.endswith("running_mean") for name in network.roles.norm_buffers):
        raise InputError(f"start_from='nearest' compares running statistics, and the backbone keeps none: {remedy}")
    for task in earlier:
        if task.norm in WITHOUT_STATISTICS:
            raise InputError(
                f"start_from='nearest' compares running statistics, and the task {task.name!r} has none of its own "
                f"(norm={task.norm!r}): {remedy}"
            )


@contextmanager
def _forgotten(network: MaskedNetwork) -> Iterator[None]:
    """The network has the tasks and bases that it had, after the block."""
    tasks, bases = set(network.tasks()), set(network.bases())
    try:
        yield
    finally:
        for task in set(network.tasks()) - tasks:
            network.delete_task(task)
        for basis in set(network.bases()) - bases:
            network.delete_basis(basis)
