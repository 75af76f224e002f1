"""The photographs that scikit-image ships in its wheel, cut so that no pixel is both learned from and tested on.

Nothing is downloaded. Of every photo a vertical band on one edge, as wide as 0.4 of the shorter side, is kept from training:
0.6 of its height is for testing and 0.4 for validation. One photo is held out whole for testing. At the
default size the narrowest of these regions is 64 pixels wide.
"""

import functools
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from img2img.data.base import DATA, ImageDataset, Sample, by_part, check_part
from img2img.errors import InputError


class _Cut(NamedTuple):
    band: str  # "left" or "right": the edge that is kept from training
    test: str  # "top" or "bottom": the end of the band that is for testing; the other end is for validation


# The edges were chosen so that every region shows something and what it shows has a like in the rest of the photo.
_CUTS = {
    "astronaut": _Cut("left", "bottom"),
    "chelsea": _Cut("left", "top"),
    "motorcycle_left": _Cut("right", "bottom"),
    "rocket": _Cut("right", "bottom"),
    "retina": _Cut("right", "top"),
    "camera": _Cut("right", "bottom"),
    "brick": _Cut("right", "bottom"),
    "grass": _Cut("right", "bottom"),
    "gravel": _Cut("right", "bottom"),
}
_BAND = 0.4  # of the photo's shorter side
_TEST = 0.6  # of the band's height

HELD_OUT = ("coffee",)
"""Photos that are for testing as a whole; the others show colours like theirs.

motorcycle_right, the stereo twin of the left one, is in no part at all.
"""

COLOUR_PHOTOS = ("astronaut", "chelsea", "motorcycle_left", "rocket", "retina", *HELD_OUT)
"""What `SamplePhotos` is made of."""

STYLE_IMAGES = ("ihc", "hubble_deep_field")
"""Reserved as style images: a stained tissue and a field of galaxies; in no part of `SamplePhotos`."""


def _shipped(name: str) -> Path:
    try:
        folder = Path(str(resources.files("skimage"))) / "data"
    except ModuleNotFoundError as error:
        raise InputError(
            "the embedded samples are images that scikit-image ships, and it is not installed: pip install 'img2img[images]'"
        ) from error
    for suffix in (".png", ".jpg"):
        if (folder / (name + suffix)).is_file():
            return folder / (name + suffix)
    there = sorted(p.stem for p in folder.glob("*.[jp][pn]g"))
    raise InputError(f"scikit-image ships no image called {name!r}: expected one of {', '.join(there)}")


def style_image(name: str) -> Path:
    """The file of an image that scikit-image ships, to use as a style; `STYLE_IMAGES` are in no training set.

    Raises:
        InputError: scikit-image is not installed, or ships no image of this name.
    """
    return _shipped(name)


def region_box(name: str, part: str, *, height: int, width: int) -> tuple[int, int, int, int] | None:
    """Which pixels of a photo of `height` x `width` belong to `part`.

    Returns:
        (top, bottom, left, right), ends excluded, or None when the photo has nothing in this part. The boxes of the three
        parts are disjoint and cover the photo.
    """
    if name in HELD_OUT:
        return (0, height, 0, width) if part == "test" else None
    cut = _CUTS[name]
    band = round(_BAND * min(height, width))
    left = 0 if cut.band == "left" else width - band
    if part == "train":
        return (0, height, band, width) if cut.band == "left" else (0, height, 0, left)
    tested = round(_TEST * height)
    if part == "test":
        top, bottom = (0, tested) if cut.test == "top" else (height - tested, height)
    else:
        top, bottom = (tested, height) if cut.test == "top" else (0, height - tested)
    return top, bottom, left, left + band


@functools.lru_cache(maxsize=64)
def photo_region(name: str, part: str, short_side: int) -> NDArray[np.uint8] | None:
    """The region of a shipped photo that belongs to `part`, at the scale that gives the whole photo this shorter side.

    It is cut before it is resized (antialiased), so not even the filter mixes pixels of two parts.

    Returns:
        (H, W, 3) uint8 RGB, grey photos with three equal channels, read-only; or None when the photo has nothing in `part`.
    """
    with Image.open(_shipped(name)) as file:
        photo = file.convert("RGB")
    box = region_box(name, part, height=photo.height, width=photo.width)
    if box is None:
        return None
    top, bottom, left, right = box
    scale = short_side / min(photo.size)
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    region = np.array(photo.crop((left, top, right, bottom)).resize(size, Image.Resampling.LANCZOS))
    region.setflags(write=False)
    return region


class SamplePhotos(ImageDataset):
    """The colour photographs that scikit-image ships, as regions that no other part shows.

    Args:
        part: "train", "val" or "test" ("test" also has the photos of `HELD_OUT`, whole).
        short_side: shorter side in pixels that each WHOLE photo is resized to; its regions are smaller.
        tile: cut every region into squares of this side, from its top left corner, so that all samples have one size;
            remainders are dropped. None gives the regions as they are.

    Samples are named "astronaut[train]", tiles "astronaut[train]#0". They have no labels and no source.

    Raises:
        InputError: unknown part, or a tile that does not fit into a region.
    """

    def __init__(self, part: str, *, short_side: int = 160, tile: int | None = None) -> None:
        check_part(part)
        if short_side < 8 or (tile is not None and tile < 1):
            raise InputError(
                f"short_side={short_side}, tile={tile}: expected 8 pixels or more, and tiles of 1 or more or none; give for "
                "instance short_side=160, tile=64"
            )
        self.name = f"photos[{part}]"
        self._samples: list[Sample] = []
        for photo in COLOUR_PHOTOS:
            image = photo_region(photo, part, short_side)
            if image is None:
                continue
            name = f"{photo}[{part}]"
            if tile is None:
                self._samples.append(Sample(image, name=name))
                continue
            h, w = image.shape[:2]
            if min(h, w) < tile:
                raise InputError(
                    f"tile={tile}: the region {name} is {h} x {w} pixels at short_side={short_side}; expected a tile that "
                    f"fits into it; give tile={min(h, w)} or less, or short_side={-(-short_side * tile // min(h, w))} or more"
                )
            corners = [(y, x) for y in range(0, h - tile + 1, tile) for x in range(0, w - tile + 1, tile)]
            self._samples += [Sample(image[y : y + tile, x : x + tile], name=f"{name}#{k}") for k, (y, x) in enumerate(corners)]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]


@DATA.register("samples")
@by_part
def _samples(part: str, *, short_side: int = 160, tile: int = 64) -> SamplePhotos:
    return SamplePhotos(part, short_side=short_side, tile=None if part == "train" else tile)
