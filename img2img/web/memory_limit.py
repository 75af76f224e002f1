"""How much memory an image takes, before it is run: what a service's bound on memory means in pixels."""

import math
from collections.abc import Sequence

from img2img.errors import InputError
from img2img.inference import Model

BYTES_PER_PIXEL = 4
"""Bytes a pixel of the image, which the service holds beside what runs on it, and at most of each result as a file."""

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
