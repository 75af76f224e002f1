"""A training step as the pipeline runs it, of every mask method and of fine-tuning, against a bare loop of PyTorch.

    python benchmarks/training_step.py --size 64 96 224 --rounds 15

The bare loop fine-tunes the same U-Net on the same batches in memory: autocast, loss, backward, `torch.optim.Adam(fused=True)`.
The pipeline's step is one of `training.loop.fit`, from its batch to the next: it runs in a thread that waits between two steps.
Every method has a process of its own, where it and the bare loop take turns; ratios are medians of the rounds' ratios. Peak
memory is that of a process of its own, too. `2018 reference` is a bare loop over layers as of 2018.
"""

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import alternate, console, device, end, environment, judge, ratio
from reference2018 import replace_convolutions
from rich.table import Table
from torch import nn

from img2img import MaskedNetwork, masks
from img2img.backbones import Backbone, build_backbone
from img2img.bundle import HEAD
from img2img.cli.process import keep_freed_memory
from img2img.data.base import Batch
from img2img.tasks import build_task
from img2img.training.config import TrainOptions
from img2img.training.distributed import start_fabric, training_precision
from img2img.training.log import TrainingLog
from img2img.training.loop import fit
from img2img.training.mask_strategy import groups_of

METHODS: dict[str, Callable[[], masks.MaskMethod]] = {
    "piggyback": masks.Piggyback,
    "piggyback, kernel": lambda: masks.Piggyback(granularity="kernel"),
    "piggyback, ternary": lambda: masks.Piggyback(ternary=True),
    "affine, simple": masks.Affine.simple,
    "affine, full": masks.Affine,
    "ksm": masks.KSM,
    "supsup": lambda: masks.SupSup(density=0.5),
    "sparse signs": masks.SparseSigns,
    "sparse signs, share": lambda: masks.SparseSigns(share=0.05),
    "dense signs": masks.DenseSigns,
}
BARE, FINE_TUNE, REFERENCE, FROZEN = "bare loop", "finetune", "2018 reference", "norm and head alone"
ALL = [FINE_TUNE, *METHODS, FROZEN, REFERENCE]
GOALS = {
    "piggyback": {64: 1.05, 96: 1.05, 224: 1.01},
    "affine, full": {64: 1.08, 96: 1.08, 224: 1.02},
    "sparse signs": {64: 1.08, 96: 1.08, 224: 1.02},
    "ksm": dict.fromkeys((64, 96, 224), 0.97),
    "piggyback, kernel": dict.fromkeys((64, 96, 224), 0.97),
    FINE_TUNE: dict.fromkeys((64, 96, 224), 1.0),
}
"""Of a step, by size, relative to the bare loop."""
KNOWN = {
    ("affine, full", 64): 1.34,
    ("sparse signs", 64): 1.19,
    ("ksm", 64): 1.10,
    ("piggyback, kernel", 64): 1.02,
}
"""Those that are missed, see `common.judge`: on one thread."""
CLASSES = ("a", "b", "c", "d")
TASK = build_task({"kind": "segmentation", "classes": CLASSES})


def backbone() -> Backbone:
    torch.manual_seed(0)
    spec = {"kind": "smp", "arch": "unet", "encoder": "resnet18", "weights": None, "out_channels": len(CLASSES)}
    return build_backbone(spec).to(device(), memory_format=torch.channels_last)


class Images:
    """Four batches in memory, again and again; `wait` is called before each."""

    def __init__(self, size: int, batch: int, wait: Callable[[], None]) -> None:
        torch.manual_seed(0)
        shape = batch, size, size
        self._batches = [
            Batch(image=torch.randint(256, (batch, 3, *shape[1:]), dtype=torch.uint8), label=torch.randint(len(CLASSES), shape))
            for _ in range(4)
        ]
        self._wait = wait

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        for batch in itertools.cycle(self._batches):
            self._wait()
            yield batch


