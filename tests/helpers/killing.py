"""Runs that are killed in the middle, to test that they go on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


class Killed(BaseException):
    """What stands in for a kill: nothing that a run catches."""


@contextmanager
def killed_at(step: int, optimiser: type[torch.optim.Optimizer] = torch.optim.Adam) -> Iterator[None]:
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
