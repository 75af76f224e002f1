"""What a service takes: bytes, pixels, how many at once; and how it says no."""

import math
import os
from dataclasses import dataclass, fields
from typing import Any

from img2img.errors import InputError

MIN_SIDE_COUNTED = 128
"""An image's pixels are counted as if its shorter side were this long at least: networks pad thin images, and a line of one
pixel by millions would become thousands of millions."""


class RefusedError(Exception):
    """A request that is not served.

    Attributes:
        status: of HTTP.
        message: what was got, what was expected and what to do; it never names a file of the machine.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The bounds of a service.

    Attributes:
        upload_bytes: of an image's file.
        memory_bytes: of all images that run at once; what one takes of it is known before it is decoded, by its pixels and those
            that the network would see, and it waits until there is so much.
        pixels: of an image, whatever it would take; decided before it is decoded, and again at the size the network would see.
        concurrency: images that are decoded, run and written at once, where the memory allows. Of a model with `Batching` it has
            to be larger than a batch. None: 2, and of `serve` two batches.
        queue: requests that wait for their turn; more are refused.
        upload_seconds: for a request to arrive, and for its answer to be taken.
        run_seconds: for an image to run, once its turn has come.
        grace_seconds: from the signal to stop until the service has ended; active requests may finish in all but the last
            three.
        connections: open ones; idle ones make room for new ones.
        address_connections: of them, those from one address other than this machine's own.
        task_bytes: of a task's file that is uploaded to be served.

    Raises:
        InputError: one of them is out of range.
    """

    upload_bytes: int = 20_000_000
    memory_bytes: int = 4_000_000_000
    pixels: int = 24_000_000
    concurrency: int | None = None
    queue: int = 16
    upload_seconds: float = 60.0
    run_seconds: float = 120.0
    grace_seconds: float = 9.0
    connections: int = 256
    address_connections: int = 64
    task_bytes: int = 500_000_000

    def __post_init__(self) -> None:
        _check_positive(self)

    @property
    def at_once(self) -> int:
        """Images that run at once: `concurrency`, or as many as without it."""
        return self.concurrency or 2

    @property
    def image_bytes(self) -> int:
        """What one image may take of the memory: half, so that others run beside it."""
        return self.memory_bytes // min(2, self.at_once)


@dataclass(frozen=True, kw_only=True)
class TeachOptions:
    """Where a training that the page starts has its files, and its bounds; there is one at a time.

    Attributes:
        folder: for the files that come in and the run, in a folder of the task's name.
        upload_bytes: of all its files, and of a zip of them.
        upload_seconds: for a zip to arrive.
        files: that it may have.
        pixels: of one of its images.
        steps: of the training.
        seconds: it may take, all continuations together.
        memory_bytes: of the process that trains.

    Raises:
        InputError: one of them is out of range.
    """

    folder: str | os.PathLike[str] = "runs/teach"
    upload_bytes: int = 1_000_000_000
    upload_seconds: float = 600.0
    files: int = 5000
    pixels: int = 24_000_000
    steps: int = 5000
    seconds: float = 7200.0
    memory_bytes: int = 8_000_000_000

    def __post_init__(self) -> None:
        _check_positive(self)


def _check_positive(limits: Any) -> None:
    for field in fields(limits):
        value = getattr(limits, field.name)
        if field.name == "folder" or (value is None and field.default is None):
            continue
        if not (isinstance(value, int | float) and math.isfinite(value) and value >= 1):
            such = "" if field.default is None else f", such as {field.default}"
            raise InputError(f"{field.name}={value!r}: expected 1 or more{such}")


def check_pixels(size: tuple[int, int], side: int | None, limits: Limits) -> None:
    """Refuse an image of `size` (either order) whose pixels are too many, as it is or with a shorter side of `side`."""
    scale = max(1.0, MIN_SIDE_COUNTED / min(size), 0 if side is None else side / min(size))
    pixels = round(size[0] * scale) * round(size[1] * scale)
    if pixels > limits.pixels:
        asked = f" with a shorter side of {side}" if side is not None and side > min(size) else ""
        thin = f" (counted as if {MIN_SIDE_COUNTED} wide: it is very thin)" if not asked and scale > 1 else ""
        raise RefusedError(
            413,
            f"the image has {size[0]} x {size[1]} pixels, {pixels:,}{asked}{thin}: expected {limits.pixels:,} at most; "
            "make it smaller",
        )
