"""Mid-task checkpoints: everything that the rest of the training depends on, so that it ends bit-equal.

They are written by `torch.save`, with a SHA-256 of the content at their end, so that one flipped bit is noticed.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from img2img.errors import InputError, first_line, is_out_of_memory
from img2img.files.atomic import write_atomic
from img2img.training.checked_files import CHANGED

_END = b"img2img\3"
"""What a checkpoint ends with, after the digest; another number where what it holds has changed."""


def random_states() -> dict[str, Any]:
    """torch's random states, on the CPU and every GPU. Images are drawn from (seed, step), so no other generator counts."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` gave, on the GPUs that are there: a run may go on with fewer or more."""
    torch.set_rng_state(states["cpu"])
    for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)


def save_checkpoint(path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
    """Write `values` (tensors and plain types), atomically: a kill or a full disk leaves the earlier checkpoint whole."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            hashing = _Hashing(file)
            torch.save(dict(values), hashing)  # type: ignore[arg-type]  # it needs no more of a file
            file.write(hashing.digest.digest() + _END)

    write_atomic(path, write)


def load_checkpoint(path: str | os.PathLike[str], *, fingerprint: str) -> dict[str, Any]:
    """Read a checkpoint; tensors and plain types only, nothing is unpickled.

    Raises:
        InputError: it is damaged, of an earlier version of img2img, or was written under another configuration.
    """
    try:
        values = _read(path)
        written = values["fingerprint"]
    except Exception as error:  # torch.load raises many kinds on damaged files
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno is not None):
            raise  # that is no damage: the checkpoint may be sound
        raise InputError(
            f"the checkpoint {path} cannot be read ({first_line(error)}): delete it, and the task starts again; "
            "finished tasks are kept"
        ) from error
    if written != fingerprint:
        raise InputError(
            f"the checkpoint {path} was written under another configuration of this task: go back to it, delete the checkpoint, "
            "or choose another run folder (out=...)"
        )
    return values


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU; tensors and plain types only, nothing is unpickled.

    Raises:
        ValueError: it is damaged, cut off, or has no checksum.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END) - hashlib.sha256().digest_size - len(_END)
        if size < 0:
            raise ValueError("it is empty or cut off")
        file.seek(size)
        end = file.read()
        if not end.endswith(_END):
            raise ValueError("it is cut off, or an earlier version of img2img wrote it, without a checksum or in another form")
        file.seek(0)
        digest = hashlib.sha256()
        left = size
        while chunk := file.read(min(left, 1 << 22)):
            digest.update(chunk)
            left -= len(chunk)
        if end.removesuffix(_END) != digest.digest():
            raise ValueError(CHANGED)
    values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return values


class _Hashing:
    """A file that is written in one go, whose content is hashed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()
