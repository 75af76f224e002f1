"""Tables on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any


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
        typer.echo(f"{key:>28}  {'—' if shown in (None, '') else shown}")
