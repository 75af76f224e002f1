"""Made images: patterns to classify, and rendered scenes."""

import math
import pickle

import numpy as np
import pytest
from skimage.draw import disk, polygon2mask

from img2img.data import build_data
from img2img.data.base import Sample
from img2img.data.cache import CachedDataset, center_crop
from img2img.data.synthetic import shapes
from img2img.data.synthetic.patterns import Patterns
from img2img.data.synthetic.renderer import SceneRenderer
from img2img.data.synthetic.scenes import Scenes
from img2img.errors import InputError


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


def test_options_of_patterns_out_of_range_are_refused() -> None:
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


# ---------------------------------------------------------------------- scenes

KINDS = ("shapes", "landscape", "summer")


def fingerprints(scenes, indices):
    return [scenes[i].image.tobytes() + scenes[i].label.tobytes() for i in indices]


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_depends_on_its_number_alone(kind):
    first = Scenes(kind, "train", count=5, size=64)
    longer = pickle.loads(pickle.dumps(Scenes(kind, "train", count=50, size=64)))
    longer[20]
    assert fingerprints(first, range(5)) == fingerprints(longer, [4, 3, 2, 1, 0])[::-1]


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_differ_between_numbers_seeds_parts_and_kinds(kind):
    sets = [Scenes(kind, part, count=3, size=64, seed=seed) for part in ("train", "val", "test") for seed in (0, 1)]
    seen = [image for s in sets for image in fingerprints(s, range(3))]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_have_uint8_images_and_labels_of_known_classes_only(kind):
    scenes = Scenes(kind, "test", count=10, size=80)
    assert len(scenes) == 10
    for sample in scenes:
        assert sample.image.shape == (80, 80, 3)
        assert sample.label.shape == (80, 80)
        assert sample.image.dtype == sample.label.dtype == np.uint8
        assert sample.label.max() < len(scenes.classes)
        assert sample.image.std() > 8


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_covers_two_percent_of_the_pixels_or_more(kind):
    scenes = Scenes(kind, "train", count=150, size=48)
    counts = sum(np.bincount(s.label.ravel(), minlength=len(scenes.classes)) for s in scenes)
    assert (counts / counts.sum()).min() > 0.02, dict(zip(scenes.classes, counts / counts.sum(), strict=True))


def interior(mask):
    """The pixels of a mask whose four neighbours are all in it."""
    m = np.pad(mask, 1)
    return m[1:-1, 1:-1] & m[:-2, 1:-1] & m[2:, 1:-1] & m[1:-1, :-2] & m[1:-1, 2:]


@pytest.mark.parametrize("kind", range(1, len(shapes.CLASSES)))
def test_the_label_of_a_shape_is_the_shape_as_scikit_image_draws_it(kind):
    x, y, radius, angle = 31.3, 27.8, 19.6, 0.7
    renderer = SceneRenderer(64)
    lines, _ = shapes.outlines(kind, x, y, radius, angle)
    renderer.paint(renderer.patch(*lines), np.full(3, 255, np.float32), label=kind)
    expected = np.zeros((64, 64), bool)
    if shapes.CLASSES[kind] in ("disk", "ring"):
        # scikit-image's coordinates are those of pixel centres
        expected[disk((y - 0.5, x - 0.5), radius, shape=(64, 64))] = True
        if shapes.CLASSES[kind] == "ring":
            expected[disk((y - 0.5, x - 0.5), radius / 2, shape=(64, 64))] = False
    else:
        expected = polygon2mask((64, 64), [(py - 0.5, px - 0.5) for px, py in lines[0]])
    got = renderer.label == kind
    assert not (interior(expected) & ~got).any()
    assert not (interior(~expected) & got).any()
    assert (got != expected).sum() <= 0.03 * expected.sum()  # pixels that the edge cuts nearly in half
    np.testing.assert_array_equal(got, renderer.image[:, :, 0] >= 127.5)  # the image shows what the label says


def test_a_half_covered_pixel_is_half_painted():
    renderer = SceneRenderer(8)
    renderer.paint(renderer.patch([(2.5, 2), (6, 2), (6, 5), (2.5, 5)]), np.full(3, 200, np.float32), label=1)
    row = renderer.image[3, :, 0]
    np.testing.assert_allclose(row[:8], [0, 0, 100, 200, 200, 200, 0, 0], atol=26)  # to an eighth of a pixel
    assert row[[1, 7]].max() == 0
    assert row[[3, 4, 5]].min() == 200


def test_the_last_shape_wins_and_shadows_change_no_label():
    renderer = SceneRenderer(32)
    square = [(4.0, 4.0), (20.0, 4.0), (20.0, 20.0), (4.0, 20.0)]
    renderer.paint(renderer.patch(square), np.full(3, 200, np.float32), label=1)
    renderer.paint(renderer.patch([(x + 8, y) for x, y in square]), np.full(3, 90, np.float32), label=2)
    renderer.shade(renderer.patch(square, blur=2), 0.5)
    assert renderer.label[10, 6] == 1
    assert renderer.label[10, 16] == 2
    np.testing.assert_allclose(renderer.image[10, [8, 16, 26]], [[100] * 3, [45] * 3, [90] * 3], rtol=1e-5)


def test_overlapping_outlines_leave_a_hole_unless_they_are_united():
    outer = [(2.0, 2.0), (30.0, 2.0), (30.0, 30.0), (2.0, 30.0)]
    inner = [(10.0, 10.0), (20.0, 10.0), (20.0, 20.0), (10.0, 20.0)]
    for union, cover in ((False, 0), (True, 255)):
        patch = SceneRenderer(32).patch(outer, inner, union=union)
        assert patch.cover[15 - patch.rows.start, 15 - patch.columns.start] == cover


def test_what_lies_beside_the_canvas_is_nothing():
    renderer = SceneRenderer(16)
    assert renderer.patch([(40.0, 40.0), (50.0, 40.0), (45.0, 50.0)]) is None
    renderer.paint(None, np.zeros(3, np.float32), label=1)
    half_outside = [(12 + 8 * math.cos(t), 20 + 8 * math.sin(t)) for t in np.linspace(0, 6.2, 30)]
    renderer.paint(renderer.patch(half_outside), np.full(3, 9, np.float32), label=1)
    assert renderer.label[15, 12] == 1
    assert renderer.label[:10].max() == 0


@pytest.mark.parametrize(
    "options", [{"kind": "cartoons"}, {"part": "all"}, {"count": 0}, {"size": 16}, {"seed": -1}], ids=lambda o: next(iter(o))
)
def test_options_of_scenes_out_of_range_are_refused(options):
    given = {"kind": "shapes", "part": "train", "count": 3, "size": 64, "seed": 0, **options}
    with pytest.raises(InputError, match=f"{next(iter(options))}="):
        Scenes(given.pop("kind"), given.pop("part"), **given)


def test_a_number_beyond_the_last_scene_ends_a_loop():
    scenes = Scenes("shapes", "train", count=2, size=32)
    with pytest.raises(IndexError, match="0 to 1"):
        scenes[2]
    assert len(list(scenes)) == 2
