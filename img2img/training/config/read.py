"""From a config's plain values to an `Experiment`: the one place where they are read."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from img2img.backbones import BACKBONES
from img2img.data import DataSpec
from img2img.errors import InputError
from img2img.masks import METHODS, MaskMethod, Mixed
from img2img.masks.methods.signs import SignsMethod
from img2img.masks.random_weights import Kind as RandomInit
from img2img.masks.task_store import check_task_name
from img2img.registry import import_explained
from img2img.tasks import TASKS
from img2img.training.config.experiment import (
    BackboneConfig,
    BasisOfTasks,
    Experiment,
    ExperimentConfig,
    RandomBasis,
    Run,
    TaskConfig,
    TaskTemplate,
)
from img2img.training.config.train_options import TrainOptions
from img2img.training.source import Source
from img2img.training.strategies import MASKS, STRATEGIES, strategy_of
from img2img.validation import WHOLE, Spec, checked, one_of

EVERY_TASK = "all"
"""What the commands take for all tasks of a bundle, so that no task can have the name."""


def read_experiment(config: Mapping[str, Any]) -> Experiment:
    """The experiment of a plain (resolved) config.

    The modules that `imports` names are imported first, so that every kind and method is known from here on.

    Raises:
        InputError: an unknown key, a value that cannot be used, or no such module.
    """
    given = checked(ExperimentConfig, config, what=WHOLE)
    import_explained(given.imports, "imports")
    given.evaluation.perceptual_metrics()
    sequence, templates = _written_out(given)
    _check_names(given, sequence, templates)
    backbone = _backbone(given.backbone)
    _check_selected(given, backbone.source)
    method, strategy = strategy_of(given.method)
    bases = {name: _basis(name, options) for name, options in given.masks.bases.items()}
    compare = {name: _comparison(name) for name, of_tasks in given.compare.items() if of_tasks}
    tasks: list[TaskConfig] = []
    for name in sequence:
        first = not tasks and backbone.mode == "first_task"
        own = templates[name].method
        if own is not None and strategy.kind != MASKS:
            raise InputError(
                f"tasks.{name}.method={dict(own)}: the method {method.kind!r} learns all tasks itself; leave the task's out, or "
                "choose a mask method for all"
            )
        spec = method if own is None else Spec.of(METHODS, own, what="mask method", key="name")
        template = templates[name]
        task = TaskConfig(
            name=name,
            task=Spec.of(TASKS, template.task, what="task", later=("classes", "square")),
            data=DataSpec.of(template.data),
            train=_train(given, template, f"tasks.{name}.train", first=first),
            method=_mask_method(spec, given.masks.trainable_copies) if strategy.kind == MASKS else None,
            method_spec=spec,
            own_method=own is not None,
            norm=template.norm or given.masks.norm,
            own_norm=template.norm is not None,
            start_from=template.start_from,
            finetuned=template.finetuned,
            compare=tuple(spec for label, spec in compare.items() if name in given.compare[label]),
        )
        _check_start(task, [each.name for each in tasks], backbone, bases)
        _check_finetuned(task, trains_backbone=first)
        if template.norm == "instance" and first:
            raise InputError(
                f"tasks.{name}.norm='instance': the task trains the backbone, whose normalisation later tasks start from; leave "
                "it out, or put another task first"
            )
        tasks.append(task)
    common = {name: getattr(given, name) for name in Run.model_fields}
    return Experiment(**common, backbone=backbone, method=method, strategy=strategy, bases=bases, tasks=tuple(tasks))


def _written_out(given: ExperimentConfig) -> tuple[list[str], dict[str, TaskTemplate]]:
    """The sequence and the tasks, with one task for each that a template stands for.

    `superclass: {count: 20, task: ..., data: ...}` stands for `superclass_1` to `superclass_20`, whose data get their number as
    `number`. In `sequence` the template's name stands for all of them in order; they may be named too, and a task of such a name
    under `tasks` changes that one, in what it names of its task, data and training.
    """
    tasks: dict[str, TaskTemplate] = {}
    made: dict[str, list[str]] = {}
    for name, template in given.tasks.items():
        if template.count is None:
            tasks[name] = _changed(tasks[name], template) if name in tasks else template
            continue
        made[name] = [f"{name}_{number}" for number in range(1, template.count + 1)]
        for number, member in enumerate(made[name], start=1):
            numbered = template.model_copy(update={"count": None, "data": {**template.data, "number": number}})
            tasks[member] = _changed(numbered, tasks[member]) if member in tasks else numbered
    return [member for name in given.sequence for member in made.get(name, [name])], tasks


def _changed(task: TaskTemplate, by: TaskTemplate) -> TaskTemplate:
    """A task with what `by` gives in its place; a method goes as a whole, since another's options mean nothing to it."""
    changes: dict[str, Any] = {name: getattr(by, name) for name in by.model_fields_set}
    for name in changes.keys() & {"task", "data"}:
        changes[name] = {**getattr(task, name), **changes[name]}
    if "train" in changes:
        changes["train"] = merged(task.train, by.train)
    return task.model_copy(update=changes)


def _check_names(given: ExperimentConfig, sequence: Sequence[str], tasks: Mapping[str, TaskTemplate]) -> None:
    if not sequence:
        raise InputError(f"the sequence is empty: name one task or more of {', '.join(tasks)}")
    for name in (*sequence, *(name for names in given.compare.values() for name in names)):
        check_task_name(name)
        if name == EVERY_TASK:
            raise InputError(f"the sequence names a task {name!r}: that stands for every task (`img2img run all`); rename it")
        if name not in tasks:
            raise InputError(f"the sequence names the task {name!r}, which the config does not have; it has {', '.join(tasks)}")
    if len(set(sequence)) < len(sequence):
        raise InputError(f"the sequence {list(sequence)} names a task twice: each is learned once")


