"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Bundle = Annotated[
    Path,
    typer.Argument(metavar="BUNDLE", help="A bundle's folder, or that of the run that made it.", show_default=False),
]
BundleOption = Annotated[
    Path,
    typer.Option(
        "--bundle", "-b", metavar="BUNDLE", envvar="IMG2IMG_BUNDLE", help="A bundle's folder, or that of the run that made it."
    ),
]
DEFAULT_BUNDLE = Path("runs/demo")
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, mps; auto takes a GPU where there is one.")]
