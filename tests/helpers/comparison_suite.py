"""A made suite of three methods, two seeds and three tasks, with figures that a hand can check."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from img2img.training.output_images import save_strip

TASKS = (("streets", "segmentation", "mIoU", True, 0.2), ("colour", "colourisation", "ab error", False, 200.0),
         ("edges", "edges", "MSE", False, 4000.0))  # fmt: skip

# By method and seed: the primary metric of each task when learned, and after the whole sequence.
VALUES: dict[str, list[tuple[list[float], list[float]]]] = {
    "piggyback": [([0.5, 100.0, 1000.0],) * 2, ([0.6, 120.0, 1200.0],) * 2],
    "finetune": [([0.5, 90.0, 1100.0],) * 2, ([0.5, 110.0, 1300.0],) * 2],
    "sequential": [([0.7, 80.0, 900.0], [0.1, 300.0, 900.0]), ([0.8, 90.0, 950.0], [0.3, 250.0, 950.0])],
}  # fmt: skip
BYTES = {"piggyback": (1_000_000, 30_000), "finetune": (0, 1_000_000), "sequential": (1_000_000, 2_000)}
ABOUT = {
    "name": "made",
    "title": "A made suite",
    "methods": {
        "piggyback": {"title": "Piggyback", "group": "mask", "note": "One bit a weight."},
        "finetune": {"title": "Fine-tuned networks", "group": "comparison", "note": "A network a task."},
        "sequential": {"title": "Fine-tuned on", "group": "comparison", "note": "One network, carried on."},
    },
    "order": ["sequential", "piggyback", "finetune"],
}


def results(label: str, seed: int) -> dict[str, Any]:
    """A `results.json` with the values above."""
    new, last = VALUES[label][seed]
    rows = [[new[i] if i <= t else None for i in range(3)] for t in range(3)]
    rows[2] = list(last)
    tasks = [
        {
            "name": name, "kind": kind, "primary_metric": metric, "higher_is_better": higher, "value": new[i],
            "baseline": trivial, "baseline_name": "doing nothing", "before": None,
            "bytes": BYTES[label][1] + 1000 * seed, "density": 0.8, "train_seconds": 60.0 + 10 * seed + i, "steps": 40,
            "best_step": 40, "test_images": 9, "metrics": {metric: new[i], "SSIM": 0.5 + 0.1 * seed},
            "baseline_metrics": {metric: trivial, "SSIM": 0.25},
        }
        for i, (name, kind, metric, higher, trivial) in enumerate(TASKS)
    ]  # fmt: skip
    return {
        "version": 2,
        "experiment": "made",
        "backbone": {"name": "unet", "mode": "first_task", "parameters": 250_000, "masked_parameters": 240_000,
                     "bytes": 1_000_000, "sha256": "0" * 64},
        "method": label,
        "method_options": {},
        "tasks": tasks,
        "forgetting": {"value_matrix": rows, "max_abs_output_change": 0.0 if label == "piggyback" else 3.5},
        "transfer": {"average_skill": 0.5 + 0.2 * seed, "backward": 0.0, "forward": None, "forgetting": 0.0},
        "environment": {"commit": "abc123", "device": f"machine {seed}", "python": "3.11.7", "torch": "2.13"},
    } | ({} if label == "piggyback" else {"shared_bytes": BYTES[label][0]})  # fmt: skip


def masks(seed: int) -> dict[str, Any]:
    """A `masks.json` of two masked tasks with coefficients and kernels, so that every figure is made."""
    parts = ("encoder", "encoder", "decoder", "decoder")
    layers = [{"name": f"{part}.{i}.weight", "weights": 100, "part": part} for i, part in enumerate(parts)]
    densities = {"colour": [0.9, 0.8, 0.7, 0.6], "edges": [0.5, 0.6, 0.7, 0.8]}
    unmasked = {"method": "identity", "density": None, "zeroed": None, "densities": [None] * 4, "values": {}}
    tasks: dict[str, Any] = {"streets": unmasked}
    for name, by_layer in densities.items():
        tasks[name] = {
            "method": "piggyback",
            "density": sum(by_layer) / 4,
            "zeroed": 1 - sum(by_layer) / 4,
            "densities": by_layer,
            "values": {"k0": [1.0] * 4, "k1": [-0.1, -0.2, 0.1, 0.0], "k2": [0.1] * 4, "k3": [0.0] * 4,
                       "scale": [0.2, 0.3, None, 0.1]},
            "kernels": {"ones": by_layer, "scaled": [0.05] * 4, "zero": [0.95 - d for d in by_layer]},
        }  # fmt: skip
    matrix = [[1.0, 0.6 + 0.1 * seed], [0.6 + 0.1 * seed, 1.0]]
    kappa = [[1.0, 0.02], [0.02, 1.0]]
    similarity = {"names": ["colour", "edges"], "equal": matrix, "kappa": kappa}
    return {"schema": 1, "layers": layers, "tasks": tasks, "similarity": similarity}


def write_run(folder: Path, label: str, seed: int) -> None:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results(label, seed)), encoding="utf-8")
    (folder / "config.yaml").write_text("seed: 0\n", encoding="utf-8")
    (folder / "metrics").mkdir()
    rng = np.random.default_rng(seed)
    for i, (name, _, metric, _, trivial) in enumerate(TASKS):
        end = VALUES[label][seed][0][i]
        rows = [f"{step},1.0,{trivial + (end - trivial) * step / 40}" for step in (10, 20, 30, 40)]
        (folder / "metrics" / f"{name}.csv").write_text("\n".join([f"step,loss,val {metric}", *rows]) + "\n", encoding="utf-8")
        for kind in ("inputs", "outputs", "targets"):
            tiles = [Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)) for _ in range(3)]
            save_strip(folder / kind / f"{name}.jpg", tiles, (64, 48))
    if label == "piggyback":
        (folder / "masks.json").write_text(json.dumps(masks(seed)), encoding="utf-8")


def make_suite(folder: Path) -> Path:
    for label in VALUES:
        for seed in (0, 1):
            write_run(folder / "runs" / label / str(seed), label, seed)
    (folder / "suite.json").write_text(json.dumps(ABOUT), encoding="utf-8")
    return folder
