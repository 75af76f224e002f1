"""How figures of a comparison look, and how a page shows them: dark on white, one look a method, the same bytes each time."""

import base64
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from img2img.files.atomic import write_atomic, write_bytes
from img2img.fonts import complete_fonts

# Okabe and Ito's palette without its yellow, which is too light for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX<>dph"
_DASHES = ("-", "--", ":", "-.")
_HATCHES = ("", "////", "....", "xxxx")

_EXACT = 128
DPI = 150
WIDE = 12.2
"""The width of a figure that takes the whole page, in inches."""
_ROWS_AN_INCH = 5
_LONGEST = 34
"""Names with more letters are shortened on figures; the page has them whole."""


def look(index: int) -> dict[str, Any]:
    """Colour, marker and dash of the line of the method, or task, with this number; no two of the first 28 are alike."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _DASHES[index // len(COLOURS) % len(_DASHES)],
        "markersize": 5,
        "linewidth": 1.5,
    }


def fill(index: int) -> dict[str, Any]:
    """Colour and hatching of a bar, likewise."""
    hatch = _HATCHES[index // len(COLOURS) % len(_HATCHES)]
    return {"color": COLOURS[index % len(COLOURS)], "hatch": hatch, "edgecolor": "white", "linewidth": 0.4}


def plain(text: str, longest: int = _LONGEST) -> str:
    """Text as matplotlib is to show it: no mathematics, not hidden from legends, not too long."""
    text = " ".join(text.split())
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


@contextmanager
def styled() -> Iterator[None]:
    """The settings that figures are made and drawn with, whatever the user's own are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.size": 9, "hatch.linewidth": 0.7, "svg.hashsalt": "img2img"})
        yield


def new_figure(width: float, height: float) -> Figure:
    """A white figure, in inches."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def tidy(axes: Axes, *, grid: str = "both") -> None:
    """A light grid behind, no box around."""
    axes.grid(axis=grid, color="0.9", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("0.6")
    axes.tick_params(length=3, color="0.6", which="both")


def side_legend(axes: Axes) -> None:
    """A legend to the right of the axes, in as many columns as it needs to be no taller than the figure."""
    count, rows = len(axes.get_legend_handles_labels()[1]), max(1, int(_ROWS_AN_INCH * axes.figure.bbox.height / axes.figure.dpi))
    columns = max(1, math.ceil(count / rows))
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, ncols=columns)


def save_png(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, atomically; with nothing of versions or times in it, so that the same figure gives the same file.

    It gets a palette of 256 colours, which looks the same and takes a third of the bytes.
    """
    complete_fonts(figure)
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    few = with_palette(Image.fromarray(np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])))
    return write_atomic(path, lambda p: few.save(p, format="PNG", optimize=True))


def with_palette(image: Image.Image) -> Image.Image:
    """An RGB image with at most 256 colours: the most frequent ones exactly, and others that cover the rest.

    Pillow's own quantisation moves white and the light greys, which are most of a figure.
    """
    packed = np.asarray(image, dtype=np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    codes, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], 1).astype(np.int32)
    frequent = colours[np.argsort(-counts, kind="stable")[:_EXACT]]
    cover = image.quantize(256 - _EXACT, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).getpalette() or []
    palette = np.concatenate([frequent, np.array(cover, dtype=np.int32).reshape(-1, 3)[: 256 - _EXACT]])
    nearest = ((colours[:, None] - palette[None]) ** 2).sum(2).argmin(1).astype(np.uint8)
    few = Image.fromarray(nearest[inverse.reshape(image.height, image.width)], mode="P")
    few.putpalette(palette.astype(np.uint8).tobytes())
    return few


# ------------------------------------------------------------------ on a page

_CSS_DPI = 96
_PAGE_QUALITY = 88
"""Of the JPEGs that the page has of the grids; beside it they are PNG."""


@dataclass(frozen=True)
class Shown:
    """A figure on the page: its data URI, its size in CSS pixels, and its file."""

    uri: str
    width: int
    height: int
    file: str


class Gallery:
    """Writes figures into a folder and remembers how to show them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._used: set[str] = set()

    def add(self, figure: Figure | None, *name: str) -> Shown | None:
        """Write a figure; None stays None."""
        if figure is None:
            return None
        path = save_png(figure, self._path(name))
        blob = path.read_bytes()
        with Image.open(io.BytesIO(blob)) as image:
            width, height = (round(side * _CSS_DPI / DPI) for side in image.size)
        return Shown(_uri(blob, "png"), width, height, path.name)

    def add_image(self, image: Image.Image, *name: str) -> Shown:
        """Write an image."""
        png, jpeg = io.BytesIO(), io.BytesIO()
        image.save(png, format="PNG", optimize=True)
        image.save(jpeg, format="JPEG", quality=_PAGE_QUALITY)
        path = write_bytes(self._path(name), png.getvalue())
        return Shown(_uri(jpeg.getvalue(), "jpeg"), *image.size, path.name)

    def _path(self, name: Sequence[str]) -> Path:
        # Labels are names of folders and may hold what a file of a web page should not.
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", "_".join(name))
        unique, number = stem, 1
        while unique.lower() in self._used:
            number += 1
            unique = f"{stem}-{number}"
        self._used.add(unique.lower())
        return self._folder / f"{unique}.png"


def _uri(blob: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(blob).decode("ascii")
