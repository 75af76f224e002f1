"""A model for many clients at once: a few images run in parallel, a few more wait, and the rest are refused."""

import asyncio
import errno
import functools
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import anyio.to_thread
from starlette.requests import Request

from img2img.errors import InputError, is_out_of_memory
from img2img.files.writable import FULL
from img2img.inference import Model
from img2img.inference.cancellation import Cancellation
from img2img.inference.prediction import usual_side
from img2img.inference.task_info import TaskFileError
from img2img.web.image_decode import decode, open_upload
from img2img.web.limits import Limits, RefusedError, check_pixels
from img2img.web.memory_limit import MemoryBudget, bytes_needed
from img2img.web.served_tasks import ServedTasks

T = TypeVar("T")

CANCEL_SECONDS = 1.5
"""Seconds after which the client is answered, though its cancelled work has not ended."""

_POLL_SECONDS = 0.2

_STOPPING = "the service stops: try again in a moment"

log = logging.getLogger("img2img.web")


@dataclass(frozen=True)
class Answer:
    """What came of an image.

    Attributes:
        results: what `finish` made of the task's result, by task.
        size: of the image, (width, height).
        seconds: it took, decoding included and waiting not.
    """

    results: dict[str, Any]
    size: tuple[int, int]
    seconds: float


class Service:
    """A model within limits, as the API offers it.

    Args:
        model: with `Batching`, so that requests share batches, or with merged weights, so that tasks run side by side.
        limits: the bounds.

    Raises:
        InputError: the bound on memory is too low for this model.

    Attributes:
        tasks: those that are offered.
        memory: what images that run take.
    """

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model, self.limits = model, replace(limits, concurrency=limits.at_once)  # as `GET tasks` says
        self.tasks = ServedTasks(model, limits)
        self.memory = MemoryBudget(limits.memory_bytes)
        self.stopping = False
        self._admitted = 0
        self._running: set[Cancellation] = set()
        self._changing = 0
        self._ended: RefusedError | None = None
        self._end = asyncio.Event()
        self._slots = asyncio.Semaphore(limits.at_once)
        # A pool of its own: anyio's is shared with whatever else runs in the process.
        self._threads = anyio.CapacityLimiter(limits.at_once)

    @property
    def running(self) -> int:
        """How many images run now."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many requests arrive or wait."""
        return max(0, self._admitted - self.running)

    @property
    def busy(self) -> bool:
        """Whether a request is active."""
        return bool(self._admitted or self._running or self._changing)

    def stop(self) -> None:
        """Refuse new requests with 503; active ones go on."""
        self.stopping = True

    def end(self) -> None:
        """End all active requests now, with 503."""
        self.stopping = True
        self._ended = RefusedError(503, _STOPPING)
        self._end.set()
        for stop in self._running:
            stop.cancel(self._ended)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request as active, from its first byte to its answer.

        Raises:
            RefusedError: 503 where as many are in as may run and wait, or the service stops.
        """
        if self.stopping:
            raise RefusedError(503, _STOPPING)
        if self._admitted >= self.limits.at_once + self.limits.queue:
            raise RefusedError(503, f"busy: {self.running} images run and {self.waiting} wait; try again in a moment")
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Count a request that changes what is served, or brings files for it, as active; those of images have a bound, it none.

        Raises:
            RefusedError: 503 where the service stops.
        """
        if self.stopping:
            raise RefusedError(503, _STOPPING)
        self._changing += 1
        try:
            yield
        finally:
            self._changing -= 1

    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The parts of a request's body as they arrive.

        Raises:
            RefusedError: 503 where the time for active requests is over before all have.
        """
        stream, end = request.stream(), asyncio.ensure_future(self._end.wait())
        try:
            while True:
                part = asyncio.ensure_future(anext(stream, None))
                await asyncio.wait({part, end}, return_when=asyncio.FIRST_COMPLETED)
                if not part.done():
                    part.cancel()
                    raise RefusedError(503, _STOPPING)
                if (chunk := part.result()) is None:
                    return
                yield chunk
        finally:
            end.cancel()

    async def run(
        self,
        tasks: list[str],
        image: bytes,
        *,
        finish: Callable[[Any], Any],
        form: str | None = None,
        side: int | None = None,
        disconnected: Callable[[], Awaitable[bool]] | None = None,
    ) -> Answer:
        """Run tasks on an uploaded image when its turn comes; call it within `admitted`.

        Args:
            tasks: their names; each result is that of `Model.run`.
            image: the file's bytes.
            finish: makes of a result what is answered; it runs within the limits, as soon as there is a result.
            form: as of `Model.run`.
            side: the same.
            disconnected: tells whether the client has gone; then nothing runs any more.

        Raises:
            RefusedError: no such task or form, no image, one that is too large, or a failure.
        """
        async with self.tasks.in_use(tasks, form=form):
            return await self.work(functools.partial(self._work, tasks, image, finish, form, side), disconnected=disconnected)

    async def work(self, work: Callable[[], T], *, disconnected: Callable[[], Awaitable[bool]] | None = None) -> T:
        """What `work` returns, in a thread, when its turn comes; `disconnected` as of `run`.

        It has `Limits.run_seconds`. Its slot is free when it has truly ended, so that no more run than allowed.

        Raises:
            RefusedError: `work` failed or took too long, or the client has gone.
        """
        await self._turn(disconnected)
        stop = Cancellation()
        self._running.add(stop)
        thread = asyncio.ensure_future(self._in_thread(stop, work))
        thread.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # there may be no caller left to read it
        until, late = time.monotonic() + self.limits.run_seconds, math.inf
        try:
            while not (await asyncio.wait({thread}, timeout=_POLL_SECONDS))[0]:
                now = time.monotonic()
                if now > until:
                    stop.cancel(self._too_long())
                elif disconnected is not None and await disconnected():
                    stop.cancel(_client_gone())
                if stop.error is not None:
                    late = min(late, now + CANCEL_SECONDS)
                    if now > late:
                        raise stop.error
        except asyncio.CancelledError:
            stop.cancel(_client_gone())
            raise
        return thread.result()

    async def _turn(self, disconnected: Callable[[], Awaitable[bool]] | None) -> None:
        """Wait for a free place, and take it."""
        turn = asyncio.ensure_future(self._slots.acquire())
        try:
            while not (await asyncio.wait({turn}, timeout=_POLL_SECONDS))[0]:
                if disconnected is not None and await disconnected():
                    raise _client_gone()
                if self._ended is not None:
                    break
            if self._ended is not None:  # perhaps while its turn came
                raise self._ended
        except BaseException:
            if not turn.cancel():  # it came just now
                self._slots.release()
            raise

    async def _in_thread(self, stop: Cancellation, work: Callable[[], T]) -> T:
        def run() -> T:
            with stop.watching():
                return with_refusals(work)

        try:
            return await anyio.to_thread.run_sync(run, limiter=self._threads)
        finally:
            self._running.discard(stop)
            self._slots.release()

    def _work(self, tasks: list[str], upload: bytes, finish: Callable[[Any], Any], form: str | None, side: int | None) -> Answer:
        image = open_upload(upload, self.limits)
        for task in tasks:
            usual = usual_side(self.model.task(task), (image.height, image.width), self.tasks.infos[task].side)
            check_pixels(image.size, side or usual, self.limits)
        with self.memory.take(self._memory_needed(tasks, image.size, side)), self._announced():
            began = time.perf_counter()
            results, opened = {}, dict[int | None, Any]()
            for task in tasks:
                white = self.tasks.infos[task].white
                opened[white] = opened.get(white) or decode(upload, white=white)
                results[task] = finish(self.model.run(task, opened[white], form=form, side=side))
            return Answer(results, image.size, time.perf_counter() - began)

    def _announced(self) -> AbstractContextManager[None]:
        """Batches that are not full wait for this image, which is decoded first."""
        return nullcontext() if self.model.batches is None else self.model.batches.announced()

    def _memory_needed(self, tasks: list[str], size: tuple[int, int], side: int | None) -> int:
        try:
            bytes_, most = bytes_needed(self.model, tasks, size, side), self.limits.image_bytes
        except InputError as error:
            raise RefusedError(413, str(error)) from error
        if bytes_ > most:
            pixels = min(self.tasks.pixels[task] for task in tasks)
            asked, smaller = ("", "") if side is None else (f" with side={side}", ", or give a smaller side")
            raise RefusedError(
                413,
                f"an image of {size[0]} x {size[1]} pixels{asked} would take {bytes_ / 1e9:.1f} GB for {', '.join(tasks)}: "
                f"expected {most / 1e9:.1f} GB at most, such as {pixels:,} pixels; make it smaller{smaller}",
            )
        return bytes_

    def _too_long(self) -> RefusedError:
        seconds = f"{self.limits.run_seconds:g} s"
        return RefusedError(503, f"the image took more than {seconds}: make it smaller, give a smaller side, or try again later")


def with_refusals(work: Callable[[], T]) -> T:
    """What `work` returns; a failure becomes a `RefusedError` that says nothing of the machine, and the log the rest."""
    try:
        return work()
    except RefusedError:
        raise
    except TaskFileError as error:
        log.exception("a task cannot be read")
        raise RefusedError(503, "the task's file cannot be read now, or is being replaced: try again in a moment") from error
    except InputError as error:
        raise RefusedError(422, str(error)) from error
    except Exception as error:
        if (refused := as_resource_refusal(error)) is not None:
            raise refused from error
        log.exception("an image failed")
        raise RefusedError(500, "the service failed on this image; its log says why") from error


def as_resource_refusal(error: BaseException) -> RefusedError | None:
    """The refusal where memory, disk or open files ran out, or None for another error."""
    if is_out_of_memory(error):
        return RefusedError(503, "not enough memory for an image of this size: make it smaller, or try again later")
    if isinstance(error, OSError) and error.errno in FULL:
        return RefusedError(503, "the service's disk is full: try again later")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return RefusedError(503, "the service has too many files open: try again later")
    return None


def _client_gone() -> RefusedError:
    return RefusedError(499, "the client has closed the connection")
