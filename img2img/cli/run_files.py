"""From what a user names on the command line to files that a task makes of it."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from img2img.cli.options import check_new
from img2img.cli.video import VIDEOS, make_frames, make_video, video_ending
from img2img.data.images.listing import EXTENSIONS, list_images
from img2img.errors import InputError
from img2img.files.atomic import clear_leftovers
from img2img.files.paths import expanded
from img2img.files.results import write_result
from img2img.files.writable import ends_all

if TYPE_CHECKING:
    from img2img.inference import Model

Failure = InputError | OSError | MemoryError
"""What one file can fail by, without the others."""


@dataclass(frozen=True)
class Job:
    """One file to be made.

    Attributes:
        task: by which task.
        source: of what.
        target: the file; of a video's frames the folder.
        video: `source` is a video.
        frames: `target` is a folder with a file for each of its frames.
    """

    task: str
    source: Path
    target: Path
    video: bool = False
    frames: bool = False


def plan(sources: Iterable[Path], out: Path, task: str, *, ending: str, frames: bool, results: Path) -> list[Job]:
    """What is to be made of files and folders.

    Args:
        sources: images, videos and folders of images.
        out: the folder for results.
        task: which makes them.
        ending: of results of images.
        frames: videos become folders of frames.
        results: the folder below which all results of all tasks go: where a folder holds it, what is in it is no source.

    Raises:
        InputError: nothing there, or two sources would become one file.
    """
    jobs: list[Job] = []
    for source in sources:
        source = expanded(source)
        if os.path.isdir(source):
            images = list_images(source, exclude=[results])
            jobs += [Job(task, p, out / p.relative_to(source).with_suffix(ending)) for p in images]
        elif source.suffix.lower() in VIDEOS:
            name = source.stem if frames else source.stem + video_ending(source)
            jobs.append(Job(task, source, out / name, video=True, frames=frames))
        else:
            jobs.append(Job(task, source, out / f"{source.stem}{ending}"))
    by_target: dict[Path, Path] = {}
    for job in jobs:
        other = by_target.setdefault(job.target, job.source)
        if other is not job.source:
            raise InputError(f"{other} and {job.source} would both become {job.target}: give them in two calls with two --out")
    return jobs


def names_a_file(out: Path) -> bool:
    """Whether `out` has the ending of a result, and no folder of that name is there."""
    return out.suffix.lower() in {*EXTENSIONS, *VIDEOS, ".json"} and not out.is_dir()


def plan_file(
    sources: Sequence[Path], out: Path, task: str, *, several_tasks: bool, ending: str, frames: bool
) -> list[Job] | None:
    """The one job whose result `out` names as a file; None where it names a folder: one that is there, or no ending of results.

    Raises:
        InputError: there are several results, or they have another ending.
    """
    if not names_a_file(out):
        return None
    source = expanded(sources[0])
    if several_tasks or len(sources) > 1 or source.is_dir() or frames:
        raise InputError(
            f"--out {out} names a file, and there may be several results: expected one task and one image or video without "
            "--frames; give a folder, such as --out results"
        )
    video = source.suffix.lower() in VIDEOS
    ending = video_ending(source) if video else ending
    if out.suffix.lower() != ending:
        raise InputError(f"--out {out}: this result is written as {ending}; give a name that ends so, or a folder")
    return [Job(task, source, out, video=video)]


def check_targets(jobs: Sequence[Job], *, overwrite: bool) -> None:
    """Refuse a target that is one of the sources, whatever its name, and without `overwrite` one that is there.

    Raises:
        InputError: the first such target.
    """
    sources = {found: job.source for job in jobs if (found := _identity(job.source)) is not None}
    for job in jobs:
        found = _identity(job.target)
        source = sources.get(found) if found is not None else None
        if source is None and job.frames and found is not None:  # its files are not planned one by one
            source = next((other.source for other in jobs if _identity(other.source.parent) == found), None)
        if source is not None:
            raise InputError(
                f"{job.target} would be written over {source}, which is one of the inputs: give another --out "
                "(--overwrite replaces results, never an input)"
            )
    check_new((job.target for job in jobs), overwrite=overwrite)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file a path leads to, or None where there is none (or it cannot be read: the file itself will fail then)."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def run_images(model: "Model", jobs: Sequence[Job], *, overwrite: bool, **options: Any) -> Iterator[tuple[Job, Failure | None]]:
    """Make the results of images; each job with None, or with the error where its image or its result fails."""
    if not jobs:
        return
    results = model.stream(jobs[0].task, (job.source for job in jobs), errors="return", **options)
    for job, result in zip(jobs, results, strict=True):
        failed = isinstance(result, InputError | MemoryError)
        yield job, result if failed else _written(job.target, result, overwrite=overwrite)


def run_video(model: "Model", job: Job, *, overwrite: bool, **options: Any) -> Failure | None:
    """Make a video's result, a video or a folder of frames; the error where that cannot be."""

    def write(path: Path, result: Any) -> None:
        if (error := _written(path, result, overwrite=overwrite)) is not None:
            raise error

    try:
        if job.frames:
            make_frames(model, job.task, job.source, job.target, write, **options)
        else:
            clear_leftovers(job.target.parent)  # videos are large
            make_video(model, job.task, job.source, job.target, **options)
    except (InputError, OSError, MemoryError) as error:
        if ends_all(error):
            raise
        return error
    return None


def _written(path: Path, result: Any, *, overwrite: bool) -> Failure | None:
    """See `write_result`; also the error where there is a file already."""
    try:
        # Looked at again, since names that differ by case alone may be one file.
        check_new([path], overwrite=overwrite)
    except InputError as error:
        return error
    return write_result(path, result)
