"""What an ImpressLearn study consists of: its options, checked when they are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from img2img.errors import InputError
from img2img.validation import call_with

Kind = Literal["heterogeneous", "homogeneous", "random"]
"""Where a basis has its masks from: one of each basis task, all of the first one, or drawn."""
CLASSES = 10
"""Of every task here, the digits."""
KINDS: tuple[Kind, ...] = ("heterogeneous", "homogeneous", "random")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How masks and coefficients are trained: RMSprop, as ImpressLearn's table 3 says for LeNet-300-100.

    The paper names no optimiser for the masks of a basis apart from that table, so they get the same.

    Attributes:
        mask_epochs: passes over the training images for each mask.
        alpha_epochs: likewise for the coefficients of each new task.
        batch_size: images of each task in a step.
        lr: the learning rate.
        penalty_weight: λ of equation 2; 0 for MNIST.
        together: how many tasks are trained at once, see `train_stacked`; it changes results by rounding alone.
    """

    mask_epochs: int = 1
    alpha_epochs: int = 6
    batch_size: int = 128
    lr: float = 2e-3
    penalty_weight: float = 0.0
    together: int = 10

    def __post_init__(self) -> None:
        _at_least_one("train", self, "mask_epochs", "alpha_epochs", "batch_size", "together")
        if not self.lr > 0:
            raise InputError(f"train.lr={self.lr}: expected more than 0, such as 0.002")


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """How often the task of a batch is found among many learned ones (GN, section 4).

    Attributes:
        tasks: how many new tasks are learned, among which the task of a batch is found; 0 leaves this out.
        density: of the masks that they combine.
        kind: where these masks are from. Among random ones the task is found far more often than among trained ones.
        count: how many masks they combine.
        epochs: passes over the training images for the coefficients; each number is a measurement of its own.
        batches: batches of each task's test images whose task is sought, here and for the masks of basis tasks.
        batch_size: images in such a batch.
    """

    tasks: int = 250
    density: float = 0.1
    kind: Kind = "heterogeneous"
    count: int = 100
    epochs: Sequence[int] = (1,)
    batches: int = 1
    batch_size: int = 128

    def __post_init__(self) -> None:
        _at_least_one("inference", self, "count", "batches", "batch_size")
        _not_below_zero("inference", self, "tasks")
        if self.tasks and (not self.epochs or min(self.epochs) < 1 or len(set(self.epochs)) < len(self.epochs)):
            raise InputError(f"inference.epochs={list(self.epochs)}: expected one number or more, each once and 1 or more")


@dataclass(frozen=True, kw_only=True)
class VariantOptions:
    """The variants of section 5 and appendix A.5, at one density.

    Attributes:
        density: of the masks; also of the hybrid's own mask in the last layer.
        counts: numbers of basis masks; an empty list leaves the variants out.
        lr: the learning rate of signed and real-valued masks, whose scores begin nearer to their thresholds than SupSup's: with
            3e-4 they learn permuted MNIST better than with 2e-3 or 1e-4 (training loss after 200 steps).
    """

    density: float = 0.1
    lr: float = 3e-4
    counts: Sequence[int] = (5, 10, 25)

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise InputError(f"variants.lr={self.lr}: expected more than 0, such as 3e-4")
        if wrong := [count for count in self.counts if count < 1]:
            raise InputError(f"variants.counts has {wrong[0]}: expected numbers of basis masks, 1 or more")


