"""Task files: stored bits against the entropy, time to save and load 25 M weights, memory with a thousand tasks registered.

python benchmarks/disk.py
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from common import console, end, environment, judge
from rich.table import Table

from img2img import MaskedNetwork, masks
from img2img.masks.storage import read_header
from img2img.masks.ternary import TernaryMask

KNOWN = {("ksm", 0.98): 1.0125}
"""Above the goal: so few scales are left that the fixed parts of 46 layers count."""


def network() -> MaskedNetwork:
    torch.manual_seed(0)
    backbone = smp.Unet("resnet34", encoder_weights=None)
    return MaskedNetwork(backbone, head="segmentation_head", loaded_bytes=64 << 20, cache_bytes=256 << 20)


def add(net: MaskedNetwork, task: str, method: masks.MaskMethod, density: float) -> None:
    net.add_task(task, method, head=torch.nn.Conv2d(16, 1, 3, padding=1))
    with torch.no_grad():
        for _, mask in net.state(task).named_masks():
            mask.score.copy_(mask.scores_for(torch.rand(mask.mask_shape) < density))
            if isinstance(mask, TernaryMask):
                mask.score.mul_(torch.rand(mask.mask_shape).sub_(0.5).sign_())
    net.freeze_task(task)


def resident() -> float:
    """MiB of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--short", action="store_true", help="two densities, nothing of a thousand tasks")
    options = parser.parse_args()
    options.rounds = 1 if options.short else options.rounds
    print(environment())
    net = network()
    table = Table(title=f"task files of {sum(w.numel() for w in net.masked_weights().values()) / 1e6:.1f} M weights")
    for column in ("", "density", "file MB", "bits a weight", "entropy", "ratio", "save s", "load s"):
        table.add_column(column, justify="left" if not column else "right")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.safetensors"
        for density in (0.5, 0.98) if options.short else (0.5, 0.9, 0.98, 0.05):
            for name, method in {
                "piggyback": masks.Piggyback(),
                "piggyback, kernel": masks.Piggyback(granularity="kernel"),
                "piggyback, ternary": masks.Piggyback(ternary=True),
                "affine, full": masks.Affine(),
                "ksm": masks.KSM(),
                "sparse signs": masks.SparseSigns(),
                "dense signs": masks.DenseSigns(),
            }.items():
                add(net, "task", method, density)
                start = time.perf_counter()
                net.save_task("task", path)
                saved = time.perf_counter() - start
                net.delete_task("task")
                loads = []
                for _ in range(options.rounds):
                    start = time.perf_counter()
                    net.load_task(path)
                    loads.append(time.perf_counter() - start)
                    net.delete_task("task")
                storage = read_header(path)["storage"]
                bits, entropy = storage["coded_bytes"] * 8 / storage["weights"], storage["entropy_bits"] / storage["weights"]
                table.add_row(
                    name, f"{density:.2f}", f"{path.stat().st_size / 1e6:.2f}", f"{bits:.4f}", f"{entropy:.4f}",
                    f"{bits / entropy:.4f}", f"{saved:.2f}", f"{statistics.median(loads):.2f}",
                )  # fmt: skip
                what = f"bits of {name} at density {density} / entropy"
                judge(what, [bits / entropy], 1.01, known=KNOWN.get((name, density)))
        console().print(table)
        if options.short:
            end()
            return

        add(net, "task", masks.Piggyback(), 0.9)
        net.save_task("task", path)
        net.delete_task("task")
        before = resident()
        start = time.perf_counter()
        for i in range(1000):
            net.register_task(path, name=f"task{i}")
        seconds = time.perf_counter() - start
        registered = resident()
        x = torch.rand(1, 3, 64, 64)
        net.eval()
        with torch.inference_mode():
            net(x, task="task0")
            first = resident()
            for i in range(1, 200):
                net(x, task=f"task{i}")
        print(
            f"1000 tasks registered in {seconds:.2f} s: {before:.0f} MiB before, {registered:.0f} after, {first:.0f} with one "
            f"used, {resident():.0f} after 200 were used (bounds: 64 MiB of tasks, 256 of effective weights)"
        )
    end()


if __name__ == "__main__":
    main()
