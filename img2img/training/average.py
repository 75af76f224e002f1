"""An exponential moving average of what a training trains, which is validated and kept in place of the raw weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from img2img.masks.base import Mask
from img2img.training.config import AverageOptions
from img2img.training.log import Callback


def decay_at(updates: int, decay: float) -> float:
    """The decay of the average after `updates` updates: `min(decay, (1 + n) / (10 + n))`.

    The ramp is that of TensorFlow's `ExponentialMovingAverage` with `num_updates`. Without it a training shorter than a few times
    `1 / (1 - decay)` steps would keep much of its start.
    """
    return min(decay, (1 + updates) / (10 + updates))


class WeightAverage(Callback):
    """Averages parameters after each step; `applied` puts the averages into the module for a while.

    The update is torch's own, `torch.optim.swa_utils.get_ema_multi_avg_fn`: `average := d average + (1 - d) value`, with `d` of
    `decay_at`. The first update copies the values, as `torch.optim.swa_utils.AveragedModel` does.

    Normalisation statistics must be those of the averaged weights, so a copy of the raw ones would be wrong. Two things see to
    it. The floating-point buffers are averaged like the weights, which costs next to nothing; timm's `ModelEmaV3` and
    `AveragedModel(use_buffers=True)` do that. Before each validation `precise_bn` runs on the averaged weights, as it runs on
    the raw ones of a training without averaging, and replaces that estimate by statistics of these very weights. So the
    averages of the buffers count alone where `validation.precise_bn_batches` is 0.

    Args:
        module: that is trained, where it is trained.
        parameters: those that are trained. With `options.of` "real_valued" the scores of binary and ternary masks
            (`Mask.scores`) are left out: what is run is the mask, and an average of scores is no average of masks.
        options: decay and what is averaged.
    """

    def __init__(self, module: nn.Module, parameters: Iterable[nn.Parameter], options: AverageOptions) -> None:
        scores = {id(score) for mask in module.modules() if isinstance(mask, Mask) for score in mask.scores()}
        weights = [p.detach() for p in parameters if options.of == "all" or id(p) not in scores]
        self._values: list[Tensor] = [*weights, *(buffer for buffer in module.buffers() if buffer.is_floating_point())]
        self._averages = [value.clone() for value in self._values]
        self._decay = options.decay
        self._updates = 0

    @torch.no_grad()
    def after_step(self) -> None:
        """Take the values of this step into the average."""
        if self._updates == 0:
            torch._foreach_copy_(self._averages, self._values)
        elif self._values:
            decay = decay_at(self._updates, self._decay)
            get_ema_multi_avg_fn(decay)(tuple(self._averages), tuple(self._values), self._updates)
        self._updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """In the block the module has the averages; afterwards the raw values again, bit for bit.

        What the block does to the module's statistics stays with the averages.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # In place: optimisers and wrapped modules hold these tensors.
        for value, average in zip(self._values, self._averages, strict=True):
            raw = value.clone()
            value.copy_(average)
            average.copy_(raw)

    def state(self) -> dict[str, Any]:
        """The averages, and how many updates made them."""
        return {"updates": self._updates, "averages": self._averages}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._updates = state["updates"]
        for average, saved in zip(self._averages, state["averages"], strict=True):
            average.copy_(saved)