@dataclass(frozen=True, kw_only=True)
class Study:
    """ImpressLearn's measurements on the tasks of one family, on random networks that are never trained.

    Attributes:
        name: what reports call it.
        out: the run folder.
        data: `kind` ("permuted_mnist", "rotated_mnist" or "made") and options, see `numbered_tasks.build_numbered_tasks`.
        hidden: widths of LeNet's hidden layers.
        outputs: of the network. Those beyond the ten classes are never a target: SupSup's superfluous neurons (Wortsman et al.
            2020). With a hundred, and larger batches, the task of a batch is found more often (docs/findings/task_inference.md).
        weights: the distribution of the backbone, see `masks.randomise`: the paper's footnote 2 says Kaiming normal.
        scaled: divide the backbone's deviation by the root of the density, see `masks.randomise`, which the paper does not do.
            On permuted MNIST masks of density 0.1 reach 0.944 in an epoch so, and 0.891 without; but with ten masks or more the
            one-shot inference of `by_gradient` fails, which without always finds the right one (docs/findings/impresslearn.md).
        seeds: each gives a backbone, start scores and an order of the images of its own.
        densities: the fractions of ones in the masks.
        counts: numbers of basis masks.
        kinds: of bases.
        new_tasks: how many tasks are learned by combining masks; none of them is in a basis.
        basis_tasks: of how many basis tasks at most, the first ones, the label is left out (basis-GN); 0 for none. The
            paper has 25.
        wrong_masks: how many basis masks are tried on the new tasks alone.
        train: see `TrainOptions`.
        inference: see `InferenceOptions`.
        variants: see `VariantOptions`.
        threads: CPU threads, None for all.
    """

    name: str
    out: str
    data: Mapping[str, Any]
    hidden: Sequence[int] = (300, 100)
    outputs: int = CLASSES
    weights: Literal["kaiming_normal", "signed_constant"] = "kaiming_normal"
    scaled: bool = False
    seeds: Sequence[int] = (0,)
    densities: Sequence[float] = (0.05, 0.1, 0.3)
    counts: Sequence[int] = (1, 2, 5, 10, 25, 50, 100)
    kinds: Sequence[Kind] = KINDS
    new_tasks: int = 10
    basis_tasks: int = 10
    wrong_masks: int = 10
    train: TrainOptions = field(default_factory=TrainOptions)
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    variants: VariantOptions = field(default_factory=VariantOptions)
    threads: int | None = None

    def __post_init__(self) -> None:
        _at_least_one("the study", self, "new_tasks", "wrong_masks")
        _not_below_zero("the study", self, "basis_tasks")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads={self.threads}: expected 1 or more, or null for all")
        if self.outputs < CLASSES:
            raise InputError(f"outputs={self.outputs}: expected {CLASSES} or more, one for each class")
        for name in ("seeds", "densities", "counts", "kinds"):
            if not getattr(self, name) or len(set(getattr(self, name))) < len(getattr(self, name)):
                raise InputError(f"{name}={list(getattr(self, name))}: expected one or more values, each once")
        if wrong := [kind for kind in self.kinds if kind not in KINDS]:
            raise InputError(f"kinds names {wrong[0]!r}: expected some of {', '.join(KINDS)}")
        if wrong_densities := [density for density in self.densities if not 0 < density < 1]:
            raise InputError(f"densities has {wrong_densities[0]}: expected fractions between 0 and 1, such as 0.1")
        if wrong_counts := [count for count in self.counts if count < 1]:
            raise InputError(f"counts has {wrong_counts[0]}: expected numbers of basis masks, 1 or more")
        for name, part in (("inference", self.inference), ("variants", self.variants)):
            used = self.inference.tasks if name == "inference" else len(self.variants.counts)
            if used and part.density not in self.densities:
                raise InputError(f"{name}.density={part.density}: expected one of the study's densities {list(self.densities)}")
        most = [self.inference.count] if self.inference.tasks else []
        if max([*most, *self.variants.counts], default=0) > self.masks:
            raise InputError(
                f"inference.count or variants.counts ask for more masks than the {self.masks} of counts={list(self.counts)}: "
                "lower them, or add the number to counts"
            )

    @property
    def masks(self) -> int:
        """How many masks of a kind are trained: basis tasks are numbered 1 to this, and new tasks from the next number on."""
        return max(self.counts)

    def new_numbers(self, count: int | None = None) -> list[int]:
        """The numbers of the first `count` new tasks, by default of all whose accuracy is measured."""
        return [self.masks + 1 + i for i in range(self.new_tasks if count is None else count)]


def read_study(config: Mapping[str, Any]) -> Study:
    """The study of a plain (resolved) config.

    Raises:
        InputError: an unknown key, or a value that cannot be used.
    """
    plain = dict(config)
    for name, kind in (("train", TrainOptions), ("inference", InferenceOptions), ("variants", VariantOptions)):
        plain[name] = call_with(kind, plain.get(name, {}), what=name)
    study: Study = call_with(Study, plain, what="the config")
    return study


def _at_least_one(what: str, options: Any, *names: str) -> None:
    for name in names:
        if getattr(options, name) < 1:
            raise InputError(f"{what}: {name}={getattr(options, name)}: expected 1 or more")


def _not_below_zero(what: str, options: Any, *names: str) -> None:
    for name in names:
        if getattr(options, name) < 0:
            raise InputError(f"{what}: {name}={getattr(options, name)}: expected 0 or more")
