"""Classification: an image in, one class for the whole of it out."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from img2img import metrics as measures
from img2img.data.base import Batch, ImageDataset
from img2img.errors import InputError
from img2img.tasks.base import TASKS, Metrics, Task, combine, need, pixels, unit
from img2img.tasks.lettering import fit

SHOWN = 128
"""Images with a shorter side than this are enlarged, by whole factors, before a class name is written on them."""
MOST_SHOWN = 1 << 24
"""Pixels to which an image is enlarged at most, for the same reason."""
STRIP = 18
"""Height in pixels of the strip with the name, a twentieth of large images; long names take more lines, up to a third."""


@TASKS.register("classification")
class Classification(Task):
    """Cross entropy. The primary metric is the share of images whose class is found.

    Args:
        classes: the class names by index.
        square: images were made squares, whatever their proportions (the option `square` of the data, from which it comes).
        label_smoothing: of training alone: the target is so much of the uniform distribution and the rest of the class
            (Szegedy et al. 2016, section 7; `torch.nn.CrossEntropyLoss`).
    """

    metric: str = "top-1"
    higher_is_better: bool = True
    baseline_name: ClassVar[str] = "most frequent class"
    has_classes: ClassVar[bool] = True
    image_level: ClassVar[bool] = True
    in_parts: ClassVar[bool] = True
    keeps_transparency: ClassVar[bool] = False
    has_square: ClassVar[bool] = True
    forms: ClassVar[tuple[str, ...]] = ("image", "scores")

    def __init__(self, *, classes: Sequence[str], square: bool = False, label_smoothing: float = 0.0) -> None:
        if len(classes) < 2:
            raise InputError(
                f"classification needs two classes or more, got {list(classes)}: add a folder of images for each further "
                "class, or name them in the data config"
            )
        if not 0 <= label_smoothing < 1:
            raise InputError(
                f"classification got label_smoothing={label_smoothing}: expected 0, for none, to below 1, such as 0.1"
            )
        self.label_smoothing = label_smoothing
        self.classes = tuple(classes)
        self.square = square
        self.out_channels = len(self.classes)
        self.frequency = torch.full((self.out_channels,), 1 / self.out_channels, dtype=torch.float32)

    def fit(self, images: ImageDataset) -> None:
        """Find how frequent each class is in the training set."""
        categories = need(images.categories, "a category", self.kind)
        counts = np.bincount(categories[categories >= 0], minlength=self.out_channels)[: self.out_channels]
        self.frequency = torch.from_numpy(counts / max(1, counts.sum())).float()

    def input(self, batch: Batch) -> Tensor:
        """The image."""
        return unit(batch.image)

    def target(self, batch: Batch) -> Tensor:
        """(N,) int64 class indices.

        Raises:
            InputError: no categories, or one that is no class.
        """
        category = need(batch.category, "a category", self.kind)
        wrong = (category < 0) | (category >= self.out_channels)
        if wrong.any():
            raise InputError(
                f"categories {category[wrong].unique().tolist()[:10]}: expected 0..{self.out_channels - 1} ({self.out_channels} "
                "classes); correct the classes of the data config"
            )
        return category

    def prediction(self, raw: Tensor, input: Tensor) -> Tensor:
        """(N, classes) scores, highest for the class that is predicted: the raw output, of which other metrics need all."""
        return raw.float()

    def loss(self, raw: Tensor, example: Any) -> Tensor:
        """Mean cross entropy, with the targets smoothed by `label_smoothing`."""
        return F.cross_entropy(raw.float(), example.target, label_smoothing=self.label_smoothing)

    def distillation(self, raw: Tensor, target: Tensor, *, temperature: float) -> Tensor:
        """The cross entropy of class probabilities softened by T (Li and Hoiem 2016, equations 2 to 4)."""
        soft = F.softmax(target.float() / temperature, dim=1)
        return F.cross_entropy(raw.float() / temperature, soft)

    def metrics(self) -> Metrics:
        """Top-1, top-5 where there are more than five classes, and the accuracy of each class."""
        return combine(classification=measures.AccuracyMetrics(self.classes))

    def baseline(self, example: Any) -> Tensor:
        """The classes' frequencies in the training set, for every image."""
        return self.frequency.to(example.input.device).expand(len(example.input), -1)

    def to_image(self, prediction: Tensor, input: Tensor) -> Tensor:
        """The image, of `SHOWN` pixels at least, with the class's name under it."""
        return self.show_rows(prediction, input, self.forms[0], first=0, height=input.shape[-2])

    def show(self, prediction: Tensor, input: Tensor, form: str) -> Tensor:
        """The image with the name of its class, or the probability of each class, (N, classes)."""
        return prediction.softmax(1) if form == "scores" else self.to_image(prediction, input)

    def show_rows(self, prediction: Tensor, input: Tensor, form: str, *, first: int, height: int) -> Tensor:
        """Rows of the image with the name of its class under it, enlarged as it is."""
        index = prediction if prediction.ndim == 1 else prediction.argmax(1)
        rows, width = input.shape[-2:]
        factor = _factor(height, width)
        shown = torch.empty(len(input), 3, factor * rows, factor * width, dtype=torch.float32, device=input.device)
        for i, (image, number) in enumerate(zip(input, index.tolist(), strict=True)):
            array = pixels(image.float().expand(3, -1, -1)).repeat(factor, axis=0).repeat(factor, axis=1)
            _write_name(array, self.classes[number], first=factor * first, height=factor * height)
            shown[i] = torch.from_numpy(array).permute(2, 0, 1)
        return shown.div_(255)

    def options(self) -> dict[str, Any]:
        """The kind and the classes, and `square` where it is true."""
        return {"kind": self.kind, "classes": list(self.classes), **({"square": True} if self.square else {})}


def _factor(height: int, width: int) -> int:
    """By how much an image is enlarged for a name to be read: not to more than `MOST_SHOWN` pixels."""
    return max(1, min(round(SHOWN / min(height, width)), math.isqrt(MOST_SHOWN // (height * width))))


def _write_name(rows: NDArray[np.uint8], name: str, *, first: int, height: int) -> None:
    """Write `name` on the white strip at the foot of an image, of which `rows` (N, W, 3) from `first` on are here."""
    width = rows.shape[1]
    strip = max(STRIP, height // 20)
    fitted = fit(name, strip * 2 // 3, width - 6, height // 3)
    strip = max(strip, len(fitted.lines) * fitted.step + 4)
    top = height - strip
    if first + len(rows) <= top:
        return
    page = Image.new("RGB", (width, strip), "white")
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(fitted.lines):
        draw.text((3, 2 + number * fitted.step), line, fill="black", font=fitted.font)
    begin = max(first, top)
    rows[begin - first :] = np.asarray(page)[begin - top : begin - top + first + len(rows) - begin]
