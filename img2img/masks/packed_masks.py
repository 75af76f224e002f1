"""The binary masks of a task as packed bits, which are counted and compared fast."""

import numpy as np
import numpy.typing as npt
import torch

from img2img.masks.binary import BinaryMask
from img2img.masks.bits import pack_bits
from img2img.masks.task_state import TaskState

Bits = npt.NDArray[np.uint8]

_ONES_IN_A_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)


def count_ones(bits: Bits) -> int:
    """How many bits are one."""
    return int(_ONES_IN_A_BYTE[bits].sum(dtype=np.int64))


@torch.no_grad()
def packed_masks(state: TaskState) -> dict[str, tuple[Bits, int]]:
    """The binary masks of a task as packed bits with their lengths, by weight name; without those that have none."""
    state.prepare()
    found = {}
    for name, mask in state.named_masks():
        if isinstance(mask, BinaryMask) and mask.bits is not None and mask.mask_shape == mask.shape:
            found[name] = (mask.bits.cpu().numpy(), mask.shape.numel())
        elif (binary := mask.binary()) is not None:
            found[name] = (pack_bits(binary).cpu().numpy(), binary.numel())
    return found
