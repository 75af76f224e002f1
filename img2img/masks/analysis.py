"""What masks look like: densities, similarities and coefficients, as rows of plain numbers; and how large tasks are.

A table is a list of small dataclasses, one a row: `dataclasses.asdict` makes dicts of them for JSON or CSV. What is not defined,
such as the density of a mask that is not binary, is None. `plots` draws them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from img2img.errors import InputError
from img2img.masks.base import affected
from img2img.masks.network import MaskedNetwork
from img2img.masks.task_state import TaskState
from img2img.masks.tensors import Bits, count_ones, pack_bits

NUMBER = 32
"""Bits of a parameter, as the papers count."""

# ---------------------------------------------------------------------- densities


@dataclass(frozen=True)
class DensityRow:
    """On how many weights of one layer the binary mask of one task acts.

    Attributes:
        task: its name.
        layer: the weight's name in the backbone.
        depth: its place among the masked weights, from 0.
        weights: how many it has.
        density: the fraction of ones; None where the task has no binary mask.
        effect: what the mask does to weights, such as "zeroed" or "moved", see `Mask.effect`; None likewise.
        affected: the fraction of the weights that it does that to.
    """

    task: str
    layer: str
    depth: int
    weights: int
    density: float | None
    effect: str | None
    affected: float | None


@dataclass(frozen=True)
class DensityTotal:
    """The same over all layers where the task has a binary mask: their weights together, each counted once.

    `effect` is that of the first of them.
    """

    task: str
    weights: int
    density: float | None
    effect: str | None
    affected: float | None


def density_table(network: MaskedNetwork, tasks: Sequence[str] | None = None) -> list[DensityRow]:
    """The density of each task's mask in each layer: tasks in the order given, all by default, layers in the backbone's.

    Raises:
        InputError: there is no such task.
    """
    rows = []
    for task in _names(network, tasks):
        state = network.state(task)
        masks, packed = dict(state.named_masks()), state.packed_masks()
        for depth, (layer, weight) in enumerate(network.masked_weights().items()):
            if layer not in packed:
                rows.append(DensityRow(task, layer, depth, weight.numel(), None, None, None))
                continue
            density, effect = count_ones(packed[layer][0]) / weight.numel(), masks[layer].effect
            rows.append(DensityRow(task, layer, depth, weight.numel(), density, effect, affected(effect, density)))
    return rows


def density_totals(rows: Sequence[DensityRow]) -> list[DensityTotal]:
    """One row a task, from `density_table`'s; none where nothing is masked, since the table then has no rows."""
    totals = []
    for task in dict.fromkeys(row.task for row in rows):
        masked = [row for row in rows if row.task == task and row.density is not None]
        weights = sum(row.weights for row in masked)
        if not weights:
            totals.append(DensityTotal(task, 0, None, None, None))
            continue
        density, share = (
            sum(row.weights * (x or 0.0) for row, x in pairs) / weights
            for pairs in ([(row, row.density) for row in masked], [(row, row.affected) for row in masked])
        )
        totals.append(DensityTotal(task, weights, density, masked[0].effect, share))
    return totals


# ---------------------------------------------------------------------- similarities


class Agreement(NamedTuple):
    """What two binary masks of one weight, or of several, have in common, as counts.

    `expected` counts the values that would be equal if the two were independent at the densities they have.
    """

    weights: int
    equal: int
    expected: float
    both: int
    expected_both: float

    @property
    def similarity(self) -> float:
        """The ratio of equal values: the poster's measure, 1/2 for independent masks of which one keeps half."""
        return self.equal / self.weights

    @property
    def kappa(self) -> float | None:
        """Cohen's κ, `(observed - expected) / (1 - expected)`: 1 for equal masks, 0 for independent ones.

        None where chance alone makes them equal, as for two masks all ones.
        """
        # Counts may be rounded in the last place where densities are 0 or 1, so not compared exactly.
        chance = self.weights - self.expected
        return (self.equal - self.expected) / chance if chance > 1e-9 * self.weights else None

    @property
    def overlap(self) -> float | None:
        """How often both are one, relative to chance: 1 for independent masks, 0 for disjoint ones; None if chance gives 0."""
        return self.both / self.expected_both if self.expected_both else None


