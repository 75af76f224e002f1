"""Mixed batches against one process without them: throughput and latencies of many clients over loopback, in the same run.

    python benchmarks/serving.py --tasks 50 --requests 300 --rounds 3

A bundle with random masks is made, and served by two processes: with mixed batches, and without (`--batch-max 1`). Both have the
same bound on the weights that they keep, which is less than those of all tasks take. Clients ask one service at a time, the two
in turns, each for the same tasks and images: uniform over the tasks, skewed (Zipf), or in bursts after pauses. The table has the
medians over the rounds, and the ratios to the service without batches round by round, also of processor time a request. Answers
are compared byte by byte.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import torch
from common import console, environment
from PIL import Image
from rich.table import Table

from img2img.backbones import build_backbone
from img2img.bundle import HEAD, add_task_to_bundle, save_backbone
from img2img.masks import MaskedNetwork, Piggyback
from img2img.tasks import build_task

LITE0 = {"kind": "smp", "encoder": "tu-tf_efficientnet_lite0", "weights": None, "decoder_channels": [64, 32, 16, 16, 8]}
KINDS = ({"kind": "colourisation"}, {"kind": "edges", "drawing": "sobel"}, {"kind": "translation"})


@dataclass
class Service:
    url: str
    process: subprocess.Popen[str]

    def seconds(self) -> float:
        """Processor time of the service so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def make_bundle(folder: Path, tasks: int, backbone: dict[str, object]) -> None:
    torch.manual_seed(0)
    plain = build_backbone({**backbone, "out_channels": 3})
    network = MaskedNetwork(plain, head=HEAD)
    save_backbone(folder, network, plain.spec)
    for number in range(tasks):
        name, task = f"task{number}", build_task(dict(KINDS[number % len(KINDS)]))
        network.add_task(name, Piggyback(start="uniform"), head=plain.make_head(task.out_channels))
        add_task_to_bundle(folder, network, name, options=task.options(), info={"side": 64})
        network.delete_task(name)


def start(bundle: Path, *options: str) -> Service:
    command = [sys.executable, "-m", "img2img", "serve", str(bundle), "--port", "0", "--queue", "256", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert " at http" in line, line
    return Service(line.split(" at ")[1].split(" ")[0], process)


def traffic(kind: str, tasks: int, count: int, seed: int) -> list[int]:
    """The tasks that are asked for, in order."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, tasks + 1) ** 1.2 if kind == "skewed" else np.ones(tasks)
    return [int(task) for task in rng.choice(tasks, count, p=shares / shares.sum())]


def load(
    url: str, asked: Sequence[int], files: Sequence[bytes], clients: int, *, burst: int | None
) -> tuple[float, list[float], list[bytes]]:
    """Seconds in all, of each request, and the answers; with `burst` so many requests start at once, then a pause."""
    here = threading.local()

    def ask(number: int) -> tuple[float, bytes]:
        if not hasattr(here, "client"):
            here.client = httpx.Client(base_url=f"{url}/api/v1", timeout=300, trust_env=False)
        began = time.perf_counter()
        answer = here.client.post(f"/run/task{asked[number]}", content=files[number % len(files)])
        answer.raise_for_status()
        return time.perf_counter() - began, answer.content

    results: list[tuple[float, bytes]] = []
    with ThreadPoolExecutor(clients) as pool:
        seconds = 0.0
        step = burst or len(asked)
        for first in range(0, len(asked), step):
            began = time.perf_counter()
            results += pool.map(ask, range(first, min(len(asked), first + step)))
            seconds += time.perf_counter() - began
            if burst:
                time.sleep(0.2)
    return seconds, [took for took, _ in results], [content for _, content in results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--requests", type=int, default=300, help="a round, of each kind of traffic")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--batch-max", type=int, default=8, help="images of a batch")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--weights-gb", type=float, default=0.3, help="bound on the weights that are kept")
    parser.add_argument("--backbone", type=json.loads, default=LITE0, help="as JSON")
    options = parser.parse_args()
    print(environment())
    rng = np.random.default_rng(0)
    files = []
    for _ in range(8):
        image = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((options.size, options.size))
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(file.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        make_bundle(bundle, options.tasks, options.backbone)
        bound = ("--max-weights-gb", str(options.weights_gb))
        most = {"without": 1, "mixed batches": options.batch_max}
        services = {name: start(bundle, "--batch-max", str(count), *bound) for name, count in most.items()}
        try:
            for kind in ("uniform", "skewed", "bursty"):
                compare(kind, services, files, options)
            metrics = httpx.get(f"{services['mixed batches'].url}/metrics", trust_env=False).text
            print(*(line for line in metrics.splitlines() if line.startswith(("img2img_batch", "img2img_weights"))), sep="\n")
        finally:
            for service in services.values():
                service.stop()


def compare(kind: str, services: dict[str, Service], files: Sequence[bytes], options: argparse.Namespace) -> None:
    burst = options.clients if kind == "bursty" else None
    rows: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in services}
    for number in range(options.rounds + 1):  # the first warms up
        asked = traffic(kind, options.tasks, options.requests if number else options.requests // 4, number)
        answers = []
        for name, service in services.items():
            before = service.seconds()
            seconds, took, contents = load(service.url, asked, files, options.clients, burst=burst)
            answers.append(contents)
            if number:
                p50, p95 = np.percentile(took, (50, 95))
                rows[name].append((len(asked) / seconds, p50, p95, (service.seconds() - before) / len(asked)))
        wrong = sum(a != b for a, b in zip(*answers, strict=True))
        if wrong:
            raise SystemExit(f"{wrong} of {len(asked)} answers differ")
    table = Table(title=f"{kind}: {options.tasks} tasks, {options.clients} clients, {options.size} x {options.size} pixels")
    for column in ("", "requests/s", "p50 ms", "p95 ms", "CPU ms a request", "/ throughput", "/ p50", "/ p95", "/ CPU"):
        table.add_column(column, justify="right" if column else "left")
    peers = rows["without"]
    for name, found in rows.items():
        medians = [statistics.median(values) for values in zip(*found, strict=True)]
        ratios = [statistics.median(a[i] / b[i] for a, b in zip(found, peers, strict=True)) for i in range(4)]
        shown = [f"{medians[0]:.1f}", *(f"{1e3 * value:.1f}" for value in medians[1:]), *(f"{ratio:.2f}" for ratio in ratios)]
        table.add_row(name, *shown)
    console().print(table)


if __name__ == "__main__":
    main()
