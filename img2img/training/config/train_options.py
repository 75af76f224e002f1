"""The options of one task's training, grouped by what they are for."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, Strict, field_validator, model_validator

from img2img.validation import Options

OptimiserName = Literal["adam", "adamw", "sgd", "rmsprop"]

RATES = ("mask_lr", "lr", "encoder_lr", "head_lr", "norm_lr")
"""The learning rates among `OptimiserOptions`."""


class OptimiserOptions(Options):
    """What is trained by which optimiser, at which rate. The default rates, for a few hundred steps on images, were chosen
    on sets of 10 to 800 of them (`docs/findings/add_task.md`).
    """

    name: OptimiserName = "adam"
    """Of all but what masks learn."""
    mask: OptimiserName = "adam"
    """Of what masks learn. Adam divides by the size of the gradients: how they are scaled (`Piggyback.gradient_scaling`) matters
    to the others alone.
    """
    head: OptimiserName | None = None
    """Of a masked task's head where it is another; None: `name`."""
    momentum: float = Field(default=0.9, ge=0)
    """Of "sgd"."""
    nesterov: bool = False
    """Nesterov's momentum, of "sgd"."""
    weight_decay: float = Field(default=0.0, ge=0)
    """"adamw" takes it from the weights, times the rate (Loshchilov and Hutter 2019); the others add it to the gradients.
    Of networks that are trained themselves, all of their parameters; and of the heads of masked tasks, whose normalisation
    never gets any. What masks learn has `mask_weight_decay`.
    """
    mask_weight_decay: float = Field(default=0.0, ge=0)
    """Of what masks learn: for coefficients, such as ImpressLearn's. Scores it pulls to their threshold."""
    lr: float = Field(default=3e-3, gt=0)
    """Learning rate of networks, or parts of them, that are trained themselves."""
    encoder_lr: float | None = Field(default=None, gt=0)
    """That of the encoder of such a network where it is another; None: `lr`. Pre-trained weights want a tenth of what the fresh
    decoder wants, or less: at 3e-3 they are lost.
    """
    mask_lr: float = Field(default=3.5e-4, gt=0)
    """That of the mask scores, and of whatever else masks learn."""
    head_lr: float | None = Field(default=1e-2, gt=0)
    """That of a masked task's head and normalisation, which bear a higher one while the weights stand still; None: `lr`."""
    norm_lr: float | None = Field(default=None, gt=0)
    """That of a masked task's normalisation where it is another; None: the head's."""

    @model_validator(mode="after")
    def _momentum_of_nesterov(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("got nesterov: true with momentum: 0: expected a momentum above 0, such as 0.9, or no nesterov")
        if self.nesterov and "sgd" not in (self.name, self.mask, self.head):
            raise ValueError(
                f"got nesterov: true with name: {self.name} and mask: {self.mask}: expected sgd for one of them, or no nesterov"
            )
        return self


class ScheduleOptions(Options):
    """How the learning rates change over the steps."""

    name: Literal["cosine", "step"] = "cosine"
    """After the warmup: "cosine" falls to 0 at the end; "step" multiplies by `decay` at each of `decay_at`."""
    warmup: int = Field(default=20, ge=0)
    """Steps over which the rates rise from 0; of a short training no more than half of them."""
    decay_at: Annotated[tuple[float, ...], Strict(False)] = ()
    """Shares of the steps, each between 0 and 1."""
    decay: float = Field(default=0.1, gt=0, le=1)
    """A factor."""
    head_first: float = Field(default=0.1, ge=0, lt=1)
    """The share of the steps, the first ones, in which the new head alone is trained. A fresh head sends the rest gradients that
    mean nothing, and scores or weights that followed them do not come back.
    """

    @field_validator("decay_at")
    @classmethod
    def _are_shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < at < 1 for at in value):
            raise ValueError(f"got {list(value)}: expected shares of the steps between 0 and 1; correct it")
        return value


class AugmentationOptions(Options):
    """How training images are cut and changed."""

    crop: int = Field(default=96, ge=1)
    """Side in pixels of the square training crops."""
    zoom: Annotated[tuple[float, float], Strict(False)] | None = None
    """Random scaling before the crop, smallest and largest factor; null: 0.8 to 1.25, or none where the task's targets are an
    image's own pixels (`Task.original_pixels`).
    """
    pad: int = Field(default=0, ge=0)
    """Black pixels that are added on all sides before a crop, which `zoom` leaves alone then: the shifts of small images."""
    flip: bool = True
    """Mirror half the crops."""
    rotate: bool = False
    """Turn each crop by a random multiple of 90 degrees: for images that have no up, such as microscopy and satellite images."""
    jitter: float = Field(default=0.0, ge=0)
    """Strength of colour jitter, 0 for none."""
    cutout: int = Field(default=0, ge=0)
    """Side in pixels of a square that is made black at a random place of each crop (DeVries and Taylor 2017), partly outside too;
    for images of one category each whose scale and colours are kept. 0 for none.
    """

    def zoom_for(self, *, original_pixels: bool) -> tuple[float, float]:
        """The `zoom` of a task, see `Task.original_pixels`."""
        return self.zoom or ((1.0, 1.0) if original_pixels else (0.8, 1.25))


