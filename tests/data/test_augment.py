import os
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from img2img.data.augment import Augment
from img2img.data.base import VOID, Sample
from img2img.errors import InputError


def pattern(height, width, *, source=True):
    """An image whose every pixel is unique; its label is its first channel and its source the image."""
    ys, xs = np.mgrid[:height, :width]
    image = np.stack([(ys * 7 + xs * 3) % 251, ys % 256, xs % 256], -1).astype(np.uint8)
    return Sample(image, image[:, :, 0].copy(), image.copy() if source else None, name="pattern")


def content(sample):
    return b"".join(a.tobytes() for a in (sample.image, sample.label, sample.source) if a is not None)


def test_the_same_seed_gives_the_same_bytes_whatever_came_before():
    sample = pattern(50, 70)
    fresh = content(Augment(32, jitter=0.2)(sample, 3))
    used = Augment(32, jitter=0.2)
    for seed in (1, 2, 9):
        used(pattern(80, 40), seed)
    random.seed(0)
    np.random.seed(0)
    assert content(used(sample, 3)) == fresh
    assert content(pickle.loads(pickle.dumps(used))(sample, 3)) == fresh


@pytest.mark.slow
def test_another_process_gives_the_same_bytes():
    code = (
        "import sys, numpy as np; from img2img.data.augment import Augment; from img2img.data.base import Sample;"
        "i = np.arange(60 * 80 * 3).astype(np.uint8).reshape(60, 80, 3);"
        "o = Augment(32, jitter=0.1)(Sample(i, i[:, :, 0]), 77); sys.stdout.write((o.image.tobytes() + o.label.tobytes()).hex())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    image = np.arange(60 * 80 * 3).astype(np.uint8).reshape(60, 80, 3)
    here = Augment(32, jitter=0.1)(Sample(image, image[:, :, 0]), 77)
    assert there == (here.image.tobytes() + here.label.tobytes()).hex()


def test_threads_that_share_an_augment_do_not_disturb_each_other():
    sample, augment = pattern(50, 70), Augment(32, jitter=0.1)
    alone = [content(augment(sample, seed)) for seed in range(200)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda seed: content(augment(sample, seed)), range(200)))
    assert together == alone


def test_seeds_give_different_crops_and_mirror_about_half():
    augment = Augment(32, zoom=(1, 1))
    sample = pattern(64, 64)
    crops = [augment(sample, seed).image for seed in range(200)]
    assert len({c.tobytes() for c in crops}) > 150
    mirrored = sum(int(c[0, 0, 2]) > int(c[0, -1, 2]) for c in crops)
    assert 70 < mirrored < 130
    assert not any(int(c[0, 0, 2]) > int(c[0, -1, 2]) for c in (Augment(32, flip=False)(sample, s).image for s in range(30)))


def test_image_label_and_source_get_the_same_geometry():
    for seed in range(50):
        out = Augment(24, zoom=(1, 1))(pattern(40, 60), seed)
        np.testing.assert_array_equal(out.label, out.image[:, :, 0])
        np.testing.assert_array_equal(out.source, out.image)


def test_image_and_label_stay_aligned_when_they_are_magnified():
    # the place of a pixel is in its colour; a label of the same slope may be off by half a pixel, but not on average
    ys, xs = np.mgrid[:60, :60]
    image = np.stack([ys * 4, xs * 4, xs * 0], -1).astype(np.uint8)
    sample = Sample(image, (ys * 4).astype(np.uint8))
    for zoom in ((0.6, 0.6), (1.5, 1.5)):
        for seed in range(10):
            out = Augment(30, zoom=zoom)(sample, seed)
            off = out.label.astype(float)[1:-1, 1:-1] - out.image[1:-1, 1:-1, 0]
            assert abs(off).max() <= 4
            assert abs(off.mean()) < 0.5


def test_zoom_sets_the_scale_of_things():
    def slope(zoom):
        ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, :, None] * 2, (100, 100, 3)).copy()
        out = Augment(40, zoom=(zoom, zoom), flip=False)(Sample(ramp), 0)
        return (float(out.image[5, 35, 0]) - float(out.image[5, 5, 0])) / 30

    assert slope(1) == 2
    assert slope(0.5) == pytest.approx(4, rel=0.05)
    assert slope(2) == pytest.approx(1, rel=0.05)


def test_the_square_never_needs_more_than_the_image():
    # a zoom of 0.25 would need 128 pixels
    out = Augment(32, zoom=(0.25, 0.25))(pattern(40, 200), 5)
    assert out.image.shape == (32, 32, 3)
    assert out.label.shape == (32, 32)
    assert VOID not in out.label
    assert int(out.image[-1, 0, 1]) - int(out.image[0, 0, 1]) == pytest.approx(38, abs=2)  # all 40 rows are there


@pytest.mark.parametrize("shape", [(20, 26), (20, 90), (90, 20), (1, 1)])
def test_a_image_smaller_than_the_crop_is_mirrored_and_its_label_void_there(shape):
    sample = pattern(*shape)
    out = Augment(32, zoom=(1, 1), flip=False)(sample, 4)
    assert out.image.shape == (32, 32, 3)
    labelled = out.label != VOID
    assert labelled.sum() == min(shape[0], 32) * min(shape[1], 32)
    np.testing.assert_array_equal(out.label[labelled], out.image[:, :, 0][labelled])
    if shape == (20, 26):
        np.testing.assert_array_equal(out.image, np.pad(sample.image, ((6, 6), (3, 3), (0, 0)), mode="reflect"))
        np.testing.assert_array_equal(out.source, out.image)


def test_jitter_changes_the_colours_of_the_image_alone():
    sample = pattern(40, 40)
    plain, jittered = Augment(24)(sample, 8), Augment(24, jitter=0.3)(sample, 8)
    np.testing.assert_array_equal(plain.label, jittered.label)
    np.testing.assert_array_equal(plain.source, jittered.source)
    assert (plain.image != jittered.image).any()


def test_the_sample_is_left_alone_and_missing_fields_stay_missing():
    sample = pattern(24, 24)
    before = content(sample)
    out = Augment(24, zoom=(1, 1), flip=False, jitter=0.3)(sample, 1)
    out.image[:] = 0
    out.label[:] = 0
    assert content(sample) == before
    bare = Augment(16)(Sample(sample.image, name="x"), 0)
    assert bare.label is None
    assert bare.source is None
    assert bare.name == "x"


def test_images_of_different_sizes_are_refused_by_name():
    with pytest.raises(InputError, match=r"photo\.jpg.*\(20, 20\).*\(20, 21\)"):
        Augment(8)(Sample(np.zeros((20, 20, 3), np.uint8), np.zeros((20, 21), np.uint8), name="photo.jpg"), 0)


@pytest.mark.parametrize("options", [{"crop": 0}, {"zoom": (0, 1)}, {"zoom": (2, 1)}, {"jitter": 1.5}], ids=str)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        Augment(**{"crop": 8, **options})


def test_albumentations_does_not_ask_for_updates():
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"
