"""Geometric shapes on photographs, with exact labels."""

import math

import numpy as np
from numpy.typing import NDArray

from img2img.data.synthetic.renderer import Colour, PhotoTextures, Points, SceneRenderer, mix, random_colour, smooth_noise

CLASSES = ("background", "disk", "triangle", "square", "star", "ring")
_DISK, _TRIANGLE, _SQUARE, _STAR, _RING = range(1, 6)

# radius of the circle around it, relative to the disk's, so that the classes cover areas alike
_RADIUS = {_DISK: 1.0, _TRIANGLE: 1.35, _SQUARE: 1.25, _STAR: 1.5, _RING: 1.15}
_UPRIGHT = {_DISK: 0.0, _TRIANGLE: -math.pi / 2, _SQUARE: math.pi / 4, _STAR: -math.pi / 2, _RING: 0.0}


def outlines(
    kind: int, x: float, y: float, radius: float, angle: float, *, inner: float = 0.5
) -> tuple[list[Points], list[Points]]:
    """A shape of class `kind` around (x, y), turned by `angle` radians, and the part of it that lies in its own shade.

    The shade shows the form: a ball's far side, a pyramid's and a star's facets, a square's frame, both rims of a ring.
    `inner` is the radius of a ring's hole or of a star's inner corners, relative to `radius`.

    Returns:
        two lists of outlines for `SceneRenderer.patch`; the second lies inside the first.
    """

    def around(corners: int, *radii: float) -> list[tuple[float, float]]:
        turns = [angle + 2 * math.pi * k / corners for k in range(corners)]
        lengths = [radii[k % len(radii)] for k in range(corners)]
        return [(x + r * math.cos(t), y + r * math.sin(t)) for r, t in zip(lengths, turns, strict=True)]

    if kind == _DISK:
        disk = around(64, radius)
        lit = [(px + 0.2 * (x - px) - 0.12 * radius, py + 0.2 * (y - py) - 0.12 * radius) for px, py in disk]
        return [disk], [disk, lit]
    if kind == _RING:
        outer, hole = around(64, radius), around(64, radius * inner)
        tube = radius * (1 - inner)
        return [outer, hole], [outer, around(64, radius - 0.25 * tube), around(64, radius * inner + 0.25 * tube), hole]
    if kind == _STAR:
        star = around(10, radius, radius * inner)
        return [star], [[(x, y), star[k], star[k + 1]] for k in range(0, 10, 2)]
    if kind == _SQUARE:
        square = around(4, radius)
        return [square], [square, around(4, 0.65 * radius)]
    top, right, left = around(3, radius)
    return [[top, right, left]], [[top, right, (0.6 * right[0] + 0.4 * left[0], 0.6 * right[1] + 0.4 * left[1])]]


def render(rng: np.random.Generator, size: int, stock: PhotoTextures) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One scene: three to five shapes that may overlap each other and the border, each with a shadow, before a photo.

    The photo is a little out of focus, as behind near things; shapes stand upright, give or take 35 degrees.

    Returns:
        image (size, size, 3) uint8 RGB and label (size, size) uint8, indices into `CLASSES`.
    """
    renderer = SceneRenderer(size)
    haze = random_colour(rng, (0, 1), (0, 0.3), (0.2, 0.8))
    renderer.image[:] = mix(stock.photo(rng, (size, size), blur=2), haze, 0.15 + 0.35 * rng.random())
    lean = (rng.random(2) - 0.5) * 0.14 * size  # of all shadows in the scene
    depth = 0.25 + 0.4 * rng.random()
    placed: list[tuple[float, float, float]] = []
    for _ in range(rng.integers(3, 6)):
        kind = int(rng.integers(1, len(CLASSES)))
        radius = (0.11 + 0.12 * rng.random()) * size * _RADIUS[kind]
        x, y = _place(rng, size, radius, placed)
        placed.append((x, y, radius))
        turn = _UPRIGHT[kind] + 1.2 * (float(rng.random()) - 0.5)
        lines, shaded = outlines(kind, x, y, radius, turn, inner=0.4 + 0.15 * float(rng.random()))
        cast = [[(px + lean[0], py + lean[1]) for px, py in line] for line in lines]
        renderer.shade(renderer.patch(*cast, blur=max(1, size // 32)), depth)
        patch = renderer.patch(*lines)
        if patch is not None:
            renderer.paint(patch, _surface(rng, patch.shape, stock), label=kind)
            renderer.shade(renderer.patch(*shaded), 0.25 + 0.3 * float(rng.random()))
    return renderer.finish(rng, grain=int(rng.integers(2, 10))), renderer.label


def _place(rng: np.random.Generator, size: int, radius: float, placed: list[tuple[float, float, float]]) -> tuple[float, float]:
    """Of six random places the one that covers the least of the shapes that are there."""
    best, least = (0.0, 0.0), math.inf
    for x, y in ((0.06 + 0.88 * rng.random((6, 2))) * size).tolist():
        overlap = sum(max(0.0, radius + r - math.sqrt((x - a) ** 2 + (y - b) ** 2)) for a, b, r in placed)
        if overlap < least:
            best, least = (x, y), overlap
    return best


def _surface(rng: np.random.Generator, shape: tuple[int, int], stock: PhotoTextures) -> Colour:
    """(h, w, 3): plain, mottled, striped or cut from a photo, and lit from one side."""
    h, w = shape
    paint = random_colour(rng, (0, 1), (0.35, 1), (0.4, 1))
    other = random_colour(rng, (0, 1), (0, 1), (0.2, 1))
    ys, xs = np.arange(h, dtype=np.float32)[:, None], np.arange(w, dtype=np.float32)[None, :]
    dx, dy = (float(v) for v in rng.random(2) * 2 - 1)
    style = rng.random()
    if style < 0.5:
        surface: Colour = np.broadcast_to(paint, (h, w, 3))
    elif style < 0.65:
        mottle = smooth_noise(rng, shape, cells=6)[:, :, None] * np.float32(1 / 160)
        surface = other + (paint - other) * (mottle - 0.2)
    elif style < 0.8:
        along = (xs * np.float32(dx) + ys * np.float32(dy)) * np.float32((2 + 4 * rng.random()) / max(h, w) * 2)
        surface = np.where(((along - np.floor(along)) < 0.5)[:, :, None], paint, other)
    else:
        surface = mix(stock.photo(rng, shape), paint, 0.35 + 0.3 * rng.random())
    light = (xs - w / 2) * np.float32(dx / w) + (ys - h / 2) * np.float32(dy / h)
    return surface * (1 + np.float32(0.6) * light)[:, :, None]
