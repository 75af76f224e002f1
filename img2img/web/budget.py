"""How much memory a picture takes, before it is run: what a service's bound on memory means in pixels."""

import math
from collections.abc import Sequence

from img2img.errors import InputError
from img2img.inference import Model

HELD = 4
"""Bytes a pixel of the picture, which the service holds beside what runs on it, and at most of each result as a file."""

_STEPS = tuple(1 << n for n in reversed(range(17)))


def needed(model: Model, tasks: Sequence[str], size: tuple[int, int], side: int | None = None) -> int:
    """Bytes that a picture takes, beside the model, while tasks run on it one after another.

    Args:
        model: whose tasks they are.
        tasks: their names.
        size: of the picture, (width, height).
        side: as of `Model.run`.

    Raises:
        InputError: the network would see more than it may.
    """
    most = max(model.memory(task, (size[1], size[0]), side=side) for task in tasks)
    return most + HELD * math.prod(size) * (1 + len(tasks))


def most_pixels(model: Model, task: str, most: int) -> int:
    """The largest square picture, in pixels, that a task takes no more than `most` bytes for."""
    side = 0
    for step in _STEPS:
        try:
            fits = needed(model, [task], (side + step, side + step)) <= most
        except InputError:
            fits = False
        side += step if fits else 0
    return side * side
