"""An experiment as jobs that depend on each other: one for each task, and one that puts them together."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from img2img.errors import InputError
from img2img.launch.store import Store, is_remote
from img2img.training.config import BasisOfTasks, Experiment, TaskConfig, read_experiment, task_fingerprint
from img2img.training.run import Then
from img2img.training.run_folder import SavedConfig
from img2img.training.strategies import MASKS

logger = logging.getLogger("img2img")

JOBS = "jobs"
"""The folder in a run folder that holds those of its jobs, until the run is complete."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work for one process of one machine, which all must be able to start: it is pickled by the launcher.

    Attributes:
        name: among all jobs that run together.
        kind: "task" learns one task; "join" puts tasks together and measures the whole; "run" is a whole experiment.
        config: of its experiment, with the sequence that the job needs.
        root: of the run, see `Store`.
        folder: its own below the root, "" for the root itself.
        needs: the names of the jobs that must be finished before.
        sources: the folder below the root that each task comes from which it does not learn itself.
        composed: what `config/` of the run keeps.
        then: what a pipeline does with the finished run.
        cwd: what relative paths of the config are relative to.
    """

    name: str
    kind: Literal["task", "join", "run"]
    config: Mapping[str, Any]
    root: str
    folder: str = ""
    needs: tuple[str, ...] = ()
    sources: Mapping[str, str]
    composed: SavedConfig | None = None
    then: Then | None = None
    cwd: str

    @property
    def ends_run(self) -> bool:
        """Whether the run is complete after it."""
        return self.kind != "task"


@dataclass(frozen=True)
class Ended:
    """A job that runs no more.

    Attributes:
        name: the job's.
        error: why it failed; None where it is finished.
        lost: its process or machine ended before it did, so that it may be started again.
    """

    name: str
    error: str | None = None
    lost: bool = False


def jobs_of(
    config: Mapping[str, Any],
    *,
    name: str = "",
    needs: Sequence[str] = (),
    threads: int = 1,
    composed: SavedConfig | None = None,
    then: Then | None = None,
) -> list[Job]:
    """The jobs of an experiment, each after those that it needs.

    Each masked task is one, after those that its start or basis depends on, and after the first one where that trains the
    backbone. Where tasks depend on all before them (comparison methods, `evaluation.remeasure=every`) the whole run is one job.
    Tasks that the run folder holds already, or a job of an earlier launch, are not learned again.

    Args:
        config: plain values, as of `img2img.run`. With `out` in a bucket (`s3://…`) the run is there.
        name: of the run among several, which its jobs' names begin with.
        needs: the names of other runs' jobs that must be finished before any of these.
        threads: CPU threads of a job where `device.threads` is not given.
        composed: see `img2img.run`.
        then: see `img2img.run`; it must be a function of a module.

    Raises:
        InputError: the config cannot be used, or asks for several processes.
    """
    root = str(config["out"])
    store = Store(root)
    if not store.remote:
        root = str(store.path().absolute())
    config = _for_jobs(config, threads)
    experiment = read_experiment(config)
    if experiment.device.devices != 1 or experiment.device.nodes != 1:
        raise InputError(
            f"device.devices={experiment.device.devices} device.nodes={experiment.device.nodes} with a launcher: each job is one "
            "process with launcher.gpus of its own; leave them out, or leave launcher out and use torchrun"
        )
    composed = composed or SavedConfig.plain(config)
    common: dict[str, Any] = {"root": root, "cwd": os.getcwd()}
    end = {**common, "config": config, "composed": composed, "then": then}
    prefix = f"{name}: " if name else ""
    if why := _whole(experiment):
        if why != _ONE:
            logger.info("%s%s: the run is one job", prefix, why)
        return [Job(name=name or "run", kind="run", needs=tuple(needs), sources={}, **end)]
    finished = _finished(store, "", experiment)
    jobs: list[Job] = []
    for index, task in enumerate(experiment.tasks):
        if task.name in finished:
            continue
        before = needed_tasks(experiment, index)
        jobs.append(
            Job(
                name=prefix + task.name,
                kind="task",
                config={**config, "sequence": [*before, task.name]},
                folder=f"{JOBS}/{task.name}",
                needs=(*needs, *(prefix + each for each in before if each not in finished)),
                sources={each: "" if each in finished else f"{JOBS}/{each}" for each in before},
                **common,
            )
        )
    last = {each: f"{JOBS}/{each}" for each in experiment.sequence if each not in finished}
    waits = tuple(job.name for job in jobs) or tuple(needs)
    jobs.append(Job(name=name or "join", kind="join", needs=waits, sources=last, **end))
    return jobs


def is_finished(job: Job) -> bool:
    """Whether a job of an earlier launch has learned the task of this one, under the same configuration."""
    if job.kind != "task":
        return False
    experiment = read_experiment({**job.config, "out": "out" if is_remote(job.root) else job.root})
    return experiment.tasks[-1].name in _finished(Store(job.root), job.folder, experiment)


def needed_tasks(experiment: Experiment, index: int) -> list[str]:
    """The earlier tasks that task number `index` needs, and those that they need, in order."""
    names = experiment.sequence
    found: set[int] = set()
    open_ = [index]
    while open_:
        i = open_.pop()
        more = {names.index(each) for each in _direct(experiment, experiment.tasks[i], names[:i])} - found
        found |= more
        open_ += more
    return [names[i] for i in sorted(found)]


def _direct(experiment: Experiment, task: TaskConfig, before: Sequence[str]) -> set[str]:
    if task.start_from == "nearest":
        return set(before)
    needed = {task.start_from}
    if experiment.first_trains_backbone:
        needed.add(experiment.sequence[0])
        if task.name == experiment.sequence[0]:
            return set()  # it learns no mask
    basis = experiment.bases.get(str(task.method.basis_name())) if task.method is not None else None
    if isinstance(basis, BasisOfTasks):
        needed |= set(basis.tasks)
    return {each for each in before if each in needed}  # others are of the bundle that the backbone is from


_ONE = "one task"


def _whole(experiment: Experiment) -> str | None:
    """Why an experiment is one job; None where it is not."""
    if len(experiment.tasks) == 1:
        return _ONE
    if experiment.strategy.kind != MASKS:
        return f"the method {experiment.method.kind!r} learns a sequence"
    if experiment.evaluation.remeasure == "every":
        return "evaluation.remeasure=every measures all tasks after each"
    return None


def _for_jobs(config: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """The config with a folder in place of a bucket's address, and a number of threads."""
    device = dict(config.get("device", {}))
    if device.get("threads") is None:
        device["threads"] = threads
    out = str(config["out"])
    return {**config, "device": device, "out": "out" if is_remote(out) else os.path.abspath(os.path.expanduser(out))}


def _finished(store: Store, folder: str, experiment: Experiment) -> set[str]:
    """The tasks of an experiment that a run folder holds. What does not fit is found when the run itself reads it."""
    found = store.read_json(folder, "progress.json")
    prints = found.get("fingerprints") if isinstance(found, dict) else None
    if not isinstance(prints, dict):
        return set()
    return {task.name for task in experiment.tasks if prints.get(task.name) == task_fingerprint(experiment, task)}
