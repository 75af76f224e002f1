"""A training step of every mask method against fine-tuning the same U-Net and against the 2018 reference approach.

    python benchmarks/training_step.py --size 96 224 --rounds 9

Times are of a whole step (forward, loss, backward, fused Adam). Every method has a process of its own, where it, fine-tuning and
the reference take turns; ratios are medians of the rounds' ratios. Peak memory is that of a process of its own, too.
"""

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import segmentation_models_pytorch as smp
import torch
from common import alternate, console, device, environment, ratio
from reference2018 import replace_convolutions
from rich.table import Table
from torch import nn

from img2img import MaskedNetwork, masks
from img2img.training.optimiser import DenseAdam

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
FINE_TUNE, REFERENCE, FROZEN = "fine-tuning", "2018 reference", "norm and head alone"
ALL = [FINE_TUNE, REFERENCE, FROZEN, *METHODS]


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return smp.Unet("resnet34", encoder_weights=None)


def trained_module(name: str, size: int) -> nn.Module:
    """What is trained: a module from images to images whose parameters that require grad are its own."""
    plain = backbone()
    head = copy.deepcopy(plain.segmentation_head)
    if name == FINE_TUNE:
        return plain
    if name == REFERENCE:
        head = plain.segmentation_head
        plain.segmentation_head = nn.Identity()
        replace_convolutions(plain)
        plain.segmentation_head = head
        return plain
    network = MaskedNetwork(plain, head="segmentation_head")
    network.add_task("task", masks.Identity() if name == FROZEN else METHODS[name](), head=head)
    network.to(device(), memory_format=torch.channels_last)
    return network.task_module("task")


def step_of(name: str, size: int, batch: int) -> Callable[[], object]:
    module = trained_module(name, size).to(device(), memory_format=torch.channels_last).train()
    # Kept alive by the closure: a TaskModule holds its network.
    optimiser = DenseAdam([p for p in module.parameters() if p.requires_grad], 1e-4, fused=True)
    x = torch.rand(batch, 3, size, size, device=device()).contiguous(memory_format=torch.channels_last)
    y = torch.rand(batch, 1, size, size, device=device())

    def step() -> None:
        optimiser.zero_grad()
        nn.functional.mse_loss(module(x), y).backward()
        optimiser.step()

    return step


def in_a_process(*arguments: str) -> Any:
    """What a process of this file prints as JSON. A process each, so that no method suffers from another's memory."""
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def times_of(name: str, size: int, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds by round of a method, of fine-tuning and of the reference, in turn."""
    steps = {n: step_of(n, size, batch) for n in dict.fromkeys((FINE_TUNE, REFERENCE, name))}
    return alternate(steps, rounds=rounds, warmup=3)


def peak_of(name: str, size: int, batch: int) -> float:
    """Peak MiB of this process after three steps."""
    step = step_of(name, size, batch)
    for _ in range(3):
        step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs="+", default=[96, 224])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--methods", nargs="+", default=ALL, choices=ALL)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--one", choices=["times", "peak"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, size = options.methods[0], options.size[0]
        if options.one == "times":
            print(json.dumps(times_of(name, size, options.batch, options.rounds)))
        else:
            print(json.dumps(peak_of(name, size, options.batch)))
        return
    print(environment())
    common = ("--batch", str(options.batch), "--rounds", str(options.rounds))
    for size in options.size:
        table = Table(title=f"training step, {size} px, batch {options.batch}, {options.rounds} rounds")
        for column in ("", "median ms", "min ms", *(f"/ {p}" for p in (FINE_TUNE, REFERENCE)), f"min / min of {FINE_TUNE}"):
            table.add_column(column, justify="left" if not column else "right")
        for name in [n for n in options.methods if n != FINE_TUNE]:
            times = in_a_process("--one", "times", "--methods", name, "--size", str(size), *common)
            mine, tuned = times[name], times[FINE_TUNE]
            ratios = [ratio(mine, times[peer]) for peer in (FINE_TUNE, REFERENCE)]
            table.add_row(
                name, f"{statistics.median(mine) * 1e3:.1f}", f"{min(mine) * 1e3:.1f}", *(f"{r:.3f}" for r in ratios),
                f"{min(mine) / min(tuned):.3f}",
            )  # fmt: skip
        console().print(table)
    if options.no_memory:
        return
    table = Table(title=f"peak memory of a process, {options.size[-1]} px, batch {options.batch}")
    for column in ("", "MiB", f"/ {FINE_TUNE}"):
        table.add_column(column, justify="left" if not column else "right")
    size = ("--size", str(options.size[-1]))
    peaks = {name: in_a_process("--one", "peak", "--methods", name, *size, *common) for name in options.methods}
    for name, peak in peaks.items():
        table.add_row(name, f"{peak:.0f}", f"{peak / peaks[FINE_TUNE]:.3f}" if FINE_TUNE in peaks else "")
    console().print(table)


if __name__ == "__main__":
    main()
