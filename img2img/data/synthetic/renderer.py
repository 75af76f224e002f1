"""An image and its label map that are painted together, and the textures and colours to paint with.

Painting is done with integers, with + - * / on floats and with Pillow and OpenCV operations on 8-bit masks that are exact, so
that the same random numbers give the same image on every machine.
"""

import colorsys
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from img2img.data.datasets.sample_photos import photo_region

Colour = NDArray[np.float32]
"""(3,) float32 RGB in [0, 255], or an image (h, w, 3) of them."""
Points = Sequence[tuple[float, float]]
"""The corners (x, y) of a closed polygon, in pixels; (0, 0) is the top left corner of the top left pixel."""

_FINE = 8  # sub-pixels a pixel each way, when a mask is drawn
_SHIFT = 4  # binary places of a corner's position in sub-pixels


class Patch(NamedTuple):
    """Where something is painted: a window of the image and how much of each of its pixels is covered."""

    rows: slice
    columns: slice
    cover: NDArray[np.uint8]

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the window."""
        h, w = self.cover.shape
        return h, w


class SceneRenderer:
    """A square image in the making, black and of class `label` at first.

    Attributes:
        image: (size, size, 3) float32 RGB in [0, 255].
        label: (size, size) uint8 class indices: of each pixel, the last painted thing that covers at least half of it.
    """

    def __init__(self, size: int, *, label: int = 0) -> None:
        self.size = size
        self.image = np.zeros((size, size, 3), np.float32)
        self.label = np.full((size, size), label, np.uint8)

    def patch(self, *outlines: Points, blur: int = 0, union: bool = False) -> Patch | None:
        """The area inside the outlines, its edge softened over `blur` pixels; None when nothing of it lies in the image.

        Where an even number of outlines overlap there is a hole, unless `union`.
        """
        xs = [x for outline in outlines for x, _ in outline]
        ys = [y for outline in outlines for _, y in outline]
        left, right = max(int(min(xs)) - blur - 1, 0), min(int(max(xs)) + blur + 2, self.size)
        top, bottom = max(int(min(ys)) - blur - 1, 0), min(int(max(ys)) + blur + 2, self.size)
        if right <= left or bottom <= top:
            return None
        # the window is widened by the blur, so that what lies beyond the image's edge is blurred into it
        fine = np.zeros(((bottom - top + 2 * blur) * _FINE, (right - left + 2 * blur) * _FINE), np.uint8)
        origin = np.array([left - blur, top - blur], np.float64)
        # OpenCV's integer coordinates are the centres of (sub-)pixels, hence the half
        corners = np.array([corner for outline in outlines for corner in outline])
        grid = np.rint(((corners - origin) * _FINE - 0.5) * (1 << _SHIFT)).astype(np.int32)
        ends = itertools.accumulate(len(outline) for outline in outlines)
        polygons = [grid[end - len(outline) : end] for outline, end in zip(outlines, ends, strict=True)]
        for group in [[p] for p in polygons] if union else [polygons]:
            cv2.fillPoly(fine, group, (255,), lineType=cv2.LINE_8, shift=_SHIFT)
        cover = cv2.resize(fine, (fine.shape[1] // _FINE, fine.shape[0] // _FINE), interpolation=cv2.INTER_AREA)
        if blur:
            cover = cv2.blur(cover, (2 * blur + 1, 2 * blur + 1))[blur:-blur, blur:-blur]
        return Patch(slice(top, bottom), slice(left, right), np.asarray(cover, np.uint8))

    def paint(self, patch: Patch | None, colour: Colour, *, label: int | None = None, opacity: float = 1.0) -> None:
        """Cover the patch with `colour`, (3,) or (h, w, 3) of the patch's window; `label` None keeps the labels."""
        if patch is None:
            return
        window = self.image[patch.rows, patch.columns]
        window += (patch.cover * np.float32(opacity / 255))[:, :, None] * (colour - window)
        if label is not None:
            self.label[patch.rows, patch.columns][patch.cover >= 128] = label

    def shade(self, patch: Patch | None, amount: float) -> None:
        """Darken the patch by `amount` in [0, 1]: a shadow. Labels stay."""
        if patch is not None:
            self.image[patch.rows, patch.columns] *= (1 - patch.cover * np.float32(amount / 255))[:, :, None]

    def finish(self, rng: np.random.Generator, *, grain: int) -> NDArray[np.uint8]:
        """The image as uint8, with uneven light and with noise of up to +-`grain`."""
        light = 1 + (smooth_noise(rng, (self.size, self.size), cells=3) - 128) * np.float32(0.3 / 128)
        out = self.image * light[:, :, None]
        if grain:
            out += rng.integers(-grain, grain + 1, out.shape, dtype=np.int8)
        return np.clip(out + 0.5, 0, 255).astype(np.uint8)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], *, cells: int, stretch: int = 1) -> NDArray[np.float32]:
    """(h, w) float32 in [0, 255]: random values on a coarse grid of about `cells` each way, smoothly filled in.

    `stretch` makes the grid coarser from left to right by that factor.
    """
    grid = rng.integers(0, 256, (max(cells, 2), max(cells // stretch, 2)), dtype=np.uint8)
    return np.asarray(Image.fromarray(grid).resize(shape[::-1], Image.Resampling.BICUBIC), np.float32)


def random_colour(
    rng: np.random.Generator, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]
) -> Colour:
    """A random colour of these HSV ranges, in [0, 1]; hues may be given beyond it and wrap around."""
    h, s, v = (low + (high - low) * rng.random() for low, high in (hue, saturation, value))
    return np.array(colorsys.hsv_to_rgb(h % 1, s, v), np.float32) * 255


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`a` with a `share` in [0, 1] of `b`."""
    return a + (b - a) * np.float32(share)


class PhotoTextures:
    """The photos that one part of a scene set may use: only regions that belong to that part.

    Args:
        part: "train", "val" or "test".
        size: side of the scenes in pixels.
    """

    _SCENERY = ("astronaut", "chelsea", "coffee", "motorcycle_left", "rocket", "camera", "retina")
    _TEXTURES = ("grass", "gravel", "brick")

    def __init__(self, part: str, size: int) -> None:
        side = max(320, 2 * size)
        scenery = (photo_region(name, part, side) for name in self._SCENERY)
        self._scenery = [p for p in scenery if p is not None]
        textures = {name: photo_region(name, part, side) for name in self._TEXTURES}
        self._textures = {name: t[:, :, 0] for name, t in textures.items() if t is not None}

    def photo(self, rng: np.random.Generator, shape: tuple[int, int], *, blur: int = 1) -> Colour:
        """(h, w, 3) of about [0, 255]: a random cut of a random photo, sometimes mirrored, re-coloured a little.

        It has the detail of an image `blur` times smaller.
        """
        cut = _cut(rng, self._scenery[rng.integers(len(self._scenery))], shape, least=0.4, blur=blur)
        gain = 0.75 + 0.5 * rng.random(3)
        return cut * gain.astype(np.float32)

    def texture(self, rng: np.random.Generator, name: str, shape: tuple[int, int], *, least: float = 0.25) -> NDArray[np.float32]:
        """(h, w, 1) of about [-1, 1], 0 on average: the light and dark of "grass", "gravel" or "brick".

        `least` is the smallest share of the texture's side that is cut out and enlarged.
        """
        grey = _cut(rng, self._textures[name], shape, least=least)
        return ((grey - grey.mean(dtype=np.float64).astype(np.float32)) * np.float32(1 / 128))[:, :, None]


def _cut(
    rng: np.random.Generator, image: NDArray[np.uint8], shape: tuple[int, int], *, least: float, blur: int = 1
) -> NDArray[np.float32]:
    """A random window of the proportions of `shape`, resized to it."""
    h, w = image.shape[:2]
    scale = min(h / shape[0], w / shape[1]) * (least + (1 - least) * rng.random())
    height, width = max(1, int(shape[0] * scale)), max(1, int(shape[1] * scale))
    top, left = rng.integers(h - height + 1), rng.integers(w - width + 1)
    window = Image.fromarray(image[top : top + height, left : left + width])
    if blur > 1:
        window = window.resize((max(1, shape[1] // blur), max(1, shape[0] // blur)), Image.Resampling.BILINEAR)
    resized = np.asarray(window.resize(shape[::-1], Image.Resampling.BILINEAR), np.float32)
    return resized[:, ::-1] if rng.random() < 0.5 else resized
