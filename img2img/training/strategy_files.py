"""`strategy/` in a run folder: what a comparison method learned, a file a task and one for what its tasks share.

Mask methods keep theirs in the bundle.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from img2img.training.checked_files import read_checked_tensors, write_checked_tensors

Tensors = dict[str, Tensor]

_REMEDY = "it holds what finished tasks learned, so restore it from a copy, or choose another run folder (out=...)"


def write_learned(folder: Path, names: Sequence[str], own: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> None:
    """Write what the newest of the tasks `names` owns, and what all share as it is now.

    What is shared gets a file of its own after each task, so that a kill before `progress.json` is written leaves the one
    before; `remove_older` removes that.
    """
    write_checked_tensors(folder / "strategy" / f"{names[-1]}.safetensors", own)
    write_checked_tensors(_shared(folder, len(names)), shared)


def remove_older(folder: Path, names: Sequence[str]) -> None:
    """Remove what the tasks shared before the newest of `names`, once that one counts as finished."""
    kept = _shared(folder, len(names))
    for path in kept.parent.glob("shared after *.safetensors"):
        if path != kept:
            path.unlink(missing_ok=True)


def read_learned(folder: Path, names: Sequence[str]) -> tuple[dict[str, Tensors], Tensors]:
    """What each of the finished tasks owns, by name, and what they share.

    Raises:
        InputError: a file is missing or damaged.
    """
    own = {name: read_checked_tensors(folder / "strategy" / f"{name}.safetensors", remedy=_REMEDY) for name in names}
    return own, read_checked_tensors(_shared(folder, len(names)), remedy=_REMEDY)


def _shared(folder: Path, count: int) -> Path:
    return folder / "strategy" / f"shared after {count}.safetensors"  # no task's name has a space
