"""Using a bundle: `img2img.load("runs/demo").run("colour", "photo.jpg")`."""

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from img2img.bundle import load_bundle
from img2img.data.base import Batch, Sample
from img2img.data.decode import read_picture
from img2img.errors import InputError
from img2img.tasks import build_task
from img2img.tasks.base import pixels
from img2img.training.evaluate import Evaluator


class Model:
    """A bundle ready to run.

    Attributes:
        network: the `MaskedNetwork` with every task loaded.
    """

    def __init__(self, folder: str | os.PathLike[str], *, device: str = "cpu") -> None:
        self.network, backbone = load_bundle(folder)
        self.network.to(device)
        self._evaluator = Evaluator(stride=backbone.stride, min_size=backbone.min_size, device=torch.device(device))
        self._tasks = {name: build_task(self.network.state(name).info.get("task", {})) for name in self.network.tasks()}

    def tasks(self) -> dict[str, str]:
        """The kind of each task, by name."""
        return {name: task.kind for name, task in self._tasks.items()}

    def predict(self, task: str, picture: NDArray[np.uint8]) -> torch.Tensor:
        """The task's prediction for one (H, W, 3) uint8 RGB picture, in the task's own form, without the batch dimension."""
        return self._predict(task, picture)[1][0]

    def run(self, task: str, picture: str | os.PathLike[str] | NDArray[np.uint8]) -> Image.Image:
        """The task's result as a picture of the input's size.

        Args:
            task: one of `tasks()`.
            picture: a file, or (H, W, 3) uint8 RGB.

        Raises:
            InputError: no such task, or the file is no picture.
        """
        image = picture if isinstance(picture, np.ndarray) else read_picture(picture)
        input, prediction = self._predict(task, image)
        return Image.fromarray(pixels(self._tasks[task].picture(prediction, input)[0]))

    def _predict(self, name: str, image: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        if name not in self._tasks:
            raise InputError(f"no task {name!r} in this bundle; it has {', '.join(self._tasks)}")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"got a picture of {image.shape} {image.dtype}: expected (H, W, 3) uint8 RGB")
        task = self._tasks[name]
        input = task.input(Batch.stack([Sample(image)]).to(self._evaluator.device))
        return input, self._evaluator.predict(lambda x: self.network(x, task=name), task, input)


def load(folder: str | os.PathLike[str], *, device: str = "cpu") -> Model:
    """Open a bundle, or the `bundle` folder of a run.

    Raises:
        InputError: nothing there, or a file is damaged; see `bundle.load_bundle`.
    """
    folder = Path(folder)
    inner = folder / "bundle"
    return Model(inner if (inner / "bundle.json").is_file() else folder, device=device)
