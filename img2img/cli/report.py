"""`img2img report`: the page of a run, or of many side by side."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from img2img.errors import InputError
from img2img.files.paths import expanded


def report(
    suite: Annotated[
        Path,
        typer.Argument(metavar="SUITE", help="A suite's store (runs.jsonl), or one run's folder."),
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
    suite, out = expanded(suite), None if out is None else expanded(out)
    if not suite.is_dir():
        raise InputError(f"no folder at {suite}: expected a run's, or a suite's with runs.jsonl; check the path")
    if (suite / "results.json").is_file():
        page, summary = _page_of_run(suite, suite if out is None else out)
    elif out is None:
        raise typer.BadParameter("a suite's page needs a folder to go to, such as --out report", param_hint="--out")
    else:
        from img2img.research.suites.comparison_page import write_comparison

        page = out / "index.html"
        if page.is_file() and b"<title>img2img" not in page.read_bytes():
            raise InputError(f"--out {out} has an index.html of something else, which would be lost: choose another folder")
        page, summary = write_comparison(suite, out), out / "summary.json"
    typer.echo(json.dumps({"page": str(page), "summary": str(summary)}) if as_json else str(page))


def _page_of_run(run: Path, out: Path) -> tuple[Path, Path]:
    """The page of one run in `out`, beside copies of the files it is made from, unless that is the run's own folder."""
    from img2img.reports.page import write_report
    from img2img.training.results import read_results

    read_results(run)
    if out.resolve() != run.resolve():
        if (out / "progress.json").is_file():
            raise InputError(f"--out {out} is the folder of another run, whose results would be lost: choose another")
        _remove_earlier(out, run)
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / "results.json", out / "results.json")
        for folder in ("images", "metrics"):
            if (run / folder).is_dir():
                shutil.copytree(run / folder, out / folder, dirs_exist_ok=True)
    return write_report(out), out / "results.json"


def _remove_earlier(out: Path, run: Path) -> None:
    """Remove the images and logs of an earlier report in `out` that `run` has none of: its page would show them as its own.

    Raises:
        InputError: the results that lie there are not those of a run.
    """
    from img2img.training.results import read_results

    names = {task.name for task in read_results(run).tasks}
    if (out / "results.json").is_file():
        try:
            names |= {task.name for task in read_results(out).tasks}
        except InputError as error:
            raise InputError(
                f"--out {out} has a results.json that is not of a run and would be lost: choose another folder ({error})"
            ) from error
    for folder, ending in (("images", "png"), ("metrics", "csv")):
        for path in (out / folder).glob(f"*.{ending}"):
            if path.name.split(".")[0] in names and not (run / folder / path.name).is_file():  # no task's name has a dot
                path.unlink()
