import pickle
import threading

import numpy as np
import pytest
from PIL import Image

from img2img.data.arrays import ArrayDataset
from img2img.data.base import ImageDataset, Sample
from img2img.data.cache import CachedDataset
from img2img.errors import InputError


class Counting(ImageDataset):
    """Random images of 20 x 30 pixels that counts how often each was decoded."""

    classes = ("a", "b")
    name = "counting"

    def __init__(self, n=4, *, source=False):
        self.source = source
        self.reads = [0] * n

    def __len__(self):
        return len(self.reads)

    def __getitem__(self, index):
        self.reads[index] += 1
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        return Sample(image, image[:, :, 0] % 2, image[::-1].copy() if self.source else None, name=str(index))


def test_each_image_is_decoded_once_and_unchanged():
    images = Counting()
    cached = CachedDataset(images)
    for _ in range(3):
        for i in range(4):
            np.testing.assert_array_equal(cached[i].image, Counting()[i].image)
            np.testing.assert_array_equal(cached[i].label, Counting()[i].label)
    assert images.reads == [1, 1, 1, 1]
    assert (len(cached), cached.classes, cached.name) == (4, ("a", "b"), "counting")
    assert cached._bytes == 4 * 20 * 30 * 4


def test_images_beyond_the_memory_are_decoded_each_time():
    images = Counting()
    cached = CachedDataset(images, max_bytes=2 * 20 * 30 * 4 + 100)
    for _ in range(3):
        for i in range(4):
            np.testing.assert_array_equal(cached[i].image, Counting()[i].image)
    assert images.reads == [1, 1, 3, 3]


@pytest.mark.parametrize(("short_side", "size"), [(10, (15, 10)), (40, (60, 40))], ids=["smaller", "larger"])
def test_images_are_resized_as_pillow_resizes_them(short_side, size):
    sample = CachedDataset(Counting(source=True), short_side=short_side)[1]
    original = Counting(source=True)[1]

    def pillow(array, method):
        return np.asarray(Image.fromarray(array).resize(size, method))

    np.testing.assert_array_equal(sample.image, pillow(original.image, Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(sample.source, pillow(original.source, Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(sample.label, pillow(original.label, Image.Resampling.NEAREST))
    assert sample.name == "1"


@pytest.mark.parametrize("side", [10, 40], ids=["smaller", "larger"])
def test_a_square_has_the_whole_image_whatever_its_proportions(side):
    sample, original = CachedDataset(Counting(source=True), square=side)[1], Counting(source=True)[1]

    def pillow(array, method):
        return np.asarray(Image.fromarray(array).resize((side, side), method))

    np.testing.assert_array_equal(sample.image, pillow(original.image, Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(sample.source, pillow(original.source, Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(sample.label, pillow(original.label, Image.Resampling.NEAREST))
    cut = CachedDataset(Counting(source=True), square=side, middle=8)[1]
    np.testing.assert_array_equal(cut.image, sample.image[side // 2 - 4 :, side // 2 - 4 :][:8, :8])
    assert CachedDataset(CachedDataset(Counting()), square=side).arrays() is None, "they do not stay as they are"


def test_two_sizes_are_refused():
    with pytest.raises(InputError, match=r"short_side=10.*square=10.*one"):
        CachedDataset(Counting(), short_side=10, square=10)


def test_labels_stay_labels_when_they_are_resized():
    assert set(np.unique(CachedDataset(Counting(), short_side=13)[0].label)) <= {0, 1}


def test_warnings_of_a_set_in_memory_look_at_a_few_of_its_images_alone():
    changed = []

    def change(images):
        changed.append(len(images))
        return images

    images = ArrayDataset(
        np.zeros((500, 4, 4), np.uint8), np.zeros(500, np.int64), classes=["a", "b"], name="made", change=change
    )
    assert CachedDataset(images).warnings() == []
    assert sum(changed) <= 8


def test_preload_decodes_all_and_stops_when_the_memory_is_used_up():
    images = Counting()
    CachedDataset(images).preload()
    assert images.reads == [1, 1, 1, 1]
    images = Counting()
    CachedDataset(images, max_bytes=20 * 30 * 4).preload()
    assert images.reads == [1, 1, 0, 0]


def test_threads_share_one_cache_and_its_byte_count_stays_right():
    cached = CachedDataset(Counting(50))
    threads = [threading.Thread(target=cached.preload) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert cached._bytes == 50 * 20 * 30 * 4


def test_pickling_leaves_the_images_behind():
    cached = CachedDataset(Counting(), short_side=10)
    cached.preload()
    copy = pickle.loads(pickle.dumps(cached))
    assert copy._bytes == 0
    np.testing.assert_array_equal(copy[2].image, cached[2].image)


@pytest.mark.parametrize("options", [{"short_side": 0}, {"square": 0}, {"max_bytes": -1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        CachedDataset(Counting(), **options)


class Strip(ImageDataset):
    """One image of 2 x 6000 pixels."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return Sample(np.zeros((6000, 2, 3), dtype=np.uint8), name="strip.png")


@pytest.mark.parametrize(
    ("options", "size"), [({"short_side": 256}, "256 x 768000"), ({"square": 20_000}, "20000 x 20000"), ({"middle": 10_000}, "")]
)
def test_a_strip_is_not_enlarged_to_gigabytes(options, size, monkeypatch):
    monkeypatch.setattr(Image.Image, "resize", lambda *_: pytest.fail("it was enlarged"))
    with pytest.raises(InputError, match=rf"strip\.png.*2 x 6000 .*{size}.*at most 89,478,485; "):
        CachedDataset(Strip(), **options)[0]
