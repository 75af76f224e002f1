"""What a hundredth task costs beside the tenth, and what a bundle of a thousand costs that is opened for one of them.

python benchmarks/many_tasks.py --tasks 100 --bundle 1000

The sequence learns tiny tasks on a frozen random network; the time of a task is the processor time from the end of the one before
to its own, all bookkeeping included. The peer of the opened bundle is `torch.load` of one whole network of the same kind.
"""

import argparse
import gc
import itertools
import logging
import resource
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import console, end, environment, judge
from rich.table import Table

import img2img
from img2img.backbones import Backbone, build_backbone
from img2img.bundle import HEAD, add_task_to_bundle, open_bundle, save_backbone
from img2img.files.json_files import read_json, write_json
from img2img.masks import MaskedNetwork, Piggyback
from img2img.tasks import build_task
from img2img.training.config import read_experiment
from img2img.training.sequence import SequenceRunner

SPEC = {"kind": "torchvision", "name": "resnet18", "weights": None}
CLASSES = {"kind": "classification", "classes": ["a", "b"]}
NEAR = 5
"""Tasks on either side of the tenth and of the last, of which the median is taken."""


def config(folder: Path, count: int, method: str) -> dict[str, Any]:
    """An experiment of `count` tasks on drawn patterns."""
    names = [f"task{i:03}" for i in range(count)]
    data = {"kind": "patterns", "count": {"train": 8, "val": 2, "test": 4}, "size": 32}
    return {
        "name": "many",
        "out": str(folder),
        "backbone": {"mode": "random", "kind": "image_transformer", "width": 8, "blocks": 1, "head_kernel": 3},
        "method": {"name": method},
        "train": {
            "steps": 4,
            "batch_size": 2,
            "log_every": 2,
            "augmentation": {"crop": 32},
            "validation": {"every": 4, "precise_bn_batches": 1},
            "schedule": {"warmup": 0, "head_first": 0},
        },
        "tasks": {name: {"task": {"kind": "denoising", "sigma": 25}, "data": data} for name in names},
        "sequence": names,
        "device": {"accelerator": "cpu", "threads": 1},
        "evaluation": {"check_images": 2},
    }


def sequence(folder: Path, count: int, method: str) -> list[float]:
    """Seconds of processor time of each task of a sequence."""
    runner = SequenceRunner(read_experiment(config(folder, count, method)))
    ends: list[float] = []

    class Clock(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "is learned" in record.msg:
                ends.append(time.process_time())

    logger, clock = logging.getLogger("img2img"), Clock()
    before = logger.level
    logger.addHandler(clock)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        runner.run()
    finally:
        logger.removeHandler(clock)
        logger.setLevel(before)
    return [b - a for a, b in itertools.pairwise(ends)]  # without the last, which measures all tasks again


def bundle(folder: Path, count: int) -> Backbone:
    """A bundle of random half-dense masks."""
    torch.manual_seed(0)
    backbone = build_backbone({**SPEC, "out_channels": 1})
    network = MaskedNetwork(backbone, head=HEAD)
    save_backbone(folder, network, backbone.spec)
    options = {"options": build_task(CLASSES).options(), "info": {"figures": {"top-1": 0.5}, "side": 64}}
    network.add_task("task0000", Piggyback(start="uniform"), head=backbone.make_head(2))
    path = add_task_to_bundle(folder, network, "task0000", **options)
    names = [f"task{i:04}" for i in range(count)]
    for name in names[1:]:
        path.with_name(f"{name}.safetensors").hardlink_to(path)
    write_json(folder / "bundle.json", read_json(folder / "bundle.json") | {"tasks": names})
    return backbone


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def opened(folders: Mapping[str, Path], whole: Path, rounds: int) -> Mapping[str, Sequence[float]]:
    """Processor seconds of opening and running one task, by bundle, and of the peer, alternating."""
    image = np.zeros((64, 64, 3), np.uint8)
    found: dict[str, list[float]] = {name: [] for name in (*folders, "torch.load of one network, one run")}
    for _ in range(rounds):
        for name, folder in folders.items():
            start = time.process_time()
            img2img.load(folder, device="cpu").run("task0000", image)
            found[name].append(time.process_time() - start)
            gc.collect()
        start = time.process_time()
        network = build_backbone({**SPEC, "out_channels": 2})
        network.load_state_dict(torch.load(whole, weights_only=True))
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, 64, 64))
        found["torch.load of one network, one run"].append(time.process_time() - start)
    return found


def growing_memory(folder: Path, count: int) -> list[float]:
    """Peak memory in MB after the first, half and all of `count` tasks were read."""
    network, _ = open_bundle(folder)
    marks = {0, count // 2, count - 1}
    found = []
    for i in range(count):
        network.state(f"task{i:04}")
        if i in marks:
            found.append(peak_mb())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100, help="of the sequence, 20 or more; 0 for none")
    parser.add_argument("--method", default="piggyback", help="of the sequence")
    parser.add_argument("--bundle", type=int, default=1000, help="tasks of the large bundle; 0 for none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="24 tasks, a bundle of 200")
    options = parser.parse_args()
    if options.short:
        options.tasks, options.bundle = 24, 200
    torch.set_num_threads(1)
    print(environment())
    with tempfile.TemporaryDirectory() as folder:
        if options.tasks:
            seconds = sequence(Path(folder, "run"), options.tasks, options.method)
            near = [seconds[i - NEAR : i + NEAR] for i in (10, len(seconds) - NEAR)]
            tenth, last = map(statistics.median, near)
            judge(f"a task about the last of {options.tasks} / about the tenth", [b / a for a, b in zip(*near, strict=True)], 1.1)
            print(f"a sequence of {options.tasks} tasks, {options.method}: processor time of a task about the tenth "
                  f"{tenth * 1e3:.0f} ms, about the last {last * 1e3:.0f} ms, ratio {last / tenth:.3f}")  # fmt: skip
        if not options.bundle:
            end()
            return
        folders = {f"a bundle of {count}, one task run": Path(folder, str(count)) for count in (1, options.bundle)}
        for count, path in zip((1, options.bundle), folders.values(), strict=True):
            backbone = bundle(path, count)
        whole = Path(folder, "whole.pt")
        torch.save(build_backbone({**backbone.spec, "out_channels": 2}).state_dict(), whole)
        found = opened(folders, whole, options.rounds)
        table = Table(title="opening and running one task, processor time")
        for column in ("", "median ms", "min ms", "/ peer"):
            table.add_column(column, justify="right" if column else "left")
        peer = statistics.median(list(found.values())[-1])
        for name, values in found.items():
            middle = statistics.median(values)
            table.add_row(name, f"{middle * 1e3:.0f}", f"{min(values) * 1e3:.0f}", f"{middle / peer:.2f}")
        console().print(table)
        seconds = found[f"a bundle of {options.bundle}, one task run"]
        judge(f"a bundle of {options.bundle} opened, one task run / 0.5 s", [value / 0.5 for value in seconds], 1.0)
        read = min(options.bundle, 500)
        first, half, all_ = growing_memory(list(folders.values())[-1], read)
        print(f"peak memory after one task was read {first:.0f} MB, {read // 2} {half:.0f} MB, {read} {all_:.0f} MB")
    end()


if __name__ == "__main__":
    main()
