"""Made images to classify: striped patterns, drawn in memory in milliseconds, so that every pipeline runs without data."""

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from img2img.data.arrays import ArrayDataset
from img2img.data.base import DATA, PARTS, by_part
from img2img.errors import InputError

WAVES = 3
"""Gratings of which a pattern is the sum."""


class Patterns(ArrayDataset):
    """Task number n of a family without end: each class is a sum of coloured gratings of its own directions and widths.

    An image of a class has random phases, directions a few degrees off, a brightness of its own and noise, so no two are alike
    and the mean image of a class is grey.

    Args:
        part: "train", "val" or "test"; parts of one number share classes and no image.
        number: which task.
        classes: how many classes.
        size: side in pixels.
        count: images of this part.
        seed: of everything.

    Raises:
        InputError: an option is out of range.
    """

    def __init__(self, part: str, *, count: int, number: int = 1, classes: int = 5, size: int = 32, seed: int = 0) -> None:
        if part not in PARTS or min(count, number, size) < 1 or classes < 2:
            raise InputError(
                f"patterns part={part!r}, count={count}, number={number}, classes={classes}, size={size}: expected one of "
                f"{', '.join(PARTS)}, two classes or more, and 1 or more of the others"
            )
        looks = _looks(np.random.default_rng((seed, number)), classes)
        rng = np.random.default_rng((seed, number, zlib.crc32(part.encode())))
        categories = np.arange(count, dtype=np.int64) % classes
        images = _draw(rng, looks, categories, size)
        super().__init__(
            images, categories, classes=[f"pattern {i + 1}" for i in range(classes)], name=f"patterns-{number}-{part}"
        )


def _looks(rng: np.random.Generator, classes: int) -> dict[str, NDArray[np.float64]]:
    """Of each class and grating: direction, periods across the image, colour."""
    return {
        "angle": rng.uniform(0, np.pi, (classes, WAVES)),
        "periods": rng.uniform(1.5, 6, (classes, WAVES)),
        "colour": rng.uniform(-1, 1, (classes, WAVES, 3)),
    }


def _draw(
    rng: np.random.Generator, looks: dict[str, NDArray[np.float64]], categories: NDArray[np.int64], size: int
) -> NDArray[np.uint8]:
    """(N, size, size, 3) uint8."""
    count = len(categories)
    angle = looks["angle"][categories] + rng.normal(0, 0.1, (count, WAVES))
    phase = rng.uniform(0, 2 * np.pi, (count, WAVES))
    y, x = np.mgrid[:size, :size] / size
    across = np.cos(angle)[..., None, None] * x + np.sin(angle)[..., None, None] * y
    waves = np.sin(2 * np.pi * looks["periods"][categories][..., None, None] * across + phase[..., None, None])
    image = 0.5 + 0.22 * np.einsum("nwyx,nwc->nyxc", waves, looks["colour"][categories])
    image += rng.uniform(-0.1, 0.1, (count, 1, 1, 1)) + rng.normal(0, 0.08, image.shape)
    done: NDArray[np.uint8] = (image.clip(0, 1) * 255).astype(np.uint8)
    return done


@DATA.register("patterns")
@by_part
def _patterns(
    part: str, *, count: Mapping[str, int], number: int = 1, classes: int = 5, size: int = 32, seed: int = 0
) -> Patterns:
    return Patterns(part, count=count[part], number=number, classes=classes, size=size, seed=seed)
