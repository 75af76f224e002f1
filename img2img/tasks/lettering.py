"""Names written on images: in a font that has their letters, and small enough to fit."""

import logging
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import ImageFont

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
    path, text = _font_file(" ".join(text.split()))
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


# ---------------------------------------------------------------------- fonts


@cache
def _font(path: Path | None, size: int) -> Font:
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(str(path), size)


@lru_cache(1024)
def _font_file(text: str) -> tuple[Path | None, str]:
    """The first font that has all letters of `text`, None for Pillow's own; and `text` as it can be written in it."""
    try:
        import matplotlib
        from matplotlib import font_manager
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return None, _with_codes(text, frozenset(map(chr, range(32, 127))))
    # matplotlib brings it along, so that an image looks the same everywhere.
    usual = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    needed = set(text)
    if needed <= _letters(usual):
        return usual, text
    for path in sorted(map(Path, font_manager.findSystemFonts())):
        if needed <= _letters(path):
            return path, text
    logging.getLogger("img2img").warning(
        "no installed font has all letters of %r, which is drawn with codes: install one that has them, such as Noto Sans", text
    )
    return usual, _with_codes(text, _letters(usual))


@cache
def _letters(path: Path) -> frozenset[str]:
    """The letters that a font file has; none where it cannot be read."""
    from fontTools.ttLib import TTFont

    try:
        with TTFont(path, fontNumber=0, lazy=True) as font:
            return frozenset(map(chr, font.getBestCmap() or {}))
    except Exception:  # fontTools raises many kinds on fonts that are damaged or of other forms
        return frozenset()


def _with_codes(text: str, letters: frozenset[str]) -> str:
    return "".join(letter if letter in letters else f"U+{ord(letter):04X}" for letter in text)
