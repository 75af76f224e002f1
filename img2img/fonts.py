"""Fonts with the letters of names: on images, by Pillow, and in figures, by matplotlib.

Both begin with DejaVu Sans, which matplotlib brings along, so that a name looks the same everywhere. Installed fonts have the
letters that it lacks. A letter that no font has is written as its code, such as "U+4E2D", with one warning.
"""

import logging
from collections.abc import Iterable
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ASCII = frozenset(map(chr, range(32, 127)))
_OUTLINES = {"glyf", "CFF ", "CFF2"}
"""Tables of fonts that can be drawn at any size. Pillow and matplotlib cannot draw fonts of coloured images."""
_warned: set[str] = set()


@lru_cache(1024)
def font_for(text: str) -> tuple[Path | None, str]:
    """The first font file that has all letters of `text`, None for Pillow's own; and `text` as it can be written in it."""
    usual = _usual()
    if usual is None:
        return None, _with_codes(text, _needed([text]) - _ASCII)
    needed = _needed([text])
    for path in (usual, *_installed()) if needed - _letters(usual) else (usual,):
        if needed <= _letters(path):
            return path, text
    missing = needed - _letters(usual)
    _warn(missing)
    return usual, _with_codes(text, missing)


def complete_fonts(figure: "Figure") -> None:
    """Let the texts of a finished figure take the letters that matplotlib's font lacks from installed fonts."""
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter

    axes_of = [(axis, axis.get_ticklabels()) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    usual = _usual()
    assert usual is not None
    lacking = _needed(text.get_text() for text in texts) - _letters(usual)
    if not lacking:
        return
    families, missing = _families(lacking)
    _warn(missing)
    for text in texts:
        text.set_fontfamily(list(dict.fromkeys([*text.get_fontfamily(), *families])))
    for axis, labels in axes_of:  # which are made anew from formatters whenever the figure is drawn
        if labels:
            axis.set_tick_params(labelfontfamily=labels[0].get_fontfamily())
        if any(missing & set(label.get_text()) for label in labels):
            axis.set_major_formatter(FuncFormatter(partial(_tick_with_codes, axis.get_major_formatter(), missing)))
    for text in texts:
        text.set_text(_with_codes(text.get_text(), missing))


def _tick_with_codes(formatter: Any, missing: frozenset[str], value: float, position: int | None = None) -> str:
    return _with_codes(formatter(value, position), missing)


@lru_cache(64)
def _families(lacking: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """The names of few installed fonts that have these letters, and those that none has."""
    families, fonts = [], list(_installed())
    while lacking and fonts:
        best = max(fonts, key=lambda path: len(lacking & _letters(path)))
        fonts.remove(best)
        if not lacking & _letters(best):
            break
        family = _family(best)
        if family is not None and (had := lacking & _letters(family[1])):
            families.append(family[0])
            lacking -= had
    return families, lacking


@cache
def _family(path: Path) -> tuple[str, Path] | None:
    """The name by which matplotlib finds a font, and the file that it then takes, which may be another; None if it cannot."""
    from matplotlib import font_manager

    try:
        name = font_manager.get_font(str(path)).family_name
        if not any(Path(entry.fname) == path for entry in font_manager.fontManager.ttflist):
            font_manager.fontManager.addfont(str(path))  # it was installed after matplotlib last looked
        return name, Path(font_manager.findfont(name, fallback_to_default=False))
    except (OSError, RuntimeError, ValueError):
        return None


def _usual() -> Path | None:
    """DejaVu Sans; None without matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return None
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def _installed() -> tuple[Path, ...]:
    from matplotlib import font_manager

    return tuple(sorted(map(Path, font_manager.findSystemFonts())))


@cache
def _letters(path: Path) -> frozenset[str]:
    """The letters that a font file has; none where it cannot be read, or not be drawn at any size."""
    from fontTools.ttLib import TTFont

    try:
        with TTFont(path, fontNumber=0, lazy=True) as font:
            return frozenset(map(chr, font.getBestCmap() or {})) if _OUTLINES & set(font.keys()) else frozenset()
    except Exception:  # fontTools raises many kinds on fonts that are damaged or of other forms
        return frozenset()


def _needed(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(letter for text in texts for letter in text if letter not in "\n\t")


def _with_codes(text: str, missing: Iterable[str]) -> str:
    """Text with codes in place of the letters that no font has."""
    return text.translate({ord(letter): f"U+{ord(letter):04X}" for letter in missing})


def _warn(missing: Iterable[str]) -> None:
    """Warn of letters that no font has, each once."""
    new = sorted(set(missing) - _warned)
    _warned.update(new)
    if new:
        shown = ", ".join(f"{letter} (U+{ord(letter):04X})" for letter in new[:8])
        logging.getLogger("img2img").warning(
            "no installed font has the letters %s%s, which are written as their codes: install one that has them, such as Noto "
            "Sans CJK or Noto Emoji", shown, f" and {len(new) - 8} more" if len(new) > 8 else "",
        )  # fmt: skip
