"""What a strategy does in the middle of a training, told by the loop."""

from typing import Any

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
