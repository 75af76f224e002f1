"""How long it takes from a command to its result: `img2img run` to its file, and a small training to its first step.

    python benchmarks/start.py --rounds 5

Seconds of the processor, of a process each, on one thread with a warm disk. The peer is a process that imports torch, torchvision
and segmentation-models-pytorch, on which both stand, and ends.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import console, end, environment, judge, per_round
from PIL import Image
from rich.table import Table

PEER = "imports of its libraries"
GOALS = {"img2img run": (2.5, 1.25), "to the first step": (4.0, 2.0)}
"""Seconds that were asked for, which the imports alone exceed where this was measured; so the ratio to these is judged."""

# A training that ends with its first step.
_TO_FIRST_STEP = """
import os, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: os._exit(7))
from img2img.cli import main
sys.argv[0] = "img2img"
main()
"""
_EXPERIMENT = """# @package _global_
name: small
sequence: [colour]
tasks:
  colour:
    task: {kind: colourisation}
    data: {kind: image_folder, root: FOLDER, resize: 64}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="three rounds")
    options = parser.parse_args()
    print(environment())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        times = measure(folder, 3 if options.short else options.rounds)
    table = Table(title="from a command to its result, processor time")
    for column in ("", "median s", "min s", f"/ {PEER}"):
        table.add_column(column, justify="left" if not column else "right")
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, times[PEER], strict=True))
        table.add_row(name, f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f}", f"{ratio:.2f}")
    console().print(table)
    for name, (wanted, goal) in GOALS.items():
        judge(f"{name} / {PEER}", per_round(times, name, PEER), goal)
        print(f"{name}: {statistics.median(times[name]):.1f} s, wanted are {wanted:g} s on an idle machine")
    end()


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each command, by round."""
    photos, configs = folder / "photos", folder / "configs" / "experiment"
    photos.mkdir()
    configs.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(20):
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), np.uint8)).save(photos / f"{index}.png")
    (configs / "small.yaml").write_text(_EXPERIMENT.replace("FOLDER", str(photos)), encoding="utf-8")
    train = ["train", "--config-dir", str(configs.parent), "experiment=small", "backbone.weights=null", "resume=never"]
    imports = "import torch, torchvision, segmentation_models_pytorch"
    commands = {
        PEER: ["-c", imports],
        "img2img run": ["-m", "img2img", "run", "gogh", str(photos / "0.png"), "--out", str(folder / "0.png"), "--overwrite"],
        "to the first step": ["-c", _TO_FIRST_STEP, *train],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):  # the first warms the disk
        for name, command in commands.items():
            more = [f"out={folder / 'runs' / str(number)}"] if name == "to the first step" else []
            seconds = processor_seconds([sys.executable, *command, *more], expected=7 if more else 0)
            if number:
                times[name].append(seconds)
    return times


def processor_seconds(command: list[str], *, expected: int) -> float:
    """Of a process and its threads, on one thread; the process must end with the code that is expected."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != expected:
        sys.exit(f"{' '.join(command)[:200]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
