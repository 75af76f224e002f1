"""How much memory an image takes: a bound that follows from its size, for whoever runs many at once, such as the service."""

import math
import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from img2img.inference.chunked import CHUNK_PIXELS, RunSettings, Size
from img2img.inference.prediction import in_parts

IMAGE_BYTES = 36
"""Bytes a pixel: the image as it is decoded, turned, laid on white and taken apart into channels, and its result."""
INPUT_BYTES = 16
"""Bytes a pixel of an input that cannot be made part by part."""
RESULT_BYTES = 200
"""Bytes a pixel while it is predicted and shown: conversions between colour spaces keep some forty floats of each."""
FIXED_BYTES = 96 << 20
"""Bytes that do not depend on the image: what libraries set up at their first call."""
SCRATCH_FACTOR = 1.5
"""A factor for what layers use inside themselves, which the measurement of a network does not show."""


def memory_needed(size: Size, setting: RunSettings, network_bytes: float) -> int:
    """A bound in bytes on what one image takes beside the loaded model, from its file's header to its result.

    Measured peaks lie below it (tests/inference/test_memory_estimate.py). Of images larger than a tile it grows by `IMAGE_BYTES`
    a pixel, and by a strip of raw outputs as wide as the shorter side of the view.

    Args:
        size: (height, width) of the image.
        setting: how it is run.
        network_bytes: what the network takes for each pixel that it sees, see `network_bytes`.
    """
    task, stride = setting.task, setting.evaluator.stride
    pixels, channels = size[0] * size[1], task.compact_channels
    mirrored = 2 * setting.evaluator.border(task, setting.view)
    most = [math.ceil(max(n + mirrored, setting.evaluator.min_size) / stride) * stride for n in setting.view]
    seen = most
    band = 0
    if setting.tile is not None and not task.image_level:
        tile = math.ceil(max(setting.tile + mirrored, setting.evaluator.min_size) / stride) * stride
        seen = [min(n, tile) for n in most]
        band = 8 * channels * min(max(most), tile) * min(most)
    network_total = (SCRATCH_FACTOR * network_bytes + INPUT_BYTES + 12 * channels) * seen[0] * seen[1]
    if in_parts(setting, size):
        parts = (RESULT_BYTES + 16 * channels) * CHUNK_PIXELS
        whole = pixels * (IMAGE_BYTES + (INPUT_BYTES if task.reach is None else 0))
    else:
        parts = 0
        whole = pixels * (IMAGE_BYTES + INPUT_BYTES + RESULT_BYTES + 16 * channels)
        band *= 2  # what the tiles have come to is there as a whole
    return int(FIXED_BYTES + network_total + band + parts + whole)


@torch.no_grad()
def network_bytes(setting: RunSettings) -> float:
    """What a network holds at once for each pixel that it sees, in bytes, measured on a small image."""
    stride = setting.evaluator.stride
    side = math.ceil(max(setting.evaluator.min_size, 128) / stride) * stride
    image = torch.full((1, 3, side, side), 0.5)
    setting.evaluator.run(setting.network, image)  # so that weights which are made once are there
    with _Held() as held:
        setting.evaluator.run(setting.network, image)
    return held.most / side**2


class _Held(TorchDispatchMode):
    """Counts the bytes of tensors that are made within it and not yet let go, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._holders: Counter[int] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {one.untyped_storage().data_ptr() for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        result = function(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                at, size = one.untyped_storage().data_ptr(), one.untyped_storage().nbytes()
                if at in given and not self._holders[at]:
                    continue  # a view of what was there before
                if not self._holders[at]:
                    self.now += size
                    self.most = max(self.most, self.now)
                self._holders[at] += 1
                weakref.finalize(one, self._let_go, at, size)
        return result

    def _let_go(self, at: int, size: int) -> None:
        self._holders[at] -= 1
        if not self._holders[at]:
            self.now -= size
