"""`img2img join`: tasks that were trained side by side become one bundle."""

import json
from pathlib import Path
from typing import Annotated

import typer

from img2img.cli.options import Json


def join(
    into: Annotated[Path, typer.Argument(metavar="INTO", help="The bundle to be; one that is there is extended.")],
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCES...", help="Bundles or runs on the same backbone.")],
    as_json: Json = False,
) -> None:
    """Put the tasks of several runs on one backbone into one bundle, as if one run had learned them all.

    Example: img2img join runs/joined runs/first runs/colour runs/edges
    """
    from img2img.bundle.join import join_bundles

    names = join_bundles(into, sources)
    typer.echo(json.dumps(names) if as_json else f"{into} has the tasks {', '.join(names)}")
