"""A made suite of three methods, two seeds and three tasks, with metrics that can be checked by hand."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from img2img.research.suites.schema import About, MethodInfo
from img2img.research.suites.store import describe_store, store_run
from img2img.research.suites.suite import Run
from img2img.research.suites.summary import finish
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
ABOUT = About(
    suite="made",
    title="A made suite",
    methods={
        "sequential": MethodInfo(title="Fine-tuned on", group="comparison", note="One network, fine-tuned from task to task."),
        "piggyback": MethodInfo(title="Piggyback", group="mask", note="One bit a weight."),
        "finetune": MethodInfo(title="Fine-tuned networks", group="comparison", note="A network a task."),
    },
)


def results(label: str, seed: int) -> dict[str, Any]:
    """A `results.json` with the values above."""
    new, last = VALUES[label][seed]
    rows = [[new[i] if i <= t else None for i in range(3)] for t in range(3)]
    rows[2] = list(last)
    tasks = [
        {
            "name": name, "kind": kind, "primary_metric": metric, "higher_is_better": higher, "value": new[i],
            "baseline": baseline, "baseline_name": "majority class", "before": None,
            "bytes": BYTES[label][1] + 1000 * seed, "density": 0.8, "train_seconds": 60.0 + 10 * seed + i, "steps": 40,
            "best_step": 40, "test_images": 9, "metrics": {metric: new[i], "SSIM": 0.5 + 0.1 * seed},
            "baseline_metrics": {metric: baseline, "SSIM": 0.25},
        }
        for i, (name, kind, metric, higher, baseline) in enumerate(TASKS)
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
    layers = [{"name": f"{part}.{i}.weight", "weights": 100} for i, part in enumerate(parts)]
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
    return {"version": 1, "layers": layers, "tasks": tasks, "similarity": similarity}


def write_run(folder: Path, label: str, seed: int) -> None:
    """A run folder as an experiment leaves it."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results(label, seed)), encoding="utf-8")
    (folder / "config.yaml").write_text("seed: 0\n", encoding="utf-8")
    (folder / "metrics").mkdir()
    rng = np.random.default_rng(seed)
    for i, (name, _, metric, _, baseline) in enumerate(TASKS):
        end = VALUES[label][seed][0][i]
        rows = [f"{step},1.0,{baseline + (end - baseline) * step / 40}" for step in (10, 20, 30, 40)]
        (folder / "metrics" / f"{name}.csv").write_text("\n".join([f"step,loss,val {metric}", *rows]) + "\n", encoding="utf-8")
        for kind in ("inputs", "outputs", "targets"):
            tiles = [Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)) for _ in range(3)]
            save_strip(folder / kind / f"{name}.jpg", tiles, (64, 48))
    if label == "piggyback":
        (folder / "masks.json").write_text(json.dumps(masks(seed)), encoding="utf-8")


def add_run(store: Path, label: str, changed: dict[str, Any], seed: int = 0) -> None:
    """Store a run of which nothing but its results is known; one of that label and seed is replaced."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "results.json").write_text(json.dumps(changed), encoding="utf-8")
        store_run(Path(folder), store, label=label, seed=seed)


def runs_of(store: Path) -> Path:
    """Where `make_suite` has the run folders."""
    return store.with_name(f"{store.name}_runs")


def make_suite(store: Path) -> Path:
    for label in VALUES:
        for seed in (0, 1):
            run = runs_of(store) / label / str(seed)
            write_run(run, label, seed)
            store_run(run, store, label=label, seed=seed)
    describe_store(store, ABOUT)
    finish(store, runs_of(store))
    return store


def bare_suite(folder: Path, *labels: str) -> Path:
    """A store that knows nothing but the results of one run a label."""
    for label in labels:
        add_run(folder, label, results("piggyback", 0))
    return folder


def elsewhere(run: Run, **changes: Any) -> Run:
    """A run whose record is changed."""
    return replace(run, record=run.record.model_copy(update=changes))


class Page(HTMLParser):
    """The tags, table rows and text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words.append(data)
            if "td" in self._open or "th" in self._open:
                self.rows[-1][-1] += data

    def row(self, title: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == title)


def page_of(out: Path) -> Page:
    return Page((out / "index.html").read_text(encoding="utf-8"))


def table(out: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "tables" / f"{name}.json").read_text(encoding="utf-8"))
    return found