@dataclass(frozen=True)
class SimilarityRow:
    """How alike two tasks' masks are in one layer; the measures are `Agreement`'s."""

    layer: str
    depth: int
    weights: int
    similarity: float
    kappa: float | None
    overlap: float | None


class Similarities(NamedTuple):
    """A symmetric matrix over tasks; None where two tasks share no binary mask, or where the measure is not defined."""

    names: tuple[str, ...]
    matrix: list[list[float | None]]


def similarity(network: MaskedNetwork, tasks: Sequence[str] | None = None, *, chance_corrected: bool = False) -> Similarities:
    """How alike the binary masks of every two tasks are, over all weights that both mask.

    Args:
        network: holds the tasks.
        tasks: which, all by default.
        chance_corrected: False gives the ratio of equal values, which is the poster's similarity matrix: near 1/2 for
            independent masks when one of them keeps about half, but near 0.82 for independent ones of density 0.1. True gives
            Cohen's κ, which is 0 for independent masks of any density. The agreement expected by chance, `p q + (1-p) (1-q)`
            of the densities p and q, is counted layer by layer and added up: densities differ much between layers and alike in
            all tasks (late layers are sparser), and one pair of densities for the whole network would count that common
            profile as similarity of masks that are independent within every layer.

    Raises:
        InputError: there is no such task.
    """
    names = _names(network, tasks)
    packed = [network.state(task).packed_masks() for task in names]
    counts = [{layer: count_ones(bits) for layer, (bits, _) in masks.items()} for masks in packed]
    matrix: list[list[float | None]] = [[None] * len(names) for _ in names]
    for i in range(len(names)):
        for j in range(i + 1):
            shared = [x for x in packed[i] if x in packed[j]]
            if shared:
                layers = [_agreement(packed[i][x], packed[j][x], counts[i][x], counts[j][x]) for x in shared]
                total = Agreement(*(sum(column) for column in zip(*layers, strict=True)))
                matrix[i][j] = matrix[j][i] = total.kappa if chance_corrected else total.similarity
    return Similarities(names, matrix)


def similarity_by_layer(network: MaskedNetwork, a: str, b: str) -> list[SimilarityRow]:
    """How alike the binary masks of the tasks `a` and `b` are in each layer that both mask.

    Raises:
        InputError: there is no such task.
    """
    first, second = network.state(a).packed_masks(), network.state(b).packed_masks()
    rows = []
    for depth, layer in enumerate(network.roles.masked):
        if layer in first and layer in second:
            x = _agreement(first[layer], second[layer], count_ones(first[layer][0]), count_ones(second[layer][0]))
            rows.append(SimilarityRow(layer, depth, x.weights, x.similarity, x.kappa, x.overlap))
    return rows


def overlap(a: Tensor, b: Tensor) -> float | None:
    """`|A ∩ B| / (|A| |B| / n)`: the ones that two binary masks share, relative to independent masks of their densities.

    1 for independent masks, which ImpressLearn finds of masks of one task with several seeds; `1 / density` for equal ones.

    Args:
        a: bool, n values.
        b: bool, of the same shape.

    Returns:
        The ratio, or None when one of the masks has no ones.

    Raises:
        InputError: they are no two bool tensors of one shape.
    """
    if a.dtype != torch.bool or b.dtype != torch.bool or a.shape != b.shape or a.numel() == 0:
        got = f"{a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
        raise InputError(f"overlap got {got}: expected two binary masks, bool, of one shape with at least one value")
    first, second = ((pack_bits(mask).cpu().numpy(), mask.numel()) for mask in (a, b))
    return _agreement(first, second, count_ones(first[0]), count_ones(second[0])).overlap


