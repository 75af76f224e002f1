"""Learning without Forgetting (Li and Hoiem, ECCV 2016): a penalty keeps earlier tasks' outputs on the new images."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from img2img.research.strategies.shared import SharedNetwork, SharedStrategy
from img2img.training.strategies import STRATEGIES
from img2img.training.strategy import Phase, in_range
from img2img.validation import one_of


@STRATEGIES.register("lwf")
@dataclass(kw_only=True)
class LwF(SharedStrategy):
    """LwF: the loss of the new task plus λ times the distillation loss of each earlier one, on the new task's images.

    The targets `y_o` are what the network gave before the new task. The paper records them once; augmented crops differ at
    every step, so a frozen copy gives the same answers when they are needed. How outputs are compared is the task's own
    (`Task.distillation`): softened class probabilities as in the paper's equations 2 to 4, a squared error for images.

    Attributes:
        strength: λ_o, 1 in the paper.
        temperature: T, 2 in the paper.
        warmup: the share of the steps in which the new head alone is trained first (the paper's warm-up step).
    """

    strength: float = 1.0
    temperature: float = 2.0
    warmup: float = 0.1

    def __post_init__(self) -> None:
        # With a normalisation a task there would be no common features that all heads answer from.
        one_of(f"{self.name} norm", self.norm, ("shared", "frozen"))
        in_range(self.name, "strength", self.strength, 0, float("inf"))
        in_range(self.name, "temperature", self.temperature, 1e-3, float("inf"))
        in_range(self.name, "warmup", self.warmup, 0, 0.9)

    def learn(self, name: str) -> Iterator[Phase]:
        """Warm up the new head, then train trunk and all heads."""
        earlier = list(self.model.heads)
        self.model.features = torch.empty(0)  # with a gradient's history they could not be copied
        teacher = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.add(name, self.context.head(name))
        steps = self.context.steps(name, 1)
        if self.warmup:
            first = self.context.steps(name, self.warmup)
            steps = max(1, steps - first)
            self.model.train_only(name, trunk=False)
            yield Phase(module=self.model, suffix=".warmup", options=self.context.options(name, steps=first))
        self.model.train_only(name, *earlier)

        def distillation(input: Tensor, output: Tensor) -> Tensor | None:
            return self.distillation(teacher, earlier, input)

        yield Phase(module=self.model, extra=distillation, options=self.context.options(name, steps=steps))

    def distillation(self, teacher: SharedNetwork, earlier: list[str], input: Tensor) -> Tensor | None:
        """`λ Σ_old tasks L_old`, right after the model's forward pass on `input`, whose features it uses."""
        if not earlier or not self.strength:
            return None
        with torch.no_grad():
            known = teacher.trunk(input)
        losses = []
        for name in earlier:
            task, raw = self.context.task_data[name].task, self.model.heads[name](self.model.features)
            losses.append(task.distillation(raw, teacher.heads[name](known), temperature=self.temperature))
        return self.strength * torch.stack(losses).sum()
