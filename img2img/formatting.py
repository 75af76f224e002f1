"""Numbers, sizes, durations and names as people read them, the same on a report's page, the service's page and the terminal."""

import math
import unicodedata
from collections.abc import Sequence

DASH = "—"
"""Stands where there is no value."""
_OBEYED = ("Cc", "Cs", "Zl", "Zp")
"""Categories of characters that are no text on a line: controls, halves of pairs, ends of lines."""


def number(value: float | None) -> str:
    """Four significant digits, whole numbers from 1,000 on, "—" for None."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-4 or size >= 1e9:
        text = f"{value:.3g}"
    elif size >= 999.95:
        text = f"{value:,.0f}"
    else:
        text = f"{value:#.4g}".rstrip(".")
    return text.replace("-", "−")


def signed(value: float | None) -> str:
    """As `number`, with a plus where it is above 0."""
    return _with_plus(value, number(value))


def percent(fraction: float | None) -> str:
    """A fraction as per cent in three significant digits: 0.0123 is "1.23 %"."""
    if fraction is None or not math.isfinite(fraction):
        return DASH
    value = 100 * fraction
    text = f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}" if value else "0"
    return text.replace("-", "−") + " %"


def gain(fraction: float | None) -> str:
    """As `percent`, with a plus where it is above 0."""
    return _with_plus(fraction, percent(fraction))


def _with_plus(value: float | None, shown: str) -> str:
    return f"+{shown}" if value is not None and value > 0 and shown != DASH else shown


def count(value: float | None) -> str:
    """A whole number with commas: "24,400,000"."""
    return DASH if value is None else f"{value:,.0f}"


def size(count: float | None) -> str:
    """Bytes in decimal units and three significant digits: 56400000 is "56.4 MB"."""
    if count is None:
        return DASH
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "bytes" else f"{value:#.3g}".rstrip(".") + f" {units[0]}"


def duration(seconds: float | None) -> str:
    """Seconds as "4.2 s", "1 min 24 s" or "2 h 5 min"."""
    if seconds is None:
        return DASH
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{round(seconds / 60) // 60} h {round(seconds / 60) % 60} min"


def spelled(number: int) -> str:
    """Small numbers as words: 6 is "six"."""
    words = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    return words[number] if number < len(words) else str(number)


def escape(text: str) -> str:
    """`text` on one line of HTML that passes through a reader of Markdown: neither sees anything in it but text."""
    line = " ".join(text.split())  # after an empty line Markdown would read on, whatever tag is open
    return "".join(f"&#{ord(c)};" if c.isascii() and not c.isalnum() and c != " " else c for c in line if _is_text(c))


def harmless(text: str) -> str:
    """`text` on one line, without what a terminal would obey: line breaks and tabs are spaces, other control characters "�"."""
    return "".join(c if unicodedata.category(c) not in _OBEYED else " " if c.isspace() else "�" for c in text)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; a cell may hold any text."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _is_text(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cs")
