"""A user's errors as one line, for commands."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from img2img.errors import INTERRUPTED, InputError, TrainingDivergedError


@contextmanager
def one_line() -> Iterator[None]:
    """Exit with code 1 and one line on stderr where the block raises what the user can mend, with 130 on Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (InputError, TrainingDivergedError, OSError, MemoryError) as error:
        print("error:", " ".join(str(error).split()) or "out of memory", file=sys.stderr)
        sys.exit(1)