def bare_step(name: str, size: int, batch: int, precision: str) -> Callable[[], object]:
    module = backbone()
    if name == REFERENCE:
        head = module.head
        module.head = nn.Identity()
        replace_convolutions(module)
        module.head = head
    module.train()
    optimiser = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], 1e-4, fused=True)
    batches = Images(size, batch, lambda: None).iterate()

    def step() -> None:
        example = TASK.example(next(batches).to(device()))
        with torch.autocast(device().type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            output = module(example.input.contiguous(memory_format=torch.channels_last))
        optimiser.zero_grad()
        TASK.loss(output, example).backward()
        optimiser.step()

    return step


def pipeline_step(name: str, size: int, batch: int, precision: str) -> Callable[[], object]:
    plain = backbone()
    module: nn.Module = plain
    given: dict[str, Any] = {}
    if name != FINE_TUNE:
        network = MaskedNetwork(plain, head=HEAD)
        network.add_task("task", masks.Identity() if name == FROZEN else METHODS[name](), head=plain.make_head(len(CLASSES)))
        network.to(device(), memory_format=torch.channels_last)
        task = module = network.task_module("task")
        given = {"groups": groups_of(task), "extra": lambda input, output: task.state.penalty()}
    asked, ended = threading.Semaphore(0), threading.Semaphore(0)

    def wait() -> None:
        ended.release()
        asked.acquire()

    never = {"every": 10**9, "precise_bn_batches": 0}
    options = TrainOptions.model_validate(
        {"steps": 10**9, "schedule": {"head_first": 0.0}, "validation": never, "checkpoint_every": 10**9}
    )
    fabric = start_fabric(accelerator="auto", precision=precision)

    def train() -> None:
        with tempfile.TemporaryDirectory() as folder, TrainingLog(Path(folder), "step", writes=False) as log:
            fit(
                module, TASK, Images(size, batch, wait), lambda: 0.0, options, fabric=fabric, log=log,
                checkpoint=Path(folder, "none.pt"), fingerprint="", channels_last=True, **given,
            )  # type: ignore[arg-type]  # fmt: skip

    threading.Thread(target=train, daemon=True).start()
    ended.acquire()

    def step() -> None:
        asked.release()
        ended.acquire()

    return step


def step_of(name: str, size: int, batch: int, precision: str) -> Callable[[], object]:
    return (bare_step if name in (BARE, REFERENCE) else pipeline_step)(name, size, batch, precision)


def in_a_process(options: argparse.Namespace, what: str, name: str, size: int) -> Any:
    """What a process of this file prints as JSON. A process each, so that no method suffers from another's memory."""
    numbers = ("--size", str(size), "--batch", str(options.batch), "--rounds", str(options.rounds))
    command = [sys.executable, __file__, "--one", what, "--methods", name, *numbers, "--precision", options.precision]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def one(options: argparse.Namespace) -> Any:
    """Seconds by round of a method and of the bare loop, in turn; or the peak MiB of this process after three steps."""
    keep_freed_memory()  # as the pipelines do
    name, size = options.methods[0], options.size[0]
    if options.one == "times":
        steps = {n: step_of(n, size, options.batch, options.precision) for n in (BARE, name)}
        return alternate(steps, rounds=options.rounds, warmup=3)
    step = step_of(name, size, options.batch, options.precision)
    for _ in range(3):
        step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[64, 96, 224])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--methods", nargs="+", default=ALL, choices=[BARE, *ALL])
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16-mixed", "32-true"])
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--short", action="store_true", help="64 px, the methods that have a goal, fewer rounds")
    parser.add_argument("--one", choices=["times", "peak"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.precision = training_precision(options.precision, "auto")
    if options.one:
        print(json.dumps(one(options)))
        return
    if options.short:
        options.size, options.methods, options.rounds = [64], list(GOALS), 11
    print(environment())
    for size in options.size:
        table = Table(title=f"training step, {size} px, batch {options.batch}, {options.precision}, {options.rounds} rounds")
        for column in ("", "median ms", "min ms", f"/ {BARE}", f"min / min of {BARE}"):
            table.add_column(column, justify="left" if not column else "right")
        for name in options.methods:
            times = in_a_process(options, "times", name, size)
            mine, bare = times[name], times[BARE]
            middle, least = statistics.median(mine), min(mine)
            table.add_row(
                name, f"{middle * 1e3:.1f}", f"{least * 1e3:.1f}", f"{ratio(mine, bare):.3f}", f"{least / min(bare):.3f}"
            )
            if size in GOALS.get(name, {}):
                ratios = [a / b for a, b in zip(mine, bare, strict=True)]
                judge(f"step of {name}, {size} px / {BARE}", ratios, GOALS[name][size], known=KNOWN.get((name, size)))
        console().print(table)
    if not options.no_memory:
        size = options.size[-1]
        table = Table(title=f"peak memory of a process, {size} px, batch {options.batch}, {options.precision}")
        for column in ("", "MiB", f"/ {BARE}"):
            table.add_column(column, justify="left" if not column else "right")
        peaks = {name: in_a_process(options, "peak", name, size) for name in dict.fromkeys((BARE, *options.methods))}
        for name, peak in peaks.items():
            table.add_row(name, f"{peak:.0f}", f"{peak / peaks[BARE]:.3f}")
        console().print(table)
    end()


if __name__ == "__main__":
    main()
