"""The command line: `img2img COMMAND`.

A command is one function below; what it does is imported inside it, so that `img2img --help` need not load it all. `main` turns
a user's error into one line on stderr and exit code 1; the wrong use of a command is Typer's, with exit code 2.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

from img2img import __version__
from img2img.errors import InputError

try:
    import typer
except ModuleNotFoundError:  # the mask core can be installed without it
    sys.exit("error: the command line needs more than the mask core: pip install 'img2img[images,train]'")

app = typer.Typer(
    name="img2img",
    help="One frozen network, many image tasks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"img2img {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
def report(
    suite: Annotated[
        Path,
        typer.Argument(metavar="SUITE", help="A folder of stored runs (runs/LABEL/SEED/results.json), or one run's folder."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where the page goes; needed for a suite, a run's own folder by default."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the paths of page and summary as JSON.")] = False,
) -> None:
    """Make the page of a suite of runs, methods side by side, or that of one run.

    Of a suite DIR gets index.html, which needs nothing else, figures/ as PNG, tables/ as CSV and JSON, and summary.json. Of one
    run it gets report.html and a copy of what that is made from.

    Example: img2img report docs/results/image_to_image --out report
    """
    if (suite / "results.json").is_file() and not (suite / "runs").is_dir():
        page, summary = _page_of_run(suite, suite if out is None else out)
    elif out is None:
        raise typer.BadParameter("a suite's page needs a folder to go to, such as --out report", param_hint="--out")
    else:
        from img2img.reports.comparison.report import write_comparison

        page, summary = write_comparison(suite, out), out / "summary.json"
    typer.echo(json.dumps({"page": str(page), "summary": str(summary)}) if as_json else str(page))


def _page_of_run(run: Path, out: Path) -> tuple[Path, Path]:
    """The page of one run in `out`, beside copies of the files it is made from, unless that is the run's own folder."""
    from img2img.reports.page import write_report
    from img2img.reports.read import read_results

    read_results(run)
    if out.resolve() != run.resolve():
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / "results.json", out / "results.json")
        for folder in ("pictures", "metrics"):
            if (run / folder).is_dir():
                shutil.copytree(run / folder, out / folder, dirs_exist_ok=True)
    return write_report(out), out / "results.json"


def main() -> None:
    """Run the command of `sys.argv`; an error that the user can mend is one line on stderr and exit code 1."""
    try:
        app(prog_name="img2img")
    except (InputError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
