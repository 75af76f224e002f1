"""A model that many ask at once: a few pictures run side by side, a few more wait, and the rest are told so."""

import functools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import torch

from img2img.errors import InputError
from img2img.inference import Model, TaskInfo
from img2img.web.limits import Limits, RefusedError, check_pixels
from img2img.web.pictures import decode, open_upload

T = TypeVar("T")

log = logging.getLogger("img2img.web")


@dataclass(frozen=True)
class Answer:
    """What came of a picture.

    Attributes:
        results: what `Model.run` gives, by task.
        seconds: it took, decoding included and waiting not.
    """

    results: dict[str, Any]
    seconds: float


class Service:
    """A model within limits; the page and the API both ask it.

    Args:
        model: with merged weights, so that tasks run side by side.
        limits: the bounds.
    """

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.tasks: dict[str, TaskInfo] = model.tasks
        self._admitted = 0
        self._slots = anyio.CapacityLimiter(limits.concurrency)
        # A pool of its own: anyio's is shared with whatever else runs in the process.
        self._threads = anyio.CapacityLimiter(limits.concurrency)

    @property
    def running(self) -> int:
        """How many pictures run now."""
        return self._slots.borrowed_tokens

    @property
    def waiting(self) -> int:
        """How many requests arrive or wait."""
        return self._admitted - self.running

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place in the house, from a request's first byte to its answer.

        Raises:
            RefusedError: 503 where as many are in as may run and wait.
        """
        if self._admitted >= self.limits.concurrency + self.limits.queue:
            raise RefusedError(503, f"busy: {self.running} pictures run and {self.waiting} wait; try again in a moment")
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    async def run(
        self,
        tasks: list[str],
        picture: bytes | Path,
        *,
        form: str | None = None,
        side: int | None = None,
        left: Callable[[], Awaitable[bool]] | None = None,
    ) -> Answer:
        """Run tasks on an uploaded picture when its turn comes; call it within `admitted`.

        Args:
            tasks: their names; each result is that of `Model.run`.
            picture: the file's bytes, or where they are.
            form: as of `Model.run`.
            side: the same.
            left: tells whether who asked has gone, in which case nothing runs.

        Raises:
            RefusedError: no such task or form, no picture, one that is too large, or a failure.
        """
        for task in tasks:
            self.check(task, form=form)
        return await self.work(functools.partial(self._work, tasks, picture, form, side), left=left)

    async def work(self, work: Callable[[], T], *, left: Callable[[], Awaitable[bool]] | None = None) -> T:
        """What `work` returns, in a thread, when its turn comes; `left` as of `run`.

        Raises:
            RefusedError: `work` failed, or nobody waits for it.
        """
        async with self._slots:
            if left is not None and await left():
                raise RefusedError(499, "nobody waits for the answer any more")
            return await anyio.to_thread.run_sync(guarded, work, limiter=self._threads)

    def check(self, task: str, *, form: str | None = None) -> None:
        """Refuse a task that is not there (404) or a form that it has not (422)."""
        if task not in self.tasks:
            raise RefusedError(404, f"no task {task!r} here; there is {', '.join(self.tasks) or 'none'}")
        forms = self.tasks[task].forms
        if form is not None and form not in forms:
            raise RefusedError(422, f"form={form!r}: {task} gives {', '.join(forms)}")

    def _work(self, tasks: list[str], picture: bytes | Path, form: str | None, side: int | None) -> Answer:
        began = time.perf_counter()
        image = open_upload(picture, self.limits)
        for task in tasks:
            # Tasks of whole pictures see them at a size of their own.
            own = self.tasks[task].side if self.model.task(task).whole_picture else None
            check_pixels(image.size, side or own, self.limits)
        decode(image)
        results = {task: self.model.run(task, image, form=form, side=side) for task in tasks}
        return Answer(results, time.perf_counter() - began)


def guarded(work: Callable[[], T]) -> T:
    """What `work` returns; a failure becomes a `RefusedError` that says nothing of the machine, and the log the rest."""
    try:
        return work()
    except RefusedError:
        raise
    except InputError as error:
        raise RefusedError(422, str(error)) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise RefusedError(503, "not enough memory for a picture of this size: make it smaller, or try again later") from error
    except Exception as error:
        log.exception("a picture failed")
        raise RefusedError(500, "the service failed on this picture; its log says why") from error
