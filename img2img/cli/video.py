"""Videos through a task: of the same size, speed and number of frames, or as a folder of frames.

OpenCV reads and writes them. Its encoders of MP4 leave out the last column and row of odd sizes, so a video of an odd size
becomes Motion JPEG in an AVI file, which keeps them.
"""

import errno
import math
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from img2img.errors import InputError
from img2img.extras import require
from img2img.files.atomic import write_atomic
from img2img.files.paths import no_file

if TYPE_CHECKING:
    from img2img.inference import Model

VIDEOS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"})

_COUNTED = frozenset({".mp4", ".m4v", ".mov", ".avi"})
"""Containers that state how many frames they hold; for the others it is estimated from the duration, of the sound too."""

_USUAL_FPS = 25.0


def video_ending(path: Path) -> str:
    """The ending of a video's result: ".mp4", or ".avi" where a side has an odd number of pixels."""
    try:
        with _opened(path) as capture:
            return ".avi" if _odd(_size(capture)) else ".mp4"
    except InputError:
        return ".mp4"  # the error is reported when the file is run


def check_form(form: str) -> None:
    """Raise an `InputError` for forms that no video can show."""
    if form in ("labels", "scores"):
        raise InputError(f"form={form!r} is no video: give --frames for a file a frame, or another --form")


def make_video(model: "Model", task: str, source: Path, target: Path, **options: Any) -> None:
    """Run a task on a video, frame by frame, into a video without sound.

    Raises:
        InputError: it cannot be read, or ends before all its frames: the target then has those that could be read.
        OSError: the result cannot be written.
    """
    with _opened(source) as capture:
        frames = _Frames(capture)
        results = model.stream(task, frames, **options)
        write_atomic(target, lambda path: _write(path, results, target.suffix, _fps(capture)))
        frames.check(source, target)


def make_frames(model: "Model", task: str, source: Path, target: Path, write: Any, **options: Any) -> None:
    """Run a task on a video into a folder with a file a frame, each written by `write(path, result)`; raises as `make_video`.

    Frames that an earlier and longer result has left there are removed at the end, and nothing else.
    """
    with _opened(source) as capture:
        frames, ending = _Frames(capture), "png"
        for number, result in enumerate(model.stream(task, frames, **options), start=1):
            if isinstance(result, dict):
                ending = "json"
                write(_frame(target, number, ending), result)
            else:
                write(_frame(target, number, ending), Image.fromarray(result))
        frames.check(source, target)
        last = frames.count
        while _frame(target, last + 1, ending).is_file():
            last += 1
        for number in range(last, frames.count, -1):  # from the end, so that a kill leaves no gap that would hide the others
            _frame(target, number, ending).unlink()


def _frame(folder: Path, number: int, ending: str) -> Path:
    return folder / f"{number:06}.{ending}"


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open `cv2.VideoCapture`, which turns frames as the file says.

    Raises:
        InputError: OpenCV is not there, or the file is no video that it reads.
    """
    cv2 = require("cv2", extra="images", what="a video")
    try:
        if not path.is_file():
            raise no_file(path, "a video")
        capture = cv2.VideoCapture(str(path))
    except OSError:
        capture = None
    try:
        if capture is None or not capture.isOpened():
            known = ", ".join(sorted(VIDEOS))
            raise InputError(f"{path} is not a video that can be read: expected a sound file of {known}; convert it")
        yield capture
    finally:
        if capture is not None:
            capture.release()


class _Frames:
    """The frames of a video, (H, W, 3) uint8 RGB, once; counts them."""

    def __init__(self, capture: Any) -> None:
        self._capture, self.count = capture, 0

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        while True:
            more, frame = self._capture.read()
            if not more:
                return
            self.count += 1
            yield np.ascontiguousarray(frame[..., ::-1])  # OpenCV's are BGR

    def check(self, source: Path, target: Path) -> None:
        """Raise an `InputError` where the file claims more frames than could be read."""
        cv2 = require("cv2", extra="images", what="a video")
        claimed = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        # Edit lists leave out a frame or two.
        least = claimed - 2 if source.suffix.lower() in _COUNTED else math.floor(0.9 * claimed)
        if self.count < least:
            raise InputError(
                f"{source} says that it has {claimed} frames, but {self.count} could be read: it is damaged or cut off. "
                f"{target} holds those; fetch the file again, or convert it"
            )


def _size(capture: Any) -> tuple[int, int]:
    """(width, height) of an opened video's frames."""
    cv2 = require("cv2", extra="images", what="a video")
    return int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))


def _odd(size: tuple[int, int]) -> bool:
    return any(n % 2 for n in size)


def _fps(capture: Any) -> float:
    cv2 = require("cv2", extra="images", what="a video")
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if math.isfinite(fps) and fps > 0 else _USUAL_FPS


def _write(path: Path, frames: Iterable[NDArray[np.uint8]], ending: str, fps: float) -> None:
    cv2 = require("cv2", extra="images", what="a video")
    # OpenCV chooses the container by the name's end, and the temporary name has another.
    named = path.with_name(path.name + ending)
    writer, size, count = None, (0, 0), 0
    try:
        for frame in frames:
            if writer is None:
                size = (frame.shape[1], frame.shape[0])
                # The AVI's header is written anew below, with rates that OpenCV does not take.
                way = (cv2.CAP_OPENCV_MJPEG, "MJPG") if ending == ".avi" else (cv2.CAP_FFMPEG, "mp4v")
                writer = cv2.VideoWriter(
                    str(named), way[0], cv2.VideoWriter.fourcc(*way[1]), max(1.0, fps) if ending == ".avi" else fps, size
                )
                if not writer.isOpened():
                    raise InputError(
                        f"no video of {size[0]} x {size[1]} at {fps:g} frames a second can be written: give --frames"
                    )
            writer.write(np.ascontiguousarray(frame[..., ::-1]))
            count += 1
        if writer is None:
            raise InputError("the video has no frame that can be read: convert it")
        writer.release()
        if ending == ".avi":
            set_rate(named, fps)
        _check_written(named, size, count)
        named.replace(path)
    finally:
        named.unlink(missing_ok=True)


def set_rate(path: Path, fps: float) -> None:
    """Write the number of frames a second into the headers of an AVI file: OpenCV rounds it to a whole one."""
    rate = Fraction(fps).limit_denominator(1001)  # 30000 / 1001 is that of television
    with open(path, "r+b") as file:
        head = file.read(4096)
        main, stream = head.find(b"avih"), head.find(b"strh")
        if main < 0 or stream < 0:
            raise OSError(errno.EIO, "the headers of an AVI file are missing")
        file.seek(main + 8)  # each chunk begins with its name and its size; the first field is the time of a frame
        file.write(struct.pack("<I", round(1e6 / rate)))
        file.seek(stream + 28)  # after type, codec, flags, priority, language and start: scale and rate
        file.write(struct.pack("<II", rate.denominator, rate.numerator))


def _check_written(path: Path, size: tuple[int, int], count: int) -> None:
    """Raise an `OSError` unless the file reads back as what was written: OpenCV says nothing of a full disk."""
    cv2 = require("cv2", extra="images", what="a video")
    with _opened(path) as capture:
        found = _size(capture)
        frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if found != size or frames != count:
        raise OSError(errno.EIO, f"{frames} frames of {found[0]} x {found[1]} in place of {count} of {size[0]} x {size[1]}")
