"""Landscapes under changing skies, with exact labels; textures are tinted photographs of grass, gravel and brick."""

import numpy as np
from numpy.typing import NDArray

from img2img.data.synthetic.landscape_objects import render_objects
from img2img.data.synthetic.landscape_view import LandscapeClass, Palette, View, choose_colour, ellipse
from img2img.data.synthetic.renderer import PhotoTextures, SceneRenderer, mix, random_colour, smooth_noise

CLASSES = tuple(thing.name.lower() for thing in LandscapeClass)

# A share and ranges of hue, saturation and value, at the zenith and at the horizon.
_SKIES = (
    (0.40, ((0.54, 0.64), (0.35, 0.85), (0.6, 1)), ((0.5, 0.6), (0.05, 0.35), (0.8, 1))),  # day
    (0.25, ((0.55, 0.95), (0.2, 0.6), (0.35, 0.85)), ((-0.06, 0.13), (0.35, 0.8), (0.75, 1))),  # sunrise, sunset
    (0.20, ((0.45, 0.7), (0, 0.15), (0.45, 0.75)), ((0.45, 0.7), (0, 0.12), (0.65, 0.95))),  # overcast
    (0.15, ((0.55, 0.75), (0.4, 0.8), (0.15, 0.4)), ((0.5, 1.1), (0.2, 0.6), (0.4, 0.7))),  # dusk
)
_GROUNDS: Palette = (
    (0.5, ((0.2, 0.38), (0.25, 0.75), (0.3, 0.7))),  # meadow
    (0.3, ((0.08, 0.16), (0.25, 0.65), (0.45, 0.85))),  # dry grass, sand
    (0.2, ((0, 1), (0, 0.3), (0.4, 0.85))),  # snow, rock
)
_SUMMER_SKY = ((0.56, 0.6), (0.6, 0.8), (0.8, 0.95)), ((0.54, 0.58), (0.15, 0.3), (0.9, 1))
_SUMMER_GROUNDS: Palette = ((1.0, ((0.24, 0.3), (0.5, 0.7), (0.5, 0.65))),)


