"""Teach: a further task, trained by `img2img add-task` in a process of its own, and then served at once.

One training at a time. Its folder holds `job.json` (what is asked for, and how far it is), `data/` (the images, until it is
done) and `run/` (the run's folder, whose checkpoints let it go on after a stop, or after the service was started again). Progress
is read from the run's files. The process has bounds of time and memory, and adds its task to the bundle when all else is done:
the other tasks stay as they are, bit for bit.
"""

import contextlib
import csv
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from img2img.bundle import task_path
from img2img.errors import InputError
from img2img.files.json_files import read_json, write_json
from img2img.files.paths import expanded
from img2img.masks.task_store import check_task_name
from img2img.tasks.segmentation import SUGGESTED_LOSS
from img2img.web.limits import RefusedError, TeachOptions
from img2img.web.service import Service
from img2img.web.teach_files import Kind, TeachFiles

State = Literal["receiving", "running", "stopped", "failed", "done"]

SIDE = 256
"""Pixels of the shorter side of training images."""
CHECKPOINT_STEPS = 50
LOG_STEPS = 10
PREVIEWS = 4
LEAST = {"pairs": {"inputs": 10, "targets": 10}, "labels": {"images": 10, "labels": 10}, "style": {"style": 1}}
"""Images that a training needs: a tenth of them validates, and a tenth tests."""
STOP_SECONDS = 5.0
MAX_ROWS = 300

log = logging.getLogger("img2img.web")


@dataclass
class Job:
    """What is asked for, as in `job.json`, and how far it is."""

    name: str
    kind: Kind
    steps: int
    classes: list[str] = field(default_factory=list)
    values: list[int] = field(default_factory=list)
    state: State = "receiving"
    message: str = ""
    seconds: float = 0.0


