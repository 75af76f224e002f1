"""How many values of a task's binary and ternary masks flip while it is trained."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from img2img.masks.task_state import TaskState
from img2img.masks.tensors import Bits, count_ones, pack_bits
from img2img.masks.ternary import TernaryMask


@dataclass(frozen=True)
class FlipRow:
    """How one layer's mask changed since it was looked at last.

    Attributes:
        layer: the weight's name in the backbone.
        depth: its place among the task's masks, from 0.
        weights: how many it has.
        density: the fraction now that is not zero.
        flips: how many mask values are others than last time, in sign too; each is counted once, however often it went back
            and forth.
        ratio: `flips / weights`.
    """

    layer: str
    depth: int
    weights: int
    density: float
    flips: int
    ratio: float


class FlipMeter:
    """Counts how many mask values of a task in training flip between two looks, such as from epoch to epoch.

    It keeps one bit a mask value, of ternary masks two; a look costs what packing the masks does, tens of milliseconds for 25
    million values.

    Args:
        state: the task. The first look compares with its masks as they are now.
    """

    def __init__(self, state: TaskState) -> None:
        self.state = state
        self._last: Mapping[str, tuple[Bits, int]] = self._look()

    def update(self) -> list[FlipRow]:
        """One row for each layer with a binary or ternary mask, relative to the last call."""
        now, rows = self._look(), []
        for depth, (layer, _) in enumerate(self.state.named_masks()):
            if layer in now:
                bits, weights = now[layer]
                flips = count_ones(np.bitwise_or.reduce(bits ^ self._last[layer][0]))
                rows.append(FlipRow(layer, depth, weights, count_ones(bits[0]) / weights, flips, flips / weights))
        self._last = now
        return rows

    def state_dict(self) -> dict[str, Tensor]:
        """The packed masks of the last look, for a checkpoint: uint8 by layer, one row of bits, of ternary masks two."""
        return {layer: torch.from_numpy(bits.copy()) for layer, (bits, _) in self._last.items()}

    def load_state_dict(self, packed: Mapping[str, Tensor]) -> None:
        """Take what `state_dict` gave as the last look."""
        self._last = {layer: (packed[layer].cpu().numpy(), weights) for layer, (_, weights) in self._last.items()}

    def _look(self) -> dict[str, tuple[Bits, int]]:
        """Where each mask is not zero and, of ternary ones, where it is negative: rows of packed bits."""
        found = {layer: (bits[None], weights) for layer, (bits, weights) in self.state.packed_masks().items()}
        for layer, mask in self.state.named_masks():
            if isinstance(mask, TernaryMask):
                bits, weights = found[layer]
                found[layer] = (np.concatenate((bits, pack_bits(mask.signed() < 0).cpu().numpy()[None])), weights)
        return found
