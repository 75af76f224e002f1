"""Hashes of whatever a training depends on: a checkpoint or a run folder of another configuration is refused.

Not on where files lie: what is read from them is kept by `record`, and a folder may move. Not on the number of processes: a run
may go on with fewer or more of them, since the batches stay the same. The outcome is then the same up to rounding, or to which
images are normalised together, as it is on another kind of machine. Not on `imports`, as on no other code: a task depends on the
kinds and options that it names, wherever they are defined. A module may move, and what was learned stays valid.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from img2img.backbones import BACKBONES
from img2img.data import DATA
from img2img.tasks import TASKS
from img2img.training.config.experiment import BasisOfTasks, Experiment, TaskConfig
from img2img.training.strategies import MASKS


def backbone_fingerprint(experiment: Experiment) -> str:
    """Of the training of the backbone by the first task."""
    return _hash(_backbone_dependencies(experiment))


def _backbone_dependencies(experiment: Experiment) -> dict[str, Any]:
    task = experiment.tasks[0]
    train = task.train.plain()
    for option in ("mask", "mask_lr", "mask_weight_decay", "head_lr", "norm_lr", "head"):  # of masked tasks
        train["optimiser"].pop(option, None)
    del train["schedule"]["head_first"]
    return {
        "task": task.task.plain(),
        "data": task.data.plain(),
        "train": train,
        "backbone": experiment.backbone.plain(),
        **_machine(experiment),
    }


def task_fingerprint(experiment: Experiment, task: TaskConfig) -> str:
    """Of the training of a task."""
    return _hash(_task_dependencies(experiment, task))


def task_differences(experiment: Experiment, other: Experiment, name: str) -> list[str]:
    """What the training of a task depends on and another experiment has otherwise, such as "train.steps: 20, now 40"."""
    before, now = (
        _flat(_without_places(_task_dependencies(each, next(task for task in each.tasks if task.name == name))))
        for each in (other, experiment)
    )
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return [f"{key.removeprefix('task.')}: {before.get(key, 'none')}, now {now.get(key, 'none')}" for key in keys]


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """The values of nested mappings by their dotted keys."""
    if not isinstance(value, Mapping):
        return {place: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{place}.{key}" if place else str(key)).items()}


def _task_dependencies(experiment: Experiment, task: TaskConfig) -> dict[str, Any]:
    index = experiment.sequence.index(task.name)
    trains_backbone = experiment.first_trains_backbone and index == 0
    masks = experiment.strategy.kind == MASKS
    if trains_backbone and masks:  # it has no mask: how later tasks are masked does not matter to it
        return _backbone_dependencies(experiment)
    return {
        "task": task.plain(),
        "method": task.method_spec.plain(),
        "norm": experiment.masks.norm,
        "select": experiment.selected,
        "trainable_copies": experiment.masks.trainable_copies,
        "earlier": _needed(experiment, task, experiment.tasks[:index]),
        "backbone": experiment.backbone.plain(),
        "first": experiment.tasks[0].plain() if experiment.first_trains_backbone else None,
        "others": [] if masks else _changing(experiment, index),
        **_machine(experiment),
    }


def _machine(experiment: Experiment) -> dict[str, Any]:
    device = experiment.device
    return {"seed": experiment.seed, "precision": device.precision, "channels_last": device.channels_last}


def _changing(experiment: Experiment, index: int) -> list[Any]:
    """The tasks that change what a comparison method learns of task number `index`: those before it, or all."""
    tasks = experiment.tasks if experiment.strategy.builder.learns_together else experiment.tasks[:index]
    return [{"name": task.name, **task.plain()} for task in tasks]


def _needed(experiment: Experiment, task: TaskConfig, earlier: Sequence[TaskConfig]) -> dict[str, Any]:
    """The earlier tasks that a task's start or basis depends on."""
    name = None if task.method is None else task.method.basis_name()
    basis = None if name is None else experiment.bases.get(name)
    source = experiment.backbone.source
    # A task of the sequence may have been joined into the bundle since it was learned.
    in_bundle = () if source is None else tuple(each for each in source.tasks if each not in experiment.sequence)
    needed = set(basis.tasks) if isinstance(basis, BasisOfTasks) else set()
    if task.start_from == "nearest":
        needed |= {each.name for each in earlier} | set(in_bundle)
    elif task.start_from is not None:
        needed.add(task.start_from)
    found: dict[str, Any] = {
        "basis": None if basis is None else {k: v for k, v in basis.model_dump().items() if (k, v) != ("allocation", "layer")},
        "tasks": {each.name: each.plain() for each in earlier if each.name in needed},
    }
    if source is not None:
        found["of_bundle"] = source.checksums(each for each in in_bundle if each in needed)
        found["basis_of_bundle"] = None if basis is not None else source.bases.get(str(name))
    return found


def _hash(depends: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_without_places(depends), sort_keys=True, default=list).encode()).hexdigest()


def _without_places(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without the absolute paths among them; those of a user's own kinds, which may read unseen files, stay."""
    kind = options.get("kind")
    if kind is not None and not any(registry.has_own(kind) for registry in (DATA, TASKS, BACKBONES)):
        return dict(options)
    return {key: _without_place(value) for key, value in options.items()}


def _without_place(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _without_places(value)
    return "a path" if isinstance(value, str) and (os.path.isabs(value) or value.startswith("~")) else value
