"""What commands print: tables, facts, and a user's errors as one message."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from img2img.errors import INTERRUPTED, InputError, TrainingDivergedError
from img2img.formatting import DASH

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


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text under their columns' names."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print names and values, a line each; lists with commas, and a dash where there is nothing."""
    import typer

    for key, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        typer.echo(f"{key:>28}  {DASH if shown in (None, '') else shown}")
