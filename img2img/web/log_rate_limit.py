"""A rate limit on the log: the first messages of each kind, and how many more there were."""

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

MAX_REPEATS = 5
"""So many messages of one place in the code are written ..."""

REPEAT_SECONDS = 60.0
"""... in so long a time; the next one after it says how many were left out."""


class RateLimitFilter(logging.Filter):
    """Keeps whoever sends thousands of broken requests from filling the disk with what they cause."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a record."""
        place = (record.name, record.pathname, record.lineno)
        now = time.monotonic()
        began, count = self._seen.get(place, (now, 0))
        if now - began > REPEAT_SECONDS:
            if count > MAX_REPEATS:
                record.msg, record.args = f"{record.getMessage()} ({count - MAX_REPEATS} more like it in the minutes before)", ()
            began, count = now, 0
        self._seen[place] = (began, count + 1)
        return count < MAX_REPEATS


@contextmanager
def rate_limited_logging() -> Iterator[None]:
    """Within the block warnings and errors of everything in this process go to stderr, at a limited rate.

    What Pillow says of damaged images is left out: the client gets it as an answer.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handler.addFilter(RateLimitFilter())
    root, pillow = logging.getLogger(), logging.getLogger("PIL")
    level = pillow.level
    root.addHandler(handler)
    pillow.setLevel(logging.CRITICAL + 1)
    logging.captureWarnings(True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        try:
            yield
        finally:
            logging.captureWarnings(False)
            pillow.setLevel(level)
            root.removeHandler(handler)