def _backbone(given: Mapping[str, Any]) -> BackboneConfig:
    options = dict(given)
    mode = options.pop("mode", "first_task")
    if mode not in ("first_task", "pretrained", "random", "bundle"):
        raise InputError(f"backbone.mode={mode!r}: expected 'first_task', 'pretrained', 'random' or 'bundle'")
    if mode == "pretrained" and not options.get("weights"):
        raise InputError("backbone.mode='pretrained' needs backbone.weights: a file, 'imagenet' or 'package:…'")
    if mode == "random" and options.get("weights") is not None:
        raise InputError(
            f"backbone.mode='random' with backbone.weights={options['weights']!r}: expected null, since the weights are drawn; "
            "set backbone.weights=null, or backbone.mode=pretrained to use that file"
        )
    if mode == "bundle":
        return BackboneConfig(mode, None, Source.of(given))
    half = options.pop("half", False)
    if not isinstance(half, bool):
        raise InputError(f"backbone.half={half!r}: expected true, to round the weights to half precision, or false")
    init: Any = one_of("backbone.init", options.pop("init", "kaiming_normal"), get_args(RandomInit))
    if init != "kaiming_normal" and mode != "random":
        raise InputError(
            f"backbone.init={init!r} with backbone.mode={mode!r}: expected mode 'random', whose weights are drawn so"
        )
    if options.get("weights") is None and "weights" not in inspect.signature(BACKBONES.find(options.get("kind"))).parameters:
        options.pop("weights", None)  # a kind need not know of weights
    return BackboneConfig(mode, Spec.of(BACKBONES, options, what="backbone", later=("out_channels",)), None, half, init)


def _check_selected(given: ExperimentConfig, source: Source | None) -> None:
    select = given.masks.select
    if source is not None and select is not None and list(select) != list(source.select or ["*"]):
        masked = source.select or "all weights"
        raise InputError(f"masks.select={list(select)}, but the masks of {source.folder} are of {masked}: leave masks.select out")


def _comparison(name: str) -> Spec[Any]:
    spec: Spec[Any] = Spec.of(STRATEGIES, {"name": name}, what="method", key="name")
    if name == MASKS or spec.builder.learns_together:
        raise InputError(f"compare.{name}: it learns no task on its own; expected a comparison method such as decoder_only")
    return spec


def _basis(name: str, options: Mapping[str, Any]) -> BasisOfTasks | RandomBasis:
    what = f"masks.bases.{name}"
    return checked(BasisOfTasks, options, what=what) if "tasks" in options else checked(RandomBasis, options, what=what)


def _mask_method(spec: Spec[MaskMethod], copies: Sequence[str] | float | None) -> MaskMethod:
    method = spec.build()
    return Mixed(method=method, trainable_copies=copies) if copies else method


def _train(given: ExperimentConfig, template: TaskTemplate, what: str, *, first: bool) -> TrainOptions:
    options: Mapping[str, Any] = given.train.model_dump(exclude_unset=True)
    for more in (given.first_train if first else {}, template.train):
        options = merged(options, more)
    return checked(TrainOptions, options, what=what)


def merged(options: Mapping[str, Any], by: Mapping[str, Any]) -> dict[str, Any]:
    """The options with those of `by` in their place, groups entered."""
    both = dict(options)
    for key, value in by.items():
        group = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merged(both[key], value) if group else value
    return both


def _check_start(
    task: TaskConfig, before: Sequence[str], backbone: BackboneConfig, bases: Mapping[str, BasisOfTasks | RandomBasis]
) -> None:
    source = backbone.source
    earlier = [*(() if source is None else source.tasks), *before]
    if task.start_from is not None and task.start_from not in ("nearest", *earlier):
        raise InputError(
            f"tasks.{task.name}.start_from={task.start_from!r}: expected 'nearest' or a task that comes earlier in the sequence: "
            f"{', '.join(earlier) or 'there is none'}"
        )
    name = None if task.method is None else task.method.basis_name()
    if name is None or (backbone.mode == "first_task" and not earlier):
        return
    basis = bases.get(name)
    if basis is None:
        made = () if source is None else tuple(source.bases)
        if name not in made:
            have = [*bases, *made]
            raise InputError(f"tasks.{task.name} uses the basis {name!r}, which masks.bases does not have; it has {have}")
    elif isinstance(basis, BasisOfTasks):
        missing = [each for each in basis.tasks if each not in earlier]
        if missing:
            raise InputError(
                f"the basis {name!r} needs the task {missing[0]!r} before {task.name!r}: put it earlier in the sequence"
            )


def _check_finetuned(task: TaskConfig, *, trains_backbone: bool) -> None:
    given, what = task.finetuned, f"tasks.{task.name}.finetuned"
    if given is None:
        return
    if trains_backbone or task.method is None:
        why = "the first task trains the backbone" if trains_backbone else f"the method {task.method_spec.kind!r} has no masks"
        raise InputError(f"{what}={given.weights!r}: {why}; leave it out, or give it to a task with a mask method")
    if given.start and task.start_from is not None:
        raise InputError(
            f"{what} and start_from={task.start_from!r}: the task cannot start from both; leave start_from out, or set "
            f"{what}.start=false to learn from the network's outputs alone"
        )
    if given.start and not isinstance(task.method.inner, SignsMethod):
        raise InputError(
            f"{what} with the method {task.method.inner.name!r}: expected sparse_signs or dense_signs, which can start from it; "
            f"or set {what}.start=false to learn from the network's outputs alone"
        )
