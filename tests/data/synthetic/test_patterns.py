"""Made images to classify."""

import numpy as np
import pytest

from img2img import InputError
from img2img.data import build_data
from img2img.data.base import Sample
from img2img.data.cache import CachedDataset, center_crop
from img2img.data.synthetic.patterns import Patterns


def test_images_follow_from_the_options_and_parts_share_none() -> None:
    first = Patterns("train", count=10, size=16).arrays()[0]
    assert np.array_equal(first, Patterns("train", count=10, size=16).arrays()[0])
    others = [Patterns("test", count=10, size=16), Patterns("train", count=10, size=16, number=2)]
    for other in others:
        assert not any(np.array_equal(a, b) for a in first for b in other.arrays()[0])


def test_classes_cannot_be_told_by_their_mean_colour_but_by_their_waves() -> None:
    train, test = (Patterns(part, count=200, size=32) for part in ("train", "test"))

    def nearest(features: list[np.ndarray]) -> float:
        means = np.stack([features[0][train.categories == c].mean(0) for c in range(5)])
        found = np.square(features[1][:, None] - means).sum(2).argmin(1)
        return float((found == test.categories).mean())

    images = [p.arrays()[0].astype(float) / 255 for p in (train, test)]
    assert nearest([p.mean((1, 2)) for p in images]) < 0.45, "chance is 0.2"
    spectra = [np.abs(np.fft.fft2(p - p.mean((1, 2), keepdims=True), axes=(1, 2)))[:, :8, :, :].reshape(200, -1) for p in images]
    assert nearest(spectra) > 0.95


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="two classes or more"):
        Patterns("train", count=10, classes=1)
    with pytest.raises(InputError, match="part='all'"):
        Patterns("all", count=10)


def test_middle_cuts_val_and_test_alone() -> None:
    parts = build_data({"kind": "patterns", "count": {"train": 4, "val": 4, "test": 4}, "size": 16, "middle": 10})
    assert parts.train[0].image.shape == (16, 16, 3)
    assert parts.train.arrays() is not None
    assert parts.test.arrays() is None, "its images are no longer those of the set"
    assert np.array_equal(parts.test[1].image, Patterns("test", count=4, size=16)[1].image[3:13, 3:13])


def test_the_middle_of_a_small_image_is_extended_by_its_edge() -> None:
    image = np.arange(4 * 7 * 3, dtype=np.uint8).reshape(4, 7, 3)
    cut = center_crop(Sample(image, label=image[..., 0]), 6)
    assert cut.image.shape == (6, 6, 3)
    assert np.array_equal(cut.image[1:5], image[:, :6])
    assert np.array_equal(cut.image[0], image[0, :6])
    assert np.array_equal(cut.image[5], image[3, :6])
    assert cut.label is not None
    assert np.array_equal(cut.label, cut.image[..., 0])
    with pytest.raises(InputError, match="middle=0"):
        CachedDataset(Patterns("train", count=4), middle=0)
