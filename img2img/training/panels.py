"""Images of what each task does: a row a test image, with input, output and target."""

from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from img2img.data.base import Batch
from img2img.data.split import limit
from img2img.files.atomic import write_atomic
from img2img.tasks.base import pixels
from img2img.tasks.lettering import fit
from img2img.training.sequence import SequenceRunner

GAP = 4
"""White pixels between images."""
OVERVIEW = 3
"""Rows of each task in the overview of a run."""
_ACROSS = 3
"""Tasks side by side there; further ones are below."""
SIDE = 128
"""Images with a smaller shorter side are enlarged, by whole factors and without smoothing."""


def save_panels(runner: SequenceRunner) -> list[Path]:
    """Write `images/<task>.png` for every task of a run, rows of input, output, target of evenly spread test images, and
    `overview.png`, the first rows of all tasks.
    """
    paths, grids = [], {}
    for name, task_data in runner.task_data.items():
        rows = []
        shown = limit(task_data.parts.test, runner.experiment.evaluation.panels)
        for i in range(len(shown)):
            example = task_data.task.example(Batch.stack([shown[i]]).to(runner.evaluator.device))
            prediction = runner.evaluator.predict(runner.run_of(name), task_data.task, example.input)
            output = task_data.task.to_image(prediction, example.input)
            rows.append([example.input, output, task_data.task.reference(example)])
        paths.append(save_image(runner.folder / "images" / f"{name}.png", grid(rows)))
        grids[name] = grid(rows[:OVERVIEW])
    return [*paths, save_image(runner.folder / "overview.png", overview(grids))]


def overview(grids: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Grids under their tasks' names, three side by side, on white: (H, W, 3) uint8."""
    title, gap = 28, 6 * GAP
    bands = [list(grids.items())[i : i + _ACROSS] for i in range(0, len(grids), _ACROSS)]
    sizes = [[panel.shape[1] for _, panel in band] for band in bands]
    widths = [max(column) for column in zip_longest(*sizes, fillvalue=0)]
    heights = [title + max(panel.shape[0] for _, panel in band) for band in bands]
    page = Image.new("RGB", (sum(widths) + gap * (len(widths) - 1), sum(heights) + gap * (len(bands) - 1)), "white")
    draw, top = ImageDraw.Draw(page), 0
    for band, height in zip(bands, heights, strict=True):
        left = 0
        for (name, panel), width in zip(band, widths, strict=False):
            fitted = fit(name, 18, panel.shape[1], title)
            draw.text((left, top + 4), fitted.lines[0], fill="black", font=fitted.font)
            page.paste(Image.fromarray(panel), (left, top + title))
            left += width + gap
        top += height + gap
    return np.asarray(page)


def grid(rows: list[list[Tensor]]) -> NDArray[np.uint8]:
    """Rows of images, each (1, 3, H, W) in [0, 1], on white: (H', W', 3) uint8."""
    lines = []
    for row in rows:
        factors = [max(1, round(SIDE / min(p.shape[-2:]))) for p in row]
        enlarged = [F.interpolate(p, scale_factor=f, mode="nearest") if f > 1 else p for p, f in zip(row, factors, strict=True)]
        lines.append(torch.cat([F.pad(p, (0, GAP, 0, GAP), value=1.0) for p in enlarged], 3))
    width = max(line.shape[3] for line in lines)
    page = torch.cat([F.pad(line, (0, width - line.shape[3]), value=1.0) for line in lines], 2)
    return pixels(page[0])


def save_image(path: Path, image: NDArray[np.uint8]) -> Path:
    """Write (H, W, 3) uint8 as PNG, atomically."""
    return write_atomic(path, lambda p: Image.fromarray(image).save(p, format="PNG"))
