"""One task on images of one size: whole as a batch, or large ones part by part."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from img2img import validation
from img2img.data.base import Batch, ImageDataset
from img2img.data.images.decode import MAX_PIXELS, check_enlarged
from img2img.data.warn_once import warn_once
from img2img.errors import InputError
from img2img.inference.chunked import RunSettings, Size, predicted_rows
from img2img.inference.conversion import OpenedImages
from img2img.inference.tiling import run_any_size
from img2img.tasks import Task
from img2img.validation.arguments import shown

TILE = 1024
OVERLAP = 128
TILE_VALUES = 64 * TILE * TILE
"""What a head may give at once for a tile, of a task that keeps little of it, see `Task.compact`."""
WIDE_HEAD = 24
"""Channels of a head, all of which are kept, above which tiles have half the side."""
WHOLE_PIXELS = 4 * TILE * TILE
"""What a network may see at once of an image that cannot be cut into tiles, since the task is about the whole of it."""

_LOOKED_AT = 64


def checked_side(side: Any, stride: int) -> int | None:
    """The shorter side at which the network is to see images, or an `InputError`; a warning where it is below the stride."""
    number = validation.whole_number("side", side, of="pixel")
    if number is not None and number < stride:
        warn_once(
            f"side={number} is below the network's stride of {stride}: hardly anything of an image is left at that size, and "
            "results will be poor; give more"
        )
    return number


def checked_size(size: Any) -> Size:
    """The (height, width) of an image, or an `InputError`."""
    if isinstance(size, list | tuple) and len(size) == 2:
        height, width = (validation.whole_number("size", side, of="pixel") for side in size)
        if height is not None and width is not None:
            return height, width
    raise InputError(f"size={shown(size)}: expected the height and width of an image in pixels, such as (1080, 1920)")


def checked_tile(tile: Any) -> int | None:
    """The longest side of a tile, or an `InputError`."""
    number = validation.whole_number("tile", tile, of="pixel")
    if number is not None and number <= OVERLAP:
        raise InputError(f"tile={tile}: expected more than {OVERLAP} pixels, which neighbouring tiles share; or None")
    return number


def checked_form(task: Task, form: Any) -> str:
    """The form of a task's results, its usual one for None, or an `InputError`."""
    if form is None:
        return task.forms[0]
    if isinstance(form, str) and form in task.forms:
        return form
    raise InputError(f"form={form!r}: a {task.kind} task gives {', '.join(task.forms)}")


