"""Probes: a fixed batch of each task with the outputs it once gave, which show whether anything changed since."""

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch

from img2img.files import write_bytes
from img2img.metrics.change import max_abs_change
from img2img.training.evaluate import Evaluator, Network
from img2img.training.learners import Ready


@dataclass(frozen=True)
class Probes:
    """The probes of a run.

    Attributes:
        folder: a file a task goes there.
        pictures: test pictures in a probe.
    """

    folder: Path
    pictures: int

    def save(self, ready: Ready, network: Network, evaluator: Evaluator) -> None:
        """Keep the inputs of a task that has just been learned, and what its network makes of them."""
        input = evaluator.probe_input(ready.task, ready.parts.test, self.pictures)
        output = evaluator.run(network, input).cpu()
        blob = safetensors.torch.save({"input": input.contiguous(), "output": output.contiguous()})
        write_bytes(self._path(ready.name), blob)

    def change(self, name: str, network: Network, evaluator: Evaluator) -> float:
        """The largest change of an output of the task's network since then; 0 only where all are equal bit for bit."""
        probe = safetensors.torch.load(self._path(name).read_bytes())
        return max_abs_change(probe["output"], evaluator.run(network, probe["input"]))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
