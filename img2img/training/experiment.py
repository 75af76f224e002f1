"""An experiment: everything that a sequence of tasks on one backbone is made from, checked when it is read."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from img2img.backbones import KINDS as BACKBONES
from img2img.data import KINDS as DATA
from img2img.errors import InputError
from img2img.files.paths import expanded
from img2img.masks import METHODS, MaskMethod, Mixed, build_method
from img2img.masks.task_store import check_task_name
from img2img.registry import import_modules
from img2img.tasks.base import KINDS as TASKS
from img2img.training.options import TrainOptions
from img2img.training.source import Source
from img2img.validation import call_with

EVERY_TASK = "all"
"""What the commands take for all tasks of a bundle, so that no task can have the name."""

BackboneMode = Literal["first_task", "pretrained", "random", "bundle"]


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task of an experiment.

    Attributes:
        task: `kind` and options, see `tasks.build_task`.
        data: `kind` and options, see `data.build_data`.
        train: `TrainOptions` that differ from the experiment's.
        method: the task's own mask method in place of the experiment's.
        start_from: an earlier task, of the sequence or of the bundle that the backbone is from, whose masks and norm state this
            one starts from, or "nearest" for the one whose norm statistics are nearest to those of this task's pictures.
    """

    task: Mapping[str, Any]
    data: Mapping[str, Any]
    train: Mapping[str, Any] = field(default_factory=dict)
    method: Mapping[str, Any] | None = None
    start_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A sequence of tasks on one backbone.

    Attributes:
        name: what reports call it.
        out: the run folder.
        imports: modules of the user's own, or .py files, that define kinds of task, data or backbone or mask methods: imported
            when the experiment is read, see `plugins.import_modules`.
        backbone: a backbone's spec with `weights`, see `backbones.build_backbone`; `mode` is taken out of it. With the mode
            "bundle" only `weights`, a bundle's folder or a run's: the backbone and what of it is masked are that bundle's.
        method: `name` and options of the mask method of every task that does not train the backbone; or of a comparison method,
            see `strategies`.
        norm: "own", "statistics" or "frozen" normalisation state of masked tasks, see `MaskedNetwork.add_task`.
        bases: by name, what tasks with ImpressLearn combine: `tasks: [...]`, finished before they are needed, and `kind`, see
            `basis_of_tasks`; or the options of `Basis.random`.
        train: the `TrainOptions` of every task.
        first_train: those that differ for the first task of a backbone that it trains; `tasks.NAME.train` goes before them.
        tasks: the tasks by name.
        sequence: the names of the tasks to learn, in order; any subset, in any order.
        decoder_only: tasks that are also trained with a frozen encoder, for comparison.
        first_from: the folder of another run with the same first task and seed, from which the trained backbone is taken in place
            of training it again: so that several methods start from the very same one.
        select: patterns of the names of the weights that are masked, such as `["decoder.*"]`; None for all.
        own: patterns of the names of weights of which each masked task trains a copy of its own in place of a mask, such as
            `["decoder.blocks.4.*"]`, see `masks.Mixed`; None for none.
        seed: of everything random.
        resume: "auto" goes on with what is in the run folder; "never" refuses a folder that holds a run; "anyway" goes on though
            the files that its tasks were learned from have changed, see `record`.
        batch_size: of evaluations.
        probe: pictures in the fixed batch whose outputs are compared bit for bit.
        panels: test pictures shown for each task.
        accelerator: Fabric's; "auto" takes a GPU when there is one.
        devices: of this machine that train together, a process for each; "auto" for all of its GPUs. A launcher such as torchrun
            says so itself.
        nodes: machines.
        precision: Fabric's.
        threads: CPU threads, None for all; outputs are bit-equal for one number of threads only.
        channels_last: memory format of weights and pictures.
    """

    name: str
    out: str
    backbone: Mapping[str, Any]
    method: Mapping[str, Any]
    train: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]
    sequence: Sequence[str]
    imports: Sequence[str] = ()
    norm: Literal["own", "statistics", "frozen"] = "own"
    bases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    first_train: Mapping[str, Any] = field(default_factory=dict)
    decoder_only: Sequence[str] = ()
    first_from: str | None = None
    select: Sequence[str] | None = None
    own: Sequence[str] | None = None
    seed: int = 0
    resume: Literal["auto", "never", "anyway"] = "auto"
    batch_size: int = 8
    probe: int = 4
    panels: int = 6
    accelerator: str = "auto"
    devices: int | str = 1
    nodes: int = 1
    precision: str = "32-true"
    threads: int | None = None
    channels_last: bool = True

    def __post_init__(self) -> None:
        if not self.sequence:
            raise InputError(f"the sequence is empty: name one task or more of {', '.join(self.tasks)}")
        for name in (*self.sequence, *self.decoder_only):
            check_task_name(name)
            if name == EVERY_TASK:
                raise InputError(f"the sequence names a task {name!r}: that stands for every task (`img2img run all`); rename it")
            if name not in self.tasks:
                raise InputError(
                    f"the sequence names the task {name!r}, which the config does not have; it has {', '.join(self.tasks)}"
                )
        if len(set(self.sequence)) < len(self.sequence):
            raise InputError(f"the sequence {list(self.sequence)} names a task twice: each is learned once")
        if self.mode not in ("first_task", "pretrained", "random", "bundle"):
            raise InputError(f"backbone.mode={self.mode!r}: expected 'first_task', 'pretrained', 'random' or 'bundle'")
        if self.mode == "pretrained" and not self.backbone.get("weights"):
            raise InputError("backbone.mode='pretrained' needs backbone.weights: a file, 'imagenet' or 'package:…'")
        if self.mode == "random" and self.backbone.get("weights") is not None:
            raise InputError(
                f"backbone.mode='random' with backbone.weights={self.backbone['weights']!r}: expected null, since the weights "
                "are drawn; set backbone.weights=null, or backbone.mode=pretrained to use that file"
            )
        if self.source is not None and self.select is not None and list(self.select) != list(self.source.select or ["*"]):
            masked = self.source.select or "all weights"
            raise InputError(
                f"select={list(self.select)}, but the masks of {self.source.folder} are of {masked}: leave select out"
            )
        for name in self.sequence:
            self._check_start(name)
        for name in ("batch_size", "probe", "panels"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: expected 1 or more pictures")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads={self.threads}: expected 1 or more, or null for all")
        if self.resume not in ("auto", "never", "anyway"):
            raise InputError(f"resume={self.resume!r}: expected 'auto', 'never' or 'anyway'")

    def _check_start(self, name: str) -> None:
        config = self.task(name)
        earlier = [*(() if self.source is None else self.source.tasks), *self._earlier(name)]
        if config.start_from is not None and config.start_from not in ("nearest", *earlier):
            raise InputError(
                f"tasks.{name}.start_from={config.start_from!r}: expected 'nearest' or a task that comes earlier in the "
                f"sequence: {', '.join(earlier) or 'there is none'}"
            )
        basis = self.method_of(name).get("basis")
        if basis is None or (self.mode == "first_task" and not earlier):
            return
        if basis not in self.bases:
            made = () if self.source is None else self.source.bases
            if basis in made:
                return
            have = [*self.bases, *made]
            raise InputError(f"tasks.{name} uses the basis {basis!r}, which `bases` does not have; it has {have}")
        missing = [task for task in self.bases[basis].get("tasks", ()) if task not in earlier]
        if missing:
            raise InputError(f"the basis {basis!r} needs the task {missing[0]!r} before {name!r}: put it earlier in the sequence")

    def method_of(self, name: str) -> Mapping[str, Any]:
        """The name and options of the mask method of a task."""
        own = self.task(name).method
        return self.method if own is None else own

    def mask_method(self, name: str) -> MaskMethod:
        """The mask method of a task, with the experiment's own weights.

        Raises:
            InputError: there is no such method, or it has an option or a value that is not allowed.
        """
        options = dict(self.method_of(name))
        method = build_method(options.pop("name", None), options)
        return Mixed(method=method, trainable_copies=self.own) if self.own else method

    @property
    def masks(self) -> bool:
        """Whether tasks are learned by masks; otherwise a comparison method learns them."""
        return self.method.get("name") in METHODS

    @property
    def mode(self) -> BackboneMode:
        """Where the backbone's weights come from: trained by the first task, pre-trained elsewhere, or random."""
        mode: BackboneMode = self.backbone.get("mode", "first_task")
        return mode

    @property
    def trained_elsewhere(self) -> bool:
        """Whether the backbone is a trained network that no task of the sequence trains.

        A bundle does not say how its backbone came about; it is taken for a trained one.
        """
        return self.mode in ("pretrained", "bundle")

    @cached_property
    def source(self) -> Source | None:
        """The bundle that the backbone is taken from, as it was when this was first asked; None with other modes.

        Raises:
            InputError: it cannot be read.
        """
        return Source.of(self.backbone) if self.mode == "bundle" else None

    @property
    def backbone_options(self) -> dict[str, Any]:
        """The backbone's spec alone."""
        return {k: v for k, v in self.backbone.items() if k != "mode"} if self.source is None else dict(self.source.spec)

    @property
    def selected(self) -> Sequence[str] | None:
        """Patterns of the weights that are masked: `select`, or those of the bundle that the backbone is from."""
        return self.select if self.source is None else self.source.select

    @property
    def folder(self) -> Path:
        """The run folder."""
        return expanded(self.out)

    def task(self, name: str) -> TaskConfig:
        """The config of a task."""
        config: TaskConfig = call_with(TaskConfig, self.tasks[name], what=f"tasks.{name}")
        return config

    def train_options(self, name: str | None = None) -> TrainOptions:
        """The experiment's options, with a task's own on top where one is named."""
        options = dict(self.train)
        if name is not None:
            trains_backbone = self.mode == "first_task" and name == self.sequence[0]
            options |= {**(self.first_train if trains_backbone else {}), **self.task(name).train}
        for key in ("zoom", "decay_at"):
            if isinstance(options.get(key), list):
                options[key] = tuple(options[key])
        train: TrainOptions = call_with(TrainOptions, options, what="train" if name is None else f"tasks.{name}.train")
        return train

    def seed_of(self, name: str) -> int:
        """A seed for one task: the same wherever it stands in the sequence and whatever ran before."""
        return int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:4], "big")

    def _needed_by(self, name: str) -> dict[str, Any]:
        """The configs of the earlier tasks that a task's start or basis depends on."""
        start, basis = self.task(name).start_from, self.method_of(name).get("basis")
        options = self.bases.get(basis, {}) if isinstance(basis, str) else {}
        needed = set(options.get("tasks", ()))
        earlier = self._earlier(name)
        source = self.source
        # A task of the sequence may have been joined into the bundle since it was learned.
        lent = () if source is None else tuple(task for task in source.tasks if task not in self.sequence)
        needed |= {*earlier, *lent} if start == "nearest" else {start} - {None}
        found: dict[str, Any] = {"basis": dict(options), "tasks": {task: self.tasks[task] for task in earlier if task in needed}}
        if source is not None:
            found |= {"lent": source.checksums(task for task in lent if task in needed)}
            found |= {"made": None if basis in self.bases else source.bases.get(str(basis))}
        return found

    def _earlier(self, name: str) -> list[str]:
        """The tasks before this one in the sequence."""
        return list(self.sequence)[: list(self.sequence).index(name)]

    def _before(self, index: int) -> dict[str, Any] | None:
        """The configs of the tasks that change what task number `index` learns: for comparison methods those before it."""
        if self.masks:
            return None
        together = list(self.sequence) if self.method.get("name") == "joint" else list(self.sequence)[:index]
        return {task: self.tasks[task] for task in together}

    def fingerprint(self, name: str, *, backbone: bool = False, places: bool = False) -> str:
        """A hash of whatever the training of a task depends on, for its checkpoints; `backbone`: of the backbone's.

        Not on where files lie: what is read from them is kept by `record`, and a folder may move. With `places` it does, as
        versions did that kept no such thing.

        Not on the number of processes: a run may go on with fewer or more of them, since the batches stay the same. The outcome
        is then the same up to rounding, or to which pictures are normalised together, as it is on another kind of machine.

        `imports` is not in it, as no other code is: a task depends on the kinds and options that it names, wherever they are
        defined. A module may move, or another one be added for a later task, and what was learned stays valid.
        """
        index = list(self.sequence).index(name)
        if backbone:
            config = self.task(name)
            unused = ("mask_lr", "head_lr", "norm_lr", "head_optimiser", "head_first")
            train = {key: value for key, value in vars(self.train_options(name)).items() if key not in unused}
            options = {"task": config.task, "data": config.data, "train": train, "backbone": self.backbone, "seed": self.seed}
            options |= {"precision": self.precision, "channels_last": self.channels_last}
            return _hash(options, places)
        if index == 0 and self.mode == "first_task" and self.masks:
            # It has no mask: how later tasks are masked does not matter to it.
            return self.fingerprint(name, backbone=True, places=places)
        depends = {
            "task": self.tasks[name],
            "train": self.train,
            "first_train": self.first_train if self.mode == "first_task" else {},
            "method": self.method_of(name),
            "norm": self.norm,
            "select": self.selected,
            "own": self.own,
            "earlier": self._needed_by(name),
            "backbone": self.backbone if self.source is None else self.source.fingerprint(),
            "first": self.sequence[0] if self.mode == "first_task" else None,
            "first_config": self.tasks[self.sequence[0]] if self.mode == "first_task" and index else None,
            "seed": self.seed,
            "precision": self.precision,
            "channels_last": self.channels_last,
            "before": self._before(index),
        }
        return _hash(depends, places)

    def fingerprints(self, name: str, *, backbone: bool = False) -> tuple[str, ...]:
        """The fingerprint, and what it was in versions that counted where files lie: either may stand in a run's folder."""
        return tuple(self.fingerprint(name, backbone=backbone, places=places) for places in (False, True))


