"""Arguments and options that several commands have, and the rules for files that are read, or are there already."""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

from img2img.errors import InputError
from img2img.files.paths import check_no_address, expanded

Bundle = Annotated[
    Path,
    typer.Argument(metavar="BUNDLE", help="A bundle's folder, that of the run that made it, or starter.", show_default=False),
]
BundleOption = Annotated[
    Path,
    typer.Option(
        "--bundle",
        "-b",
        metavar="BUNDLE",
        envvar="IMG2IMG_BUNDLE",
        help="A bundle's folder, that of the run that made it, or starter, which comes with img2img.",
    ),
]
DEFAULT_BUNDLE = Path("starter")
ALL = "all"
"""Stands for every task."""
TaskName = Annotated[str, typer.Argument(metavar="TASK", help="The task's name.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
OnRay = Annotated[
    Literal["ray"] | None,
    typer.Option("--launcher", help="Work on a Ray cluster, or on a Ray of this machine.", show_default=False),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", envvar="RAY_ADDRESS", help="Of the Ray cluster; auto for this machine's.", show_default=False
    ),
]
Gpus = Annotated[
    float | None,
    typer.Option(min=0, help="GPUs of a worker on Ray; 1 where there are any, 0.5 shares one.", show_default=False),
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, mps; auto takes a GPU where there is one.")]


def check_new(targets: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse files that are there already, unless they are to be replaced, and addresses of buckets.

    Raises:
        InputError: the first such file.
    """
    for target in targets:
        check_no_address(target, "--out")
        if not overwrite and os.path.lexists(expanded(target)):
            raise InputError(f"{target} is there already: give another --out, or --overwrite to replace what is there")


def check_folder_name(out: Path, *endings: str) -> None:
    """Refuse an --out for a folder that is named as one of the files that go into it.

    Raises:
        InputError: it has one of these endings, and no such folder is there; or it is the address of a bucket.
    """
    check_no_address(out, "--out")
    if out.suffix.lower() in endings and not expanded(out).is_dir():
        raise InputError(f"--out {out} names a file: expected a folder, which the files go into; leave out {out.suffix}")


def check_only_on_ray(context: typer.Context, launcher: str | None, *names: str) -> None:
    """Refuse options that mean something on Ray alone where there is no --launcher ray; what the environment says may stand.

    Args:
        context: the command's.
        launcher: as given.
        names: of the command's parameters.

    Raises:
        InputError: with those that were given.
    """
    given = [name for name in names if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"]
    if launcher is None and given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise InputError(f"got {options} without --launcher ray, on which alone it means something: add that, or leave it out")


def check_finite(options: dict[str, float | None], *, above_0: bool = False) -> None:
    """Refuse numbers of options, which Typer lets be "nan" and "inf"; None is one that was not given.

    Raises:
        InputError: the first that is none, or is not above 0 where it has to be.
    """
    for option, value in options.items():
        if value is not None and not (math.isfinite(value) and (value > 0 or not above_0)):
            raise InputError(f"{option} {value:g}: expected a finite number{' above 0' * above_0}; correct it")


def read_text(path: Path, option: str, what: str) -> str:
    """The text of the file that an option names.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    try:
        return expanded(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option} {path} cannot be read ({error}): expected a file with {what}") from error
