"""The Visual Domain Decathlon (Rebuffi, Bilen and Vedaldi, NIPS 2017): its score, and the file that its server marks."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from img2img.data.base import Batch
from img2img.data.cache import CachedDataset
from img2img.data.datasets.decathlon import DECATHLON, Decathlon, write_decathlon_results
from img2img.errors import InputError
from img2img.files.json_files import write_json
from img2img.research.strategies.separate import SeparateNetworks
from img2img.training.config import Experiment, read_experiment
from img2img.training.run import Then
from img2img.training.sequence import SequenceRunner
from img2img.training.strategies import MASKS

MADE = "of other data than the Decathlon's: it says that the pipeline runs, and nothing else"
OFFICIAL = "of the official validation sets, by references that were measured on the test sets: not a published score"
SEEN = "of images that were trained on, so no score: only the server's file counts"
"""What a score is worth."""
GIVEN = "imagenet12's accuracy was given with the backbone and not measured"

IMAGENET = "imagenet12"

FINETUNED = {
    "imagenet12": 59.87, "aircraft": 60.34, "cifar100": 82.12, "daimlerpedcls": 92.82, "dtd": 55.53,
    "gtsrb": 97.53, "vgg-flowers": 81.41, "omniglot": 87.69, "svhn": 96.55, "ucf101": 51.20,
}  # fmt: skip
"""Accuracies in per cent on the challenge's test set of ten networks, each fine-tuned on one dataset (Piggyback, table 8,
"Finetune"): what the challenge measures by. The names are those of the challenge's files, the order that of the papers' tables
(Piggyback 8, affine masks 3 and 4). The challenge's own order has the flowers last.
"""

CLASSES = {
    "imagenet12": 1000, "aircraft": 100, "cifar100": 100, "daimlerpedcls": 2, "dtd": 47,
    "gtsrb": 43, "vgg-flowers": 102, "omniglot": 1623, "svhn": 10, "ucf101": 101,
}  # fmt: skip
"""The classes of each dataset. Files in the official layout with other numbers of them are of other images."""

PERFECT = 1000.0
"""What a dataset without an error scores."""

logger = logging.getLogger("img2img")


def check_given(accuracy: Any, experiment: Experiment) -> float:
    """The key `imagenet12_accuracy` of the pipeline's config, before anything is trained.

    Args:
        accuracy: the key's value.
        experiment: what the config says else.

    Raises:
        InputError: no number of per cent, or it is of no network that all tasks leave as it was given.
    """
    what = f"imagenet12_accuracy={accuracy!r}"
    if isinstance(accuracy, bool) or not isinstance(accuracy, int | float) or not 0 <= accuracy <= 100:
        raise InputError(f"{what}: expected a number in [0, 100], the given network's top-1 accuracy in per cent, such as 59.67")
    if 0 < accuracy <= 1:
        raise InputError(f"{what}, a fraction as it seems: expected per cent; multiply it by 100")
    if IMAGENET in experiment.sequence:
        raise InputError(f"{what}, but the sequence learns {IMAGENET}, whose accuracy is measured: leave one of them out")
    if not experiment.backbone.trained_elsewhere:
        raise InputError(
            f"{what} is of a network that is given, but backbone.mode={experiment.backbone.mode!r}: set "
            "backbone.mode=pretrained and backbone.weights to its file, or leave the accuracy out"
        )
    strategy = experiment.strategy
    if strategy.kind != MASKS and not issubclass(strategy.builder, SeparateNetworks):
        raise InputError(
            f"{what} is of the network as it was given, which method={strategy.kind!r} changes: leave it out, or learn "
            f"{IMAGENET} too"
        )
    return float(accuracy)


def ending(accuracy: Any, config: Mapping[str, Any]) -> Then:
    """What a Decathlon's run ends with, see `finish`; `accuracy` as of `check_given`, None where none is given.

    Raises:
        InputError: see `check_given`.
    """
    return partial(finish, imagenet12_accuracy=None if accuracy is None else check_given(accuracy, read_experiment(config)))


def finish(runner: SequenceRunner, results: Mapping[str, Any], *, imagenet12_accuracy: float | None = None) -> None:
    """Write `decathlon.json` into the run folder and, where the test images are there, the server's `submission/results.json`.

    The score wants all ten tasks, of which ImageNet's accuracy may be given, see `check_given`; the server's file has the
    datasets that were learned.
    """
    score = score_of(results, imagenet12_accuracy, unused=runner.strategy.learns_first)
    if score is None:
        lacks = imagenet12_accuracy is None and IMAGENET not in runner.experiment.sequence
        hint = f"; of a backbone from a file imagenet12_accuracy=PERCENT gives {IMAGENET}'s" if lacks else ""
        logger.info("no score: it wants the ten tasks %s%s", ", ".join(FINETUNED), hint)
    else:
        learned = [runner.task_data[task["name"]] for task in results["tasks"]]
        score["note"] = note_of([(data.config.data.plain(), len(data.parts.classes)) for data in learned])
        score["note"] += f"; {GIVEN}" if score["given"] else ""
        write_json(runner.folder / "decathlon.json", score)
        text = "score %.0f, %.0f for each network's worth of parameters (%s)"
        logger.info(text, score["score"], score["score_per_parameter"], score["note"])
    submit(runner)


def score_of(
    results: Mapping[str, Any], imagenet12_accuracy: float | None = None, *, unused: bool = False
) -> dict[str, Any] | None:
    """The score S of a run's test accuracies against the challenge's fine-tuned networks; None unless it has all ten tasks.

    The accuracies are those after the whole sequence, so that forgetting counts.

    The reference is measured on the challenge's test set, whose labels are not public. Accuracies of another set, such as the
    validation set, give a score that says how methods compare, not one to set beside published ones.

    Args:
        results: of the run.
        imagenet12_accuracy: in per cent, that of the backbone's own network where the run does not learn ImageNet.
        unused: the method takes nothing from the backbone, as networks from scratch do, and so does not count it.
    """
    at_the_end = results["forgetting"]["value_matrix"][-1]
    names = [task["name"] for task in results["tasks"]]
    accuracies = {name: 100 * value for name, value in zip(names, at_the_end, strict=True) if value is not None}
    parameters = results["relative_parameters"]
    stored = results["shared_bytes"] + sum(task["bytes"] for task in results["tasks"])
    given = {}
    if imagenet12_accuracy is not None and IMAGENET not in accuracies:
        given = {IMAGENET: imagenet12_accuracy}
        parameters += unused  # ImageNet's network beside theirs
        if not results["shared_bytes"]:  # the tasks have networks of their own, and none has ImageNet's
            stored += results["backbone"]["bytes"]
    accuracies |= given
    if set(accuracies) != set(FINETUNED):
        return None
    score = decathlon_score([accuracies[name] for name in FINETUNED], list(FINETUNED.values()))
    return {
        "score": score.total,
        "parts": dict(zip(FINETUNED, score.parts, strict=True)),
        "accuracies": {name: accuracies[name] for name in FINETUNED},
        "given": given,
        "reference_accuracies": dict(FINETUNED),
        "relative_parameters": parameters,
        "score_per_parameter": score_per_parameter(score.total, parameters),
        "bytes": stored,
    }


def note_of(data: Sequence[tuple[Mapping[str, Any], int]]) -> str:
    """What the score of tasks is worth, of each of which the data's options and its number of classes are given."""
    if any(options.get("kind") != "decathlon" or CLASSES[options["dataset"]] != classes for options, classes in data):
        return MADE
    return SEEN if any(_trains_on_its_test(options) for options, _ in data) else OFFICIAL


