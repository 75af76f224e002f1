"""Test images of all methods side by side: a store keeps one sheet a task, and a page shows it.

A sheet is `STORE/images/TASK.webp`: a row a test image, with a column for the input, the target and each method's output. Tasks
whose answer is one label for an image have none: accuracies say as much. Its EXIF description is JSON that names the columns.
WebP takes about half the bytes of a JPEG here. Tiles begin at multiples of its blocks, so that they stay apart when columns are
added and the file is written again.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated

from PIL import Image, ImageDraw, ImageOps
from pydantic import Field, Strict

from img2img.errors import InputError
from img2img.files.atomic import write_atomic
from img2img.research.suites.schema import parse
from img2img.research.suites.suite import Method, Suite, TaskInfo
from img2img.tasks.base import TASKS
from img2img.tasks.lettering import fit
from img2img.training.output_images import Strip, read_strip
from img2img.validation import Exact

logger = logging.getLogger("img2img")

IMAGES = "images"
QUALITY = 80
WIDTH = 1180
"""Pixels of a page's grid: columns that do not fit go below, with their own titles."""
_OVERVIEW = 96
"""Pixels of the longer side of an image in the overview."""
_BLOCK = 16
_GAP = 6
_TITLE = 24
_BAND = 14
_DESCRIPTION = 0x010E  # EXIF's ImageDescription, which is ASCII
_GIVEN = ("inputs", "targets")
_REMEDY = "delete it, and run pipelines/suite.py again to make it from the run folders"


class _Layout(Exact):
    """The description of a sheet."""

    given: list[str]
    methods: list[str]
    rows: int = Field(ge=1)
    tile: Annotated[tuple[int, int], Strict(False)]


@dataclass(frozen=True)
class Sheet:
    """The images of a task: `given` by "inputs" and "targets", `methods` by label; as many of one size in each."""

    given: Mapping[str, Strip]
    methods: Mapping[str, Strip]


