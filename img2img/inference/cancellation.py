"""Cancel work in a thread: networks check between any two of their layers whether they should stop."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook

_here = threading.local()


class Cancellation:
    """Ends a thread's work with an error; the first error counts."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._wake: Callable[[], None] | None = None

    def cancel(self, error: Exception) -> None:
        """Have the work end with `error` before its next layer, or at its next `check`."""
        self.error = self.error or error
        if (wake := self._wake) is not None:
            wake()

    def check(self) -> None:
        """Raise the error, if the work was cancelled."""
        if self.error is not None:
            raise self.error

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Networks that this thread runs within the block can be cancelled."""
        _watch_layers()
        _here.stop = self
        try:
            yield
        finally:
            _here.stop = None


@contextmanager
def woken_by_cancel(wake: Callable[[], None]) -> Iterator[None]:
    """Within the block this thread waits, and `wake` is called when its work is cancelled, or if it was before."""
    stop: Cancellation | None = getattr(_here, "stop", None)
    if stop is None:
        yield
        return
    stop._wake = wake
    try:
        if stop.error is not None:  # before anybody could be woken
            wake()
        yield
    finally:
        stop._wake = None


def check_here() -> None:
    """Raise the error, if this thread's work was cancelled: for a thread that waits and runs no layers meanwhile."""
    stop = getattr(_here, "stop", None)
    if stop is not None:
        stop.check()


@functools.cache
def _watch_layers() -> None:
    # One hook for all modules, since those of a module of its own would make attention take another kernel. It does nothing in
    # threads that are not watched.
    register_module_forward_pre_hook(_look)


def _look(module: Any, arguments: Any) -> None:
    check_here()
