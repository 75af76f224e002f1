"""Rendered segmentation sets with exact labels, as many images as one asks for, the same on every machine."""

import functools
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from img2img.data.base import DATA, PARTS, ImageDataset, Sample, by_part, check_part
from img2img.data.synthetic import landscape, shapes
from img2img.data.synthetic.renderer import PhotoTextures
from img2img.errors import InputError

_Render = Callable[[np.random.Generator, int, PhotoTextures], tuple[NDArray[np.uint8], NDArray[np.uint8]]]
_KINDS: dict[str, tuple[_Render, tuple[str, ...]]] = {
    "shapes": (shapes.render, shapes.CLASSES),
    "landscape": (landscape.render, landscape.CLASSES),
    "summer": (functools.partial(landscape.render, daylight=True), landscape.CLASSES),
}


class Scenes(ImageDataset):
    """`count` rendered scenes; item i depends on nothing but (kind, part, size, seed, i).

    "shapes" are geometric figures on photographs, "landscape" sky, land, water, roads, houses and trees, and "summer" the
    same always on a clear day, so that colours follow from what is shown. All photos and
    textures are regions of the embedded samples that belong to the same part (`sample_photos.region_box`), so a test
    scene shows no pixel that a training scene could show. Labels are exact and without `VOID`: the class that covers
    at least half of the pixel, the nearest thing first.

    Each access renders (a few milliseconds); wrap it in `CachedDataset` to do so once.

    Args:
        kind: "shapes", "landscape" or "summer".
        part: "train", "val" or "test": different scenes on different backgrounds.
        count: number of scenes; the first ones stay the same when it grows.
        size: side in pixels, 32 or more.
        seed: another seed, other scenes.

    Raises:
        InputError: an option is out of range.
    """

    def __init__(self, kind: str, part: str, *, count: int, size: int = 96, seed: int = 0) -> None:
        if kind not in _KINDS:
            raise InputError(f"kind={kind!r}: expected one of {', '.join(_KINDS)}; correct the data configuration")
        check_part(part)
        if count < 1 or size < 32 or seed < 0:
            raise InputError(
                f"count={count}, size={size}, seed={seed}: expected 1 scene or more of 32 pixels or more and a seed of "
                "0 or more; give for instance count=1000, size=96, seed=0"
            )
        self._render, self.classes = _KINDS[kind]
        self.name = f"{kind}[{part}]"
        self._count, self._size = count, size
        self._stream = (seed, list(_KINDS).index(kind), PARTS.index(part))
        self._stock = PhotoTextures(part, size)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._count:
            raise IndexError(f"{self.name} has scenes 0 to {self._count - 1}, not {index}")
        image, label = self._render(np.random.default_rng((*self._stream, index)), self._size, self._stock)
        return Sample(image, label, name=f"{self.name} {index}")


@DATA.register("scenes")
@by_part
def _scenes(part: str, *, scenes: str, size: int, count: Mapping[str, int], seed: int = 0) -> Scenes:
    return Scenes(scenes, part, count=count[part], size=size, seed=seed)
