"""A user's errors as one message, for commands and pipelines."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from img2img.errors import INTERRUPTED, InputError, TrainingDivergedError

USER_ERRORS = (InputError, TrainingDivergedError, OSError, MemoryError)
"""What a user can correct."""


@contextmanager
def one_message(*, interrupted: str = "interrupted") -> Iterator[None]:
    """Exit with code 1 and one line on stderr, not a traceback, where the block raises one of `USER_ERRORS`.

    Args:
        interrupted: the line on Ctrl-C, where the exit code is 130.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(INTERRUPTED)
    except USER_ERRORS as error:
        print("error:", " ".join(str(error).split()) or "out of memory", file=sys.stderr)
        sys.exit(1)
