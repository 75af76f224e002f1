"""The bundle that comes with img2img: its files are whole, and each task does on photographs that it never saw what it is for."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from skimage.color import rgb2lab

import img2img
from img2img.bundle import check_bundle
from img2img.inference import Model

STARTER = Path(__file__).parents[2] / "bundles" / "starter"
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def model() -> Model:
    return img2img.load("starter")


@pytest.fixture(scope="module")
def photo() -> Pixels:
    photo: Pixels = np.ascontiguousarray(skimage.data.chelsea()[:200, 100:300])
    return photo


def error(one: Pixels, other: Pixels) -> float:
    return float(np.mean((one.astype(float) - other) ** 2))


def test_its_files_are_whole_and_small(model: Model) -> None:
    assert model.folder == STARTER
    check_bundle(STARTER)
    assert sum(path.stat().st_size for path in STARTER.rglob("*") if path.is_file()) <= 16e6
    card = (STARTER / "README.md").read_text(encoding="utf-8")
    assert "for research and education, not for commercial use" in card
    assert all(f"| {task} |" in card for task in model.tasks)
    assert img2img.from_pretrained("starter").folder == STARTER, "as the example of its card has it"


def test_noise_is_removed(model: Model, photo: Pixels) -> None:
    for sigma, left in ((10, 0.6), (25, 0.25)):
        for channels in (3, 1):  # of colour, and the same in all channels
            noise = sigma * np.random.default_rng(0).standard_normal((*photo.shape[:2], channels))
            noisy = np.clip(photo + noise, 0, 255).astype(np.uint8)
            clean = model.run("denoise", noisy)
            assert error(clean, photo) < left * error(noisy, photo)
            assert np.abs(clean.mean((0, 1)) - photo.mean((0, 1))).max() < 2, "colours stay"


def test_a_grey_photo_gets_colours_and_keeps_its_lines(model: Model, photo: Pixels) -> None:
    grey = np.repeat(photo.mean(2, keepdims=True).astype(np.uint8), 3, 2)
    coloured = rgb2lab(model.run("colour", grey))
    assert np.abs(coloured[..., 1:]).mean() > 8
    assert np.abs(coloured[..., 0] - rgb2lab(grey)[..., 0]).mean() < 2


def test_an_enlarged_grey_photo_is_grey(model: Model, photo: Pixels) -> None:
    grey = np.repeat(photo.mean(2, keepdims=True).astype(np.uint8), 3, 2)
    large = model.run("enlarge", grey)
    assert large.shape == (400, 400, 3)
    assert np.ptp(large, axis=2).max() == 0


def test_styles_have_the_colours_of_their_paintings(model: Model, photo: Pixels) -> None:
    grey = np.repeat(photo.mean(2, keepdims=True).astype(np.uint8), 3, 2)
    munch, gogh = (rgb2lab(model.run(name, grey))[..., 1:].mean((0, 1)) for name in ("munch", "gogh"))
    assert munch.min() > 5, "The Scream is orange"
    assert gogh[1] < -10, "The Starry Night is blue"


def test_a_bright_half_above_a_grey_one_is_sky_above_a_road(model: Model) -> None:
    street = np.full((192, 256, 3), (235, 240, 245), np.uint8)
    street[110:] = (95, 95, 100)
    labels, classes = model.run("streets", street, form="labels"), model.tasks["streets"].classes
    assert (labels[:40] == classes.index("sky")).mean() > 0.9
    assert (labels[-40:] == classes.index("road")).mean() > 0.9
