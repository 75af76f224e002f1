"""From what a user names on the command line to files that a task makes of it."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from img2img.data.decode import list_pictures
from img2img.errors import InputError
from img2img.files import clear_leftovers, write_atomic, write_json

if TYPE_CHECKING:
    from img2img.inference import Model

VIDEOS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"})


@dataclass(frozen=True)
class Planned:
    """One file to be made.

    Attributes:
        task: by which task.
        source: of what.
        target: the file; of a video's frames the folder.
        video: `source` is a video.
    """

    task: str
    source: Path
    target: Path
    video: bool = False


def plan(sources: Iterable[Path], out: Path, task: str, *, ending: str, frames: bool) -> list[Planned]:
    """What is to be made of files and folders.

    Args:
        sources: pictures, videos and folders of pictures.
        out: the folder for results.
        task: which makes them.
        ending: of results of pictures.
        frames: videos become folders of frames.

    Raises:
        InputError: nothing there, or two sources would become one file.
    """
    jobs: list[Planned] = []
    for source in sources:
        source = source.expanduser()
        if source.is_dir():
            jobs += [Planned(task, p, out / p.relative_to(source).with_suffix(ending)) for p in list_pictures(source)]
        elif source.suffix.lower() in VIDEOS:
            jobs.append(Planned(task, source, out / (source.stem if frames else f"{source.stem}.mp4"), video=True))
        else:
            jobs.append(Planned(task, source, out / f"{source.stem}{ending}"))
    by_target: dict[Path, Path] = {}
    for job in jobs:
        other = by_target.setdefault(job.target, job.source)
        if other is not job.source:
            raise InputError(f"{other} and {job.source} would both become {job.target}: give them in two calls with two --out")
    return jobs


def do_pictures(
    model: "Model", jobs: Sequence[Planned], *, batch_size: int | None, **options: Any
) -> Iterator[tuple[Planned, InputError | None]]:
    """Make the results of pictures, in batches; each job with None, or the error where its picture cannot be read."""
    from img2img.inference.images import open_input

    at_once = batch_size or 8
    for start in range(0, len(jobs), at_once):
        readable: list[Planned] = []
        pictures: list[Any] = []
        for job in jobs[start : start + at_once]:
            try:
                opened = open_input(job.source)
            except InputError as error:
                yield job, error
                continue
            readable.append(job)
            pictures.append(opened)
        results = model.stream(readable[0].task, pictures, batch_size=batch_size, **options) if readable else iter(())
        for job, result in zip(readable, results, strict=True):
            _write(job.target, result)
            yield job, None


def _write(path: Path, result: Any) -> None:
    if isinstance(result, dict):
        write_json(path, result)
    else:
        write_atomic(path, lambda temporary: result.save(temporary, format="PNG"))


def do_video(model: "Model", job: Planned, *, batch_size: int | None, **options: Any) -> InputError | None:
    """Make a video's result, frame by frame: a video of its size and speed without sound, or a folder of frames."""
    import cv2

    capture = cv2.VideoCapture(str(job.source))
    try:
        if not job.source.is_file() or not capture.isOpened():
            known = ", ".join(sorted(VIDEOS))
            return InputError(f"{job.source} is not a video that can be read: expected a sound file of {known}; convert it")
        results = model.stream(job.task, _frames(capture), batch_size=batch_size, **options)
        if job.target.suffix == ".mp4":
            clear_leftovers(job.target.parent)  # videos are large
            write_atomic(job.target, lambda path: _write_video(path, results, capture.get(cv2.CAP_PROP_FPS) or 25.0))
        else:
            for number, result in enumerate(results, start=1):
                picture = result if isinstance(result, dict) else Image.fromarray(result)
                ending = ".json" if isinstance(result, dict) else ".png"
                _write(job.target / f"{number:06}{ending}", picture)
    finally:
        capture.release()
    return None


def _frames(capture: Any) -> Iterator[NDArray[np.uint8]]:
    while True:
        more, frame = capture.read()
        if not more:
            return
        yield np.ascontiguousarray(frame[..., ::-1])  # OpenCV's are BGR


def _write_video(path: Path, frames: Iterable[Any], fps: float) -> None:
    import cv2

    # OpenCV chooses the container by the name's end, and the temporary name has another.
    named = path.with_name(path.name + ".mp4")
    writer = None
    try:
        for frame in frames:
            if isinstance(frame, dict) or frame.ndim != 3:
                raise InputError("scores and labels are no video: give --frames, or another --form")
            if writer is None:
                height, width = frame.shape[:2]
                writer = cv2.VideoWriter(str(named), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
            writer.write(np.ascontiguousarray(frame[..., ::-1]))
        if writer is None:
            raise InputError("the video has no frame that can be read: convert it")
        writer.release()
        os.replace(named, path)
    finally:
        named.unlink(missing_ok=True)
