"""What a report reads in a run folder besides `results.json`: the training logs and the images."""

import base64
import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from img2img.errors import InputError

_AGAIN = "run the experiment again, which writes it anew"


@dataclass(frozen=True)
class Curve:
    """A training log.

    Attributes:
        loss: (step, mean training loss since the last row).
        validation: (step, primary metric on the validation set).
    """

    loss: list[tuple[int, float]]
    validation: list[tuple[int, float]]


def read_curve(folder: Path, training: str, metric: str) -> Curve | None:
    """The log of a training, `metrics/<training>.csv`; None if there is none, or if it is empty.

    Raises:
        InputError: it cannot be read as a log.
    """
    path = folder / "metrics" / f"{training}.csv"
    if not path.is_file():
        return None
    loss: list[tuple[int, float]] = []
    validation: list[tuple[int, float]] = []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                step = int(row["step"])
                for points, text in ((loss, row["loss"]), (validation, row.get(f"val {metric}"))):
                    if text and math.isfinite(value := float(text)):
                        points.append((step, value))
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise InputError(
            f"{path} is not a training log ({error!r}): expected the columns step and loss, with numbers; restore it, or "
            "delete it to leave the curve out"
        ) from error
    return Curve(loss, validation) if loss or validation else None


@dataclass(frozen=True)
class Training:
    """The logs of a task's trainings, one after another.

    Attributes:
        curve: of all of them, with steps that count on from one to the next.
        last: the step in it after which the last one began; None where all tasks were trained at once after them.
    """

    curve: Curve
    last: int | None


def read_training(folder: Path, task: str, metric: str) -> Training | None:
    """The logs of a task's trainings, in order; None if there are none.

    LwF warms up its head, CPG prunes little by little, PackNet and CPG train again what they keep.

    Raises:
        InputError: one cannot be read as a log.
    """
    names = (path.name for path in (folder / "metrics").glob("*.csv"))
    prunings = sorted(int(found[1]) for name in names if (found := re.fullmatch(rf"{re.escape(task)}\.prune(\d+)\.csv", name)))
    whole, start, end = Curve([], []), 0, 0
    for phase in (".warmup", "", *(f".prune{k}" for k in prunings), ".retrain"):
        if (curve := read_curve(folder, task + phase, metric)) is None:
            continue
        start = end
        whole.loss.extend((start + step, value) for step, value in curve.loss)
        whole.validation.extend((start + step, value) for step, value in curve.validation)
        end = max(step for step, _ in (*whole.loss, *whole.validation))
    if not end:
        return None
    return Training(whole, None if (folder / "metrics" / f"{task}.joint.csv").is_file() else start)


@dataclass(frozen=True)
class EmbeddedImage:
    """A PNG for a page: its data URI and its size in pixels."""

    uri: str
    width: int
    height: int


def read_image(folder: Path, task: str) -> EmbeddedImage | None:
    """The image of a task, `images/<task>.png`; None if there is none.

    Raises:
        InputError: it is not a PNG that can be decoded.
    """
    path = folder / "images" / f"{task}.png"
    if not path.is_file():
        return None
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as PNG ({error}): delete it to leave it out, or {_AGAIN}") from error
    return EmbeddedImage("data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii"), width, height)