def render(
    rng: np.random.Generator, size: int, stock: PhotoTextures, *, daylight: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One scene: sky with or without sun, clouds, ridges, land, often water or a road, houses and trees.

    Every class has colours that other classes have too: skies from noon to dusk, meadows, dry grass and sand, water that
    mirrors the sky, roads from asphalt to clay, green and autumn trees, houses of any colour. With `daylight` it is always a
    clear summer day over meadows and brick houses: then the colours follow from what is shown, for tasks that paint.

    Returns:
        picture (size, size, 3) uint8 RGB and label (size, size) uint8, indices into `CLASSES`.
    """
    zenith, haze = _SUMMER_SKY if daylight else _SKIES[rng.choice(len(_SKIES), p=[share for share, *_ in _SKIES])][1:]
    view = View(
        rng,
        SceneRenderer(size, label=LandscapeClass.SKY),
        stock,
        horizon=(0.34 + 0.24 * float(rng.random())) * size,
        zenith=random_colour(rng, *zenith),
        haze=random_colour(rng, *haze),
        ground=choose_colour(rng, _SUMMER_GROUNDS if daylight else _GROUNDS),
        daylight=daylight,
    )
    _paint_sky(view)
    _paint_ridges(view)
    _paint_land(view)
    wet = rng.random() < 0.58
    road = rng.random() < (0.4 if wet else 0.75)
    shore = view.horizon
    if wet:
        shore = _paint_water(view)
    if road:
        _paint_road(view, shore)
    render_objects(view)
    if not daylight:
        view.canvas.picture *= (0.85 + 0.3 * rng.random(3)).astype(np.float32)
    return view.canvas.finish(rng, grain=int(rng.integers(2, 9))), view.canvas.label


def _rows(size: int) -> NDArray[np.float32]:
    return np.arange(size, dtype=np.float32)[:, None, None]


def _paint_sky(view: View) -> None:
    rng, canvas, size = view.rng, view.canvas, view.canvas.size
    down = np.clip(_rows(size) / np.float32(view.horizon), 0, 1)
    canvas.picture[:] = view.zenith + (view.haze - view.zenith) * down
    canvas.picture += ((smooth_noise(rng, (size, size), cells=4, stretch=2) - 128) * np.float32(0.1))[:, :, None]
    if rng.random() < 0.35:  # the sun or the moon is sky
        diameter = view.between(0.06, 0.15) * size
        x, y = view.between(0.1, 0.9) * size, view.between(0.1, 0.85) * view.horizon
        disc = random_colour(rng, (0.05, 0.18), (0, 0.5), (0.9, 1))
        canvas.paint(canvas.patch(ellipse(x, y, 2 * diameter, 2 * diameter), blur=max(1, size // 16)), disc, opacity=0.4)
        canvas.paint(canvas.patch(ellipse(x, y, diameter, diameter)), disc)
    for _ in range(rng.integers(1, 5)):
        _paint_cloud(view)


def _paint_cloud(view: View) -> None:
    """Puffs over a flat base, lighter above and darker below; rain clouds and sunset clouds are darker than the sky."""
    rng, canvas, size = view.rng, view.canvas, view.canvas.size
    width = view.between(0.25, 0.6) * size
    x, base = view.between(0, 1) * size, view.between(0.2, 0.85) * view.horizon
    puffs = []
    for _ in range(rng.integers(5, 9)):
        off = view.between(-0.5, 0.5)
        across = width * view.between(0.25, 0.45) * (1.15 - abs(off))
        puffs.append(
            ellipse(x + off * width * 0.75, base - across * view.between(0.15, 0.3), across, across * view.between(0.55, 0.8))
        )
    top = random_colour(rng, (0, 1), (0, 0.12), (0.9, 1))
    light = view.daylight or rng.random() < 0.7
    bright = mix(view.haze, top, view.between(0.5, 1)) if light else view.zenith * np.float32(view.between(0.45, 0.7))
    patch = canvas.patch(*puffs, blur=max(1, size // 64), union=True)
    if patch is None:
        return
    down = np.linspace(0, 1, patch.shape[0], dtype=np.float32)[:, None, None]
    lumps = (smooth_noise(rng, patch.shape, cells=6) - 128)[:, :, None] * np.float32(0.15)
    canvas.paint(patch, bright * (1 - np.float32(0.25) * down) + lumps, label=LandscapeClass.CLOUD, opacity=view.between(0.8, 1))


def _paint_ridges(view: View) -> None:
    """Up to three hill lines behind each other, the far ones hazier."""
    rng, canvas, size = view.rng, view.canvas, view.canvas.size
    for k in reversed(range(rng.integers(0, 4))):
        peaks = view.between(0.02, 0.09 + 0.06 * k) * size
        line = smooth_noise(rng, (1, size + 1), cells=int(rng.integers(3, 8)))[0] / np.float32(255) * np.float32(peaks)
        crest = [(float(x), view.horizon - 1 - float(y)) for x, y in enumerate(line)]
        patch = canvas.patch([*crest, (size, view.horizon + 2), (0.0, view.horizon + 2)])
        if patch is not None:
            rock = mix(mix(view.ground, choose_colour(rng, view.leaves), 0.5), view.haze, 0.2 + 0.2 * k)
            light = view.stock.texture(rng, "gravel" if rng.random() < 0.4 else "grass", patch.shape, least=0.4)
            canvas.paint(patch, rock * (1 + np.float32(0.5 - 0.12 * k) * light), label=LandscapeClass.LAND)


def _paint_land(view: View) -> None:
    rng, canvas, size = view.rng, view.canvas, view.canvas.size
    waves = smooth_noise(rng, (1, size + 1), cells=4)[0] / np.float32(255) * np.float32(0.03 * size)
    edge = [(float(x), view.horizon + float(y)) for x, y in enumerate(waves)]
    patch = canvas.patch([*edge, (size, size), (0.0, size)])
    if patch is None:
        return
    h, w = patch.shape
    near = np.linspace(0, 1, h, dtype=np.float32)[:, None, None]
    base = mix(view.ground, view.haze, 0.3) * (1 - near) + view.ground * near
    patches = (smooth_noise(rng, (h, w), cells=6, stretch=2) - 128)[:, :, None] * np.float32(0.25 / 128)
    light = view.stock.texture(rng, "grass", (h, w), least=0.4)
    canvas.paint(patch, base * (1 + patches + (np.float32(0.3) + np.float32(0.6) * near) * light), label=LandscapeClass.LAND)


def _paint_water(view: View) -> float:
    """A sea from the horizon to a shore, or a lake in the land; returns where the land before it begins."""
    rng, canvas, size = view.rng, view.canvas, view.canvas.size
    depth = size - view.horizon
    if rng.random() < 0.55:
        shore = view.horizon + view.between(0.3, 0.75) * depth
        waves = smooth_noise(rng, (1, size + 1), cells=4)[0] / np.float32(255) * np.float32(0.12 * depth)
        edge = [(size - float(x), shore - float(y)) for x, y in enumerate(waves)]
        patch = canvas.patch([(0.0, view.horizon), (size, view.horizon), *edge])
    else:
        width, height = view.between(0.6, 1.3) * size, view.between(0.25, 0.5) * depth
        middle = view.horizon + view.between(0.3, 0.6) * depth
        shore = middle + height / 2
        centre = view.between(0.1, 0.9) * size
        wobble = 0.7 + smooth_noise(rng, (1, 24), cells=8)[0] * np.float32(0.3 / 255)
        rim = zip(ellipse(0, 0, width, height, 24), wobble.tolist(), strict=True)
        patch = canvas.patch([(centre + x * r, middle + y * r) for (x, y), r in rim])
    if patch is None:
        return shore
    h, w = patch.shape
    deep = mix(view.zenith, random_colour(rng, (0.42, 0.62), (0.2, 0.7), (0.25, 0.6)), view.between(0.2, 0.7))
    near = np.linspace(0, 1, h, dtype=np.float32)[:, None, None]
    base = mix(view.haze, deep, 0.3) * (1 - near) + deep * near
    ripples = (smooth_noise(rng, (h, w), cells=max(h // 2, 2), stretch=max(h // 10, 1)) - 128)[:, :, None]
    canvas.paint(patch, base + ripples * np.float32(view.between(0.12, 0.3)), label=LandscapeClass.WATER)
    return shore


def _paint_road(view: View, end: float) -> None:
    """A bending road from the lower border to `end`, narrowing with distance."""
    rng, canvas, size = view.rng, view.canvas, view.canvas.size
    end = min(end + 1, size - 0.12 * size)
    start, bend, goal = view.between(0.1, 0.9), view.between(-0.35, 0.35), view.between(0.25, 0.75)
    near, far = view.between(0.25, 0.5) * size, view.between(0.02, 0.06) * size
    share = (end - view.horizon) / (size - view.horizon)

    def at(t: float, side: float) -> tuple[float, float]:
        """A point of the road: t = 0 at the border, 1 at its end; side -1 .. 1 across it."""
        width = near + (max(far, near * share) - near) * t
        middle = (start + (goal - start) * t + bend * t * (1 - t)) * size
        return middle + side * width / 2, size + 1 - (size + 1 - end) * t

    steps = [k / 12 for k in range(13)]
    patch = canvas.patch([at(t, -1) for t in steps] + [at(t, 1) for t in reversed(steps)])
    if patch is None:
        return
    asphalt = rng.random() < 0.6
    if asphalt:
        tone = random_colour(rng, (0.55, 0.7), (0, 0.12), (0.25, 0.65))
    else:
        tone = random_colour(rng, (0.03, 0.13), (0.15, 0.5), (0.4, 0.8))
    light = view.stock.texture(rng, "gravel", patch.shape, least=0.5)
    canvas.paint(patch, tone * (1 + np.float32(view.between(0.15, 0.45)) * light), label=LandscapeClass.ROAD)
    if asphalt and rng.random() < 0.7:  # the centre line, on the road's own pixels
        line = random_colour(rng, (0.1, 0.16), (0, 0.7), (0.8, 1))
        for k in range(0, 12, 2):
            dash = [at(t / 12, s) for t, s in ((k, -0.05), (k + 1, -0.05), (k + 1, 0.05), (k, 0.05))]
            canvas.paint(canvas.patch(dash), line)
