"""What a job does, in a process of its own on whatever machine it was given."""

import os
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from img2img.api import run
from img2img.errors import InputError, TrainingDivergedError, memory_explained
from img2img.files.atomic import clear_leftovers
from img2img.files.json_files import write_json
from img2img.files.lock import forget_elsewhere
from img2img.launch.assemble import assemble, measure_again
from img2img.launch.jobs import Job
from img2img.launch.store import Store
from img2img.training.config import Experiment, read_experiment
from img2img.training.run import LOWER, logged_to
from img2img.training.run_folder import SavedConfig, alone, clear, keep_config
from img2img.training.sequence import SequenceRunner

STATUS = "status.json"
"""Of a job in its folder: where it runs and how far it is, see `_Status`."""
_EVERY = 2.0
"""Seconds between two writings of it."""


def execute(job: Job, sole: bool) -> str | None:
    """Do a job, or go on with it.

    Args:
        job: which.
        sole: no other process works in its folder any more, so that a lock there from another machine is one of a lost process.
            Without this such a lock is an error.

    Returns:
        Why it failed, for the user; None where it is finished.
    """
    try:
        _enter(job)
        _execute(job, sole=sole or os.environ.get("SLURM_RESTART_COUNT", "0") != "0")  # Slurm's own second start of it
    except (InputError, TrainingDivergedError, OSError, MemoryError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    except Exception:
        return traceback.format_exc()
    return None


def _enter(job: Job) -> None:
    """Work where the launch was started, as relative paths ask for it."""
    if os.path.isdir(job.cwd):
        os.chdir(job.cwd)
    elif not Store(job.root).remote:
        raise InputError(
            f"{socket.gethostname()} has no folder {job.cwd}, where the launch was started: start it in a folder that all "
            "machines see, or give out=s3://… and absolute paths of the data"
        )


def _execute(job: Job, *, sole: bool) -> None:
    store = Store(job.root)
    with ExitStack() as stack:
        sources = {name: stack.enter_context(store.copy(name)) for name in set(job.sources.values()) - {job.folder}}
        folder = stack.enter_context(store.working(job.folder))
        sources.setdefault(job.folder, folder)
        for place in (folder, folder / "bundle") if sole else ():
            forget_elsewhere(place)
        config = {**job.config, "out": str(folder)}
        of_tasks = {task: sources[source] for task, source in job.sources.items()}
        status = _Status(folder)
        if job.kind == "task":
            _learn(read_experiment(config), of_tasks, store, status)
            return
        if job.kind == "join":
            experiment = read_experiment(config)
            status.write("puts the tasks together")
            assemble(experiment, of_tasks)
            measure_again(experiment)
        run(config, composed=job.composed, then=job.then, bars=status.progress_for)
        (folder / STATUS).unlink(missing_ok=True)


def _learn(experiment: Experiment, sources: Mapping[str, Path], store: Store, status: "_Status") -> None:
    """Learn the last task of a sequence, in a run of its own, after those before it have come from their runs."""
    with memory_explained("in the run", LOWER):
        clear_leftovers(experiment.folder, below=3)
        if sources:
            status.write("takes over what it needs")
            assemble(experiment, sources)
        runner = SequenceRunner(experiment)
        with alone(runner):
            if not store.remote:
                _take_checkpoints(store.path(), runner.folder, experiment.sequence[-1])
            runner.prepare()
            clear(runner.folder, runner.progress, experiment)
            keep_config(runner.folder, SavedConfig.plain({"sequence": list(experiment.sequence)}))
            with logged_to(Console(), runner.folder / "log.txt"):
                runner.run(progress_for=status.progress_for)


def _take_checkpoints(run: Path, folder: Path, name: str) -> None:
    """Go on from the checkpoint of a run that was begun without a launcher."""
    target = folder / "checkpoints"
    found = list((run / "checkpoints").glob(f"{name}.*"))
    if found and not list(target.glob(f"{name}.*")):
        target.mkdir(parents=True, exist_ok=True)
        for path in found:
            path.replace(target / path.name)


class _Status:
    """Writes into a job's folder how far it is.

    Args:
        folder: the job's.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATUS
        self._written = 0.0

    def write(self, what: str, **more: Any) -> None:
        """Write what is done now."""
        self._written = time.monotonic()
        write_json(self._path, {"what": what, "host": socket.gethostname(), "process": os.getpid(), **more})

    def progress_for(self, what: str, steps: int) -> Callable[..., None]:
        """What shows one training's progress, see `training.loop.Progress`."""
        self.write(what, step=0, steps=steps)

        def update(step: int, *, loss: float, best: float | None) -> None:
            if step == steps or time.monotonic() - self._written > _EVERY:
                self.write(what, step=step, steps=steps, best=best)

        return update
