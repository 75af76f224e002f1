"""`model.run` against a hand-written loop over the merged network: what reading types, padding and showing results cost.

    python benchmarks/inference.py runs/demo --task colour --rounds 9

A round runs eight images of 256 x 192, or one of 1600 x 1200. The peer is the merged network alone: pad, run, cut, and the
task's own prediction and image.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import alternate, end, environment, judge, per_round, report
from torch.nn import functional as F

import img2img
from img2img.backbones import build_backbone
from img2img.bundle import HEAD, add_task_to_bundle, save_backbone
from img2img.data.base import Batch
from img2img.masks import MaskedNetwork, Piggyback
from img2img.tasks import build_task
from img2img.tasks.base import pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", help="by default one of a random U-Net")
    parser.add_argument("--task", default="colour")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--short", action="store_true", help="small images alone, fewer rounds")
    options = parser.parse_args()
    options.rounds = 5 if options.short else options.rounds
    print(environment())
    with tempfile.TemporaryDirectory() as folder:
        if options.bundle is None:
            options.bundle, options.task = random_bundle(Path(folder, "bundle")), "denoised"
        measure(options)
    end()


def random_bundle(folder: Path) -> Path:
    """A bundle of a random U-Net with one task."""
    torch.manual_seed(0)
    task = build_task({"kind": "denoising"})
    backbone = build_backbone({"kind": "smp", "arch": "unet", "encoder": "resnet18", "weights": None, "out_channels": 4})
    network = MaskedNetwork(backbone, head=HEAD)
    save_backbone(folder, network, backbone.spec)
    network.add_task("denoised", Piggyback(start="uniform"), head=backbone.make_head(task.out_channels))
    info = {"figures": {task.metric: 1.0}, "side": 192}
    add_task_to_bundle(folder, network, "denoised", options=task.options(), info=info)
    return folder


def measure(options: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    small = [rng.integers(0, 256, (192, 256, 3), dtype=np.uint8) for _ in range(8)]
    large = rng.integers(0, 256, (1200, 1600, 3), dtype=np.uint8)
    cached = img2img.load(options.bundle)
    merged = img2img.load(options.bundle, weights="merged")
    half = img2img.load(options.bundle, weights="merged", precision="bfloat16")
    network, task = cached.network.merge(options.task), cached.task(options.task)

    @torch.no_grad()
    def by_hand(image: np.ndarray) -> np.ndarray:
        input = task.served_input(Batch(image=torch.from_numpy(image).permute(2, 0, 1)[None]))
        height, width = image.shape[:2]
        raw = network(F.pad(input, (0, -width % 32, 0, -height % 32), mode="replicate"))[..., :height, :width]
        return pixels(task.to_image(task.prediction(raw, input), input)[0])

    name = options.task
    runs: dict[str, Callable[[], object]] = {
        "by hand": lambda: [by_hand(image) for image in small],
        "cached, one by one": lambda: [cached.run(name, image) for image in small],
        "merged, one by one": lambda: [merged.run(name, image) for image in small],
        "merged, in batches of 8": lambda: merged.run(name, small, batch_size=8),
        "merged, one by one, bfloat16": lambda: [half.run(name, image) for image in small],
        "merged, in batches of 8, bfloat16": lambda: half.run(name, small, batch_size=8),
    }
    if options.short:
        runs = {name: runs[name] for name in ("by hand", "cached, one by one", "merged, one by one")}
    times = alternate(runs, rounds=options.rounds)
    report("eight images of 256 x 192", times, peers=["by hand"])
    for kind in ("cached, one by one", "merged, one by one"):
        judge(f"model.run, {kind} / by hand", per_round(times, kind, "by hand"), 1.03)
    if options.short:
        return
    runs = {
        "by hand": lambda: by_hand(large),
        "whole": lambda: merged.run(name, large, tile=None),
        "tiles of 1024": lambda: merged.run(name, large),
        "tiles of 512": lambda: merged.run(name, large, tile=512),
        "seen at 256": lambda: merged.run(name, large, side=256),
        "whole, bfloat16": lambda: half.run(name, large, tile=None),
    }
    report("one image of 1600 x 1200", alternate(runs, rounds=max(3, options.rounds // 3)), peers=["by hand"])


if __name__ == "__main__":
    main()
