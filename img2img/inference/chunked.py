"""Large images part by part: the network's input, its tiles and what is shown of them are never there as a whole.

So the memory that an image takes beside itself and its result is bounded: see `memory_estimate.py`. Only tasks with
`Task.in_parts` are run so.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from img2img.data.base import Batch
from img2img.inference.evaluator import Evaluator, Network
from img2img.inference.resize import brought_back, resized_rows, rows_needed
from img2img.inference.tiling import raw_rows
from img2img.tasks import Task

CHUNK_PIXELS = 1 << 19
"""Pixels of the image that are predicted and shown at a time."""

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How images of one size are run.

    Attributes:
        task: the task.
        network: from the task's input to its head's raw output.
        evaluator: knows which sizes the network takes, and where it is.
        view: (height, width) at which the network sees an image.
        tile: the longest side of a tile; None for images as a whole.
        overlap: pixels that neighbouring tiles share.
    """

    task: Task
    network: Network
    evaluator: Evaluator
    view: Size
    tile: int | None
    overlap: int


def predicted_rows(image: Tensor, setting: RunSettings) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """The prediction for an image part by part.

    Args:
        image: (1, 3, H, W) in [0, 255].
        setting: how.

    Yields:
        Where the part is, an index such as `[..., 100:200, :]`; the prediction there (a task of whole images has one, the same
        for all parts); and the input there.
    """
    size = (image.shape[-2], image.shape[-1])
    if setting.task.image_level:
        yield from _whole_image(image, size, setting)
        return
    # Parts are strips along the shorter side, so that no strip is large.
    turned = size[1] > size[0]
    turn = _transposed if turned else _as_it_is
    view = setting.view[::-1] if turned else setting.view
    size = size[::-1] if turned else size
    long = turn(image)
    full = _TaskInput(setting, lambda first, last: long[..., first:last, :], size, turn)
    seen = full
    if view != size:
        seen = _TaskInput(setting, lambda first, last: resized_rows(long, view, first, last).clamp(0, 255), view, turn)

    def network(x: Tensor) -> Tensor:
        return turn(setting.network(turn(x).contiguous()))

    tile = max(view) if setting.tile is None else setting.tile
    border = setting.evaluator.border(setting.task, view)
    raws = raw_rows(network, seen.window, view, setting.evaluator, tile=tile, overlap=setting.overlap, border=border)
    reach = setting.task.input_reach
    for first, last, raw in _at_full_size(raws, view, size):
        top, bottom = max(0, first - reach), min(size[0], last + reach)
        wider = F.pad(raw, (0, 0, first - top, bottom - last)) if reach else raw  # the rows beyond are cut off below
        input = full.window(top, bottom, 0, size[1])
        predicted = turn(setting.task.prediction(turn(wider), turn(input)))
        rows = slice(first - top, last - top)
        place = (..., slice(first, last)) if turned else (..., slice(first, last), slice(None))
        yield place, turn(predicted[..., rows, :]), turn(input[..., rows, :])


def _whole_image(image: Tensor, size: Size, setting: RunSettings) -> Iterator[tuple[Any, Tensor, Tensor]]:
    task, device = setting.task, setting.evaluator.device
    resized = image if setting.view == size else resized_rows(image, setting.view, 0, setting.view[0]).clamp(0, 255)
    seen = task.served_input(Batch(image=resized.to(device)))
    prediction = task.prediction(setting.evaluator.raw(setting.network, seen), seen)
    step = max(1, CHUNK_PIXELS // size[1])
    for first in range(0, size[0], step):
        rows = slice(first, min(size[0], first + step))
        yield (..., rows, slice(None)), prediction, task.served_input(Batch(image=image[..., rows, :].to(device)))


class _TaskInput:
    """A task's input for an image or a view of it, window by window; all in the frame in which parts are rows.

    Args:
        setting: how.
        rows: gives the image's rows, (1, 3, rows, W) in [0, 255].
        size: (height, width) of it.
        turn: from that frame to the image's own, and back.
    """

    def __init__(
        self, setting: RunSettings, rows: Callable[[int, int], Tensor], size: Size, turn: Callable[[Tensor], Tensor]
    ) -> None:
        self._setting, self._rows, self._size, self._turn = setting, rows, size, turn
        self._last: tuple[tuple[int, int], Tensor] | None = None

    def window(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        """The input of a part."""
        reach = self._setting.task.reach
        if reach is None:
            whole = self._kept(0, self._size[0], lambda: self._served(self._rows(0, self._size[0])))
            return whole[..., top:bottom, left:right]
        first, last = max(0, top - reach), min(self._size[0], bottom + reach)
        low, high = max(0, left - reach), min(self._size[1], right + reach)
        rows = self._kept(first, last, lambda: self._rows(first, last))
        return self._served(rows[..., low:high])[..., top - first : bottom - first, left - low : right - low]

    def _kept(self, first: int, last: int, make: Callable[[], Tensor]) -> Tensor:
        """What was made last, where it is asked for again, as a row of tiles does."""
        if self._last is None or self._last[0] != (first, last):
            self._last = None  # before the next is made
            self._last = ((first, last), make())
        return self._last[1]

    def _served(self, values: Tensor) -> Tensor:
        image = self._turn(values).to(self._setting.evaluator.device)
        return self._turn(self._setting.task.served_input(Batch(image=image)))


def _at_full_size(raws: Iterator[Tensor], view: Size, size: Size) -> Iterator[tuple[int, int, Tensor]]:
    """(first, last, raw output of these rows of the image) from the raw output of the view, as its rows come."""
    if view == size:
        first = 0
        for rows in raws:
            step = _rows_at_once(size[1], rows.shape[1])
            for part in rows.split(step, -2):
                yield first, first + part.shape[-2], part
                first += part.shape[-2]
        return
    made, above, held = 0, 0, torch.empty(0, dtype=torch.float32)
    for rows in raws:
        held = torch.cat([held, rows], -2) if len(held) else rows
        here = above + held.shape[-2]
        while made < size[0]:
            last = min(size[0], made + _rows_at_once(size[1], held.shape[1]))
            while last > made and rows_needed(view[0], size[0], made, last)[1] > here:
                last = made + (last - made) // 2
            if last == made:
                break
            yield made, last, brought_back(held, above, view, size, made, last)
            made = last
        # What the rows still to be made do not need is let go.
        needed = here if made == size[0] else min(here, rows_needed(view[0], size[0], made, made + 1)[0])
        held, above = held[..., needed - above :, :].clone(), needed


def _rows_at_once(width: int, channels: int) -> int:
    return max(1, CHUNK_PIXELS // (width * max(1, channels // 8)))


def _transposed(values: Tensor) -> Tensor:
    return values.transpose(-1, -2)


def _as_it_is(values: Tensor) -> Tensor:
    return values
