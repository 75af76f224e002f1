"""The pipeline's speed beside a bare training loop's: VGG16-BN at 32 px, batches of 32, channels_last.

    taskset -c 1 python benchmarks/pipeline.py data_root=DATA method=piggyback
    taskset -c 1 python benchmarks/pipeline.py data_root=DATA method=finetune train.optimiser.name=sgd

One task of CIFAR-100 is learned as `experiment=cifar100_twenty` learns it, on a random backbone. After each of its steps a bare
loop (the same network by SGD, one batch over and over) does one too, so that both meet the same load of the machine. Both compute
in bfloat16 where the processor has it. Processor time counts, not the clock's. An epoch's images a second are those of its steps,
one validation and its share of the checkpoints.
"""

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import environment
from torch import nn

from img2img.backbones import build_backbone
from img2img.inference.evaluator import Evaluator
from img2img.training import loop, sequence
from img2img.training.compose import compose, plain_config
from img2img.training.distributed import training_precision
from img2img.training.log import Callback
from img2img.training.run import run

STEPS, BATCH, IMAGES, CHECKPOINT_EVERY = 14, 32, 2250, 700
spent: dict[str, list[float]] = defaultdict(list)


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name].append(time.process_time() - start)

    return call


def bare_loop() -> Callable[[], None]:
    """A function that does one step."""
    spec = {"kind": "vgg_small", "width": 1.0, "hidden": [4096, 4096], "out_channels": 5}
    network = build_backbone(spec).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, fused=True)
    images, classes = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 5, (BATCH,))

    mixed = training_precision("auto", "cpu") == "bf16-mixed"

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            output = network((images.float() / 255).contiguous(memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(output.float(), classes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


class Turns(Callback):
    """A step of the bare loop after each of the pipeline's, both timed."""

    def __init__(self) -> None:
        self._bare, self._since = timed("bare", bare_loop()), 0.0

    def after_step(self) -> None:
        if self._since:
            spent["step"].append(time.process_time() - self._since)
        self._bare()
        self._since = time.process_time()

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        return


def main(overrides: list[str]) -> None:
    torch.set_num_threads(1)
    print(environment())
    fit = loop.fit

    def fit_in_turns(*args: Any, **kwargs: Any) -> Any:
        spent.clear()
        return fit(*args, **{**kwargs, "callbacks": [*kwargs["callbacks"], Turns()]})

    sequence.fit = fit_in_turns  # type: ignore[attr-defined]
    loop.save_checkpoint = timed("checkpoint", loop.save_checkpoint)  # type: ignore[attr-defined]
    Evaluator.primary_metric = timed("validation", Evaluator.primary_metric)  # type: ignore[method-assign]
    with TemporaryDirectory() as folder:
        fixed = ["experiment=cifar100_twenty", "backbone.mode=random", "sequence=[superclass_2]", f"out={folder}"]
        fixed += ["device.precision=auto", "device.threads=1", "train.epochs=0", f"train.steps={STEPS}"]
        fixed += ["train.validation.epochs=0", f"train.validation.every={STEPS}"]
        run(plain_config(compose("cifar100", [*fixed, *overrides])))
    pairs = list(zip(spent["bare"][1:], spent["step"], strict=False))[2:]
    bare, step = (statistics.median(values) for values in zip(*pairs, strict=True))
    steps = IMAGES / BATCH
    validation, checkpoint = spent["validation"][0], spent["checkpoint"][0] * steps / CHECKPOINT_EVERY
    epoch = steps * step + validation + checkpoint
    print(f"a step: bare {bare:.3f} s, pipeline {step:.3f} s, median ratio {statistics.median(b / s for b, s in pairs):.3f}")
    print(f"an epoch beside its steps: validation {validation:.2f} s, checkpoints {checkpoint:.2f} s")
    print(f"images a second: bare {BATCH / bare:.1f}, pipeline {IMAGES / epoch:.1f}, ratio {steps * bare / epoch:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
