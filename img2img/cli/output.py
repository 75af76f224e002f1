"""What commands print: tables, facts, and a user's errors as one message."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from img2img.errors import INTERRUPTED, InputError, TrainingDivergedError
from img2img.formatting import DASH, harmless

USER_ERRORS = (InputError, TrainingDivergedError, OSError, MemoryError)
"""What a user can correct."""
_UNBOUNDED = 100_000
"""Columns of a page that is no terminal."""


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
        print("error:", harmless(" ".join(str(error).split())) or "out of memory", file=sys.stderr)
        sys.exit(1)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text under their columns' names: as wide as they are into a file or pipe, folded into a terminal.

    What is shown is text and nothing else, whatever a stranger's file has for names.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(Text(harmless(column)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(harmless(cell)) for cell in row))
    console = Console()
    (console if console.is_terminal else Console(width=_UNBOUNDED)).print(table)


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print names and values, a line each; lists with commas, and a dash where there is nothing."""
    import typer

    for key, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        typer.echo(f"{harmless(key):>28}  {DASH if shown in (None, '') else harmless(str(shown))}")
