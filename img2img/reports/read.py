"""What a report reads in a run folder: `results.json`, checked, the training logs and the pictures."""

import base64
import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from img2img.errors import InputError
from img2img.files.json_files import read_json
from img2img.files.typed import NUMBER_OR_NULL, check_each, check_object, is_a

SCHEMA = 1

_NUMBER = NUMBER_OR_NULL
_TASK = {
    "name": str,
    "kind": str,
    "metric": str,
    "higher_is_better": bool,
    "value": _NUMBER,
    "trivial": _NUMBER,
    "decoder_only": _NUMBER,
    "bytes": _NUMBER,
    "density": _NUMBER,
    "train_seconds": _NUMBER,
    "test_images": _NUMBER,
}
_TASK_MORE = {
    "trivial_name": (str, type(None)),
    "decoder_only_bytes": _NUMBER,
    "before": _NUMBER,
    "steps": _NUMBER,
    "best_step": _NUMBER,
    "figures": dict,
    "trivial_figures": dict,
}
_RESULTS = {"schema": int, "backbone": dict, "method": str, "tasks": list, "forgetting": dict}
_RESULTS_MORE = {
    "experiment": (str, type(None)), "method_options": dict, "transfer": dict, "environment": dict, "shared_bytes": _NUMBER,
}  # fmt: skip
_BACKBONE = {"name": str, "parameters": _NUMBER, "sha256": str}
_BACKBONE_MORE = {"mode": (str, type(None)), "masked_parameters": _NUMBER, "own_parameters": _NUMBER, "bytes": _NUMBER}
_FORGETTING = {"value_matrix": list, "max_abs_output_change": _NUMBER}

_LONGEST_NAME = 200  # files are named by it
_AGAIN = "run the experiment again, which writes it anew"


def read_results(folder: Path) -> dict[str, Any]:
    """`results.json` of a run folder, with every key of the schema and None for numbers that are not finite.

    Raises:
        InputError: no folder, no file, or not what `training.results.collect_results` writes; names the place at fault.
    """
    path = folder / "results.json"
    if not path.is_file():
        found = "no such folder" if not folder.is_dir() else "the folder has no results.json"
        raise InputError(f"no results in {folder}: {found}; give the folder of a finished run, or run the experiment to its end")
    results: dict[str, Any] = _finite(read_json(path))
    place = str(path)
    check_object(results, place, _RESULTS, _RESULTS_MORE, remedy=_AGAIN)
    if results["schema"] != SCHEMA:
        raise InputError(f"{path} has the schema {results['schema']}: expected {SCHEMA}; {_AGAIN}")
    check_object(results["backbone"], f"{place}, backbone", _BACKBONE, _BACKBONE_MORE, remedy=_AGAIN)
    check_object(results["forgetting"], f"{place}, forgetting", _FORGETTING, remedy=_AGAIN)
    check_each(results.get("transfer", {}), f"{place}, transfer", _NUMBER, remedy=_AGAIN)
    check_each(results.get("environment", {}), f"{place}, environment", (str, *_NUMBER), remedy=_AGAIN)
    _check_bytes(results, place, "shared_bytes")
    _check_bytes(results["backbone"], f"{place}, backbone", "bytes")
    tasks = results["tasks"]
    if not tasks:
        raise InputError(f"{path} has no tasks: expected one or more; run the experiment until its first task is finished")
    for i, task in enumerate(tasks):
        where = f"{place}, tasks[{i}]"
        check_object(task, where, _TASK, _TASK_MORE, remedy=_AGAIN)
        name = task["name"]
        if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable() or len(name) > _LONGEST_NAME:
            raise InputError(f"{where} has the name {name!r:.60}: expected a task's name without slashes; {_AGAIN}")
        _check_bytes(task, where, "bytes", "decoder_only_bytes")
        for key in ("figures", "trivial_figures"):
            check_each(task.get(key, {}), f"{where}, {key}", _NUMBER, remedy=_AGAIN)
    matrix = results["forgetting"]["value_matrix"]
    square = len(matrix) == len(tasks) and all(isinstance(row, list) and len(row) == len(tasks) for row in matrix)
    if not square or not all(is_a(value, _NUMBER) for row in matrix for value in row):
        raise InputError(f"{place}, value_matrix: expected {len(tasks)} rows of {len(tasks)} numbers or nulls; {_AGAIN}")
    return results


def _check_bytes(value: dict[str, Any], where: str, *keys: str) -> None:
    for key in keys:
        if (size := value.get(key)) is not None and size < 0:
            raise InputError(f"{where}, {key}: expected a number of bytes, got {size}; {_AGAIN}")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
class Picture:
    """A PNG for a page: its data URI and its size in pixels."""

    uri: str
    width: int
    height: int


def read_image(folder: Path, task: str) -> Picture | None:
    """The picture of a task, `pictures/<task>.png`; None if there is none.

    Raises:
        InputError: it is not a PNG that can be decoded.
    """
    path = folder / "pictures" / f"{task}.png"
    if not path.is_file():
        return None
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as PNG ({error}): delete it to leave it out, or {_AGAIN}") from error
    return Picture("data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii"), width, height)
