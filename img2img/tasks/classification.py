"""Classification: a picture in, one class for the whole of it out."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from img2img.data.base import Batch, PictureSet
from img2img.errors import InputError
from img2img.metrics.accuracy import AccuracyMetrics
from img2img.tasks.base import Metrics, Task, combine, need, pixels, unit

SHOWN = 128
"""Pictures with a shorter side than this are enlarged, by whole factors, before a class name is written on them."""
STRIP = 18
"""Height in pixels of the strip with the name; a twentieth of large pictures."""


class Classification(Task):
    """Cross entropy; the share of pictures whose class is found decides.

    Args:
        classes: the class names by index.
        square: pictures were made squares, whatever their proportions (the option `square` of the data, from which it comes).
    """

    kind: ClassVar[str] = "classification"
    metric: ClassVar[str] = "top-1"
    higher_is_better: ClassVar[bool] = True
    trivial_name: ClassVar[str] = "most frequent class"
    has_classes: ClassVar[bool] = True
    whole_picture: ClassVar[bool] = True
    has_square: ClassVar[bool] = True
    forms: ClassVar[tuple[str, ...]] = ("picture", "scores")

    def __init__(self, *, classes: Sequence[str], square: bool = False) -> None:
        if len(classes) < 2:
            raise InputError(
                f"classification needs two classes or more, got {list(classes)}: add a folder of pictures for each further "
                "class, or name them in the data config"
            )
        self.classes = tuple(classes)
        self.square = square
        self.out_channels = len(self.classes)
        self.frequency = torch.full((self.out_channels,), 1 / self.out_channels, dtype=torch.float32)

    def fit(self, pictures: PictureSet) -> None:
        """Find how frequent each class is in the training set."""
        categories = need(pictures.categories, "a category", self.kind)
        counts = np.bincount(categories[categories >= 0], minlength=self.out_channels)[: self.out_channels]
        self.frequency = torch.from_numpy(counts / max(1, counts.sum())).float()

    def input(self, batch: Batch) -> Tensor:
        """The picture."""
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
        """(N, classes) scores, highest for the class that is predicted: the raw output, of which other figures need all."""
        return raw.float()

    def loss(self, raw: Tensor, example: Any) -> Tensor:
        """Mean cross entropy."""
        return F.cross_entropy(raw.float(), example.target)

    def distillation(self, raw: Tensor, target: Tensor, *, temperature: float) -> Tensor:
        """The cross entropy of class probabilities softened by T (Li and Hoiem 2016, equations 2 to 4)."""
        soft = F.softmax(target.float() / temperature, dim=1)
        return F.cross_entropy(raw.float() / temperature, soft)

    def metrics(self) -> Metrics:
        """Top-1, top-5 where there are more than five classes, and the accuracy of each class."""
        return combine(classification=AccuracyMetrics(self.classes))

    def trivial(self, example: Any) -> Tensor:
        """The classes' frequencies in the training set, for every picture."""
        return self.frequency.to(example.input.device).expand(len(example.input), -1)

    def picture(self, prediction: Tensor, input: Tensor) -> Tensor:
        """The picture, of `SHOWN` pixels at least, with the class's name under it."""
        index = prediction if prediction.ndim == 1 else prediction.argmax(1)
        factor = max(1, round(SHOWN / min(input.shape[-2:])))
        enlarged = F.interpolate(input.float().expand(-1, 3, -1, -1), scale_factor=factor, mode="nearest")
        named = [_named(pixels(p), self.classes[int(i)]) for p, i in zip(enlarged, index, strict=True)]
        return torch.stack(named).to(input.device)

    def show(self, prediction: Tensor, input: Tensor, form: str) -> Tensor:
        """The picture with the name of its class, or the probability of each class, (N, classes)."""
        return prediction.softmax(1) if form == "scores" else self.picture(prediction, input)

    def options(self) -> dict[str, Any]:
        """The kind and the classes, and `square` where it is true."""
        return {"kind": self.kind, "classes": list(self.classes), **({"square": True} if self.square else {})}


def _named(picture: Any, name: str) -> Tensor:
    """A picture (H, W, 3) uint8 whose lowest rows are a white strip with `name`, as (3, H, W) in [0, 1]."""
    page = Image.fromarray(picture)
    draw = ImageDraw.Draw(page)
    strip = max(STRIP, page.height // 20)
    top = page.height - strip
    draw.rectangle((0, top, page.width, page.height), fill="white")
    draw.text((3, top + strip // 9), name, fill="black", font=ImageFont.load_default(strip * 2 // 3))
    return torch.from_numpy(np.array(page)).permute(2, 0, 1).float().div_(255)
