"""Small images of what a method makes of a few images: side by side with other methods', and in the middle of a training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from img2img.data.base import Batch
from img2img.data.split import limit
from img2img.errors import InputError
from img2img.files.atomic import write_atomic
from img2img.tasks.base import pixels
from img2img.training.log import Callback, TrainingLog

SIDE = 160
"""The longer side of a tile, in pixels: larger images are made smaller, far smaller ones larger by a whole factor."""
QUALITY = 90
KINDS = ("inputs", "outputs", "targets")
_TILES = b"tiles="


def save_outputs(runner: Any, folder: Path, count: int = 3) -> list[Path]:
    """Write `inputs/TASK.jpg`, `outputs/TASK.jpg` and `targets/TASK.jpg` for every task of a run.

    Each is one row of `count` test images, evenly spread as those of the run's own page, in tiles of one size.

    Args:
        runner: a finished run: `task_data[name]` (with `task` and `parts`), `run_of(name)` and
            `evaluator`, as `SequenceRunner` has.
        folder: where the three folders go.
        count: how many images, at least 1.

    Raises:
        InputError: `count` is below 1.
    """
    paths = []
    for name, task_data in runner.task_data.items():
        shown = limit(task_data.parts.test, count)
        strips: dict[str, list[Image.Image]] = {kind: [] for kind in KINDS}
        for i in range(len(shown)):
            example = task_data.task.example(Batch.stack([shown[i]]).to(runner.evaluator.device))
            prediction = runner.evaluator.predict(runner.run_of(name), task_data.task, example.input)
            made = (example.input, task_data.task.to_image(prediction, example.input), task_data.task.reference(example))
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

    def __init__(self, path: Path, module: nn.Module, task_data: Any, evaluator: Any, count: int) -> None:
        self._path, self._module, self._task, self._evaluator = path, module, task_data.task, evaluator
        self._shown = limit(task_data.parts.val, count)

    def after_validation(self, step: int, log: TrainingLog) -> None:
        """Write the images."""
        self._module.eval()
        rows: list[list[Image.Image]] = [[], [], []]
        for i in range(len(self._shown)):
            example = self._task.example(Batch.stack([self._shown[i]]).to(self._evaluator.device))
            prediction = self._evaluator.predict(self._module, self._task, example.input)
            made = (example.input, self._task.to_image(prediction, example.input), self._task.reference(example))
            for row, image in zip(rows, made, strict=True):
                row.append(_image(image))
        self._module.train()
        save_strip(self._path, [image for row in rows for image in row], _tile_size(rows[0]), columns=len(self._shown))


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
