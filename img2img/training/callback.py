"""What a strategy does in the middle of a training, told by the loop."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from img2img.errors import InputError
from img2img.training.log import TrainingLog


class Callback:
    """Told of a training's steps and validations; subclasses override what they need."""

    def after_step(self) -> None:
        """After each step of the optimisers: to set right what they may not change."""

    def after_validation(self, step: int, log: TrainingLog) -> None:
        """After each validation, to add to the log."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint, from which `load_state` goes on."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""


def load_states(callbacks: Sequence[Callback], states: Mapping[str, dict[str, Any]], checkpoint: Path) -> None:
    """Let callbacks go on from their states in a checkpoint, which are told by the names of their classes.

    One whose state is empty, such as a preview, may be new or be left out.

    Raises:
        InputError: the state of one is missing.
    """
    for callback in callbacks:
        name = type(callback).__name__
        if name in states:
            callback.load_state(states[name])
        elif callback.state():
            raise InputError(
                f"the checkpoint {checkpoint} has no state of {name}: expected it, as this training has one; delete the "
                "checkpoint, and the task starts again; finished tasks are kept"
            )
