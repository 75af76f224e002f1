"""What the painters of a landscape share: its classes, its view, and a few tools."""

import bisect
import functools
import itertools
import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from img2img.data.synthetic.renderer import Colour, PhotoTextures, Points, SceneRenderer, random_colour


class LandscapeClass(IntEnum):
    """The classes of a landscape."""

    SKY = 0
    CLOUD = 1
    LAND = 2
    WATER = 3
    ROAD = 4
    HOUSE = 5
    TREE = 6


_Range = tuple[float, float]
Palette = Sequence[tuple[float, tuple[_Range, _Range, _Range]]]
"""Shares that add up to 1, each with ranges of hue, saturation and value."""

LEAVES: Palette = (
    (0.65, ((0.2, 0.45), (0.3, 0.8), (0.2, 0.6))),
    (0.35, ((-0.03, 0.15), (0.4, 0.85), (0.3, 0.8))),  # autumn, blossom
)
SUMMER_LEAVES: Palette = ((1.0, ((0.28, 0.36), (0.5, 0.75), (0.25, 0.45))),)


class View(NamedTuple):
    """What the painters of one scene share."""

    rng: np.random.Generator
    canvas: SceneRenderer
    stock: PhotoTextures
    horizon: float  # in pixels from the top
    zenith: Colour
    haze: Colour  # the sky at the horizon, which distance mixes into everything
    ground: Colour
    daylight: bool = False  # colours that follow from what is shown

    @property
    def leaves(self) -> Palette:
        """The colours of trees and woods."""
        return SUMMER_LEAVES if self.daylight else LEAVES

    def between(self, low: float, high: float) -> float:
        """A random number."""
        return low + (high - low) * float(self.rng.random())


def choose_colour(rng: np.random.Generator, palette: Palette) -> Colour:
    """A random colour of one of the palette's ranges, each chosen as often as its share says."""
    bounds = list(itertools.accumulate(share for share, _ in palette))[:-1]
    return random_colour(rng, *palette[bisect.bisect(bounds, rng.random())][1])


def ellipse(x: float, y: float, width: float, height: float, corners: int = 20) -> Points:
    """The outline of an ellipse around (x, y), as a polygon."""
    return [(x + width / 2 * c, y + height / 2 * s) for c, s in _circle(corners)]


@functools.cache
def _circle(corners: int) -> Points:
    turns = [2 * math.pi * k / corners for k in range(corners)]
    return [(math.cos(t), math.sin(t)) for t in turns]
