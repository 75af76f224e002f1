"""Does a written file compute what the network computes?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from img2img.errors import InputError, first_line
from img2img.export.graph import TaskGraph, served_input

TOLERANCE = 1e-4
"""Largest difference allowed, as a share of the largest value (of 1, for smaller ones). Two runtimes add a layer's products in
different orders, each rounded to 24 bits: 1e-6 to 1e-5 is what this comes to. A step of an 8-bit image is 4e-3."""

TORCHS_TOLERANCE = 2e-6
"""The same for a file that torch itself runs, by the very operations of the network."""


@dataclass(frozen=True)
class Agreement:
    """How near a file's outputs are to the network's.

    Attributes:
        difference: the largest, as a share of the largest value of that batch's output, at least 1; of labels, that of the
            scores of the two classes where the file chose another, and 0 where it chose none.
        labels: the share of labels that differ; None for other outputs.
        batches: how many were compared.
    """

    difference: float
    labels: float | None
    batches: int


@torch.no_grad()
def check_agreement(
    run: Callable[[Tensor], Tensor],
    graph: TaskGraph,
    shapes: Sequence[tuple[int, int, int]],
    *,
    what: str,
    by_torch: bool = False,
) -> Agreement:
    """Compare `run` with `graph` on 8-bit images made up for it.

    Args:
        run: the file: (N, 3, H, W) float in [0, 1] to its output.
        graph: what it was made from.
        shapes: (N, H, W) of the batches.
        what: names the file in the error.
        by_torch: torch runs it, so that hardly anything may differ.

    Raises:
        InputError: it fails on a batch, gives another form, or differs by more than `TOLERANCE` or `TORCHS_TOLERANCE`.
    """
    worst, wrong, total = 0.0, 0, 0
    for i, (count, height, width) in enumerate(shapes):
        images = _test_images(count, height, width, seed=i)
        expected = graph(images)
        try:
            got = run(images)
        except Exception as error:  # each runtime has its own
            raise InputError(
                f"{what} does not run on {count} images of {height} x {width} ({first_line(error)}): expected it to; "
                "it was not kept. Give the images' size (size=(height, width)), or choose another format"
            ) from error
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise InputError(
                f"{what} gives {tuple(got.shape)} {got.dtype} for {count} images of {height} x {width}: expected "
                f"{tuple(expected.shape)} {expected.dtype}; it was not kept. Choose another format"
            )
        if expected.is_floating_point():
            difference = (got - expected).abs().max() / expected.abs().max().clamp(min=1)
        else:
            raw = graph.network(served_input(graph.task, images))
            gap = raw.gather(1, expected[:, None]) - raw.gather(1, got[:, None])
            difference = gap.abs().max() / raw.abs().max().clamp(min=1)
            wrong += int((got != expected).sum())
            total += got.numel()
        worst = max(worst, difference.item() if difference.isfinite() else float("inf"))
    most = min(TOLERANCE, TORCHS_TOLERANCE) if by_torch else TOLERANCE
    if worst > most:
        raise InputError(
            f"{what} differs from the network by {worst:.2g} of its largest output: expected at most {most:g}; it was not "
            "kept. Choose another format, and please report the network"
        )
    return Agreement(worst, wrong / total if total else None, len(shapes))


def _test_images(count: int, height: int, width: int, *, seed: int) -> Tensor:
    """Smooth patches with noise, (count, 3, height, width) of k / 255."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 3, 3, generator=generator, dtype=torch.float32)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    noise = torch.rand(count, 3, height, width, generator=generator, dtype=torch.float32)
    return (0.8 * smooth + 0.2 * noise).mul(255).round().div(255)
