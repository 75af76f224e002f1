"""Runs that are killed in the middle, to test that they go on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch

from img2img.training.optimiser import DenseAdam

T = TypeVar("T")


class Killed(BaseException):
    """What stands in for a kill: nothing that a run catches."""


@contextmanager
def killed_at(step: int, optimiser: type[torch.optim.Optimizer] = DenseAdam) -> Iterator[None]:
    """Kill the run in the block at that step of the optimiser, counted over all its trainings; it must get so far."""
    count, original = 0, optimiser.step

    def counted(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == step:
            raise Killed
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimiser, "step", counted)
        with pytest.raises(Killed):
            yield


def refuse_steps(patch: pytest.MonkeyPatch) -> None:
    """Let every step of a pipeline's optimiser fail from now on: not one shall be taken again.

    The pipeline's own class is patched. PyTorch wraps the step of a class when the class is first used, so a patch of `Adam`
    would stay in `DenseAdam` for all tests that follow.
    """

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a step was taken")

    patch.setattr(DenseAdam, "step", refuse)


def killed_again_and_again(run: Callable[[], T], *steps: int) -> T:
    """What `run()` gives in the end: it is killed at each of these steps, counted anew at each start, and started again.

    Each start has other random states, as another process has. What one restart loses or repeats shows at the end, so one
    training tells as much as one for each step; a step after which there is no checkpoint yet sends the run back.
    """
    for step in steps:
        with killed_at(step):
            run()
        torch.manual_seed(777 + step)
    return run()