class ValidationOptions(Options):
    """When a training is validated, and which of its states is kept."""

    every: int = Field(default=100, ge=1)
    """Steps between two validations."""
    epochs: float = Field(default=0, ge=0)
    """Epochs between two validations, in place of `every`; 0: that."""
    keep: Literal["best", "last"] = "best"
    """The state of the best validation, or that of the end."""
    precise_bn_batches: int = Field(default=40, ge=0)
    """Training batches over which normalisation statistics are averaged before each validation, see `precise_bn`; 0 leaves the
    running averages as they are.
    """


class AverageOptions(Options):
    """An exponential moving average (EMA) of what is trained: it is validated and kept; training goes on with the raw values."""

    decay: float = Field(default=0.0, ge=0, lt=1)
    """The share of the old average in the new one after each step, such as 0.99; 0 averages nothing. It rises to this value as
    `(1 + step) / (10 + step)`, so that a short training is not dominated by its start.
    """
    of: Literal["real_valued", "all"] = "real_valued"
    """"real_valued": all but the scores of binary and ternary masks. "all": the scores too; the mask is then read from
    their averages.
    """

    @model_validator(mode="after")
    def _averages_something(self) -> Self:
        if self.of == "all" and not self.decay:
            raise ValueError("got of: all with decay: 0, which averages nothing: expected a decay such as 0.99, or no of")
        return self


class TrainOptions(Options):
    """How one task is trained."""

    steps: int = Field(default=400, ge=0)
    """Optimiser steps; 0: as many as `epochs` take, which is the default where epochs are given."""
    epochs: float = Field(default=0, ge=0)
    """Passes over the training images, in place of `steps`."""
    batch_size: int = Field(default=8, ge=1)
    """Images a step."""
    workers: int = Field(default=0, ge=0)
    """Processes that load images; 0 loads in the training process."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between two checkpoints."""
    log_every: int = Field(default=20, ge=1)
    """Steps between two rows of the log; also how often the loss is checked for NaN on a GPU."""
    optimiser: OptimiserOptions = OptimiserOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    augmentation: AugmentationOptions = AugmentationOptions()
    validation: ValidationOptions = ValidationOptions()
    average: AverageOptions = AverageOptions()

    @model_validator(mode="before")
    @classmethod
    def _epochs_alone(cls, given: Any) -> Any:
        in_epochs = isinstance(given, Mapping) and given.get("epochs") and "steps" not in given
        return {**given, "steps": 0} if in_epochs else given

    @model_validator(mode="after")
    def _has_one_length(self) -> Self:
        if (self.steps > 0) == (self.epochs > 0):
            raise ValueError(f"got steps={self.steps} and epochs={self.epochs:g}: expected one of them above 0 and the other 0")
        return self

    def plain(self) -> dict[str, Any]:
        """As plain values, for fingerprints: without options that are off, as before these options existed."""
        plain = self.model_dump(exclude=None if self.average.decay else {"average"})
        later = {"mask": "adam", "nesterov": False, "mask_weight_decay": 0.0, "encoder_lr": None}
        optimiser = plain["optimiser"]
        for key in ("cutout", "rotate"):
            if not plain["augmentation"][key]:
                del plain["augmentation"][key]
        plain["optimiser"] = {key: value for key, value in optimiser.items() if key not in later or value != later[key]}
        return plain

    def in_steps(self, images: int) -> Self:
        """The same options with steps in place of epochs, for a training set of so many images."""
        each = images / self.batch_size
        changes: dict[str, Any] = {}
        if self.epochs:
            changes |= {"steps": max(1, math.ceil(self.epochs * each)), "epochs": 0.0}
        if self.validation.epochs:
            changes["validation"] = {"every": max(1, round(self.validation.epochs * each)), "epochs": 0.0}
        return self.changed(**changes)

    def changed(self, **changes: Any) -> Self:
        """The same options but for `changes`: of a group a mapping with those of its options that change."""
        groups = {
            name: getattr(self, name).model_copy(update=value) for name, value in changes.items() if isinstance(value, Mapping)
        }
        return self.model_copy(update=changes | groups)

    def at_rate(self, factor: float) -> Self:
        """The same options with `factor` times the learning rates, all of them."""
        rates = {name: getattr(self.optimiser, name) for name in RATES}
        return self.changed(optimiser={name: None if rate is None else factor * rate for name, rate in rates.items()})
