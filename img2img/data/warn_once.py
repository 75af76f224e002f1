"""Warnings about data that can be used all the same: each is given once, or collected for who shows them at a better time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)
_given: set[str] = set()


def warn_once(text: str, *, once: str | None = None) -> None:
    """Log `text` once in a process, as a warning of the logger `img2img` (to stderr, where no handler is set).

    Within `collect_warnings` it is added to that list, once.

    Args:
        text: the warning.
        once: what is to be warned of once, where the text differs from time to time.
    """
    found = _collected.get()
    if found is not None:
        if text not in found:
            found.append(text)
    elif (once or text) not in _given:
        _given.add(once or text)
        logging.getLogger("img2img").warning("%s", text)


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """The list of warnings that the block gives, in place of logging them."""
    found: list[str] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)
