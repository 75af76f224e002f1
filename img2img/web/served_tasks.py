"""The tasks that a service offers: they come and go with the bundle's folder while it runs.

The folder is the truth: what is uploaded goes there, what is deleted leaves it, and whatever changes it is followed. A task that
goes, or that another file replaces, first finishes what it runs. Requests for one that is being replaced wait for that moment, so
that no request meets the one half of the old task and the other of the new one.
"""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread

from img2img.bundle import delete_task_from_bundle
from img2img.bundle.join import add_task_file
from img2img.errors import InputError
from img2img.inference import Model, TaskInfo
from img2img.masks.storage import read_header
from img2img.web.limits import Limits, RefusedError
from img2img.web.mask_figures import mask_figures
from img2img.web.memory_limit import bytes_needed, max_pixels

MIN_PIXELS = 64 * 64
"""Pixels of an image that a service must be able to take."""

WATCH_SECONDS = 1.0
"""How often the bundle's folder is looked at ..."""

FAILED_SECONDS = 10.0
"""... and after something in it could not be loaded."""

log = logging.getLogger("img2img.web")


class ServedTasks:
    """The tasks of a model within limits.

    Args:
        model: whose tasks they are.
        limits: the bounds.

    Raises:
        InputError: the bound on memory is too low for one of them.

    Attributes:
        infos: what there is to say of each, by name.
        pixels: the most that a square image may have, by name.
    """

    def __init__(self, model: Model, limits: Limits) -> None:
        self._model, self._limits = model, limits
        self.infos: dict[str, TaskInfo] = {}
        self.pixels: dict[str, int] = {}
        self._drawn: tuple[Any, dict[str, tuple[str, bytes]]] = (None, {})
        self._drawing = threading.Lock()
        self._loading = threading.Lock()
        self._changing = asyncio.Lock()
        self._users: Counter[str] = Counter()
        self._closed: set[str] = set()
        self._moved = asyncio.Condition()
        self._offer()

    def check(self, task: str, *, form: str | None = None) -> None:
        """Refuse a task that is not there (404) or a form that it has not (422)."""
        if task not in self.infos:
            shown = ", ".join(list(self.infos)[:50]) + (", …" if len(self.infos) > 50 else "")
            raise RefusedError(404, f"no task {task!r} here; there is {shown or 'none'}")
        forms = self.infos[task].forms
        if form is not None and form not in forms:
            raise RefusedError(422, f"form={form!r}: {task} gives {', '.join(forms)}")

    def mask_figures(self) -> dict[str, tuple[str, bytes]]:
        """As of the module of that name, drawn once for the tasks that there are; for threads."""
        with self._drawing:  # by one at a time: matplotlib's settings are those of the process
            infos = self.infos
            if self._drawn[0] is not infos:  # a change meanwhile makes other infos, and these figures are drawn anew next time
                self._drawn = infos, mask_figures(self._model)
            return self._drawn[1]

    @asynccontextmanager
    async def in_use(self, tasks: Iterable[str], *, form: str | None = None) -> AsyncIterator[None]:
        """Within the block the tasks stay what they are; those that are being replaced are waited for.

        Raises:
            RefusedError: see `check`.
        """
        names = set(tasks)
        async with self._moved:
            await self._moved.wait_for(lambda: not names & self._closed)
        for name in names:
            self.check(name, form=form)
        self._users.update(names)  # nothing was awaited since it was seen that they are open
        try:
            yield
        finally:
            self._users.subtract(names)
            async with self._moved:
                self._moved.notify_all()

    # ------------------------------------------------------------------ changes

    async def add(self, path: Path, *, name: str | None, replace: bool) -> str:
        """Put a task's file into the bundle and offer it; its name.

        Raises:
            RefusedError: 409 where there is a task of that name, and it shall not be replaced.
            InputError: see `bundle.join.add_task_file`. Nothing has changed.
        """
        model = self._model
        name = name or str(read_header(path)["task"])
        if name in self.infos and not replace:
            raise RefusedError(409, f"there is a task {name!r} already: delete it first, add replace=true, or give another name=")
        await self._change(
            lambda: add_task_file(model.folder, path, model.network, model.backbone, name=name, replace=replace), [name]
        )
        return name

    async def delete(self, name: str) -> None:
        """Take a task out of the bundle, once its requests are done; its file is deleted.

        Raises:
            InputError: see `delete_task_from_bundle`. Nothing has changed.
        """
        self.check(name)
        await self._change(lambda: delete_task_from_bundle(self._model.folder, name), [name])

    async def follow(self) -> None:
        """Offer what the bundle's folder has now."""
        if await anyio.to_thread.run_sync(self._model.bundle_changes):
            await self._change(lambda: None, [])

    async def watch(self) -> None:
        """`follow` every second, for ever. What cannot be loaded is in the log, and tried again."""
        seconds = WATCH_SECONDS
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.follow()
                seconds = WATCH_SECONDS
            except Exception:
                seconds = FAILED_SECONDS
                log.exception("the bundle has changed, and not all of it can be served")

    def load_new(self) -> None:
        """Offer the tasks that came into the bundle; for threads.

        Raises:
            InputError: one cannot be loaded, or the bound on memory is too low for it; then all is as it was.
        """
        with self._loading:
            self._load_new()

    def _load_new(self) -> None:
        before = set(self._model.tasks)
        self._model.load_new_tasks()
        try:
            self._offer()
        except InputError:
            self._model.remove_tasks(set(self._model.tasks) - before)
            raise

    async def _change(self, work: Callable[[], Any], names: Iterable[str]) -> None:
        """Change the bundle, and follow; tasks of `names` are closed meanwhile."""
        async with self._changing, self._without(names):
            await anyio.to_thread.run_sync(work)
            changes = await anyio.to_thread.run_sync(self._model.bundle_changes)
            gone = [*changes.removed, *changes.replaced]
            async with self._without(gone):
                await anyio.to_thread.run_sync(lambda: self._swap(gone))

    @asynccontextmanager
    async def _without(self, names: Iterable[str]) -> AsyncIterator[None]:
        """Within the block nothing runs these tasks; who asks for them waits."""
        mine = set(names) - self._closed
        self._closed |= mine
        try:
            async with self._moved:
                await self._moved.wait_for(lambda: not any(self._users[name] for name in mine))
            yield
        finally:
            self._closed -= mine
            async with self._moved:
                self._moved.notify_all()

    def _swap(self, gone: Iterable[str]) -> None:
        with self._loading:
            self._model.remove_tasks(name for name in gone if name in self._model.tasks)
            try:
                self._load_new()  # one offer for what goes and comes: a task that is replaced is there all the time
            except BaseException:
                self._offer()
                raise

    def _offer(self) -> None:
        """Offer the tasks that the model has now."""
        model, limits, infos = self._model, self._limits, dict(self._model.tasks)
        most = limits.image_bytes
        # What a replaced task takes may differ; of the others it is known.
        known = {name: self.pixels[name] for name, info in infos.items() if self.infos.get(name) == info}
        pixels = {name: known.get(name) or min(limits.pixels, max_pixels(model, name, most)) for name in infos}
        for name, count in pixels.items():
            if count < min(MIN_PIXELS, limits.pixels):
                least = bytes_needed(model, [name], (64, 64)) * limits.memory_bytes // most
                raise InputError(
                    f"memory_bytes={limits.memory_bytes:,}: {name} needs {least:,} for images of 64 x 64: allow more memory, or "
                    "one image at once"
                )
        self.pixels, self.infos = pixels, infos
