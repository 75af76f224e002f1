"""The houses and trees of a landscape."""

import numpy as np

from img2img.data.synthetic.landscape_view import LandscapeClass, View, choose_colour, ellipse
from img2img.data.synthetic.renderer import Points, mix, random_colour


def render_objects(view: View) -> None:
    """Houses and trees that stand on land, the far ones first."""
    rng, canvas, size = view.rng, view.canvas, view.canvas.size
    kinds = [LandscapeClass.HOUSE] * int(rng.integers(0, 4)) + [LandscapeClass.TREE] * int(rng.integers(2, 7))
    places = []
    for kind in kinds:
        for _ in range(8):  # tries to find a place on land
            x = view.between(0.02, 0.98)
            depth = float(rng.random()) ** (1.0 if kind == LandscapeClass.TREE else 1.6) * (
                0.85 if kind == LandscapeClass.TREE else 0.6
            )
            foot = view.horizon + 0.04 * size + depth * (0.96 * size - view.horizon)
            if canvas.label[min(int(foot), size - 1), min(int(x * size), size - 1)] == LandscapeClass.LAND:
                places.append((foot, x * size, kind, depth))
                break
    for foot, x, kind, depth in sorted(places):
        scale = (0.45 + 0.75 * depth) * size
        (_paint_house if kind == LandscapeClass.HOUSE else _paint_tree)(view, x, foot, scale)


def _paint_house(view: View, x: float, foot: float, scale: float) -> None:
    rng, canvas = view.rng, view.canvas
    width, height = view.between(0.34, 0.6) * scale, view.between(0.2, 0.38) * scale
    left, right, top = x - width / 2, x + width / 2, foot - height
    canvas.shade(canvas.patch(ellipse(x, foot, width * 1.2, height * 0.25), blur=2), 0.4)
    if view.daylight:
        wall = random_colour(rng, (0.02, 0.1), (0.45, 0.65), (0.65, 0.9))
    else:
        wall = random_colour(rng, (0, 1) if rng.random() < 0.4 else (0, 0.14), (0.05, 0.6), (0.4, 0.95))
    wall = mix(wall, view.haze, 0.1)
    outline = [(left, foot), (right, foot), (right, top), (left, top)]
    front = canvas.patch(outline)
    if front is None:
        return
    bricks = view.stock.texture(rng, "brick", front.shape, least=0.3)
    canvas.paint(front, wall * (1 + np.float32(view.between(0, 1.2)) * bricks), label=LandscapeClass.HOUSE)
    if view.daylight:
        roof = random_colour(rng, (-0.03, 0.03), (0.5, 0.7), (0.3, 0.5))
    else:
        roof = random_colour(rng, (-0.05, 0.12) if rng.random() < 0.6 else (0, 1), (0.1, 0.75), (0.2, 0.65))
    peak, over = top - view.between(0.35, 0.8) * height, 0.06 * width
    flat = view.between(0, 0.35) * width if rng.random() < 0.5 else 0.0
    gable = canvas.patch([(left - over, top), (right + over, top), (x + flat, peak), (x - flat, peak)])
    if gable is not None:
        tiles = view.stock.texture(rng, "gravel", gable.shape, least=0.5)
        canvas.paint(gable, roof * (1 + np.float32(0.4) * tiles), label=LandscapeClass.HOUSE)
    glass = random_colour(rng, (0.1, 0.6), (0, 0.5), (0.1, 0.3) if rng.random() < 0.6 else (0.8, 1))
    count = int(rng.integers(2, 5))
    door = int(rng.integers(count))
    for k in range(count):
        middle, half = left + width * (k + 0.5) / count, width * 0.27 / count
        low, high = (foot, foot - 0.6 * height) if k == door else (foot - 0.35 * height, foot - 0.75 * height)
        opening = [(middle - half, low), (middle + half, low), (middle + half, high), (middle - half, high)]
        canvas.paint(canvas.patch(opening), roof * np.float32(0.6) if k == door else glass)


def _paint_tree(view: View, x: float, foot: float, scale: float) -> None:
    rng, canvas = view.rng, view.canvas
    height = view.between(0.4, 0.75) * scale
    spread = view.between(0.45, 0.75) * height
    bare = view.between(0.12, 0.3) * height  # of the trunk
    canvas.shade(canvas.patch(ellipse(x, foot, spread, spread * 0.2), blur=2), 0.4)
    bark = random_colour(rng, (0.02, 0.12), (0.1, 0.55), (0.15, 0.5))
    half = 0.04 * height
    trunk = [(x - half, foot), (x + half, foot), (x + half * 0.7, foot - bare * 1.6), (x - half * 0.7, foot - bare * 1.6)]
    canvas.paint(canvas.patch(trunk), bark, label=LandscapeClass.TREE)
    top, bottom = foot - height, foot - bare
    crown: list[Points] = []
    if rng.random() < 0.4:  # a conifer
        tiers = int(rng.integers(2, 5))
        for k in range(tiers):
            tip = top + (bottom - top) * k / tiers * 0.8
            base = top + (bottom - top) * (k + 1) / tiers
            wide = spread * 0.42 * (0.35 + 0.65 * (k + 1) / tiers)
            crown.append([(x, tip), (x + wide, base), (x - wide, base)])
    else:
        middle = (top + bottom) / 2
        crown.append(ellipse(x, middle, 0.55 * spread, 0.8 * (bottom - top), 14))
        for _ in range(rng.integers(4, 9)):
            across = spread * view.between(0.35, 0.55)
            off, up = view.between(-0.32, 0.32) * spread, view.between(-0.3, 0.3) * (bottom - top)
            crown.append(ellipse(x + off, middle + up, across, across * 0.9, 14))
    patch = canvas.patch(*crown, union=True)
    if patch is None:
        return
    h, w = patch.shape
    leaf = mix(choose_colour(rng, view.leaves), view.haze, 0.08)
    leaves = view.stock.texture(rng, "grass", (h, w), least=0.3)
    lit = 1.2 - np.float32(0.5) * np.linspace(0, 1, h, dtype=np.float32)[:, None, None]
    canvas.paint(patch, leaf * (lit + np.float32(0.9) * leaves), label=LandscapeClass.TREE)