class Teacher:
    """The one training of a service.

    Args:
        service: gets the new task.
        options: the folder and the bounds.
    """

    def __init__(self, service: Service, options: TeachOptions) -> None:
        self.options = options
        self._service, self._folder = service, expanded(options.folder).absolute()
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._began = time.monotonic()
        self._began_at = 0
        self._first: tuple[int, float] | None = None
        self._job: Job | None = None
        self._files: TeachFiles | None = None
        self._take_up()

    # ------------------------------------------------------------------ what is asked for

    def create(self, name: str, kind: Kind, steps: int, classes: Sequence[str], values: Sequence[int]) -> None:
        """Begin a training; its images come next.

        Raises:
            RefusedError: another one is not done, or what is asked for cannot be.
        """
        with self._lock:
            if self._job is not None and self._job.state != "done":
                raise RefusedError(409, f"{self._job.name!r} is not done: discard it, or let it end first")
            try:
                check_task_name(name)
            except InputError as error:
                raise RefusedError(422, str(error)) from error
            if name in self._service.tasks.infos:
                raise RefusedError(409, f"there is a task {name!r} already: choose another name")
            if (self._folder / name).exists():
                raise RefusedError(
                    409, f"the folder of an earlier training has the name {name!r} already: choose another name, or delete it"
                )
            if not 1 <= steps <= self.options.steps:
                raise RefusedError(422, f"steps={steps}: expected 1 to {self.options.steps:,}")
            if kind == "labels" and len(classes) < 2:
                raise RefusedError(422, f"got {len(classes)} classes: expected two or more, in the order of their label values")
            if values and len(values) != len(classes):
                raise RefusedError(
                    422, f"got {len(values)} label values for {len(classes)} classes: expected one for each, or none"
                )
            self._job = Job(name, kind, steps, list(classes), list(values))
            self._files = TeachFiles(self._home / "data", kind, self.options)
            self._home.mkdir(parents=True)
            self._keep()

    @property
    def files(self) -> TeachFiles:
        """The images of the training that waits for them.

        Raises:
            RefusedError: there is none.
        """
        if self._files is None or self._job is None or self._job.state != "receiving":
            raise RefusedError(409, "no training waits for images: name one first")
        return self._files

    @property
    def image_bytes(self) -> int:
        """Bytes of one image's file at most."""
        return self._service.limits.upload_bytes

    def start(self) -> None:
        """Start the training, or go on with it.

        Raises:
            RefusedError: there is none, it runs, has too few images, or has taken all of its time.
        """
        with self._lock:
            job = self._here()
            if job.state in ("running", "done"):
                raise RefusedError(409, f"{job.name!r} is {job.state}")
            assert self._files is not None
            for role, least in LEAST[job.kind].items():
                if (got := self._files.counts[role]) < least:
                    raise RefusedError(422, f"got {got} images as {role}: expected {least} or more")
            if job.seconds >= self.options.seconds:
                raise RefusedError(
                    409, f"it has taken {job.seconds:.0f} s: expected {self.options.seconds:g} s at most; use fewer steps"
                )
            self._files.close("has begun")
            self._first = None
            self._began, self._began_at = time.monotonic(), max([row[0] for row in self._rows()], default=0)
            with open(self._home / "log.txt", "ab") as out:
                out.write(b"\n")
                process = subprocess.Popen(
                    self._command(job), cwd=self._home, env=_environment(), stdin=subprocess.DEVNULL, stdout=out,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            _bound(process.pid, self.options.memory_bytes)
            self._process = process
            job.state, job.message = "running", ""
            self._keep()
            threading.Thread(target=self._watch, args=(process, job), daemon=True).start()

    def stop(self) -> None:
        """Stop the training; it can go on from its last checkpoint."""
        with self._lock:
            if self._process is not None:
                self._end("stopped", "")

    def discard(self) -> None:
        """Stop the training and delete its files; a task that is done stays in the bundle, and its run's folder too."""
        with self._lock:
            job = self._here()
            self.stop()
            if job.state != "done":
                assert self._files is not None
                self._files.delete()  # what is still being sent or unpacked ends
                shutil.rmtree(self._home, ignore_errors=True)
            self._job = self._files = None

    def close(self) -> None:
        """Stop, as the service ends."""
        self.stop()

    # ------------------------------------------------------------------ what there is to say

    def status(self) -> dict[str, Any]:
        """How far the training is, for the page; `job` is None where there is none."""
        with self._lock:
            job, bounds = self._job, asdict(self.options)
            del bounds["folder"]
            if job is None:
                return {"job": None, "limits": bounds}
            rows = self._rows()
            seconds = job.seconds + (time.monotonic() - self._began if job.state == "running" else 0)
            step = max([row[0] for row in rows], default=0)
            preview = self._home / "run" / "previews" / f"{job.name}.jpg"
            said = asdict(job) | {
                "step": step,
                "loss": rows[:: len(rows) // MAX_ROWS + 1],
                "seconds": seconds,
                "left": self._left(step, job),
                "counts": self._files.counts if self._files else {},
                "bytes": self._files.size if self._files else 0,
                "preview": preview.stat().st_mtime_ns if preview.is_file() else None,
            }
            return {"job": said, "limits": bounds}

    def preview(self) -> Path:
        """The file of the held-out images."""
        return self._there(self._home / "run" / "previews" / f"{self._here().name}.jpg")

    def task_file(self) -> Path:
        """The file of the task that was learned."""
        if self._here().state != "done":
            raise RefusedError(404, "the training is not done: wait for its end")
        return self._there(task_path(self._service.model.folder, self._here().name))

    # ------------------------------------------------------------------ within

    @property
    def _home(self) -> Path:
        return self._folder / self._here().name

    def _here(self) -> Job:
        if self._job is None:
            raise RefusedError(404, "no training here: name one first")
        return self._job

    @staticmethod
    def _there(path: Path) -> Path:
        if not path.is_file():
            raise RefusedError(404, "nothing to see yet: wait for the first validation")
        return path

    def _keep(self) -> None:
        write_json(self._home / "job.json", asdict(self._here()))

    def _take_up(self) -> None:
        """Find the training that an earlier service left: the one that is not done and was changed last."""
        found = sorted(self._folder.glob("*/job.json"), key=lambda path: path.stat().st_mtime)
        for path in reversed(found):
            with contextlib.suppress(InputError, TypeError, KeyError):
                job = Job(**read_json(path))
                if job.name == path.parent.name and job.state != "done" and job.name not in self._service.tasks.infos:
                    job.state = "stopped" if job.state == "running" else job.state
                    self._job, self._files = job, TeachFiles(path.parent / "data", job.kind, self.options)
                    return

    def _command(self, job: Job) -> list[str]:
        """The command line; paths are relative to the training's folder, so that no file that is shared names this machine's."""
        assert self._files is not None
        options = ["--out", "run", "--steps", str(job.steps), "--resize", str(SIDE)]

        def root(role: str) -> str:
            return str(self._files.root(role).relative_to(self._home))  # type: ignore[union-attr]

        if job.kind == "pairs":
            options += ["--inputs", root("inputs"), "--targets", root("targets")]
        elif job.kind == "style":
            picture = next(path for path in sorted((self._home / "data" / "style").rglob("*")) if path.is_file())
            options += ["--style", str(picture.relative_to(self._home))]
            options += ["--images", root("images")] if self._files.counts["images"] else []
        else:
            data: dict[str, Any] = {"kind": "image_label_folder", "images": root("images"), "labels": root("labels")}
            data |= {"classes": job.classes} | ({"values": job.values} if job.values else {})
            task = {"kind": "segmentation", "loss": SUGGESTED_LOSS}
            (self._home / "task.yaml").write_text(json.dumps({"task": task, "data": data}))
            options = [*options, "--config", "task.yaml"]
        changes = [
            f"evaluation.previews={PREVIEWS}",
            f"train.log_every={LOG_STEPS}",
            f"train.checkpoint_every={CHECKPOINT_STEPS}",
        ]
        changes.append(f"train.validation.every={min(100, max(20, job.steps // 6))}")
        bundle = str(self._service.model.folder.absolute())
        return [sys.executable, "-m", "img2img", "add-task", *options, "--", bundle, job.name, *changes]

    def _watch(self, process: subprocess.Popen[bytes], job: Job) -> None:
        try:
            code: int | None = process.wait(self.options.seconds - job.seconds)
        except subprocess.TimeoutExpired:
            code = None
        with self._lock:
            if self._process is not process:  # stopped
                return
            if code is None:
                self._end("failed", f"the training took more than {self.options.seconds:g} s: use fewer steps or smaller images")
            elif code:
                self._end("failed", self._reason())
            else:
                self._end("done", "")

    def _end(self, state: State, message: str) -> None:
        process, job = self._process, self._here()
        assert process is not None
        _terminate(process)
        self._process = None
        job.seconds += time.monotonic() - self._began
        if state == "done":
            try:
                self._service.tasks.load_new()
            except Exception as error:
                log.exception("the new task cannot be loaded")
                state, message = "failed", f"it is learned, and cannot be served: {error}"
            else:
                assert self._files is not None
                self._files.delete()
        job.state, job.message = state, message
        self._keep()

    def _reason(self) -> str:
        """What the process said last."""
        lines = (self._home / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines if line.strip()]
        last = said[-1] if said else "it ended without a word"
        return last.removeprefix("error: ")[:2000] if last.startswith("error: ") else f"the training failed: {last[:500]}"

    def _rows(self) -> list[tuple[int, float]]:
        """Step and loss of each row of the log."""
        return list(_read_log(self._home / "run" / "metrics" / f"{self._here().name}.csv"))

    def _left(self, step: int, job: Job) -> float | None:
        """Seconds until the last step; None before the first steps of this start.

        The rate is that since the first row that was seen, as soon as there is another: what came before it was also loading.
        """
        if job.state != "running" or step <= self._began_at:
            return None
        path = self._home / "run" / "metrics" / f"{job.name}.csv"
        age = time.time() - path.stat().st_mtime
        at = time.monotonic() - self._began - age
        self._first = self._first or (step, at)
        since, then = self._first if step > self._first[0] else (self._began_at, 0.0)
        return max(0.0, (at - then) / (step - since) * (job.steps - step) - age)


def _read_log(path: Path) -> Iterator[tuple[int, float]]:
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    yield int(row["step"]), float(row["loss"])


def _environment() -> dict[str, str]:
    """That of this process, in which the same img2img is found, whatever the working folder."""
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]), "NO_COLOR": "1"}


def _bound(pid: int, memory: int) -> None:
    """Give a process a bound on its memory, and less of the processors than requests get, where the system has that."""
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        os.setpriority(os.PRIO_PROCESS, pid, 10)
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        import resource

        resource.prlimit(pid, resource.RLIMIT_DATA, (memory, memory))


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """End a process; what it was writing is written beside the file that is there, so nothing is lost."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
