"""Names from a bundle, in HTML that passes through a reader of Markdown."""

import unicodedata


def escape(text: str) -> str:
    """`text` on one line, written such that neither HTML nor Markdown sees anything in it but text."""
    line = " ".join(text.split())  # after an empty line Markdown would read on, whatever tag is open
    return "".join(f"&#{ord(c)};" if c.isascii() and not c.isalnum() and c != " " else c for c in line if _is_text(c))


def _is_text(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cs")
