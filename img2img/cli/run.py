"""`img2img run`: tasks on files, folders and videos."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from img2img.cli.options import (
    ALL,
    DEFAULT_BUNDLE,
    Address,
    BundleOption,
    Device,
    Gpus,
    Json,
    OnRay,
    Overwrite,
    check_finite,
    check_only_on_ray,
)
from img2img.files.paths import check_no_address, expanded

if TYPE_CHECKING:
    from img2img.inference import Model


def run(
    context: typer.Context,
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="A task's name, several with commas between, or all.", show_default=False)
    ],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGES...",
            help="Images, folders of them, or videos; on Ray also lists (.txt), shards (.tar) and Parquet, but no videos.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            help="A folder for the results; of one task and image also its file.",
            show_default=False,
        ),
    ],
    bundle: BundleOption = DEFAULT_BUNDLE,
    form: Annotated[
        str | None, typer.Option(help="What to write: of segmentation colours, labels or overlay; of classes image or scores.")
    ] = None,
    side: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="The shorter side at which the network sees an image.")
    ] = None,
    white: Annotated[
        int | None, typer.Option(metavar="VALUE", help="White in images of 16 bits, such as 4095 of 12 bits.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images of one size that run together; 8, or 1 on a CPU.", show_default=False)
    ] = None,
    frames: Annotated[bool, typer.Option("--frames", help="Write a video's frames as images in place of a video.")] = False,
    device: Device = "auto",
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="bfloat16 is faster where the processor has it.")
    ] = "float32",
    launcher: OnRay = None,
    address: Address = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes on Ray; one for each GPU or core by default.", show_default=False)
    ] = None,
    gpus: Gpus = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Run tasks on images and write what they make of them, each as NAME.png in the folder --out, or one as the file --out.

    Folders keep their subfolders; of several tasks each has a folder of its own. A file that cannot be read or written is named,
    the others are done, and the exit code is 1.

    Examples:

        img2img run gogh photo.jpg --out painted.png

        img2img run all photos/ holiday.mp4 --bundle runs/demo --out made
    """
    from img2img.cli.run_files import Job, check_targets, names_a_file, plan, plan_file
    from img2img.cli.video import check_form
    from img2img.errors import InputError
    from img2img.inference import load

    check_only_on_ray(context, launcher, "address", "workers", "gpus")
    check_finite({"--gpus": gpus})
    check_no_address(out, "--out")
    model = load(bundle, device=device, precision=precision)
    if task == ALL and ALL in model.tasks:
        raise InputError(
            f"{bundle} has a task {ALL!r}, and that name stands for every task: name another task, or run this one in Python, "
            f"img2img.load({str(bundle)!r}).run({ALL!r}, ...)"
        )
    names = list(model.tasks) if task == ALL else list(dict.fromkeys(task.split(",")))
    for name in names:
        model.task(name)
    lacking = [name for name in names if form is not None and form not in model.task(name).forms]
    if len(names) > 1 and lacking:
        raise InputError(f"form={form!r} of several tasks, but {', '.join(lacking)} cannot give it: name one task that can")
    model.check(names[0], form=form, side=side)
    if launcher is not None:
        if names_a_file(out):
            raise InputError(f"--launcher ray with --out {out}: expected a folder for its results")
        del model  # the workers have it
        options = {"form": form, "side": side, "white": white, "device": device, "precision": precision}
        if frames or batch_size is not None:
            raise InputError(
                "--launcher ray with --frames or --batch-size: it takes images alone, and batches as usual; leave it out"
            )
        how = {"address": address, "workers": workers, "gpus": gpus, "overwrite": overwrite}
        _run_on_ray(bundle, names, images, out, options, how, as_json=as_json)
        return
    forms = {name: form or model.task(name).forms[0] for name in names}
    out = expanded(out)
    jobs: list[Job] = []
    several = len(names) > 1 or task == ALL
    for name in names:
        ending = ".json" if forms[name] == "scores" else ".png"
        one = plan_file(images, out, name, several_tasks=several, ending=ending, frames=frames)
        target = out / name if several else out
        jobs += one or plan(images, target, name, ending=ending, frames=frames, results=out)
    if not frames and any(job.video for job in jobs):
        for name in names:
            check_form(forms[name])
    check_targets(jobs, overwrite=overwrite)
    done: list[dict[str, str]] = []
    failed, told = 0, dict[Path, set[str]]()
    for job, error in _run_jobs(model, jobs, overwrite, {"side": side, "batch_size": batch_size, "white": white}, forms):
        if error is not None:
            failed += 1
            text = " ".join(str(error).split())
            if text not in told.setdefault(job.source, set()):  # several tasks meet the same
                told[job.source].add(text)
                print("error:", text, file=sys.stderr)
            continue
        done.append({"task": job.task, "input": str(job.source), "output": str(job.target)})
        if not as_json:
            typer.echo(str(job.target))
    if as_json:
        typer.echo(json.dumps({"results": done, "failed": failed}))
    if failed:
        inputs = len({job.source for job in jobs})
        print(f"{len(told)} of {inputs} inputs failed; {len(done)} of {len(jobs)} results are done", file=sys.stderr)
        raise typer.Exit(1)


def _run_on_ray(
    bundle: Path, names: Sequence[str], images: Sequence[Path], out: Path, options: dict[str, Any], how: dict[str, Any], *,
    as_json: bool,
) -> None:  # fmt: skip
    from img2img.launch.ray_images import MANIFEST, ImageRun, run_on_ray

    sources = tuple(str(path) for path in images)
    counts = run_on_ray(ImageRun(bundle=str(bundle), tasks=tuple(names), sources=sources, out=str(out), **options), **how)
    print(f"each result has a line in {out / MANIFEST}", file=sys.stderr)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(counts)))
    else:
        typer.echo(f"{counts.images} images done, {counts.failed} results failed, {counts.before} images before")
    if counts.failed:
        raise typer.Exit(1)


def _run_jobs(
    model: "Model", jobs: Sequence[Any], overwrite: bool, options: dict[str, Any], forms: dict[str, str]
) -> Iterator[tuple[Any, Exception | None]]:
    """Each job when it is done, with the error where it could not be; a bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    from img2img.cli.run_files import run_images, run_video

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("results", total=len(jobs))
        for name, form in forms.items():
            images = [job for job in jobs if job.task == name and not job.video]
            for job, error in run_images(model, images, overwrite=overwrite, form=form, **options):
                bars.advance(bar)
                yield job, error
            for job in jobs:
                if job.task == name and job.video:
                    yield job, run_video(model, job, overwrite=overwrite, form=form, **options)
                    bars.advance(bar)
