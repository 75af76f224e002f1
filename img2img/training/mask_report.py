"""`masks.json`: what the masks of a network look like, as plain numbers that outlive its weights.

{"schema": 1,
 "layers": [{"name", "weights", "part"}],                by depth; part: the first component of the name
 "tasks": {TASK: {"method",
                  "density", "zeroed",                   of all layers together; null without a binary mask
                  "densities": [...],                    by layer
                  "values": {NAME: [...]},               means by layer: affine's k0 to k3, KSM's scale, ImpressLearn's alpha
                  "kernels": {"ones", "scaled", "zero"}}},   KSM alone: ratios by layer, which sum to 1
 "similarity": {"names", "equal", "kappa"}}              matrices over the tasks with binary masks
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from img2img.errors import InputError
from img2img.files.json_files import read_json
from img2img.masks import MaskedNetwork
from img2img.masks.analysis import density_table, density_totals, similarity, value_table
from img2img.masks.methods.ksm import KSMMask, SoftKSMMask
from img2img.masks.task_state import TaskState

SCHEMA = 1
ZERO = 0.01
"""A KSM scale of at most this size counts as zero: eight-bit codes seldom meet 0 itself."""


def describe_masks(network: MaskedNetwork) -> dict[str, Any]:
    """What the masks of all tasks look like, as `masks.json` keeps it.

    Args:
        network: with its tasks, trained or in training.

    Returns:
        Plain JSON values; None where something is not defined, such as the density of a task without binary masks.
    """
    layers = [(name, weight.numel()) for name, weight in network.masked_weights().items()]
    rows = density_table(network)
    totals = {total.task: total for total in density_totals(rows)}
    tasks: dict[str, Any] = {}
    for task in network.tasks():
        state = network.state(task)
        total = totals.get(task)  # None where nothing is masked
        values: dict[str, list[float | None]] = {}
        for row in value_table(network, task):
            values.setdefault(row.name, [None] * len(layers))[row.depth] = _finite(row.mean)
        tasks[task] = {
            "method": state.method.name,
            "density": None if total is None else total.density,
            "zeroed": None if total is None else total.zeroed,
            "densities": [row.density for row in rows if row.task == task],
            "values": values,
        }
        if kernels := _kernels(state, [name for name, _ in layers]):
            tasks[task]["kernels"] = kernels
    binary = [task for task in tasks if tasks[task]["density"] is not None]
    return {
        "schema": SCHEMA,
        "layers": [{"name": name, "weights": weights, "part": name.partition(".")[0]} for name, weights in layers],
        "tasks": tasks,
        "similarity": {
            "names": binary,
            "equal": similarity(network, binary).matrix,
            "kappa": similarity(network, binary, chance_corrected=True).matrix,
        },
    }


@torch.no_grad()
def _kernels(state: TaskState, layers: Sequence[str]) -> dict[str, list[float | None]] | None:
    """Of a KSM task the ratios of mask values, one a kernel or an element, that are one, scaled and zero, by layer."""
    masks = dict(state.named_masks())
    found: dict[str, list[float | None]] = {"ones": [], "scaled": [], "zero": []}
    for layer in layers:
        mask = masks.get(layer)
        if not isinstance(mask, KSMMask):
            for ratios in found.values():
                ratios.append(None)
            continue
        hard = mask.hard()
        count, ones = hard.numel(), int(hard.sum())
        scaled = int((mask.scales().abs() > ZERO).sum()) if isinstance(mask, SoftKSMMask) else 0
        for key, number in (("ones", ones), ("scaled", scaled), ("zero", count - ones - scaled)):
            found[key].append(number / count)
    return found if any(ratio is not None for ratio in found["ones"]) else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def read_masks(path: Path) -> dict[str, Any]:
    """A `masks.json`, checked.

    Raises:
        InputError: it is not what `describe_masks` gives; names the place at fault.
    """
    masks = read_json(path)
    try:
        if masks["schema"] != SCHEMA:
            raise _DamagedError(f"the schema {masks['schema']!r}")
        depth = len(masks["layers"])
        for layer in masks["layers"]:
            _need(isinstance(layer["name"], str) and isinstance(layer["part"], str) and _number(layer["weights"]), "layers")
        for name, task in masks["tasks"].items():
            _need(isinstance(task["method"], str), f"tasks, {name}, method")
            _need(_number(task["density"]) and _number(task["zeroed"]), f"tasks, {name}, density")
            lists: dict[str, Any] = {"densities": task["densities"], **task["values"], **task.get("kernels", {})}
            if "kernels" in task:
                _need(task["kernels"].keys() == {"ones", "scaled", "zero"}, f"tasks, {name}, kernels")
            for key, values in lists.items():
                whole = isinstance(values, list) and len(values) == depth and all(map(_number, values))
                _need(whole, f"tasks, {name}, {key}: expected {depth} numbers or nulls")
        tables = masks["similarity"]
        side = len(tables["names"])
        _need(all(name in masks["tasks"] for name in tables["names"]), "similarity, names")
        for key in ("equal", "kappa"):
            square = len(tables[key]) == side and all(len(row) == side and all(map(_number, row)) for row in tables[key])
            _need(square, f"similarity, {key}: expected {side} rows of {side} numbers or nulls")
    except (_DamagedError, KeyError, TypeError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"is damaged ({error})"
        raise InputError(
            f"{path} {what}: expected what describe_masks gives; write it again, or delete it to leave the masks out"
        ) from error
    assert isinstance(masks, Mapping)
    return dict(masks)


class _DamagedError(Exception):
    pass


def _need(right: bool, what: str) -> None:
    if not right:
        raise _DamagedError(what)


def _number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))
