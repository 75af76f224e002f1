"""The score of the Visual Domain Decathlon (Rebuffi, Bilen and Vedaldi, NIPS 2017). Plain Python."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from img2img.errors import InputError

FINETUNED = {
    "imagenet12": 59.87, "aircraft": 60.34, "cifar100": 82.12, "daimlerpedcls": 92.82, "dtd": 55.53,
    "gtsrb": 97.53, "vgg-flowers": 81.41, "omniglot": 87.69, "svhn": 96.55, "ucf101": 51.20,
}  # fmt: skip
"""Accuracies in per cent on the challenge's test set of ten networks, each fine-tuned on one dataset (Piggyback, table 8,
"Finetune"): what the challenge measures by. The names are those of the challenge's files, the order that of the papers' tables
(Piggyback 8, affine masks 3 and 4). The challenge's own order has the flowers last.
"""

PERFECT = 1000.0
"""What a dataset without an error scores."""


@dataclass(frozen=True)
class DecathlonScore:
    """The score of ten accuracies.

    Attributes:
        total: the sum of the parts, in [0, 10000].
        parts: what each dataset scores, in [0, 1000], in the order of the accuracies.
    """

    total: float
    parts: tuple[float, ...]


def decathlon_score(accuracies: Sequence[float], reference_accuracies: Sequence[float]) -> DecathlonScore:
    """`S = Σ_d α_d max(0, Emax_d - E_d)^2` (affine masks, equation 4).

    `E_d` is the error of dataset d, `Emax_d` twice the reference's, and `α_d = 1000 / Emax_d^2`, so that no error scores 1000,
    the reference's 250, and twice its error or more nothing.

    Args:
        accuracies: ten, in per cent.
        reference_accuracies: those of the fine-tuned networks, in per cent below 100 and in the same order: for the challenge's
            test set `FINETUNED`.

    Raises:
        InputError: not ten numbers in [0, 100], all of them at most 1, as fractions are, or a reference without an error.
    """
    _check("accuracies", accuracies)
    _check("reference_accuracies", reference_accuracies)
    if max(reference_accuracies) == 100:
        raise InputError(
            f"reference_accuracies are {list(reference_accuracies)}: expected less than 100, since errors are measured by the "
            "reference's; take another reference"
        )
    parts = tuple(_part(a, r) for a, r in zip(accuracies, reference_accuracies, strict=True))
    return DecathlonScore(math.fsum(parts), parts)


def score_per_parameter(total: float, parameters: float) -> float:
    """The score by what it costs.

    Args:
        total: a decathlon score.
        parameters: those of all ten tasks together in units of one network's, such as 1.28 for binary masks, ten for ten
            networks.

    Raises:
        InputError: `parameters` is not above 0.
    """
    if not 0 < parameters < math.inf:
        raise InputError(f"got parameters={parameters}: expected a number above 0, in units of one network's parameters")
    return total / parameters


def _part(accuracy: float, reference: float) -> float:
    worst = 2 * (100 - reference)
    return PERFECT * max(0.0, 1 - (100 - accuracy) / worst) ** 2


def _check(name: str, values: Sequence[float]) -> None:
    if len(values) != len(FINETUNED) or not all(0 <= value <= 100 for value in values):
        raise InputError(
            f"{name} are {list(values)}: expected ten numbers in [0, 100], per cent; give one for each dataset, "
            f"such as in the order {', '.join(FINETUNED)}"
        )
    if max(values) <= 1:
        raise InputError(f"{name} are {list(values)}, fractions as it seems: expected per cent; multiply them by 100")
