"""Batches of small images with CIFAR's augmentation: whole batches at once against one image at a time.

    python benchmarks/small_images.py --rounds 15

A round is ten batches of 128 images of 32 px with a border of 4, cut and mirrored. The peer is torchvision's RandomCrop and
RandomHorizontalFlip on each image, collated by torch's default.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from common import alternate, end, environment, judge, per_round, report
from torch.utils.data import default_collate
from torchvision.transforms import v2

from img2img.data.arrays import ArrayDataset
from img2img.data.loader import TrainBatches
from img2img.data.pad_crop import PadCrop

BATCHES, SIZE = 10, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--short", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    options.rounds = 7 if options.short else options.rounds
    print(environment())
    rng = np.random.default_rng(0)
    images, categories = rng.integers(0, 256, (2500, 32, 32, 3), dtype=np.uint8), rng.integers(0, 5, 2500)
    source = ArrayDataset(images, categories, classes=list("abcde"), name="random")
    whole = TrainBatches(source, PadCrop(32, pad=4), batch_size=SIZE, seed=0)
    singly = TrainBatches(_Samples(source), PadCrop(32, pad=4), batch_size=SIZE, seed=0)
    transform = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2)

    def peer() -> None:
        for step in range(BATCHES):
            rows = range(step * SIZE, (step + 1) * SIZE)
            default_collate([(transform(tensors[row]), int(categories[row])) for row in rows])

    runs: dict[str, Callable[[], object]] = {
        "torchvision, one image at a time": peer,
        "PadCrop, one image at a time": lambda: [singly.batch(step) for step in range(BATCHES)],
        "PadCrop, whole batches": lambda: [whole.batch(step) for step in range(BATCHES)],
    }
    peer_name, _, whole_batches = runs
    times = alternate(runs, rounds=options.rounds)
    report(f"{BATCHES} batches of {SIZE}", times, peers=[peer_name])
    judge(f"{whole_batches} / {peer_name}", per_round(times, whole_batches, peer_name), 1.0)
    end()


class _Samples(ArrayDataset):
    """The same images, as a set whose images are not in memory."""

    def __init__(self, source: ArrayDataset) -> None:
        images, categories = source.arrays()
        super().__init__(images, categories, classes=source.classes, name="singly")

    def arrays(self) -> None:  # type: ignore[override]
        return None


if __name__ == "__main__":
    main()
