"""Pictures of all methods side by side: a row a test picture, with input, target and each method's output."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from img2img.errors import InputError
from img2img.research.suites.suite import Method, Run, Suite, TaskInfo
from img2img.tasks.lettering import fit
from img2img.training.output_images import Strip, read_strip

WIDTH = 1180
"""Pixels: columns that do not fit go below, with their own titles."""
_GAP = 6
_TITLE = 24
_BAND = 14


def task_grid(suite: Suite, task: TaskInfo) -> tuple[Image.Image, tuple[Method, ...]] | None:
    """The grid of a task and the methods on it, of each the lowest seed that has pictures; None without any.

    Raises:
        InputError: a row of pictures cannot be read, or those of two runs differ in number or size.
    """
    columns: list[tuple[str, Strip]] = []
    methods: list[Method] = []
    first: Path | None = None
    for method in suite.methods:
        for run in method.runs:
            outputs = read_strip(_path(run, "outputs", task))
            if outputs is None:
                continue
            if first is None:
                first = _path(run, "outputs", task)
                given = ((kind, read_strip(_path(run, kind, task))) for kind in ("inputs", "targets"))
                columns += [(kind[:-1], strip) for kind, strip in given if strip is not None]
            methods.append(method)
            columns.append((method.title, outputs))
            _check(columns, _path(run, "outputs", task), first)
            break
    return (_compose(columns), tuple(methods)) if columns else None


def _path(run: Run, kind: str, task: TaskInfo) -> Path:
    return run.folder / kind / f"{task.name}.jpg"


def _check(columns: Sequence[tuple[str, Strip]], path: Path, first: Path) -> None:
    layouts = [(len(strip.tiles), strip.tiles[0].size) for _, strip in columns]
    if len(set(layouts)) > 1:
        odd = next(layout for layout in layouts if layout != layouts[-1])
        raise InputError(
            f"{path} holds {layouts[-1][0]} pictures of {layouts[-1][1]}, but those beside {first} are {odd[0]} of {odd[1]}: "
            "expected the same test pictures in every run of a suite; store the runs again, or delete the file"
        )


def _compose(columns: Sequence[tuple[str, Strip]]) -> Image.Image:
    width, height = columns[0][1].tiles[0].size
    rows = len(columns[0][1].tiles)
    step = width + _GAP
    across = max(2, (WIDTH + _GAP) // step)
    bands = [columns[i : i + across] for i in range(0, len(columns), across)]
    band_height = _TITLE + rows * (height + _GAP) - _GAP
    page = Image.new("RGB", (step * max(map(len, bands)) - _GAP, (band_height + _BAND) * len(bands) - _BAND), "white")
    draw = ImageDraw.Draw(page)
    for b, band in enumerate(bands):
        top = b * (band_height + _BAND)
        for c, (title, strip) in enumerate(band):
            fitted = fit(title, 13, width, _TITLE)
            draw.text((c * step, top + 3), fitted.lines[0], fill="#1b1f24", font=fitted.font)
            for r, tile in enumerate(strip.tiles):
                page.paste(tile, (c * step, top + _TITLE + r * (height + _GAP)))
    return page
