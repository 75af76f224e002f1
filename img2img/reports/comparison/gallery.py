"""The figures of a page: written as PNG, and shown as data URIs."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from img2img.files.atomic import write_bytes
from img2img.research.suites.plot_style import DPI, save_png

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

    def add_picture(self, picture: Image.Image, *name: str) -> Shown:
        """Write a picture."""
        png, jpeg = io.BytesIO(), io.BytesIO()
        picture.save(png, format="PNG", optimize=True)
        picture.save(jpeg, format="JPEG", quality=_PAGE_QUALITY)
        path = write_bytes(self._path(name), png.getvalue())
        return Shown(_uri(jpeg.getvalue(), "jpeg"), *picture.size, path.name)

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
