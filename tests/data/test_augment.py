import os
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import crop, hflip, pad

from img2img.data.augment import Augment
from img2img.data.base import VOID, Sample
from img2img.data.cache import CachedDataset
from img2img.data.loader import TrainBatches
from img2img.data.pad_crop import PadCrop
from img2img.data.split import limit
from img2img.data.synthetic.patterns import Patterns
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


def test_turned_crops_are_each_of_the_squares_symmetries_about_as_often():
    sample = pattern(32, 32)
    turns = [np.rot90(sample.image, k) for k in range(4)]
    symmetries = [image.tobytes() for image in (*turns, *(np.fliplr(image) for image in turns))]
    for flip, count in ((True, 8), (False, 4)):
        augment = Augment(32, zoom=(1, 1), flip=flip, rotate=True)
        found = [symmetries.index(augment(sample, seed).image.tobytes()) for seed in range(400)]
        seen = np.bincount(found, minlength=8)
        assert (seen[:count] > 0.6 * 400 / count).all()
        assert seen.sum() == seen[:count].sum()


@pytest.mark.parametrize("rotate", [False, True])
def test_image_label_and_source_get_the_same_geometry(rotate):
    for seed in range(50):
        out = Augment(24, zoom=(1, 1), rotate=rotate)(pattern(40, 60), seed)
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


def test_jitter_changes_the_colours_of_image_and_source_alike():
    """The source of a pair is its input: a target in colours of its own would be one that no network could know."""
    sample = replace(pattern(40, 40), source=pattern(40, 40).image)
    plain, jittered = Augment(24)(sample, 8), Augment(24, jitter=0.3)(sample, 8)
    np.testing.assert_array_equal(plain.label, jittered.label)
    np.testing.assert_array_equal(jittered.image, jittered.source)
    assert (plain.image != jittered.image).any()
    alone = Augment(24, jitter=0.3)(replace(sample, source=None), 8)
    np.testing.assert_array_equal(alone.image, jittered.image)


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


# ---------------------------------------------------------------------- whole batches of small images


def _images(count: int = 40, size: int = 6, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (count, size, size, channels)).astype(np.uint8)


def test_each_cut_is_one_that_torchvision_makes() -> None:
    images = _images()
    done = PadCrop(6, pad=2).batch(images, 5)
    assert done.shape == (40, 3, 6, 6)
    seen = set()
    for before, after in zip(images, done, strict=True):
        source = pad(torch.from_numpy(before).permute(2, 0, 1), [2])
        cuts = {(t, x): crop(source, t, x, 6, 6) for t in range(5) for x in range(5)}
        found = [
            (t, x, m)
            for (t, x), c in cuts.items()
            for m in (False, True)
            if torch.equal(hflip(c) if m else c, torch.from_numpy(after))
        ]
        assert len(found) == 1, "a cut of the image with its border, mirrored or not"
        seen.add(found[0])
    assert len({(t, x) for t, x, _ in seen}) > 12
    assert {m for _, _, m in seen} == {False, True}


def test_a_seed_gives_the_same_cuts_and_another_gives_others() -> None:
    images, shift = _images(), PadCrop(6, pad=2)
    first = shift.batch(images, 1)
    assert np.array_equal(first, shift.batch(images, 1))
    assert not np.array_equal(first, shift.batch(images, 2))


def test_without_border_and_mirror_a_image_stays_as_it_is() -> None:
    images = _images(channels=1)
    assert np.array_equal(PadCrop(6, flip=False).batch(images, 0)[:, 0], images[..., 0])
    assert np.array_equal(PadCrop(6, flip=False).batch(images[..., 0], 0)[:, 0], images[..., 0]), (
        "grey without an axis of channels"
    )


def test_one_sample_is_a_batch_of_one() -> None:
    image = _images(1)[0]
    shifted = PadCrop(6, pad=1)(Sample(image, category=3), 9)
    assert np.array_equal(shifted.image.transpose(2, 0, 1), PadCrop(6, pad=1).batch(image[None], 9)[0])
    assert shifted.category == 3
    with pytest.raises(InputError, match=r"augmentation\.pad"):
        PadCrop(6)(Sample(image, np.zeros((6, 6), np.uint8)), 0)


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be cut to 9"):
        PadCrop(9, pad=1).batch(_images(), 0)
    with pytest.raises(InputError, match="pad=-1"):
        PadCrop(9, pad=-1)


def test_batches_of_a_set_in_memory_are_those_of_its_samples() -> None:
    dataset = CachedDataset(limit(Patterns("train", count=20, size=8), 17))
    batches = TrainBatches(dataset, PadCrop(8, flip=False), batch_size=5, seed=3)
    loader = iter(batches.iterate(2))
    for step in (2, 3, 4):
        batch = batches.batch(step)
        assert torch.equal(next(loader).image, batch.image)
        assert batch.category is not None
        for image, category in zip(batch.image, batch.category, strict=True):
            same = [i for i in range(17) if np.array_equal(dataset[i].image, image.permute(1, 2, 0).numpy())]
            assert len(same) == 1
            assert dataset[same[0]].category == int(category)


def test_parts_of_batches_of_a_set_in_memory_are_those_batches_shared_out() -> None:
    batches = TrainBatches(Patterns("train", count=15, size=8), PadCrop(6, pad=1), batch_size=6, seed=3)
    whole, parts = batches.batch(4), [batches.part(i, 2).batch(4) for i in range(2)]
    assert torch.equal(torch.cat([part.image for part in parts]), whole.image)
    assert whole.category is not None
    assert [c for part in parts if part.category is not None for c in part.category] == list(whole.category)


def test_an_epoch_of_a_set_in_memory_has_every_image_once() -> None:
    dataset = Patterns("train", count=15, size=8)
    batches = TrainBatches(dataset, PadCrop(8, flip=False), batch_size=5, seed=0)
    seen = torch.cat([batches.batch(step).image.flatten(1) for step in range(3)])
    whole = torch.from_numpy(dataset.arrays()[0]).permute(0, 3, 1, 2).flatten(1)
    assert {tuple(row.tolist()) for row in seen} == {tuple(row.tolist()) for row in whole}


def test_a_square_of_every_cut_is_black_and_the_rest_is_as_without_it() -> None:
    images = _images(60, size=12)
    plain, cut = (PadCrop(12, cutout=side).batch(images, 5) for side in (0, 5))
    black = (cut == 0).all(1)
    assert np.array_equal(np.where(black[:, None], plain, cut), plain), "the same cuts and mirrors"
    sizes = set(zip(black.any(2).sum(1).tolist(), black.any(1).sum(1).tolist(), strict=True))
    assert (5, 5) in sizes
    assert all(3 <= height <= 5 and 3 <= width <= 5 for height, width in sizes), "a square, of which a part may lie outside"
    assert black.sum((1, 2)).tolist() == [h * w for h, w in zip(black.any(2).sum(1), black.any(1).sum(1), strict=True)]
    assert len({tuple(np.argwhere(each).mean(0)) for each in black}) > 20, "at a place of its own"
    with pytest.raises(InputError, match="cutout=-1"):
        PadCrop(9, cutout=-1)
