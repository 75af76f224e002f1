"""How much memory an image takes, before it is run: what a service's bound on memory means in pixels."""

import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from img2img.errors import InputError
from img2img.inference import Model
from img2img.inference.cancellation import check_here

BYTES_PER_PIXEL = 4
"""Bytes a pixel of the image, which the service holds beside what runs on it, and at most of each result as a file."""

_POLL_SECONDS = 0.5

_STEPS = tuple(1 << n for n in reversed(range(17)))


def bytes_needed(model: Model, tasks: Sequence[str], size: tuple[int, int], side: int | None = None) -> int:
    """Bytes that an image takes, beside the model, while tasks run on it one after another.

    Args:
        model: whose tasks they are.
        tasks: their names.
        size: of the image, (width, height).
        side: as of `Model.run`.

    Raises:
        InputError: the network would see more than it may.
    """
    most = max(model.memory(task, (size[1], size[0]), side=side) for task in tasks)
    return most + BYTES_PER_PIXEL * math.prod(size) * (1 + len(tasks))


def max_pixels(model: Model, task: str, most: int) -> int:
    """The largest square image, in pixels, that a task takes no more than `most` bytes for."""
    side = 0
    for step in _STEPS:
        try:
            fits = bytes_needed(model, [task], (side + step, side + step)) <= most
        except InputError:
            fits = False
        side += step if fits else 0
    return side * side


class MemoryBudget:
    """Memory that images take while they run, and wait for, first come, first served.

    Args:
        limit: bytes of all that run at once; one that needs more than all runs alone.

    Attributes:
        taken: bytes that are taken now.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def take(self, bytes_: int) -> Iterator[None]:
        """Within the block so many bytes are taken; a thread whose work is cancelled waits no more."""
        bytes_ = min(bytes_, self.limit)
        turn = object()
        with self._changed:
            self._queue.append(turn)
            try:
                while self._queue[0] is not turn or self.taken + bytes_ > self.limit:
                    self._changed.wait(_POLL_SECONDS)
                    check_here()
                self.taken += bytes_
            finally:
                self._queue.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self.taken -= bytes_
                self._changed.notify_all()
