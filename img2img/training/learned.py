"""`learned/` in a run folder: what a comparison method learned, a file a task and one for what its tasks share.

Mask methods keep theirs in the bundle.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from img2img.errors import InputError
from img2img.files import write_bytes

Tensors = dict[str, Tensor]


def write_learned(folder: Path, names: Sequence[str], own: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> None:
    """Write what the newest of the tasks `names` owns, and what all share as it is now.

    What is shared gets a file of its own after each task, so that a kill before `progress.json` is written leaves the one
    before; `remove_older` removes that.
    """
    _write(folder / "learned" / f"{names[-1]}.safetensors", own)
    _write(_shared(folder, len(names)), shared)


def remove_older(folder: Path, names: Sequence[str]) -> None:
    """Remove what the tasks shared before the newest of `names`, once that one counts as finished."""
    for count in range(len(names)):
        _shared(folder, count).unlink(missing_ok=True)


def read_learned(folder: Path, names: Sequence[str]) -> tuple[dict[str, Tensors], Tensors]:
    """What each of the finished tasks owns, by name, and what they share.

    Raises:
        InputError: a file is missing or damaged.
    """
    return {name: _read(folder / "learned" / f"{name}.safetensors") for name in names}, _read(_shared(folder, len(names)))


def _shared(folder: Path, count: int) -> Path:
    return folder / "learned" / f"shared after {count}.safetensors"  # no task's name has a space


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_bytes(path, safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}))


def _read(path: Path) -> Tensors:
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{path} is missing or damaged ({error}): what the finished tasks learned is lost; choose another folder (out=...)"
        ) from error
