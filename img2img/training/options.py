"""The options of one task's training."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

from img2img.errors import InputError
from img2img.masks.checks import one_of

OptimiserName = Literal["adam", "sgd", "rmsprop"]

RATES = ("mask_lr", "lr", "head_lr", "norm_lr")
"""The learning rates among `TrainOptions`."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How one task is trained.

    Attributes:
        steps: optimiser steps; 0: as many as `epochs` take.
        epochs: passes over the training pictures, in place of `steps`.
        batch_size: pictures a step.
        crop: side in pixels of the square training crops.
        zoom: random scaling before the crop, smallest and largest factor.
        pad: black pixels that are added on all sides before a crop, which `zoom` leaves alone then: the shifts of small pictures;
            0 for none.
        flip: mirror half the crops.
        jitter: strength of colour jitter, 0 for none.
        mask_lr: Adam's learning rate of the mask scores, and of whatever else masks learn.
        lr: learning rate of networks, or parts of them, that are trained themselves.
        head_lr: that of a masked task's head and norm state, which bear higher ones while the weights stand still; None: `lr`.
        norm_lr: that of a masked task's norm state where it is another; None: the head's.
        optimiser: of all but scores: "adam", "sgd" or "rmsprop".
        head_optimiser: of a masked task's head where it is another; None: `optimiser`.
        momentum: of "sgd".
        weight_decay: of networks and heads; scores, which it would pull to the threshold, and norm state never get any.
        head_first: the share of the steps, the first ones, in which the new head alone is trained. A fresh head sends the rest
            gradients that mean nothing, and scores or weights that followed them do not come back.
        warmup: steps over which the learning rates rise from 0.
        schedule: what follows: "cosine" falls to 0 at the end; "step" multiplies by `decay` at each of `decay_at`.
        decay_at: shares of the steps.
        decay: a factor.
        norm_batches: training batches over which normalisation statistics are averaged before each validation, see
            `precise_bn`; 0 leaves the running averages as they are.
        val_every: steps between two validations.
        val_epochs: epochs between two validations, in place of `val_every`; 0: that.
        keep: "best" keeps the state of the best validation, "last" that of the end.
        checkpoint_every: steps between two checkpoints.
        log_every: steps between two rows of the log; also how often the loss is checked for NaN on a GPU.
        workers: processes that load pictures; 0 loads in the training process.
    """

    steps: int = 0
    epochs: float = 0
    batch_size: int = 8
    crop: int = 96
    zoom: tuple[float, float] = (0.8, 1.25)
    pad: int = 0
    flip: bool = True
    jitter: float = 0.0
    mask_lr: float = 1e-3
    lr: float = 1e-3
    head_lr: float | None = None
    norm_lr: float | None = None
    optimiser: OptimiserName = "adam"
    head_optimiser: OptimiserName | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    head_first: float = 0.0
    warmup: int = 20
    schedule: Literal["cosine", "step"] = "cosine"
    decay_at: tuple[float, ...] = ()
    decay: float = 0.1
    norm_batches: int = 0
    val_every: int = 100
    val_epochs: float = 0
    keep: Literal["best", "last"] = "best"
    checkpoint_every: int = 200
    log_every: int = 20
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "crop", "val_every", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name}={getattr(self, name)}: expected 1 or more")
        for name in ("steps", "epochs", "val_epochs", "norm_batches", "pad", "weight_decay", "momentum"):
            if getattr(self, name) < 0:
                raise InputError(f"train.{name}={getattr(self, name)}: expected 0 or more")
        if (self.steps > 0) == (self.epochs > 0):
            raise InputError(
                f"train.steps={self.steps} and train.epochs={self.epochs:g}: expected one of them above 0 and the other 0"
            )
        for name in RATES:
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise InputError(f"train.{name}={getattr(self, name)}: expected more than 0")
        if not 0 <= self.head_first < 1:
            raise InputError(f"train.head_first={self.head_first}: expected a share of the steps, at least 0 and below 1")
        one_of("train", "optimiser", self.optimiser, ("adam", "sgd", "rmsprop"))
        one_of("train", "head_optimiser", self.head_optimiser, (None, "adam", "sgd", "rmsprop"))
        one_of("train", "schedule", self.schedule, ("cosine", "step"))
        one_of("train", "keep", self.keep, ("best", "last"))
        if not all(0 < at < 1 for at in self.decay_at) or not 0 < self.decay <= 1:
            raise InputError(
                f"train.decay_at={list(self.decay_at)}, train.decay={self.decay}: expected shares of the steps between 0 and 1, "
                "and a factor above 0 and up to 1"
            )

    def in_steps(self, pictures: int) -> Self:
        """The same options with `steps` and `val_every` in place of epochs, for a training set of so many pictures."""
        each = pictures / self.batch_size
        changes: dict[str, float] = {}
        if self.epochs:
            changes |= {"steps": max(1, math.ceil(self.epochs * each)), "epochs": 0}
        if self.val_epochs:
            changes |= {"val_every": max(1, round(self.val_epochs * each)), "val_epochs": 0}
        return replace(self, **changes)  # type: ignore[arg-type]
