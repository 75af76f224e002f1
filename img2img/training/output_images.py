"""Images of what a method makes of a few images: of a finished run, side by side with other methods', and in a training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

from img2img.data.base import Batch, ImageDataset
from img2img.data.split import limit
from img2img.errors import InputError
from img2img.files.atomic import write_atomic
from img2img.tasks.base import Task, pixels
from img2img.tasks.lettering import fit
from img2img.training.log import Callback, TrainingLog

if TYPE_CHECKING:  # reports read the images alone
    from img2img.inference.evaluator import Evaluator, Network
    from img2img.training.config import Experiment
    from img2img.training.strategy import TaskData

SIDE = 160
"""The longer side of a tile, in pixels: larger images are made smaller, far smaller ones larger by a whole factor."""
QUALITY = 90
KINDS = ("inputs", "outputs", "targets")
_TILES = b"tiles="

GAP = 4
"""White pixels between the images of a panel."""
PANEL_SIDE = 128
"""There images with a smaller shorter side are enlarged, by whole factors and without smoothing."""
OVERVIEW = 3
"""Rows of each task in the overview of a run."""
_ACROSS = 3
"""Tasks side by side there; further ones are below."""


class FinishedRun(Protocol):
    """What is shown of a run, as `SequenceRunner` has it."""

    experiment: "Experiment"
    folder: Path
    task_data: dict[str, "TaskData"]
    evaluator: "Evaluator"

    def run_of(self, name: str) -> "Network":
        """The network as one task sees it."""


def made_of(
    images: ImageDataset, task: Task, network: "Network", evaluator: "Evaluator"
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Input, output and target of each image of a set, each (1, 3, H, W) in [0, 1]."""
    for i in range(len(images)):
        example = task.example(Batch.stack([images[i]]).to(evaluator.device))
        prediction = evaluator.predict(network, task, example.input)
        yield example.input, task.to_image(prediction, example.input), task.reference(example)


# ---------------------------------------------------------------------- panels: a row a test image, with input, output and target


def save_panels(runner: FinishedRun) -> list[Path]:
    """Write `images/<task>.png` for every task of a run, rows of input, output, target of evenly spread test images, and
    `overview.png`, the first rows of all tasks.
    """
    paths, grids = [], {}
    for name, task_data in runner.task_data.items():
        shown = limit(task_data.parts.test, runner.experiment.evaluation.panels)
        rows = list(made_of(shown, task_data.task, runner.run_of(name), runner.evaluator))
        paths.append(save_image(runner.folder / "images" / f"{name}.png", grid(rows)))
        grids[name] = grid(rows[:OVERVIEW])
    return [*paths, save_image(runner.folder / "overview.png", overview(grids))]


