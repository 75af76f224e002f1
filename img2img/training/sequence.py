"""The sequence: one task after another on one backbone, and the proof that the earlier ones are as they were."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from img2img.backbones import Backbone
from img2img.bundle import HEAD, describe_backbone, load_backbone, read_bundle, save_backbone
from img2img.data.loader import check_shares, lost_batches_explained
from img2img.files.paths import expanded
from img2img.inference.evaluator import Evaluator, Network, finite
from img2img.masks import MaskedNetwork
from img2img.masks.layers import is_weight
from img2img.training.backbone import backbone_of_run, finish_backbone, starting_backbone
from img2img.training.config import Experiment, backbone_fingerprint, task_fingerprint
from img2img.training.distributed import Processes, start_fabric, training_precision
from img2img.training.environment import environment
from img2img.training.log import TrainingLog
from img2img.training.loop import Fitted, Progress, fit
from img2img.training.output_check import OutputCheck
from img2img.training.output_images import Preview
from img2img.training.progress import read_progress, write_progress
from img2img.training.record import Records
from img2img.training.results import ComparisonRecord, Outcome, TaskRecord
from img2img.training.strategy import Context, Phase, Strategy, TaskData
from img2img.training.strategy_files import remove_older
from img2img.training.task_data import check_folders, check_names, check_own_bundle, check_tasks, prepare, remarks, tell_result
from img2img.validation import Spec

logger = logging.getLogger("img2img")

ProgressFor = Callable[[str, int], Progress]
"""`progress_for(what, steps)`: a progress bar for one training."""


class SequenceRunner:
    """Runs an experiment into its folder; a second run of the same experiment goes on where the first ended.

    The folder holds `bundle/` (the backbone and, for masks, the tasks), `strategy/` (the state of a comparison method),
    `progress.json` (what is finished, with its metrics), `data/` (which files the tasks read), `metrics/` and `tensorboard/`
    (training logs), `output_check/` (inputs and outputs that are compared) and, in the middle of a task, `checkpoints/`.

    Of several processes each has a runner; they train together, and the first alone measures and writes. All must see the folder.

    Args:
        experiment: what to run.

    Attributes:
        processes: those that train together, mostly one.
        task_data: the tasks by name.
        records: the files that they are learned from.
        progress: what is finished, as in `progress.json`.
        strategy: the method: how tasks are learned and run.
        network: the frozen backbone, with the finished tasks of mask methods; it exists once the backbone does.
        evaluator: runs networks of this backbone over images.

    Raises:
        InputError: a method's options, or the folder's earlier run, do not fit.
    """

    network: MaskedNetwork
    evaluator: Evaluator
    _backbone: Backbone

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.folder = experiment.folder
        self._progress_for: ProgressFor | None = None
        device = experiment.device
        precision = training_precision(device.precision, device.accelerator)
        self._fabric = start_fabric(
            accelerator=device.accelerator, precision=precision, devices=device.devices, nodes=device.nodes
        )
        self.processes = Processes(self._fabric)
        if device.threads is not None:
            torch.set_num_threads(device.threads)
        self.strategy: Strategy = experiment.strategy.build()
        self._remeasured = experiment.evaluation.remeasured(cannot_forget=self.strategy.cannot_forget)
        for train in (experiment.train, *(task.train for task in experiment.tasks)):
            check_shares(train.batch_size, self.processes.world_size)
        self.progress = read_progress(experiment)
        check_names(experiment, self.progress.tasks)
        # At the start: the files of a repository may change while it runs.
        self._environment = environment(processes=self.processes.world_size, precision=precision)
        self.task_data: dict[str, TaskData] = {}
        self.records = Records(experiment)
        self._output_check = OutputCheck(self.folder / "output_check", experiment.evaluation.check_images)

    # ------------------------------------------------------------------ the sequence

    def prepare(self) -> None:
        """Open the data of every task and all that an earlier run left, once: what can be refused is refused here.

        Nothing is written.

        Raises:
            InputError: bad input.
        """
        if not self.task_data:
            check_folders(self.experiment)
            self.task_data = {task.name: prepare(self.experiment, task) for task in self.experiment.tasks}
            self.records.check(self.task_data, self.progress.tasks)
            self._open()
            of_bundle = self.experiment.backbone.source is not None
            check_tasks(self.task_data.values(), self._backbone, of_bundle=of_bundle, finished=self.progress.tasks)
            self._take_up()

    def run(self, *, progress_for: ProgressFor | None = None) -> MaskedNetwork:
        """Learn every task of the sequence that is not finished yet; returns the network with all of them.

        Args:
            progress_for: makes progress bars; None for none.

        Raises:
            InputError: bad input, found before any training where possible.
            TrainingDivergedError: a loss is NaN; the finished tasks are kept.
            OutOfMemoryError: names what to lower; the finished tasks are kept.
        """
        self._progress_for = progress_for
        names = list(self.experiment.sequence)
        self.prepare()  # every task and dataset is opened before the first step, since hours may pass until the last
        self._keep()
        for name in names:
            for remark in remarks(self.task_data[name]) if name not in self.progress.tasks else ():
                logger.info("%s: %s", name, remark)
        for index, name in enumerate(names):
            if name in self.progress.tasks:
                logger.info("%s: finished in an earlier run", name)
            else:
                trains_backbone = index == 0 and self._first_trains_backbone
                outcome = self._train_backbone(name) if trains_backbone else self._learn(name)
                self._measured(partial(self._finish, names[: index + 1], outcome))
            for method in self.task_data[name].config.compare:
                if name not in self.progress.comparisons.get(method.kind, {}):
                    self._compare(name, method)
            parts = self.task_data[name].parts
            for part in (parts.train, parts.val, *(() if self._remeasured == "every" else (parts.test,))):
                part.forget()  # forty tasks of ImageNet take a hundred gigabytes; those measured after every task are kept
        return self.network

    @property
    def _first_trains_backbone(self) -> bool:
        return self.experiment.first_trains_backbone and not self.strategy.learns_first

    def _open(self) -> None:
        """Set up the network from an earlier run, or from a backbone that no task trains, or as the first task will train it."""
        bundle = self.folder / "bundle"
        if self.progress.tasks:
            stored, backbone = load_backbone(bundle, read_bundle(bundle))
            self._set_up(backbone)
            for name, basis in stored.bases().items():
                self.network.add_basis(name, basis)
            return
        first = self.task_data[self.experiment.sequence[0]]
        self._set_up(starting_backbone(self.experiment, first.task.out_channels))

    def _take_up(self) -> None:
        """Hand the network to the method, with what it learned in an earlier run, and read what is read later on."""
        names, first = list(self.progress.tasks), self.experiment.sequence[0]
        backbone: tuple[MaskedNetwork, Backbone] | None = (self.network, self._backbone)
        if names:
            self.strategy.begin(self._context())
            self.strategy.load(names)
            if len(names) < len(self.experiment.sequence):
                self._output_check.check(names)
            backbone = None
        elif not self._first_trains_backbone:
            self.strategy.begin(self._context())
        elif self.experiment.backbone_from is not None:
            with torch.random.fork_rng(devices=[]):  # the tasks start from the same random state as without this
                backbone = self._backbone_of_another_run(first)[1:]
        elif self._checkpoint(first).is_file():
            backbone = None  # that of the bundle may be what this training ends with
        self._check_bundle(backbone)

    def _keep(self) -> None:
        """Write what binds the folder to this run, once it is accepted."""
        if self.processes.is_rank_zero:
            self.records.keep(self.task_data)
            if self.progress.planned != list(self.experiment.sequence):
                self.progress.planned = list(self.experiment.sequence)
                write_progress(self.experiment, self.progress)
            names = list(self.progress.tasks)
            if 0 < len(names) < len(self.experiment.sequence):
                self._output_check.complete(names, self.task_data, self.run_of, self.evaluator)
        if not self.progress.tasks and not self._first_trains_backbone:
            self._save_backbone()

    def _check_bundle(self, backbone: tuple[MaskedNetwork, Backbone] | None) -> None:
        """Refuse to replace tasks in the run's bundle that it has not learned; see `check_own_bundle`."""
        names = self.experiment.sequence
        # Outputs are stored before the task: a kill before `progress.json` leaves both.
        learned = {*self.progress.tasks, *self._output_check.stored(names)}
        described = None if backbone is None else describe_backbone(backbone[0], backbone[1].spec, self.experiment.selected)
        check_own_bundle(self.folder, names, learned=learned, backbone=described)

    def _set_up(self, backbone: Backbone) -> None:
        self._backbone = backbone
        select = self.experiment.selected
        # What a bundle or an earlier run selected is taken as it is, as when it is loaded.
        strict = self.experiment.backbone.source is None and not self.progress.tasks
        self.network = MaskedNetwork(backbone, head=HEAD, select=is_weight if select is None else list(select), strict=strict)
        self.strategy.check(self.experiment, self.network)
        self._place(self.network)
        self.evaluator = self.experiment.evaluator(backbone, self._fabric.device)
        if self.evaluator.perceptual is not None:
            _ = self.evaluator.perceptual.network  # read now, so that a missing file is found before any training

    def _save_backbone(self) -> None:
        if self.processes.is_rank_zero:
            self._check_bundle((self.network, self._backbone))
            save_backbone(self.folder / "bundle", self.network, self._backbone.spec, self.experiment.selected)

    def _context(self) -> Context:
        return Context(
            experiment=self.experiment,
            network=self.network,
            backbone=self._backbone,
            task_data=self.task_data,
            evaluator=self.evaluator,
            place=self._place,
            folder=self.folder,
        )

    def _train_backbone(self, name: str) -> Outcome:
        """Train the whole network on the first task and freeze it; the method takes that task over."""
        outcome = self._taken_backbone(name) or self._trained_backbone(name)
        self._save_backbone()
        self.strategy.begin(self._context())
        _, fitted = self._fit_phases(name, self.strategy.adopt(name, self._backbone.get_submodule(HEAD)))
        if not fitted:
            return outcome
        more = self.task_data[name].outcome(outcome.before, fitted)
        return replace(more, train_seconds=outcome.train_seconds + more.train_seconds, steps=outcome.steps + more.steps)

    def _trained_backbone(self, name: str) -> Outcome:
        logger.info("%s: trains the backbone", name)
        torch.manual_seed(self.experiment.seed_of(name))
        self._place(self._backbone)
        before = self._primary_metric(self._backbone, self.task_data[name])
        fitted = self._fit(name, Phase(module=self._backbone), name, fingerprint=backbone_fingerprint(self.experiment))
        finish_backbone(self.experiment, self._backbone)
        self._set_up(self._backbone)
        return self.task_data[name].outcome(before, [fitted])

    def _taken_backbone(self, name: str) -> Outcome | None:
        """The backbone of another run with the same first task, if the experiment names one."""
        if self.experiment.backbone_from is None:
            return None
        logger.info("%s: the backbone is that of %s", name, expanded(self.experiment.backbone_from))
        record, network, backbone = self._backbone_of_another_run(name)
        head = network.state(name).head
        assert head is not None
        backbone.set_submodule(HEAD, head)
        self._set_up(backbone)
        return Outcome(**{field.name: getattr(record, field.name) for field in fields(Outcome)})

    def _backbone_of_another_run(self, name: str) -> tuple[TaskRecord, MaskedNetwork, Backbone]:
        assert self.experiment.backbone_from is not None
        return backbone_of_run(expanded(self.experiment.backbone_from), name, backbone_fingerprint(self.experiment))

    def _learn(self, name: str) -> Outcome:
        """Learn one task by the experiment's method."""
        config = self.task_data[name].config
        logger.info("%s: is learned (%s)", name, config.method_spec.kind if config.method is None else config.method.label)
        torch.manual_seed(self.experiment.seed_of(name))
        try:
            before, fitted = self._fit_phases(name, self.strategy.learn(name))
        except BaseException:
            self.strategy.abandon(name)
            raise
        return self.task_data[name].outcome(before, fitted)

    def _fit_phases(self, name: str, phases: Iterator[Phase]) -> tuple[float | None, list[Fitted]]:
        """Do the trainings of a task; the primary metric on the test set before the first, and their outcomes."""
        before, fitted, task_data = None, [], self.task_data[name]
        for phase in phases:
            before = self._primary_metric(phase.module, task_data) if before is None else before
            fitted.append(self._fit(name, phase, name + phase.suffix))
        return before, fitted

    def _compare(self, name: str, method: Spec[Strategy]) -> None:
        """Learn a task by another method too, on its own from the same backbone, under the same budget."""
        logger.info("%s: %s, for comparison", name, method.kind)
        torch.manual_seed(self.experiment.seed_of(name))
        strategy, label = method.build(), f"{name}.{method.kind}"
        strategy.begin(self._context())
        fitted = [self._fit(name, phase, label + phase.suffix) for phase in strategy.learn(name)]
        self._measured(partial(self._finish_comparison, name, method.kind, strategy, fitted))

    def _finish_comparison(self, name: str, method: str, strategy: Strategy, fitted: Sequence[Fitted]) -> None:
        """Measure a comparison and store its metrics."""
        task_data = self.task_data[name]
        metrics = self.evaluator.metrics(strategy.network(name), task_data.task, task_data.parts.test)
        value = metrics[task_data.task.metric]
        self.progress.comparisons.setdefault(method, {})[name] = ComparisonRecord(
            value=finite(metrics)[task_data.task.metric],
            metrics=finite(metrics),
            train_seconds=sum(f.seconds for f in fitted),
            bytes=strategy.own_bytes(name),
        )
        write_progress(self.experiment, self.progress)
        self._remove_checkpoints(f"{name}.{method}")
        logger.info("%s: %s %.4g by %s", name, task_data.task.metric, value, method)

    # ------------------------------------------------------------------ training and measuring

    def _primary_metric(self, module: nn.Module, task_data: TaskData) -> float:
        """The primary metric of a task on its test set, with `module` as it is."""
        task, images = task_data.task, task_data.parts.test
        return self.processes.on_rank_zero(lambda: self.evaluator.primary_metric(module.eval(), task, images))

    def _fit(self, name: str, phase: Phase, what: str, *, fingerprint: str | None = None) -> Fitted:
        """Do one training of a task."""
        task_data, experiment = self.task_data[name], self.experiment
        options = phase.options or task_data.options
        callbacks = list(phase.callbacks)
        if experiment.evaluation.previews and self.processes.is_rank_zero:
            path = self.folder / "previews" / f"{what}.jpg"
            callbacks.append(Preview(path, phase.module, task_data, self.evaluator, experiment.evaluation.previews))
        if options.workers:
            task_data.parts.train.preload()  # before the worker processes fork, so that they share it
        with lost_batches_explained(), TrainingLog(self.folder, what, writes=self.processes.is_rank_zero) as log:
            return fit(
                phase.module,
                phase.objective or task_data.task,
                phase.batches or task_data.batches(experiment.seed_of(name)),
                phase.validate or (lambda: self.evaluator.primary_metric(phase.module, task_data.task, task_data.parts.val)),
                options,
                fabric=self._fabric,
                log=log,
                checkpoint=self._checkpoint(what),
                fingerprint=fingerprint or task_fingerprint(experiment, task_data.config),
                extra=phase.extra,
                head=phase.head,
                groups=phase.groups,
                callbacks=callbacks,
                start_value=phase.start_value,
                progress=None if self._progress_for is None else self._progress_for(what, options.steps),
                channels_last=experiment.device.channels_last,
            )

    def _measured(self, finish: Callable[[], None]) -> None:
        """Let the first process measure and write what was trained; all know its progress."""
        if self.processes.is_rank_zero:
            finish()
        self.progress = self.processes.on_rank_zero(lambda: self.progress)

    def _finish(self, names: list[str], outcome: Outcome) -> None:
        """Measure the newest task, and all earlier ones if that is due; compare stored outputs bit for bit; save all."""
        name, strategy, known = names[-1], self.strategy, self.task_data
        task_data, metric = known[name], known[name].task.metric
        measured, changes = self._output_check.measure(
            names, known, self.run_of, self.evaluator, when=self._remeasured, last=len(names) == len(self.experiment.sequence)
        )
        baseline = self.evaluator.metrics(None, task_data.task, task_data.parts.test)
        self._output_check.save(task_data, self.run_of(name), self.evaluator)
        metrics, progress = finite(measured[name]), self.progress
        strategy.store(names, metrics, finite(baseline)[metric])
        progress.tasks[name] = TaskRecord(
            **vars(outcome),
            value=metrics[metric],
            metrics=metrics,
            baseline=finite(baseline),
            density=strategy.density(name),
            bytes=strategy.own_bytes(name),
            finetuned=strategy.finetuned(name),
        )
        progress.shared_bytes, progress.environment = strategy.shared_bytes(), self._environment
        progress.rows.append([finite(found)[known[n].task.metric] for n, found in measured.items()])
        progress.changes.append(changes)
        intact = self.network.hash_backbone() == self.network.backbone_sha256
        if not intact or not all(map(math.isfinite, changes.values())):
            raise RuntimeError("training a task changed the backbone or broke an earlier one: a bug in img2img, please report it")
        write_progress(self.experiment, self.progress)
        remove_older(self.folder, names)
        self._remove_checkpoints(name)
        tell_result(task_data, measured[name][metric], baseline[metric], changes, cannot_forget=strategy.cannot_forget)

    def _checkpoint(self, what: str) -> Path:
        return self.folder / "checkpoints" / f"{what}.pt"

    def _remove_checkpoints(self, what: str) -> None:
        for path in (self.folder / "checkpoints").glob(f"{what}.*"):  # of all phases; no task's name has a dot
            path.unlink(missing_ok=True)

    def run_of(self, name: str) -> Network:
        """The network as one task sees it."""
        return self.strategy.network(name)

    def _place(self, module: nn.Module) -> None:
        module.to(self._fabric.device)
        if self.experiment.device.channels_last:
            module.to(memory_format=torch.channels_last)
