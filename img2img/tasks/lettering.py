"""Names written on images: in a font that has their letters, and small enough to fit."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import ImageFont

from img2img.fonts import font_for

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SMALLEST = 9
"""Pixels: smaller letters cannot be read."""


class Fitted(NamedTuple):
    """A name as it fits into a box.

    Attributes:
        lines: of text.
        font: in which they are drawn.
        step: pixels from one line to the next.
    """

    lines: list[str]
    font: Font
    step: int


def fit(text: str, size: int, width: int, height: int) -> Fitted:
    """`text` in the largest font up to `size` pixels in which it fits into a box.

    Lines break at spaces, hyphens and underscores, and inside a word that is too long for a line. What does not fit at
    `SMALLEST` pixels ends in "…". Letters that no installed font has are written as their code, such as "U+4E2D".

    Args:
        text: the name.
        size: of the font, in pixels.
        width: of the box, in pixels.
        height: the same.
    """
    path, text = font_for(" ".join(text.split()))
    for smaller in range(max(size, SMALLEST), SMALLEST - 1, -1):
        font = _font(path, smaller)
        lines = _lines(text, font, width)
        step = smaller + smaller // 3
        if len(lines) * step <= height:
            return Fitted(lines, font, step)
    most = max(1, height // step)
    shown = lines if len(lines) <= most else [*lines[: most - 1], _cut(lines[most - 1], font, width)]
    return Fitted(shown, font, step)


def _lines(text: str, font: Font, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels."""
    lines = [""]
    for part in _parts(text):
        if font.getlength((lines[-1] + part).rstrip()) <= width:
            lines[-1] += part
            continue
        lines.append("")
        for letter in part:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [line.strip() for line in lines if line.strip()] or [""]


def _parts(text: str) -> Sequence[str]:
    """Where a line may end: after a space, a hyphen or an underscore."""
    parts = [""]
    for letter in text:
        parts[-1] += letter
        if letter in " -_":
            parts.append("")
    return parts


def _cut(line: str, font: Font, width: int) -> str:
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"


@cache
def _font(path: Path | None, size: int) -> Font:
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(str(path), size)
