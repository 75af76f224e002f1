"""A folder of many JPEGs of 640 x 480: images a second, the memory that they take, and what a run does before its first step.

    python benchmarks/large_folder.py --images 600
    python benchmarks/large_folder.py --images 20000 --folder /tmp/jpegs

Images are resized to a shorter side of 160, cut to crops of 96 with a random scale, and mirrored: `TrainBatches` without a cache,
with `cache_dir`, in the second epoch and in a later run; and with `fast_decode`. The peer reads the same files by torchvision's
`ImageFolder` (Pillow), resizes and cuts them with albumentations by area averaging, and stacks them with torch's `DataLoader`.
One process loads all, and its processor time counts, so that other work on the machine hardly does. Rounds of equal length
alternate.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from common import console, end, environment, judge, per_round
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from img2img.data import build_data
from img2img.data.augment import Augment
from img2img.data.disk_cache import DiskCache
from img2img.data.loader import TrainBatches

SIDE, CROP, BATCH, ROUNDS = 160, 96, 16, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000, help="how many JPEGs; about 50 KB each")
    parser.add_argument("--folder", type=Path, help="where they are, or are rendered to and left; by default they are deleted")
    parser.add_argument("--short", action="store_true", help="320 images")
    options = parser.parse_args()
    options.images = 320 if options.short else options.images
    print(environment())
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch) / "jpegs" if options.folder is None else options.folder / "jpegs"
        render(folder, options.images)
        measure(folder, Path(scratch) / "cache", options.images)
    end()


def measure(folder: Path, cache: Path, images: int) -> None:
    batches = max(images // BATCH // ROUNDS, 1)
    began = time.process_time()
    stored = stream(folder, DiskCache(cache, 10**11))
    first = stored.batch(0)
    start = time.process_time() - began
    assert first.image.shape == (BATCH, 3, CROP, CROP)
    before = memory()
    sources: dict[str, Callable[[], Iterator[Any]]] = {
        PEER: lambda: peer(folder),
        "no cache": lambda: stream(folder, None).iterate(),
        "cache_dir, first epoch": lambda: stored.iterate(),
        "fast_decode, no cache": lambda: stream(folder, None, fast_decode=True).iterate(),
    }
    times = alternate(sources, batches)
    report(f"first epoch of {images} images", times)
    judge(f"time an image, no cache / {PEER}", per_round(times, "no cache", PEER), 1.0, known=2.0)
    judge(f"time an image, cache_dir, first epoch / {PEER}", per_round(times, "cache_dir, first epoch", PEER), 1.0, known=2.1)
    grown = memory() - before
    for _ in itertools.islice(stored.iterate(), images // BATCH + 1):
        pass  # the rest of the epoch
    before = memory()
    sources = {
        PEER: lambda: peer(folder),
        "cache_dir, second epoch": lambda: stored.iterate(images // BATCH + 1),
        "cache_dir, a later run": lambda: stream(folder, DiskCache(cache, 10**11)).iterate(),
    }
    times = alternate(sources, batches)
    report(f"second epoch of {images} images", times)
    judge(f"time an image, cache_dir, second epoch / {PEER}", per_round(times, "cache_dir, second epoch", PEER), 0.2)
    size = sum(path.stat().st_size for path in cache.rglob("*"))
    console().print(
        f"list, open and the first batch: {start:.2f} s; memory that is this process's own: {grown / 1e6:+.0f} MB in the first "
        f"epoch of all four, {(memory() - before) / 1e6:+.0f} MB in the second; cache: {size / images / 1e3:.0f} KB an image"
    )
    console().print(f"fast_decode: {difference(folder)}")


PEER = "torchvision + albumentations"


def stream(folder: Path, cache: DiskCache | None, **options: Any) -> TrainBatches:
    config = {"kind": "image_folder", "parts": {part: {"root": str(folder)} for part in ("train", "val", "test")}}
    parts = build_data(config | {"resize": SIDE} | options, cache=cache)
    if cache is None:
        parts.train._max_bytes = 0  # as of a set that is much larger than the memory
    return TrainBatches(parts.train, Augment(CROP), batch_size=BATCH, seed=0)


def peer(folder: Path) -> Iterator[torch.Tensor]:
    transform = A.Compose(
        [
            A.SmallestMaxSize(SIDE, interpolation=cv2.INTER_AREA),
            A.RandomSizedCrop((round(CROP / 1.25), round(CROP / 0.8)), (CROP, CROP)),
            A.HorizontalFlip(p=0.5),
            A.ToTensorV2(),
        ]
    )
    images = ImageFolder(str(folder), transform=lambda image: transform(image=np.asarray(image))["image"])
    return iter(DataLoader(images, batch_size=BATCH, shuffle=True, drop_last=True))


def alternate(sources: dict[str, Callable[[], Iterator[Any]]], batches: int) -> dict[str, list[float]]:
    """Processor seconds of every round of so many batches; the first batches, with what is made once, are in none."""
    running = {name: source() for name, source in sources.items()}
    for source in running.values():
        next(source)
    times: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(ROUNDS):
        for name, source in running.items():
            began, count = time.process_time(), 0
            while count < batches:
                for _ in itertools.islice(source, batches - count):
                    count += 1
                if count < batches:
                    source = running[name] = sources[name]()
            times[name].append(time.process_time() - began)
    return {name: [seconds / batches / BATCH for seconds in of_rounds] for name, of_rounds in times.items()}


def report(title: str, times: dict[str, list[float]]) -> None:
    table = Table(title=title)
    for column in ("", "images a second of a core", "ratio to the peer"):
        table.add_column(column, justify="left" if not column else "right")
    for name, seconds in times.items():
        ratio = statistics.median(b / a for a, b in zip(seconds, times[PEER], strict=True))
        table.add_row(name, f"{1 / statistics.median(seconds):.0f}", f"{ratio:.2f}")
    console().print(table)


def difference(folder: Path) -> str:
    """How far pixels by `fast_decode` are from the exact ones."""
    config = {"kind": "image_folder", "root": str(folder), "resize": SIDE}
    exact, fast = (build_data(config | {"fast_decode": on}).train for on in (False, True))
    found = [np.abs(exact[i].image.astype(int) - fast[i].image) for i in range(min(len(exact), 50))]
    return f"mean difference {np.mean([d.mean() for d in found]):.2f} of 255, largest {max(int(d.max()) for d in found)}"


def memory() -> int:
    """Bytes of memory that no file backs: what is mapped from the cache the system may take back at any time."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


def render(folder: Path, count: int) -> None:
    """JPEGs of noise at several scales, as photos have it, with disks; those that are there stay."""
    for index in range(count):
        path = folder / f"{index % 20:02}" / f"{index:06}.jpg"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(index)
        image = np.zeros((480, 640, 3), np.float32)
        for side, weight in ((4, 90), (12, 50), (40, 28), (130, 14), (320, 10)):
            noise = rng.random((side * 3 // 4, side, 3), dtype=np.float32)
            image += weight * cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
        for _ in range(12):
            middle, colour = rng.integers(0, 640, 2).tolist(), rng.integers(0, 256, 3).tolist()
            cv2.circle(image, middle, int(rng.integers(10, 90)), colour, -1, cv2.LINE_AA)
        cv2.imwrite(str(path), np.clip(image, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 92])


if __name__ == "__main__":
    main()
