"""A network of a few hundred weights, images made in memory and a plain training loop, to test the comparison methods with."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from img2img.backbones import EncoderDecoder
from img2img.backbones.encoder_decoder import HeadShape
from img2img.backbones.transformer import ImageTransformer
from img2img.bundle import HEAD
from img2img.data import Parts
from img2img.data.base import ImageDataset, Sample
from img2img.data.cache import CachedDataset
from img2img.inference.evaluator import Evaluator
from img2img.masks import MaskedNetwork
from img2img.tasks import Task
from img2img.training.config import Experiment, read_experiment
from img2img.training.optimiser import all_of, build_optimisers
from img2img.training.strategy import Context, Phase, Strategy, TaskData

SIZE, LR = 8, 1e-2
TASKS: dict[str, dict[str, Any]] = {
    "classes": {"kind": "segmentation", "classes": ["a", "b", "c"]},
    "colour": {"kind": "colourisation"},
    "more": {"kind": "segmentation", "classes": ["a", "b"]},
}
L = TypeVar("L", bound=Strategy)


class Images(ImageDataset):
    """Random images; the labels follow from the images' brightness."""

    def __init__(self, seed: int, count: int, classes: int) -> None:
        rng = np.random.default_rng(seed)
        self._images = rng.integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)
        self._classes = classes

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        image = self._images[index]
        label = image.mean(2).astype(np.int64) * self._classes // 256
        return Sample(image, label.astype(np.uint8), name=str(index))


def small_backbone(*, norm: bool = True, bias: bool = True) -> EncoderDecoder:
    """Two convolutions, of 108 and 72 weights, in the shape that every backbone has; random, normalisation statistics too."""

    def block(inputs: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)]
        if norm:
            layers.append(nn.BatchNorm2d(outputs))
        return nn.Sequential(*layers, nn.ReLU())

    shape = HeadShape(2, 1)
    network = EncoderDecoder(block(3, 4), block(4, 2), shape, out_channels=2, stride=1, min_size=4, spec={"kind": "small"})
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, low, high in (
                ("weight", 0.5, 1.5),
                ("bias", -0.5, 0.5),
                ("running_mean", -0.5, 0.5),
                ("running_var", 0.5, 2),
            ):
                nn.init.uniform_(getattr(module, name), low, high)
    return network


def transformer() -> ImageTransformer:
    """A real backbone that its spec rebuilds."""
    return ImageTransformer(out_channels=2, width=2, blocks=0, head_kernel=1)


def tiny_experiment(names: Sequence[str], mode: str, steps: int, train: dict[str, Any]) -> Experiment:
    """Tasks on a backbone that the caller makes itself."""
    given = {"steps": steps, "batch_size": 2, "augmentation": {"crop": SIZE}, "optimiser": {"lr": LR}}
    given |= {"schedule": {"head_first": 0.0}, "validation": {"precise_bn_batches": 0}}
    for key, value in train.items():
        given[key] = {**given.get(key, {}), **value} if isinstance(value, dict) else value
    return read_experiment(
        {
            "name": "tiny",
            "out": "not written",
            "backbone": {"mode": mode, "kind": "smp", "weights": "not read" if mode == "pretrained" else None},
            "method": {"name": "piggyback"},
            "train": given,
            "tasks": {name: {"task": TASKS[name], "data": {"kind": "samples"}} for name in names},
            "sequence": list(names),
        }
    )


def context(
    backbone: nn.Module | None = None, *, names: Sequence[str] = tuple(TASKS), mode: str = "random", steps: int = 6, **train: Any
) -> Context:
    """What a strategy works with, without a run folder: a backbone, and tasks of 7 training and 3 validation images."""
    backbone = small_backbone() if backbone is None else backbone
    experiment = tiny_experiment(names, mode, steps, train)
    task_data = {}
    for i, config in enumerate(experiment.tasks):
        name = config.name
        task: Task = config.task.build()
        classes = task.out_channels
        parts = Parts(*(CachedDataset(Images(10 * i + k, count, classes)) for k, count in enumerate((7, 3, 3))))
        task.fit(parts.train)
        task_data[name] = TaskData(config, task, parts, config.train)
    evaluator = Evaluator(stride=4, min_size=8, device=torch.device("cpu"))
    network = MaskedNetwork(backbone, head=HEAD)
    return Context(
        experiment=experiment,
        network=network,
        backbone=backbone,  # type: ignore[arg-type]
        task_data=task_data,
        evaluator=evaluator,
        place=lambda module: None,
        folder=Path("not written"),
    )


def begun(strategy: L, with_: Context | None = None) -> L:
    """A strategy that has begun."""
    strategy.begin(context() if with_ is None else with_)
    return strategy


def train(strategy: Strategy, name: str, phases: Iterator[Phase], after: Callable[[Phase], None] | None = None) -> list[Phase]:
    """Do the trainings of a task as the loop does them, without validation and checkpoints; `after` is told of each step.

    All is trained by Adam at one rate, unless the options have a weight decay: then as they say.
    """
    done = []
    for phase in phases:
        task_data = strategy.context.task_data[name]
        objective = phase.objective or task_data.task
        batches = phase.batches or task_data.batches(strategy.context.experiment.seed_of(name))
        options = phase.options or task_data.options
        optimisers: list[torch.optim.Optimizer] = (
            build_optimisers((phase.groups or all_of(phase.module))(options.optimiser), options.optimiser)
            if options.optimiser.weight_decay
            else [torch.optim.Adam([p for p in phase.module.parameters() if p.requires_grad], options.optimiser.lr, fused=True)]
        )
        phase.module.train()
        for _, batch in zip(range(options.steps), batches.iterate(), strict=False):
            example = objective.example(batch)
            output = phase.module(example.input)
            loss = objective.loss(output, example)
            more = None if phase.extra is None else phase.extra(example.input, output)
            for optimiser in optimisers:
                optimiser.zero_grad()
            (loss if more is None else loss + more).backward()
            for optimiser in optimisers:
                optimiser.step()
            for callback in phase.callbacks:
                callback.after_step()
            if after is not None:
                after(phase)
        phase.module.eval()
        done.append(phase)
    return done


def first(strategy: Strategy, name: str = "classes") -> list[Phase]:
    """Let a strategy take over a first task, which is not trained here."""
    return train(strategy, name, strategy.adopt(name, strategy.context.head(name)))


def learned(strategy: Strategy, name: str) -> list[Phase]:
    """Let a strategy learn a task."""
    return train(strategy, name, strategy.learn(name))


def probe(strategy: Strategy, name: str) -> Tensor:
    """A task's output on fixed inputs."""
    x = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    return strategy.network(name)(x).clone()


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of every tensor."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    """The names of the tensors that are no longer bit-equal."""
    return {name for name, tensor in module.state_dict().items() if not torch.equal(before[name], tensor)}


def restored(kind: type[L], finished: Strategy, names: Sequence[str], **options: Any) -> L:
    """A new strategy of the same experiment from what `finished` would have written; `names` are the finished tasks."""
    own = {name: _stored(finished.own_tensors(name)) for name in names}
    shared = _stored(finished.shared_tensors())
    torch.manual_seed(99)  # another process
    fresh = begun(kind(**options), finished.context)
    fresh.restore(own, shared)
    return fresh


def _stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