def tile_for(task: Task, tile: int | None) -> int | None:
    """The longest side of a task's tiles: the one given, or less for a head with so many channels that it would fill memory."""
    if tile is None:
        return None
    if task.compact_channels == task.out_channels:
        return tile if task.out_channels <= WIDE_HEAD else min(tile, TILE // 2)
    return min(tile, max(2 * OVERLAP, math.isqrt(TILE_VALUES // task.out_channels)))


def measured_side(task: Task, images: ImageDataset) -> int | None:
    """The shorter side of the images that a task is measured on, of at most `_LOOKED_AT` of them, evenly spread.

    Where sides differ the largest of them; None of a task about whole images, each of which was then measured at its own size.
    """
    count = min(len(images), _LOOKED_AT)
    sides = {min(images[i * len(images) // count].image.shape[:2]) for i in range(count)}
    return None if task.image_level and len(sides) > 1 else max(sides)


def usual_side(task: Task, size: Size, measured_side: int | None) -> int | None:
    """The shorter side at which the network sees an image (height, width) where nobody says it; None: the image's own."""
    if task.image_level:
        return measured_side
    larger = measured_side is not None and min(size) > measured_side
    return measured_side if task.at_measured_side and larger else None


def view_of(
    task: Task, size: Size, *, side: int | None, measured_side: int | None, tile: int | None, by_instance: bool = False
) -> Size:
    """(height, width) at which the network sees an image.

    Args:
        task: the task.
        size: (height, width) of the image.
        side: as of `Model.run`.
        measured_side: the side that the task was measured on.
        tile: as of `Model.run`.
        by_instance: the network normalises by each image's own statistics: tiles would have other ones than the image, and seams.

    Raises:
        InputError: that is too large.
    """
    side = usual_side(task, size, measured_side) if side is None else side
    view = size if side is None else (side, side) if task.square else _with_shorter_side(size, side)
    what, remedy = f"the image of {size[1]} x {size[0]} with side={side}", "give a smaller side="
    if view[0] * view[1] > max(MAX_PIXELS, size[0] * size[1]):
        check_enlarged(*view, what, remedy)
    if (task.image_level or by_instance) and tile is not None and view[0] * view[1] > WHOLE_PIXELS:
        why = f"a {task.kind} task is about the whole image"
        if by_instance:
            why = "the task normalises by the statistics of the whole image (norm='instance') and cannot be run in tiles"
        more = f"such as {measured_side or 256}"
        if by_instance:
            more = f"such as {TILE}, or tile=None where there is memory for all of it"
        raise InputError(
            f"{what}: the network would see {view[1]} x {view[0]}, {view[0] * view[1]:,} pixels, at once, since {why}: "
            f"expected at most {WHOLE_PIXELS:,}; give a smaller side=, {more}"
        )
    return view


def results(opened: Sequence[OpenedImages], setting: RunSettings, form: str) -> list[Any]:
    """What a task makes of opened images of one size, each in its input's type."""
    task = setting.task
    finish: Any = {"form": form, "classes": getattr(task, "classes", ()), "channels": task.out_channels}
    finish["transparent"] = task.keeps_transparency
    if not in_parts(setting, opened[0].size):
        prediction, input = _whole(torch.cat([one.values for one in opened]), setting)
        shown = task.show(prediction, input, form)
        parts = shown.split([len(one.values) for one in opened])
        return [one.result(part, **finish) for one, part in zip(opened, parts, strict=True)]
    return [one.result(_shown(one, setting, form), **finish) for one in opened]


def prediction(values: Tensor, setting: RunSettings) -> Tensor:
    """The task's prediction in its own form for images (N, 3, H, W) in [0, 255]."""
    size = (values.shape[-2], values.shape[-1])
    if not in_parts(setting, size):
        return _whole(values, setting)[0]
    predicted: Tensor | None = None
    for number in range(len(values)):
        for place, part, _ in predicted_rows(values[number : number + 1], setting):
            whole_image = setting.task.image_level
            if predicted is None:
                shape = part.shape[1:] if whole_image else (*part.shape[1:-2], *size)
                predicted = part.new_empty(len(values), *shape)
            if whole_image:
                predicted[number] = part[0]
                break
            predicted[(number, *place)] = part[0]
    assert predicted is not None
    return predicted


def in_parts(setting: RunSettings, size: Size) -> bool:
    """Whether an image is so large that it is run part by part."""
    return setting.task.in_parts and setting.tile is not None and max(*size, *setting.view) > setting.tile


def _shown(one: OpenedImages, setting: RunSettings, form: str) -> Tensor:
    """What is shown of images of one size, made part by part."""
    whole: Tensor | None = None
    for number in range(len(one.values)):
        for place, predicted, input in predicted_rows(one.values[number : number + 1], setting):
            if form == "scores":
                shown = setting.task.show(predicted, input, form)
                whole = shown.new_empty(len(one.values), shown.shape[1]) if whole is None else whole
                whole[number] = shown[0]
                break
            first = place[1].start if setting.task.image_level else 0
            shown = setting.task.show_rows(predicted, input, form, first=first, height=one.size[0])
            factor = shown.shape[-1] // input.shape[-1]
            if whole is None:
                whole = one.allocate(shown, form, (factor * one.size[0], factor * one.size[1]))
            put = tuple(slice(factor * axis.start, factor * axis.stop) if axis.stop else axis for axis in place[1:])
            one.write_part(whole[number], (..., *put), shown[0], form)
    assert whole is not None
    return whole


def _whole(values: Tensor, setting: RunSettings) -> tuple[Tensor, Tensor]:
    """The prediction for (N, 3, H, W) in [0, 255], and the full-size input that belongs to it."""
    task, view = setting.task, setting.view
    values = values.to(setting.evaluator.device)
    input = seen = task.served_input(Batch(image=values))
    size = (values.shape[-2], values.shape[-1])
    if view != size:
        resized = F.interpolate(values.float(), view, mode="bilinear", antialias=True, align_corners=False)
        seen = task.served_input(Batch(image=resized.clamp(0, 255)))
    tile = None if task.image_level else setting.tile
    border = setting.evaluator.border(task, view)
    raw = run_any_size(setting.network, seen, setting.evaluator, tile=tile, overlap=setting.overlap, border=border)
    if raw.ndim == 4 and view != size:
        raw = F.interpolate(raw.float(), size, mode="bilinear", align_corners=False)
    return task.prediction(raw, input), input


def _with_shorter_side(size: Size, side: int) -> Size:
    scale = side / min(size)
    height, width = (max(1, round(n * scale)) for n in size)
    return height, width