def _agreement(a: tuple[Bits, int], b: tuple[Bits, int], ones_a: int, ones_b: int) -> Agreement:
    n = a[1]
    differing = count_ones(a[0] ^ b[0])  # the bits beyond the last value are 0 in both
    both = (ones_a + ones_b - differing) // 2
    expected_both = ones_a * ones_b / n
    return Agreement(n, n - differing, expected_both + (n - ones_a) * (n - ones_b) / n, both, expected_both)


# ---------------------------------------------------------------------- values


@dataclass(frozen=True)
class ValueRow:
    """What one layer's real values are, such as the affine mask's k0 to k3 or ImpressLearn's α.

    Attributes:
        layer: the weight's name in the backbone.
        depth: its place among the masked weights, from 0.
        name: the values' name, one of the mask's `values()`.
        count: how many there are; without any the others are None.
        mean: their mean.
        min: the smallest.
        max: the largest.
        std: the standard deviation of these values, not an estimate for others (divided by `count`).
    """

    layer: str
    depth: int
    name: str
    count: int
    mean: float | None
    min: float | None
    max: float | None
    std: float | None


@torch.no_grad()
def value_table(network: MaskedNetwork, task: str) -> list[ValueRow]:
    """The values of each of `task`'s masks that has any, by layer and name.

    Raises:
        InputError: there is no such task.
    """
    state = network.state(task)
    state.prepare()
    masks = dict(state.named_masks())
    rows = []
    for depth, layer in enumerate(network.roles.masked):
        for name, values in (masks[layer].values() if layer in masks else {}).items():
            if values.numel() == 0:
                rows.append(ValueRow(layer, depth, name, 0, None, None, None, None))
                continue
            wide = values.double()
            mean, std = wide.mean().item(), wide.std(correction=0).item()
            rows.append(ValueRow(layer, depth, name, values.numel(), mean, wide.min().item(), wide.max().item(), std))
    return rows


# ---------------------------------------------------------------------- sizes as the papers count


def task_bits(state: TaskState) -> int:
    """The bits that a trained task adds beside its head.

    One for each value of a binary mask (a kernel-wise one has one a kernel), a second for each sign of a ternary one, and 32 for
    every number: scales and coefficients, soft values, copies of weights, and normalisation parameters; running statistics are no
    parameters. What a task's file takes is another matter: masks are coded at their entropy there, and statistics are in it.

    Raises:
        InputError: the task is still in training.
    """
    if not state.frozen:
        raise InputError(
            "the task is still in training: expected a frozen one, whose masks have their final form; freeze_task it"
        )
    parts = [part for _, mask in state.named_masks() for part in mask.stored().values()]
    bits = sum(part.numel() * (1 if part.dtype == torch.bool else NUMBER) for part in parts)
    return bits + NUMBER * sum(p.numel() for p in state.norm.parameters())


def relative_parameters(network: MaskedNetwork) -> float:
    """The backbone and all of its tasks, without heads, in units of the backbone's parameters.

    So count Piggyback, `(32 n + 9 n) / 32 n = 1.28` for nine tasks (section 6), and the affine paper ("counting all tasks and
    excluding the classifiers", tables 1 to 4). Bases of ImpressLearn, which tasks share, are counted by its table 2, see
    `img2img.research.impresslearn.results`.

    Raises:
        InputError: a task is still in training.
    """
    parameters = sum(p.numel() for p in network.backbone.parameters())
    return 1 + sum(task_bits(network.state(task)) for task in network.tasks()) / (NUMBER * parameters)


def _names(network: MaskedNetwork, tasks: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(tasks, str):
        raise InputError(f"tasks={tasks!r}: expected a sequence of names, such as [{tasks!r}]")
    return network.tasks() if tasks is None else tuple(tasks)
