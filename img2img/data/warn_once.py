"""What a user would want to know of pictures that can be used all the same."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)
_said: set[str] = set()


def warn_once(text: str, *, once: str | None = None) -> None:
    """Say `text` once in a process, as a warning of the logger `img2img` (on stderr, where nobody listens to it).

    Within `collect_warnings` it goes there, once. `once` names what is to be said once where the text differs from time to time.
    """
    found = _collected.get()
    if found is not None:
        if text not in found:
            found.append(text)
    elif (once or text) not in _said:
        _said.add(once or text)
        logging.getLogger("img2img").warning("%s", text)


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """The remarks that are made in the block, for who says them at a better time."""
    found: list[str] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)
