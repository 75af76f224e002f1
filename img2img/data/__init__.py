"""Datasets of pictures: one file a format, the embedded samples, caching, augmentation and loading."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from img2img.data.base import PARTS, VOID, Batch, PictureSet, Sample
from img2img.data.cache import Cached
from img2img.errors import InputError
from img2img.options import call_with

__all__ = ["VOID", "Batch", "Parts", "PictureSet", "Sample", "build_data"]


@dataclass(frozen=True)
class Parts:
    """The three parts of a dataset: to train on, to choose the model by, to report on."""

    train: Cached
    val: Cached
    test: Cached

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names of the training part."""
        return self.train.classes


def _scenes(part: str, *, scenes: str, size: int, count: Mapping[str, int], seed: int = 0) -> PictureSet:
    from img2img.data.scenes import Scenes

    return Scenes(scenes, part, count=count[part], size=size, seed=seed)


def _samples(part: str, *, short_side: int = 160, tile: int = 64) -> PictureSet:
    from img2img.data.samples import SamplePhotos

    return SamplePhotos(part, short_side=short_side, tile=None if part == "train" else tile)


def _whole(kind: str) -> Callable[..., PictureSet]:
    from img2img.data import coco, folder, pairs, voc

    return {
        "coco": coco.CocoSegmentation,
        "voc": voc.VocSegmentation,
        "image_folder": folder.ImageFolder,
        "image_label_folder": folder.ImageLabelFolder,
        "pairs": pairs.PairFolder,
    }[kind]


_RENDERED: dict[str, Callable[..., PictureSet]] = {"scenes": _scenes, "samples": _samples}
_STORED = ("coco", "voc", "image_folder", "image_label_folder", "pairs")


def build_data(config: Mapping[str, Any]) -> Parts:
    """The parts of the dataset that a config describes, cached in memory as they are first read.

    Args:
        config: `kind` (scenes, samples, coco, voc, image_folder, image_label_folder, pairs) and the options of that kind.
            Of stored kinds, `parts` may give options of their own to `train`, `val` and `test` (other folders, other
            lists); without it one set is split by `fractions`. `resize` brings the shorter side of every picture to that
            many pixels, once. `limit` caps the number of pictures of a part.

    Raises:
        InputError: an unknown kind or option, or data that is missing or unusable.
    """
    from img2img.data.split import limit as limited
    from img2img.data.split import take

    options = dict(config)
    kind = options.pop("kind", None)
    if kind not in (*_RENDERED, *_STORED):
        raise InputError(f"data kind {kind!r} is unknown; known: {', '.join((*_RENDERED, *_STORED))}")
    resize, limits = options.pop("resize", None), options.pop("limit", None) or {}
    what = f"data {kind!r}"

    def part_of(part: str) -> Cached:
        if kind in _RENDERED:
            pictures: PictureSet = call_with(_RENDERED[kind], options | {"part": part}, what=what)
        elif "parts" in options:
            if set(options["parts"]) != set(PARTS):
                raise InputError(f"{what}: parts must be {', '.join(PARTS)}, got {', '.join(options['parts'])}")
            own = {k: v for k, v in options.items() if k != "parts"} | dict(options["parts"][part])
            pictures = call_with(_whole(kind), own, what=what)
        else:
            own = {k: v for k, v in options.items() if k != "fractions"}
            fractions: Sequence[float] = options.get("fractions", (0.8, 0.1, 0.1))
            pictures = take(call_with(_whole(kind), own, what=what), part, fractions=fractions)  # type: ignore[arg-type]
        if part in limits:
            pictures = limited(pictures, limits[part])
        return Cached(pictures, short_side=resize)

    return Parts(*(part_of(part) for part in PARTS))