def _hash(depends: Mapping[str, Any], places: bool) -> str:
    told = depends if places else _without_places(depends)
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=list).encode()).hexdigest()


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


def read_experiment(config: Mapping[str, Any]) -> Experiment:
    """The experiment of a plain (resolved) config, its families of tasks written out, see `with_families`.

    The modules that `imports` names are imported, so that every kind and method is known from here on.

    Raises:
        InputError: an unknown key, a value that cannot be used, or no such module.
    """
    experiment: Experiment = call_with(Experiment, with_families(config), what="the config")
    import_modules(experiment.imports)
    for name in experiment.sequence:
        experiment.train_options(name)
    return experiment


def with_families(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with one task for each member of a family.

    A task with a `count`, such as `superclass: {count: 20, task: ..., data: ...}`, stands for `superclass_1` to `superclass_20`,
    whose data get their number as `number`. In `sequence` the family's name stands for all of them in order; members may be
    named too, and a task of a member's name under `tasks` changes that one, in what it names of its task, data and training.

    Raises:
        InputError: `count` is no whole number above 0.
    """
    tasks: dict[str, Any] = {}
    members: dict[str, list[str]] = {}
    given = config.get("tasks")
    for name, task in given.items() if isinstance(given, Mapping) else ():
        if not isinstance(task, Mapping) or "count" not in task or not isinstance(name, str):  # other names are refused below
            tasks[name] = _changed(tasks.get(name, {}), task) if isinstance(task, Mapping) else task
            continue
        count = task["count"]
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InputError(f"tasks.{name}.count={count!r}: expected how many tasks there are, a whole number of 1 or more")
        common = {key: value for key, value in task.items() if key != "count"}
        members[name] = [f"{name}_{number}" for number in range(1, count + 1)]
        for number, member in enumerate(members[name], start=1):
            numbered = common | {"data": {**common.get("data", {}), "number": number}}
            tasks[member] = _changed(numbered, tasks.get(member, {}))
    sequence = config.get("sequence")
    if members and isinstance(sequence, list | tuple):
        sequence = [member for name in sequence for member in members.get(name, [name])]
    return {**config, "tasks": tasks, "sequence": sequence} if members else dict(config)


def _changed(task: Mapping[str, Any], by: Mapping[str, Any]) -> dict[str, Any]:
    """A task's config with what `by` gives in its place; a method goes as a whole, since another's options mean nothing to it."""
    both = {key: {**task[key], **by[key]} for key in ("task", "data", "train") if key in task and key in by}
    return {**task, **by, **both}
