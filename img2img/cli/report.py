"""`img2img report`: the page of a run, of many side by side, or of an ImpressLearn study."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from img2img.cli.options import check_folder_name
from img2img.errors import InputError
from img2img.files.paths import expanded


def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A suite's store (runs.jsonl), a run's folder or a study's (results.json)."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where the page goes; needed for a suite, else FOLDER by default."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the paths of the page and of its results as JSON.")] = False,
) -> None:
    """Make the page of a suite of runs, methods side by side, of one run, or of an ImpressLearn study.

    Of a suite DIR gets index.html, which needs nothing else, figures/ as PNG, tables/ as CSV and JSON, and summary.json. Of one
    run it gets report.html and a copy of what that is made from. Of a study it gets report.md and figures/ as PNG.

    Example: img2img report docs/results/image_to_image --out report
    """
    from img2img.bundle.packaged import check_no_bundle
    from img2img.files.atomic import check_folder

    folder, out = expanded(folder), None if out is None else expanded(out)
    check_no_bundle(folder)
    if out is not None:
        check_folder_name(out, ".html", ".md")
        check_folder(out, "--out")
        _check_no_bundle_around(out)
    if not folder.is_dir():
        raise InputError(f"no folder at {folder}: expected a run's, a study's, or a suite's with runs.jsonl; check the path")
    if (folder / "results.json").is_file():
        page, summary = _page_of_results(folder, folder if out is None else out)
    elif not (folder / "runs.jsonl").is_file():
        raise typer.BadParameter(
            f"{folder} has neither the results.json of a finished run or study, nor the runs.jsonl of a suite: expected one of "
            "them; run the experiment to its end, or check the path",
            param_hint="FOLDER",
        )
    elif out is None:
        raise typer.BadParameter("a suite's page needs a folder to go to, such as --out report", param_hint="--out")
    else:
        from img2img.research.suites.comparison_page import write_comparison

        page = out / "index.html"
        if page.is_file() and b"<title>img2img" not in page.read_bytes():
            raise InputError(f"--out {out} has an index.html of something else, which would be lost: choose another folder")
        page, summary = write_comparison(folder, out), out / "summary.json"
    typer.echo(json.dumps({"page": str(page), "summary": str(summary)}) if as_json else str(page))


def _page_of_results(folder: Path, out: Path) -> tuple[Path, Path]:
    """The page of a folder with `results.json`, and the results that it was made from."""
    from img2img.files.json_files import read_json

    results = read_json(folder / "results.json")
    if not isinstance(results, dict) or "study" not in results:
        return _page_of_run(folder, out)
    from img2img.research.impresslearn.report import rebuild_report

    return rebuild_report(folder, out), folder / "results.json"


def _page_of_run(run: Path, out: Path) -> tuple[Path, Path]:
    """The page of one run in `out`, beside copies of the files it is made from, unless that is the run's own folder."""
    from img2img.files.atomic import write_atomic
    from img2img.reports.page import write_report
    from img2img.training.results import read_results

    names = {task.name for task in read_results(run).tasks}
    if out.resolve() != run.resolve():
        files = [run / "results.json"]
        files += sorted(path for name in ("images", "metrics") for path in (run / name).rglob("*") if path.is_file())
        _remove_earlier(out, run, names)
        for file in files:
            write_atomic(out / file.relative_to(run), partial(shutil.copyfile, file))
    return write_report(out), out / "results.json"


def _check_no_bundle_around(out: Path) -> None:
    """Refuse to write into a bundle, whose folders hold nothing else."""
    for folder in (out.resolve(), *out.resolve().parents):
        if (folder / "bundle.json").is_file():
            from img2img.bundle import check_outside  # only where there is one: it loads torch

            check_outside(folder, out)


def _remove_earlier(out: Path, run: Path, names: set[str]) -> None:
    """Remove the images and logs of an earlier report in `out` that `run` has none of: its page would show them as its own.

    Args:
        out: new, empty, or with an earlier report.
        run: whose report comes there.
        names: of its tasks.

    Raises:
        InputError: `out` holds anything else, which would be lost.
    """
    from img2img.training.results import read_results

    if not out.exists() or not any(out.iterdir()):
        return
    if (out / "progress.json").is_file():
        raise InputError(f"--out {out} is the folder of another run, whose results would be lost: choose another")
    page = out / "report.html"
    if not (out / "results.json").is_file() or not page.is_file() or b"<title>img2img" not in page.read_bytes():
        raise InputError(
            f"--out {out} holds something else than a report: expected a new or empty folder, or one that img2img report wrote; "
            "choose another"
        )
    try:
        earlier = {task.name for task in read_results(out).tasks}
    except InputError as error:
        raise InputError(
            f"--out {out} has a results.json that is not of a run and would be lost: choose another folder ({error})"
        ) from error
    found = [path for folder, ending in (("images", "png"), ("metrics", "csv")) for path in (out / folder).glob(f"*.{ending}")]
    theirs = [path for path in found if _task_of(path) in names - earlier]
    if theirs:
        raise InputError(
            f"{theirs[0]} is of no task of the report in --out {out}, and the new one has a task of that name: expected files of "
            "the report alone; move it away, or choose another folder"
        )
    for path in found:
        if _task_of(path) in earlier and not (run / path.relative_to(out)).is_file():
            path.unlink()


def _task_of(path: Path) -> str:
    return path.name.split(".")[0]  # no task's name has a dot
