"""OutputCheck measures finished tasks again, and compares their outputs on a fixed batch with those that were stored when
each was learned.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from img2img.errors import InputError
from img2img.inference.evaluator import Evaluator, Network
from img2img.training.checked_files import read_checked_tensors, write_checked_tensors
from img2img.training.strategy import TaskData

logger = logging.getLogger("img2img")

NEWEST = 3
"""How many earlier tasks' outputs are compared after each task, where those of all are at the end of the sequence only."""


@dataclass(frozen=True)
class OutputCheck:
    """The stored outputs of finished tasks.

    Attributes:
        folder: a file a task goes there.
        images: test images of each task.
    """

    folder: Path
    images: int

    def measure(
        self,
        names: Sequence[str],
        task_data: Mapping[str, TaskData],
        run_of: Callable[[str], Network],
        evaluator: Evaluator,
        *,
        when: Literal["every", "end"],
        last: bool,
    ) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
        """Measure the newest of the tasks `names`, and check the earlier ones again where that is due.

        Args:
            names: the finished tasks, in order, the newest with them.
            task_data: the tasks by name.
            run_of: gives the network of a task, as it is now.
            evaluator: runs it.
            when: finished tasks are measured again after "every" task, or at the "end".
            last: whether the newest task is the last of the sequence.

        Returns:
            The metrics on the test sets of those that were measured, in order; and the largest change of an output of the
            earlier tasks whose outputs were compared: all, or the newest ones.
        """
        all_due = when == "every" or last
        measured: dict[str, dict[str, float]] = {}
        compared = names[:-1] if all_due else names[:-1][-NEWEST:]
        for name in names if all_due else names[-1:]:
            images = task_data[name].parts.test
            measured[name] = evaluator.metrics(run_of(name), task_data[name].task, images)
            if when == "end" and name != names[-1]:
                images.forget()
        return measured, {name: self.change(name, run_of(name), evaluator) for name in compared}

    def save(self, task_data: TaskData, network: Network, evaluator: Evaluator) -> None:
        """Keep the inputs of a task that has just been learned, and what its network makes of them."""
        input = evaluator.check_input(task_data.task, task_data.parts.test, self.images)
        write_checked_tensors(self._path(task_data.name), {"input": input, "output": evaluator.run(network, input)})

    def change(self, name: str, network: Network, evaluator: Evaluator) -> float:
        """The largest change of an output of the task's network since then; 0 only where all are equal bit for bit.

        Raises:
            InputError: the stored output is missing or damaged.
        """
        stored = self._read(name)
        return max_abs_difference(stored["output"], evaluator.run(network, stored["input"]))

    def stored(self, names: Iterable[str]) -> list[str]:
        """Those of the tasks `names` whose outputs are there."""
        return [name for name in names if self._path(name).is_file()]

    def check(self, names: Iterable[str]) -> None:
        """Read the stored outputs of finished tasks, where they are there, before another one is trained.

        Raises:
            InputError: one is damaged.
        """
        for name in self.stored(names):
            self._read(name)

    def complete(
        self,
        names: Iterable[str],
        task_data: Mapping[str, TaskData],
        run_of: Callable[[str], Network],
        evaluator: Evaluator,
    ) -> list[str]:
        """Store the outputs of finished tasks, as they are now, where they are missing.

        Args:
            names: the finished tasks.
            task_data: the tasks by name.
            run_of: gives the network of a task, as it is now.
            evaluator: runs it.

        Returns:
            The names of these: a comparison right after it says nothing about them.
        """
        names = list(names)
        anew = [name for name in names if name not in self.stored(names)]
        for name in anew:
            logger.warning(
                "%s: its stored output is missing: from here on its outputs are compared with those that it gives now", name
            )
            self.save(task_data[name], run_of(name), evaluator)
        return anew

    def _read(self, name: str) -> dict[str, Tensor]:
        path = self._path(name)
        remedy = f"delete it, and the outputs of {name!r} are compared with those that it gives now; all tasks are kept"
        stored = read_checked_tensors(path, remedy=remedy)
        if stored.keys() != {"input", "output"}:
            raise InputError(f"{path} holds {', '.join(stored) or 'nothing'}: expected input and output; {remedy}")
        return stored

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def max_abs_difference(before: Tensor, after: Tensor) -> float:
    """The largest absolute difference of two outputs of one task, in the output's own units; 0.0 only if `torch.equal`.

    Args:
        before: the outputs on the same inputs, any shape, on any device.
        after: the same later.

    Returns:
        0.0 if every value is equal (0.0 and -0.0 are), infinity if either holds a NaN, even at the same place: a NaN output
        proves nothing.

    Raises:
        InputError: different shapes or types, or no values.
    """
    before, after = before.detach().cpu(), after.detach().cpu()
    if before.shape != after.shape or before.dtype != after.dtype or before.numel() == 0:
        raise InputError(
            f"got outputs of {tuple(before.shape)} {before.dtype} before and {tuple(after.shape)} {after.dtype} after: "
            "expected one shape and type, with values; run the same inputs at the same precision"
        )
    if bool(before.isnan().any()) or bool(after.isnan().any()):
        return math.inf
    if torch.equal(before, after):
        return 0.0
    # Equal infinities differ by 0, not by inf - inf = NaN.
    difference = torch.where(before == after, 0.0, (before.double() - after.double()).abs())
    # Large integers and flushed denormals can still cancel in float64; a difference stays one.
    return max(difference.max().item(), math.ulp(0.0))
