"""Normalisation statistics that fit the weights as they are, rather than as they were while the averages ran."""

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn


@torch.no_grad()
def precise_bn(module: nn.Module, run: Callable[[Tensor], object], inputs: Iterator[Tensor], passes: int) -> None:
    """Average the running statistics of `module` over some passes in which its weights stand still.

    Running averages reach back over ten batches, in which the weights moved, and to the deepest layers a batch of small crops
    is a small sample: validations then jump. The remedy is Wu and Johnson's "precise BN" (Rethinking "Batch" in BatchNorm,
    2021, section 3). They average the statistics of each batch; here the running averages themselves are averaged, which
    needs to know nothing of the layers. The first quarter of the passes, which still remembers the training, is left out.

    Args:
        module: has the statistics among its floating-point buffers; put into training mode.
        run: runs the module, perhaps a wrapped one.
        inputs: batches like those of the training.
        passes: how many of them; 0 leaves the statistics as they are.
    """
    statistics = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if not statistics or not passes:
        return
    module.train()
    means: list[Tensor] = []
    for i, input in enumerate(islice(inputs, passes)):
        before = [s.clone() for s in statistics] if i == 0 else []
        run(input)
        if before and all(map(torch.equal, before, statistics)):
            return  # all of it is frozen
        count = i - passes // 4 + 1
        if count == 1:
            means = [s.clone() for s in statistics]
        elif count > 1:
            for mean, statistic in zip(means, statistics, strict=True):
                mean.lerp_(statistic, 1 / count)
    for statistic, mean in zip(statistics, means, strict=True):
        statistic.copy_(mean)