def overview(grids: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
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


def grid(rows: Sequence[Sequence[Tensor]]) -> NDArray[np.uint8]:
    """Rows of images, each (1, 3, H, W) in [0, 1], on white: (H', W', 3) uint8."""
    lines = []
    for row in rows:
        factors = [max(1, round(PANEL_SIDE / min(p.shape[-2:]))) for p in row]
        enlarged = [F.interpolate(p, scale_factor=f, mode="nearest") if f > 1 else p for p, f in zip(row, factors, strict=True)]
        lines.append(torch.cat([F.pad(p, (0, GAP, 0, GAP), value=1.0) for p in enlarged], 3))
    width = max(line.shape[3] for line in lines)
    page = torch.cat([F.pad(line, (0, width - line.shape[3]), value=1.0) for line in lines], 2)
    return pixels(page[0])


def save_image(path: Path, image: NDArray[np.uint8]) -> Path:
    """Write (H, W, 3) uint8 as PNG, atomically."""
    return write_atomic(path, lambda p: Image.fromarray(image).save(p, format="PNG"))


# ---------------------------------------------------------------------- strips: tiles of one size


def save_outputs(runner: FinishedRun, folder: Path, count: int = 3) -> list[Path]:
    """Write `inputs/TASK.jpg`, `outputs/TASK.jpg` and `targets/TASK.jpg` for every task of a run.

    Each is one row of `count` test images, evenly spread as those of the run's own page, in tiles of one size.

    Args:
        runner: a finished run.
        folder: where the three folders go.
        count: how many images, at least 1.

    Raises:
        InputError: `count` is below 1.
    """
    paths = []
    for name, task_data in runner.task_data.items():
        shown = limit(task_data.parts.test, count)
        strips: dict[str, list[Image.Image]] = {kind: [] for kind in KINDS}
        for made in made_of(shown, task_data.task, runner.run_of(name), runner.evaluator):
            for kind, image in zip(KINDS, made, strict=True):
                strips[kind].append(_image(image))
        size = _tile_size(strips["inputs"])
        paths += [save_strip(Path(folder) / kind / f"{name}.jpg", strips[kind], size) for kind in KINDS]
    return paths


class Preview(Callback):
    """Writes what a training makes of a few validation images, after each validation: rows of inputs, outputs and targets.

    Args:
        path: of the JPEG.
        module: that is trained.
        task_data: whose images they are.
        evaluator: runs it.
        count: how many images.
    """

    def __init__(self, path: Path, module: nn.Module, task_data: "TaskData", evaluator: "Evaluator", count: int) -> None:
        self._path, self._module, self._task, self._evaluator = path, module, task_data.task, evaluator
        self._shown = limit(task_data.parts.val, count)

    def after_validation(self, step: int, log: TrainingLog) -> None:
        """Write the images."""
        self._module.eval()
        columns = [[_image(image) for image in made] for made in made_of(self._shown, self._task, self._module, self._evaluator)]
        self._module.train()
        inputs, outputs, targets = map(list, zip(*columns, strict=True))
        save_strip(self._path, [*inputs, *outputs, *targets], _tile_size(inputs), columns=len(columns))


def _image(image: Tensor) -> Image.Image:
    return Image.fromarray(pixels(image[0].detach().clamp(0, 1)))


def _tile_size(images: Sequence[Image.Image]) -> tuple[int, int]:
    """Width and height that hold every image at its scale."""
    sizes = [_scaled(image.size, (SIDE, SIDE)) for image in images]
    return max(width for width, _ in sizes), max(height for _, height in sizes)


def _scaled(size: tuple[int, int], room: tuple[int, int]) -> tuple[int, int]:
    factor = min(room[0] / size[0], room[1] / size[1])
    factor = float(max(1, int(factor))) if factor >= 1 else factor
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def save_strip(path: Path, images: Sequence[Image.Image], size: tuple[int, int], columns: int | None = None) -> Path:
    """Write images side by side as JPEG, each in the middle of a white tile of `size` (width, height).

    The number of tiles is in the file's comment, so that they can be told apart again. With `columns`, they are in rows.
    """
    columns = columns or len(images)
    strip = Image.new("RGB", (size[0] * columns, size[1] * -(-len(images) // columns)), "white")
    for i, image in enumerate(images):
        width, height = _scaled(image.size, size)
        enlarged = width >= image.width
        fitted = image.resize((width, height), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)
        left, top = i % columns * size[0], i // columns * size[1]
        strip.paste(fitted, (left + (size[0] - width) // 2, top + (size[1] - height) // 2))
    comment = _TILES + str(len(images)).encode()
    return write_atomic(path, lambda p: strip.save(p, format="JPEG", quality=QUALITY, comment=comment))


@dataclass(frozen=True)
class Strip:
    """Images of one size, RGB."""

    tiles: tuple[Image.Image, ...]


def read_strip(path: Path) -> Strip | None:
    """What `save_strip` wrote, taken apart; None if there is no such file.

    Raises:
        InputError: it is not a JPEG that can be decoded, or does not tell how many images it holds.
    """
    if not path.is_file():
        return None
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            comment = image.info.get("comment", b"")
            strip = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as JPEG ({error}): run it again, or delete the file to leave it out") from error
    count = comment.removeprefix(_TILES)
    if not count.isdigit() or int(count) < 1 or strip.width % int(count):
        raise InputError(
            f"{path} does not tell how many images it holds (comment {comment!r:.40}): expected a row of images as "
            "save_outputs writes it; run the experiment again, or delete it to leave it out"
        )
    width = strip.width // int(count)
    return Strip(tuple(strip.crop((i * width, 0, (i + 1) * width, strip.height)) for i in range(int(count))))
