"""The options of one task's training."""

from dataclasses import dataclass

from img2img.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How one task is trained.

    Attributes:
        steps: optimiser steps.
        batch_size: pictures a step.
        crop: side in pixels of the square training crops.
        zoom: random scaling before the crop, smallest and largest factor.
        flip: mirror half the crops.
        jitter: strength of colour jitter, 0 for none.
        mask_lr: Adam's learning rate of the mask scores.
        lr: Adam's learning rate of networks, or parts of them, that are trained themselves.
        head_lr: that of a masked task's norm state and head, which bear higher ones while the weights stand still; None: `lr`.
        head_first: the share of the steps, the first ones, in which the new head alone is trained. A fresh head sends the rest
            gradients that mean nothing, and scores or weights that followed them do not come back.
        warmup: steps over which the learning rates rise from 0; a cosine to 0 follows.
        norm_batches: training batches over which normalisation statistics are averaged before each validation, see `settle`; 0
            leaves the running averages as they are.
        val_every: steps between two validations; the best one's state is kept.
        checkpoint_every: steps between two checkpoints.
        log_every: steps between two rows of the log; also how often the loss is checked for NaN on a GPU.
        workers: processes that load pictures; 0 loads in the training process.
    """

    steps: int
    batch_size: int = 8
    crop: int = 96
    zoom: tuple[float, float] = (0.8, 1.25)
    flip: bool = True
    jitter: float = 0.0
    mask_lr: float = 1e-3
    lr: float = 1e-3
    head_lr: float | None = None
    head_first: float = 0.0
    warmup: int = 20
    norm_batches: int = 0
    val_every: int = 100
    checkpoint_every: int = 200
    log_every: int = 20
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "crop", "val_every", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name}={getattr(self, name)}: expected 1 or more")
        for name in ("mask_lr", "lr", "head_lr"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise InputError(f"train.{name}={getattr(self, name)}: expected more than 0")
        if not 0 <= self.head_first < 1:
            raise InputError(f"train.head_first={self.head_first}: expected a share of the steps, at least 0 and below 1")
        if self.norm_batches < 0:
            raise InputError(f"train.norm_batches={self.norm_batches}: expected 0 or more")
