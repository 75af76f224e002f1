"""Jobs in the order that they allow: started when what they need is there, and again when they are lost; shown as one view."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from img2img.errors import InputError
from img2img.files.lock import check_free, hold
from img2img.launch.execute import STATUS
from img2img.launch.jobs import JOBS, Ended, Job, is_finished
from img2img.launch.store import Store
from img2img.training.config.launcher import LauncherOptions, RayOptions, SlurmOptions
from img2img.training.run import logged_to

logger = logging.getLogger("img2img")

LOOK = 2.0
"""Seconds between two looks at the jobs."""
_SHOW = 60.0
"""Seconds between two lines about all that runs, where there is no terminal to draw bars on."""


class Launcher(Protocol):
    """Starts jobs somewhere."""

    def submit(self, job: Job, attempt: int) -> None:
        """Start a job as soon as there is room for it; `attempt` is 0 when it is the first one of this launch."""

    def wait(self, seconds: float) -> list[Ended]:
        """The jobs that have ended since; waits so long for one at most."""

    def close(self) -> None:
        """End what still runs."""


def launcher_of(options: LauncherOptions, *, cpu_only: bool = False) -> Launcher:
    """The launcher of these options.

    Args:
        options: of `launcher=…`.
        cpu_only: no job uses a GPU.

    Raises:
        InputError: its package is not installed, or the cluster cannot be reached.
    """
    if isinstance(options, RayOptions):
        from img2img.launch.ray_launcher import RayLauncher

        return RayLauncher(options, cpu_only=cpu_only)
    from img2img.launch.slurm_launcher import SlurmLauncher

    assert isinstance(options, SlurmOptions)
    return SlurmLauncher(options)


def run_jobs(
    jobs: Sequence[Job],
    options: LauncherOptions,
    *,
    launcher: Launcher | None = None,
    finished: Callable[[Job], None] | None = None,
) -> dict[str, str]:
    """Do all jobs; what an earlier launch has learned is not learned again.

    Args:
        jobs: each after those that it needs.
        options: of the launcher.
        launcher: that of the options if None.
        finished: called with each job that is finished, the last of a run among them, when its run is complete.

    Returns:
        Why jobs failed, by name; those that needed them among them. Other jobs are done all the same.

    Raises:
        FolderInUseError: another launch, or another run, works in a run's folder.
        InputError: see `launcher_of`.
    """
    roots = {root: Store(root) for root in dict.fromkeys(job.root for job in jobs)}
    with ExitStack() as stack:
        for store in roots.values():
            if not store.remote:
                check_free(store.path())
                stack.callback(_remove_empty, store.path(JOBS))
                stack.enter_context(hold(store.path(JOBS)))
        cpu_only = all(job.config.get("device", {}).get("accelerator") == "cpu" for job in jobs)
        launcher = stack.enter_context(closing(launcher or launcher_of(options, cpu_only=cpu_only)))
        view = stack.enter_context(_View.of(jobs, roots))
        return _Schedule(jobs, options, launcher, view, finished).run()


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def check_finished(errors: Mapping[str, str], jobs: Sequence[Job]) -> None:
    """Raise an `InputError` if jobs failed, with the reason of each that was started."""
    started = {name: error for name, error in errors.items() if not error.startswith(_NOT_STARTED)}
    if errors:
        roots = ", ".join(dict.fromkeys(job.root for job in jobs if job.name in errors))
        reasons = "; ".join(f"{name}: {error}" for name, error in started.items())
        raise InputError(
            f"{len(started)} of {len(jobs)} jobs failed ({reasons}). What was learned is in {roots}; the same command goes on "
            "from there"
        )


_NOT_STARTED = "not started"


class _Schedule:
    """What is done, what runs and what waits. The arguments are those of `run_jobs`."""

    def __init__(
        self,
        jobs: Sequence[Job],
        options: LauncherOptions,
        launcher: Launcher,
        view: "_View",
        finished: Callable[[Job], None] | None,
    ) -> None:
        self._options, self._launcher, self._view, self._then = options, launcher, view, finished
        self._jobs = {job.name: job for job in jobs}
        self._waiting = list(self._jobs)
        self._attempts: dict[str, int] = {}
        self._running: set[str] = set()
        self._done: set[str] = set()
        self._errors: dict[str, str] = {}

    def run(self) -> dict[str, str]:
        for name in list(self._waiting):
            if is_finished(self._jobs[name]):
                logger.info("%s: finished in an earlier launch", name)
                self._waiting.remove(name)
                self._finish(name)
        while self._waiting or self._running:
            self._start_ready()
            for ended in self._launcher.wait(LOOK) if self._running else ():
                self._end(ended)
            self._view.update({name: self._jobs[name] for name in self._running})
        return self._errors

    def _start_ready(self) -> None:
        for name in list(self._waiting):
            needs = self._jobs[name].needs
            if failed := [each for each in needs if each in self._errors]:
                self._waiting.remove(name)
                self._fail(name, f"{_NOT_STARTED}, since {', '.join(failed)} failed")
            elif self._done.issuperset(needs) and (self._options.parallel is None or len(self._running) < self._options.parallel):
                self._waiting.remove(name)
                self._start(name)

    def _start(self, name: str) -> None:
        attempt = self._attempts[name] = self._attempts.get(name, -1) + 1
        self._running.add(name)
        self._launcher.submit(self._jobs[name], attempt)

    def _end(self, ended: Ended) -> None:
        name = ended.name
        self._running.discard(name)
        if ended.lost and self._attempts[name] < self._options.retries:
            logger.warning("%s: lost (%s); it goes on from its checkpoint", name, ended.error)
            self._start(name)
        elif ended.lost:
            self._fail(
                name,
                f"lost {self._attempts[name] + 1} times, the last time by: {ended.error}. If memory runs out, ask for more "
                "(launcher.memory); the same command goes on from its checkpoint",
            )
        elif ended.error is not None:
            self._fail(name, ended.error)
        else:
            logger.info("%s: finished", name)
            self._finish(name)

    def _finish(self, name: str) -> None:
        self._done.add(name)
        self._view.done(name)
        job = self._jobs[name]
        if job.ends_run:
            store = Store(job.root)
            if store.remote:
                store.remove(JOBS)
            else:
                for path in store.path(JOBS).glob("*/"):  # but the lock of this launch
                    store.remove(f"{JOBS}/{path.name}")
        if self._then is not None:
            self._then(job)

    def _fail(self, name: str, error: str) -> None:
        logger.error("%s: failed: %s", name, error)
        self._errors[name] = error
        self._view.done(name)


class _View:
    """Bars of all jobs on a terminal, and lines elsewhere.

    Args:
        progress: draws bars; None for lines.
        roots: the stores of the runs.
        count: of all jobs.
    """

    def __init__(self, progress: Progress | None, roots: Mapping[str, Store], count: int) -> None:
        self._progress, self._roots, self._count = progress, roots, count
        self._bars: dict[str, TaskID] = {}
        self._total = None if progress is None else progress.add_task("all jobs", total=count, more="")
        self._hosts: dict[str, tuple[str, int]] = {}
        self._ended = 0
        self._shown = time.monotonic()

    @classmethod
    @contextmanager
    def of(cls, jobs: Sequence[Job], roots: Mapping[str, Store]) -> Iterator["_View"]:
        """A view for the length of the block."""
        console, bars = Console(stderr=True), sys.stderr.isatty()
        with logged_to(console):
            if not bars:
                yield cls(None, roots, len(jobs))
                return
            yield from cls._with_bars(console, jobs, roots)

    @classmethod
    def _with_bars(cls, console: Console, jobs: Sequence[Job], roots: Mapping[str, Store]) -> Iterator["_View"]:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[more]}"),
        )  # fmt: skip
        with Progress(*columns, console=console) as progress:
            yield cls(progress, roots, len(jobs))

    def update(self, running: Mapping[str, Job]) -> None:
        """Show how far these jobs are."""
        found = {name: self._roots[job.root].read_json(job.folder, STATUS) for name, job in running.items()}
        for name, status in found.items():
            if not isinstance(status, dict):
                continue
            place = str(status.get("host")), int(status.get("process") or 0)
            if self._hosts.get(name) != place:
                self._hosts[name] = place
                logger.info("%s: runs on %s, process %d", name, *place)
            if self._progress is not None:
                self._draw(name, status)
        if self._progress is None and found and time.monotonic() - self._shown > _SHOW:
            self._shown = time.monotonic()
            logger.info("%d of %d jobs finished; %s", self._ended, self._count, ", ".join(map(_line, found, found.values())))

    def done(self, name: str) -> None:
        """A job has ended, however it did."""
        self._ended += 1
        if self._progress is not None and self._total is not None:
            self._progress.update(self._total, completed=self._ended)
            if name in self._bars:
                self._progress.remove_task(self._bars.pop(name))

    def _draw(self, name: str, status: Mapping[str, Any]) -> None:
        assert self._progress is not None
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=None, more="")
        best = status.get("best")
        more = f"on {status.get('host')}" + ("" if best is None else f", best {best:.4g}")
        if name.rpartition(": ")[2] != status.get("what"):
            more = f"{status.get('what')}, {more}"
        self._progress.update(self._bars[name], completed=status.get("step"), total=status.get("steps"), more=more)


def _line(name: str, status: Any) -> str:
    if not isinstance(status, dict) or "step" not in status:
        return f"{name}: begins"
    return f"{name}: {status['step']} of {status['steps']} steps on {status.get('host')}"
