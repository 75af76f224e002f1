"""`masks.json`: what the masks of a network look like, as plain numbers that outlive its weights."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

import torch
from pydantic import model_validator

from img2img.files.json_files import read_json
from img2img.masks import MaskedNetwork
from img2img.masks.analysis import density_table, density_totals, similarity, value_table
from img2img.masks.base import affected
from img2img.masks.methods.ksm import KSMMask, SoftKSMMask
from img2img.masks.task_state import TaskState
from img2img.validation import Exact, Number, as_model

VERSION: Final = 1
ZERO = 0.01
"""A KSM scale of at most this size counts as zero: eight-bit codes seldom meet 0 itself."""

Values = list[Number | None]
"""One value for each layer; None where a layer has none."""


class Layer(Exact):
    """A masked weight of the backbone."""

    name: str
    weights: int

    @property
    def part(self) -> str:
        """The part of the network that it belongs to: the first component of its name."""
        return self.name.partition(".")[0]


class Kernels(Exact):
    """Of a KSM mask, by layer: the ratios of kernels that are kept, scaled and zero, which sum to 1."""

    ones: Values
    scaled: Values
    zero: Values


class TaskMasks(Exact):
    """The masks of a task.

    Attributes:
        method: its method's name.
        density: share of ones, of all layers together; None without a binary mask.
        zeroed: share of weights that are zeroed, likewise; None of masks that do something else.
        effect: what the masks do to weights, such as "moved", see `img2img.masks.Mask`.
        densities: by layer.
        values: means by layer: affine's k0 to k3, KSM's scale, ImpressLearn's alpha.
        kernels: of KSM alone.
    """

    method: str
    density: Number | None
    zeroed: Number | None
    densities: Values
    values: dict[str, Values]
    kernels: Kernels | None = None
    effect: str = "zeroed"

    @property
    def affected(self) -> float | None:
        """The share of weights to which the masks do what `effect` says."""
        return affected(self.effect, self.density)

    def by_layer(self) -> dict[str, Values]:
        """Every quantity that has a value for each layer."""
        kernels = {} if self.kernels is None else dict(self.kernels)
        return {"density": self.densities, **self.values, **kernels}


class Similarity(Exact):
    """Two matrices over the tasks with binary masks: the ratio of equal values, and the same beyond chance."""

    names: list[str]
    equal: list[Values]
    kappa: list[Values]


class Masks(Exact):
    """The masks of a network; layers are in the order of depth."""

    version: Literal[1] = VERSION
    layers: list[Layer]
    tasks: dict[str, TaskMasks]
    similarity: Similarity

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        depth, side = len(self.layers), len(self.similarity.names)
        for task, masks in self.tasks.items():
            for name, values in masks.by_layer().items():
                if len(values) != depth:
                    raise ValueError(f"tasks.{task}, {name}: expected {depth} values, one for each layer, got {len(values)}")
        if unknown := [name for name in self.similarity.names if name not in self.tasks]:
            raise ValueError(f"similarity: no task {unknown[0]!r}")
        for key, matrix in (("equal", self.similarity.equal), ("kappa", self.similarity.kappa)):
            if len(matrix) != side or any(len(row) != side for row in matrix):
                raise ValueError(f"similarity.{key}: expected {side} rows of {side} values")
        return self


def describe_masks(network: MaskedNetwork) -> dict[str, Any]:
    """What the masks of all tasks look like, as `masks.json` keeps it.

    Args:
        network: with its tasks, trained or in training.

    Returns:
        `Masks` as plain JSON values; None where something is not defined, such as the density of a task without binary masks.
    """
    layers = [(name, weight.numel()) for name, weight in network.masked_weights().items()]
    rows = density_table(network)
    totals = {total.task: total for total in density_totals(rows)}
    tasks: dict[str, TaskMasks] = {}
    for task in network.tasks():
        state = network.state(task)
        total = totals.get(task)  # None where nothing is masked
        values: dict[str, Values] = {}
        for row in value_table(network, task):
            values.setdefault(row.name, [None] * len(layers))[row.depth] = _finite(row.mean)
        tasks[task] = TaskMasks(
            method=state.method.name,
            density=None if total is None else total.density,
            zeroed=total.affected if total is not None and total.effect == "zeroed" else None,
            densities=[row.density for row in rows if row.task == task],
            values=values,
            kernels=_kernels(state, [name for name, _ in layers]),
            effect="zeroed" if total is None or total.effect is None else total.effect,
        )
    binary = [task for task, masks in tasks.items() if masks.density is not None]
    masks = Masks(
        layers=[Layer(name=name, weights=weights) for name, weights in layers],
        tasks=tasks,
        similarity=Similarity(
            names=binary,
            equal=similarity(network, binary).matrix,
            kappa=similarity(network, binary, chance_corrected=True).matrix,
        ),
    )
    return {"version": VERSION} | masks.model_dump(exclude_defaults=True)  # without `kernels` and `effect` where they say nothing


@torch.no_grad()
def _kernels(state: TaskState, layers: Sequence[str]) -> Kernels | None:
    """Of a KSM task the ratios of mask values, one a kernel or an element, that are one, scaled and zero, by layer."""
    masks = dict(state.named_masks())
    found: dict[str, Values] = {"ones": [], "scaled": [], "zero": []}
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
    return Kernels(**found) if any(ratio is not None for ratio in found["ones"]) else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def read_masks(path: Path) -> Masks:
    """A `masks.json`, checked.

    Raises:
        InputError: it is not what `describe_masks` gives; names the place at fault.
    """
    return as_model(Masks, read_json(path), str(path), remedy="write it again, or delete it to leave the masks out")
