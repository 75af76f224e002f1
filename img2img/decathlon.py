"""What a Decathlon's run ends with: its score, and the predictions that the challenge's server marks."""

import logging
from collections.abc import Mapping
from typing import Any

from img2img.data.base import Batch
from img2img.data.cache import Cached
from img2img.data.decathlon import DECATHLON, Decathlon, write_decathlon_results
from img2img.errors import InputError
from img2img.files import write_json
from img2img.metrics import decathlon_score, score_per_parameter
from img2img.metrics.decathlon import FINETUNED
from img2img.training.sequence import SequenceRunner

MADE = "of other data than the Decathlon's: it says that the pipeline runs, and nothing else"
OFFICIAL = "of the official validation sets, by references that were measured on the test sets: not a published score"
"""What a score is worth."""

logger = logging.getLogger("img2img")


def finish(runner: SequenceRunner, results: Mapping[str, Any]) -> None:
    """Write `decathlon.json` into the run folder and, where the test pictures are there, the server's `submission/results.json`.

    A run without all ten tasks has neither.
    """
    score = score_of(results)
    if score is None:
        logger.info("no score: it wants the ten tasks %s", ", ".join(FINETUNED))
        return
    kinds = {runner.experiment.task(name).data.get("kind") for name in FINETUNED}
    score["note"] = OFFICIAL if kinds == {"decathlon"} else MADE
    write_json(runner.folder / "decathlon.json", score)
    text = "score %.0f, %.0f for each network's worth of parameters (%s)"
    logger.info(text, score["score"], score["score_per_parameter"], score["note"])
    submit(runner)


def score_of(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The score S of a run's test accuracies against the challenge's fine-tuned networks; None unless it has all ten tasks.

    The reference is measured on the challenge's test set, whose labels are not public. Accuracies of another set, such as the
    validation set, give a score that says how methods compare, not one to set beside published ones.
    """
    accuracies = {task["name"]: 100 * task["value"] for task in results["tasks"]}
    if set(accuracies) != set(FINETUNED):
        return None
    score = decathlon_score([accuracies[name] for name in FINETUNED], list(FINETUNED.values()))
    parameters = results["relative_parameters"]
    return {
        "score": score.total,
        "parts": dict(zip(FINETUNED, score.parts, strict=True)),
        "accuracies": {name: accuracies[name] for name in FINETUNED},
        "reference_accuracies": dict(FINETUNED),
        "relative_parameters": parameters,
        "score_per_parameter": score_per_parameter(score.total, parameters),
        "bytes": results["shared_bytes"] + sum(task["bytes"] for task in results["tasks"]),
    }


def submit(runner: SequenceRunner) -> None:
    """Predict the challenge's test pictures and write the file that its server takes; nothing where there are none."""
    predictions = []
    for name in DECATHLON:
        options = dict(runner.experiment.task(name).data)
        if options.get("kind") != "decathlon":
            return
        try:
            pictures = Decathlon(root=options["root"], dataset=options["dataset"], part="test", data=options.get("data"))
        except InputError as error:
            logger.info("no file for the server: %s", error)
            return
        sizes = {key: options.get(key) for key in ("resize", "square", "middle")}
        predictions.append((pictures, predict(runner, name, pictures, **sizes)))
    path = write_decathlon_results(runner.folder / "submission" / "results.json", predictions)
    logger.info("for the challenge's server: %s", path)


def predict(
    runner: SequenceRunner,
    name: str,
    pictures: Decathlon,
    *,
    resize: int | None = None,
    square: int | None = None,
    middle: int | None = None,
) -> dict[int, int]:
    """The class index of every picture of a test part by the picture's id, as task `name` of a run sees it.

    `resize`, `square` and `middle` are those of the task's data, see `build_data`.
    """
    shown = Cached(pictures, short_side=resize, square=square, middle=middle, max_bytes=0)
    network, task = runner.run_of(name), runner.ready[name].task
    found: dict[int, int] = {}
    size = 1 if square is None and middle is None else runner.experiment.batch_size  # whole pictures have sizes of their own
    for start in range(0, len(shown), size):
        rows = range(start, min(start + size, len(shown)))
        input = task.input(Batch.stack([shown[row] for row in rows]).to(runner.evaluator.device))
        classes = runner.evaluator.predict(network, task, input).argmax(1)
        found |= {pictures.image_ids[row]: int(c) for row, c in zip(rows, classes, strict=True)}
    return found
