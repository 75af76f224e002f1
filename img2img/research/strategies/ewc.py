"""Elastic Weight Consolidation (Kirkpatrick et al., PNAS 2017): a penalty keeps the weights that earlier tasks need."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from img2img.research.strategies.shared import SharedStrategy, within
from img2img.training.strategies import STRATEGIES
from img2img.training.strategy import Context, Phase, in_range


@STRATEGIES.register("ewc")
@dataclass(kw_only=True)
class EWC(SharedStrategy):
    """EWC: the new task's loss plus `λ/2 Σ_tasks Σ_i F_i (θ_i - θ*_i)^2` (equation 3, one term for each earlier task).

    `F` is the diagonal of the Fisher information at the end of a task: the mean over its images of the squared gradient of
    its loss (the empirical Fisher: with the true targets). The quadratic terms of several tasks add up to one with `F = Σ F_t`
    around `θ* = Σ F_t θ*_t / Σ F_t`, up to a constant without a gradient, so that no more than one is kept.

    A loss here is a mean over pixels where the equation has the log-likelihood of an image: λ takes up the factor.

    Attributes:
        strength: λ.
        samples: training images, augmented, for each task's Fisher information.
    """

    strength: float = 1000.0
    samples: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self.name, "strength", self.strength, 0, float("inf"))
        in_range(self.name, "samples", self.samples, 1, float("inf"))

    def begin(self, context: Context) -> None:
        """No weight is penalised yet."""
        super().begin(context)
        self.importance = {name: torch.zeros_like(p) for name, p in self.protected().items()}
        self.centre = {name: p.detach().clone() for name, p in self.protected().items()}

    def protected(self) -> dict[str, nn.Parameter]:
        """The parameters that tasks share."""
        own = self.model.roles.norm_parameters if self.norm != "shared" else ()
        return {name: p for name, p in self.model.trunk.named_parameters() if name not in own}

    def adopt(self, name: str, head: nn.Module) -> Iterator[Phase]:
        """Measure which weights the first task needs."""
        self.add(name, head)
        self._consolidate(name)
        return iter(())

    def learn(self, name: str) -> Iterator[Phase]:
        """Train under the penalty, then measure which weights this task needs too."""
        self.add(name, self.context.head(name))
        self.model.train_only(name)
        yield Phase(module=self.model, head=self.model.heads[name], extra=lambda input, output: self.penalty())
        self._consolidate(name)

    def penalty(self) -> Tensor:
        """`λ/2 Σ F (θ - θ*)^2`, a scalar."""
        terms = [(self.importance[n] * (p - self.centre[n]).square()).sum() for n, p in self.protected().items()]
        return 0.5 * self.strength * torch.stack(terms).sum()

    @torch.no_grad()
    def _consolidate(self, name: str) -> None:
        fisher = self.fisher(name)
        for key, parameter in self.protected().items():
            total = self.importance[key] + fisher[key]
            # Between the two centres, exactly at one of them where the other has no weight.
            share = torch.where(total > 0, fisher[key] / total, 1.0)
            self.centre[key] = torch.lerp(self.centre[key], parameter, share)
            self.importance[key] = total

    def fisher(self, name: str) -> dict[str, Tensor]:
        """The diagonal of a task's Fisher information, by parameter: mean squared gradients over `samples` images."""
        task_data, model = self.context.task_data[name], self.model
        images = task_data.batches(self.context.experiment.seed_of(f"{name} fisher"), batch_size=1)
        model.train_only(name)
        model.eval()
        model.active = name
        parameters = self.protected()
        total = {key: torch.zeros_like(p) for key, p in parameters.items()}
        for step in range(self.samples):
            example = task_data.task.example(images.batch(step).to(self.context.evaluator.device))
            with torch.enable_grad():
                loss = task_data.task.loss(model(self.context.evaluator.placed(example.input)), example)
                # Zero for a parameter that the output does not depend on, such as those of an encoder's unused last layer.
                gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
            for key, gradient in zip(parameters, gradients, strict=True):
                total[key].addcmul_(gradient, gradient, value=1 / self.samples)
        return total

    def shared_tensors(self) -> dict[str, Tensor]:
        """The network, the Fisher information and what it is centred on."""
        importance = {f"importance.{name}": t for name, t in self.importance.items()}
        return super().shared_tensors() | importance | {f"centre.{name}": t for name, t in self.centre.items()}

    def restore(self, own: Mapping[str, Mapping[str, Tensor]], shared: Mapping[str, Tensor]) -> None:
        """The network and the penalty."""
        super().restore(own, shared)
        for kept, prefix in ((self.importance, "importance"), (self.centre, "centre")):
            for name, tensor in within(prefix, shared).items():
                kept[name].copy_(tensor)