def read_sheet(path: Path) -> Sheet | None:
    """What `save_sheet` wrote; None if there is no such file.

    Raises:
        InputError: it is not a WebP image that can be decoded, or does not describe its columns.
    """
    if not path.is_file():
        return None
    try:
        with Image.open(path, formats=["WEBP"]) as file:
            description = str(file.getexif().get(_DESCRIPTION, ""))
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as WebP ({error}): {_REMEDY}") from error
    layout = parse(_Layout, description, f"{path}, its description", _REMEDY)
    width, height = layout.tile
    step, rise = _aligned(width), _aligned(height)
    if min(layout.tile) < 1 or image.size != (step * len([*layout.given, *layout.methods]), rise * layout.rows):
        raise InputError(f"{path} is of {image.size} pixels, which its description {description!r:.80} does not fit: {_REMEDY}")
    strips = [
        Strip(tuple(image.crop((c * step, r * rise, c * step + width, r * rise + height)) for r in range(layout.rows)))
        for c in range(image.width // step)
    ]
    count = len(layout.given)
    return Sheet(dict(zip(layout.given, strips, strict=False)), dict(zip(layout.methods, strips[count:], strict=True)))


def save_sheet(path: Path, sheet: Sheet) -> Path:
    """Write a sheet, which has at least one column."""
    columns = [*sheet.given.values(), *sheet.methods.values()]
    width, height = columns[0].tiles[0].size
    rows, step, rise = len(columns[0].tiles), _aligned(width), _aligned(height)
    image = Image.new("RGB", (step * len(columns), rise * rows), "white")
    for c, column in enumerate(columns):
        for r, tile in enumerate(column.tiles):
            image.paste(tile, (c * step, r * rise))
    layout = _Layout(given=[*sheet.given], methods=[*sheet.methods], rows=rows, tile=(width, height))
    exif = Image.Exif()
    exif[_DESCRIPTION] = json.dumps(layout.model_dump(mode="json"), separators=(",", ":"))
    return write_atomic(path, lambda p: image.save(p, "WEBP", quality=QUALITY, method=6, exif=exif))


def _aligned(side: int) -> int:
    return -(-side // _BLOCK) * _BLOCK


def sheet_path(suite: Suite, task: TaskInfo) -> Path:
    """The file of a task's sheet, which need not be there."""
    return suite.folder / IMAGES / f"{task.name}.webp"


def update_sheets(suite: Suite, runs: Path) -> list[Path]:
    """Bring a store's sheets up to date with run folders: of each method the lowest seed that has images.

    Methods whose run folders are gone keep their columns.

    Args:
        suite: the store, read.
        runs: where the run folders are, `runs/LABEL/SEED`.

    Raises:
        InputError: a file cannot be read, or the images of two methods differ in number or size.
    """
    paths = []
    for task in suite.tasks:
        if task.kind in TASKS and TASKS[task.kind].image_level:
            continue
        path = sheet_path(suite, task)
        strip_name = f"{task.name}.jpg"
        before = read_sheet(path) or Sheet({}, {})
        given, methods, places = dict(before.given), dict[str, Strip](), dict[str, str]()
        for method in suite.methods:
            first, *others = (runs / method.label / str(run.seed) for run in method.runs)
            kept = before.methods.get(method.label)
            for folder in (first, *(others if kept is None else ())):
                strip = read_strip(folder / "outputs" / strip_name)
                if strip is not None:
                    if not places:
                        given |= {kind: s for kind in _GIVEN if (s := read_strip(folder / kind / strip_name)) is not None}
                    methods[method.label], places[method.label] = strip, str(folder / "outputs" / strip_name)
                    break
            else:
                methods |= {} if kept is None else {method.label: kept}
        if places:
            _check(task, given | methods, places, path)
            paths.append(save_sheet(path, Sheet(given, methods)))
    return paths


def _check(task: TaskInfo, columns: Mapping[str, Strip], places: Mapping[str, str], sheet: Path) -> None:
    layouts = {name: (len(strip.tiles), strip.tiles[0].size) for name, strip in columns.items()}
    first = next(iter(layouts))
    for name, layout in layouts.items():
        if layout != layouts[first]:
            expected = layouts[first]
            raise InputError(
                f"{places.get(name, sheet)}: {name} of {task.name} has {layout[0]} images of {layout[1]}, but {first} has "
                f"{expected[0]} of {expected[1]}: expected the same test images in every run of a suite; run it again, or delete "
                f"{sheet} if that is from other data"
            )


def task_grid(suite: Suite, task: TaskInfo) -> tuple[Image.Image, tuple[Method, ...]] | None:
    """The grid of a task for a page and the methods on it; None without images.

    Raises:
        InputError: its sheet cannot be read.
    """
    sheet = read_sheet(sheet_path(suite, task))
    if sheet is None:
        return None
    methods = tuple(method for method in suite.methods if method.label in sheet.methods)
    columns = [(kind.removesuffix("s"), strip) for kind, strip in sheet.given.items()]
    columns += [(method.title, sheet.methods[method.label]) for method in methods]
    return (_compose(columns), methods) if columns else None


def overview(suite: Suite) -> Image.Image | None:
    """One test image of each task, the middle one, through every method; None where fewer than two tasks have images.

    Raises:
        InputError: a sheet cannot be read.
    """
    sheets = [sheet for task in suite.tasks if (sheet := read_sheet(sheet_path(suite, task))) is not None]
    if len(sheets) < 2:
        return None
    columns = {kind.removesuffix("s"): [sheet.given.get(kind) for sheet in sheets] for kind in _GIVEN}
    columns |= {method.title: [sheet.methods.get(method.label) for sheet in sheets] for method in suite.methods}
    sizes = [ImageOps.contain(next(iter(sheet.methods.values())).tiles[0], (_OVERVIEW, _OVERVIEW)).size for sheet in sheets]
    width = max(width for width, _ in sizes)
    strips = {
        title: Strip(tuple(_fitted(strip, size, width) for strip, size in zip(found, sizes, strict=True)))
        for title, found in columns.items()
        if any(found)
    }
    return _compose(list(strips.items()))


def _fitted(strip: Strip | None, size: tuple[int, int], width: int) -> Image.Image:
    """The middle image of a column within `size`, in the middle of a white tile; white where there is no column."""
    tile = Image.new("RGB", (width, size[1]), "white")
    if strip is not None:
        image = ImageOps.contain(strip.tiles[len(strip.tiles) // 2], size)
        tile.paste(image, ((width - image.width) // 2, 0))
    return tile


def _compose(columns: Sequence[tuple[str, Strip]]) -> Image.Image:
    width = columns[0][1].tiles[0].width
    tops = [0, *accumulate(tile.height + _GAP for tile in columns[0][1].tiles)]
    step = width + _GAP
    across = max(2, (WIDTH + _GAP) // step)
    bands = [columns[i : i + across] for i in range(0, len(columns), across)]
    band_height = _TITLE + tops[-1] - _GAP
    size = step * max(map(len, bands)) - _GAP, (band_height + _BAND) * len(bands) - _BAND
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for b, band in enumerate(bands):
        top = b * (band_height + _BAND)
        for c, (title, strip) in enumerate(band):
            fitted = fit(title, 13, width, _TITLE)
            draw.text((c * step, top + 3), fitted.lines[0], fill="#1b1f24", font=fitted.font)
            for below, tile in zip(tops, strip.tiles, strict=False):
                page.paste(tile, (c * step, top + _TITLE + below))
    return page