def _trains_on_its_test(options: Mapping[str, Any]) -> bool:
    """Whether the training set has images of the test set, as in the final training on train + val."""
    train, test = (options.get("parts", {}).get(part, {}).get("part", "") for part in ("train", "test"))
    return bool(set(train.split("+")) & set(test.split("+")) - {""})


def submit(runner: SequenceRunner) -> None:
    """Predict the challenge's test images of the datasets that were learned and write the file that its server takes.

    Nothing where there are no images.
    """
    predictions, refused = [], {}
    for name in (name for name in DECATHLON if name in runner.experiment.sequence):
        options = runner.task_data[name].config.data.plain()
        if options.get("kind") != "decathlon":
            continue
        try:
            images = Decathlon(root=options["root"], dataset=options["dataset"], part="test", data=options.get("data"))
        except InputError as error:
            refused[name] = error
            continue
        sizes = {key: options.get(key) for key in ("resize", "square", "middle")}
        predictions.append((images, predict(runner, name, images, **sizes)))
    if refused:  # the first stands for all: they are likely to say the same
        logger.info("no test images of %s: %s", ", ".join(refused), next(iter(refused.values())))
    if not predictions:
        return
    path = write_decathlon_results(runner.folder / "submission" / "results.json", predictions, partial=True)
    logger.info("for the challenge's server: %s", path)
    predicted = {images.dataset for images, _ in predictions}
    if missing := [name for name in DECATHLON if name not in predicted]:
        logger.info("%s of the ten datasets are not in it and count as wrong there: %s", len(missing), ", ".join(missing))


def predict(
    runner: SequenceRunner,
    name: str,
    images: Decathlon,
    *,
    resize: int | None = None,
    square: int | None = None,
    middle: int | None = None,
) -> dict[int, int]:
    """The class index of every image of a test part by the image's id, as task `name` of a run sees it.

    `resize`, `square` and `middle` are those of the task's data, see `build_data`.
    """
    shown = CachedDataset(images, short_side=resize, square=square, middle=middle, max_bytes=0)
    network, task = runner.run_of(name), runner.task_data[name].task
    found: dict[int, int] = {}
    whole = square is None and middle is None  # such images have sizes of their own
    size = 1 if whole else runner.experiment.evaluation.batch_size
    for start in range(0, len(shown), size):
        rows = range(start, min(start + size, len(shown)))
        input = task.input(Batch.stack([shown[row] for row in rows]).to(runner.evaluator.device))
        classes = runner.evaluator.predict(network, task, input).argmax(1)
        found |= {images.image_ids[row]: int(c) for row, c in zip(rows, classes, strict=True)}
    return found


# ---------------------------------------------------------------------- the score's formula


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
    _check_accuracies("accuracies", accuracies)
    _check_accuracies("reference_accuracies", reference_accuracies)
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


def _check_accuracies(name: str, values: Sequence[float]) -> None:
    if len(values) != len(FINETUNED) or not all(0 <= value <= 100 for value in values):
        raise InputError(
            f"{name} are {list(values)}: expected ten numbers in [0, 100], per cent; give one for each dataset, "
            f"such as in the order {', '.join(FINETUNED)}"
        )
    if max(values) <= 1:
        raise InputError(f"{name} are {list(values)}, fractions as it seems: expected per cent; multiply them by 100")
