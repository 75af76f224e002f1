"""How much memory a picture takes, before it is run: what a service's bound on memory means in pixels.

A picture costs bytes for each of its own pixels (decoded, as numbers, as what is drawn of it), and the network bytes for each
pixel that it sees at once: of a tile, or of a whole picture where the task is about the whole. The first are measured for each
kind of task, and a test measures them again; the second are counted when the service starts.
"""

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from img2img.inference import Model
from img2img.inference.model import TILE

PICTURE: Mapping[str, int] = {"edges": 290, "colourisation": 180}
OTHERS = 110
"""Bytes for each pixel of a picture, by the task's kind; as measured, and some more."""

CHANNEL = 5
"""And for each output of the head."""

FILE = 4
"""And for each result that waits, as a file, for those of other tasks."""

WORKSPACE = 1.6
"""What convolutions need beside the tensors that are counted."""


class Budget:
    """The memory of pictures.

    Args:
        model: whose tasks run.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._network = WORKSPACE * network_bytes(model)

    def all_bytes(self, tasks: Sequence[str], size: tuple[int, int], side: int | None = None) -> int:
        """What a picture takes that several tasks run on, one after another."""
        return max(self.bytes(task, size, side) for task in tasks) + FILE * math.prod(size) * len(tasks)

    def bytes(self, task: str, size: tuple[int, int], side: int | None = None) -> int:
        """What a picture takes beside the model.

        Args:
            task: its name.
            size: of the picture, (width, height).
            side: as of `Model.run`.
        """
        kind = self._model.task(task)
        side = side or (self._model.tasks[task].side if kind.whole_picture else None)
        seen = math.prod(size) if side is None else side**2 if kind.square else round(math.prod(size) * (side / min(size)) ** 2)
        at_once = seen if kind.whole_picture else min(seen, (TILE + 64) ** 2)
        each = PICTURE.get(kind.kind, OTHERS) + CHANNEL * kind.out_channels
        return round(each * max(math.prod(size), seen) + self._network * at_once)

    def pixels(self, task: str, most: int) -> int:
        """The largest square picture, in pixels, that takes no more than `most` bytes."""
        side = 0
        for step in (1 << n for n in reversed(range(17))):
            if self.all_bytes([task], (side + step, side + step)) <= most:
                side += step
        return side * side


def network_bytes(model: Model) -> float:
    """Bytes that the network holds at its fullest for each pixel that it sees, beside its weights."""
    task = next(iter(model.tasks))
    stride = model.backbone.stride
    side = stride * math.ceil(max(64, model.backbone.min_size) / stride)
    seen = torch.zeros(3, side, side)
    model.predict(task, seen)  # the weights are there from now on
    live = _Live()
    with live:
        model.predict(task, seen)
    return live.peak / side**2


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made and still there."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                key = storage._cdata
                if key not in self._now:
                    self._now[key] = storage.nbytes()
                    weakref.finalize(storage, self._now.pop, key, None)
        self.peak = max(self.peak, sum(self._now.values()))
        return made
