"""Mid-task checkpoints: everything that the rest of the training depends on, so that it ends bit-equal."""

import os
from typing import Any

import torch

from img2img.errors import InputError, first_line, is_out_of_memory
from img2img.training.checked_files import read_checked, write_checked


def random_states() -> dict[str, Any]:
    """torch's random states, on the CPU and every GPU. Images are drawn from (seed, step), so no other generator counts."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` gave."""
    torch.set_rng_state(states["cpu"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def save_checkpoint(path: str | os.PathLike[str], values: dict[str, Any]) -> None:
    """Write `values` (tensors and plain types), atomically: a kill or a full disk leaves the earlier checkpoint whole."""
    write_checked(path, values)


def load_checkpoint(path: str | os.PathLike[str], *, fingerprint: str) -> dict[str, Any]:
    """Read a checkpoint; tensors and plain types only, nothing is unpickled.

    Raises:
        InputError: it is damaged, of an earlier version of img2img, or was written under another configuration.
    """
    try:
        values = read_checked(path)
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
