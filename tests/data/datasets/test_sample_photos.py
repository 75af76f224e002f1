import itertools

import numpy as np
import pytest
from PIL import Image

from img2img.data.base import PARTS
from img2img.data.datasets import sample_photos
from img2img.data.datasets.sample_photos import COLOUR_PHOTOS, HELD_OUT, SamplePhotos, photo_region, region_box, style_image
from img2img.errors import InputError


@pytest.mark.parametrize("name", [*sample_photos._CUTS, *HELD_OUT])
def test_the_regions_of_a_photo_cover_each_pixel_exactly_once(name):
    with Image.open(sample_photos._shipped(name)) as photo:
        width, height = photo.size
    owners = np.zeros((height, width), int)
    for part in PARTS:
        box = region_box(name, part, height=height, width=width)
        if box is not None:
            owners[box[0] : box[1], box[2] : box[3]] += 1
    np.testing.assert_array_equal(owners, 1)


def test_a_held_out_photo_is_only_in_the_test_part():
    for name, part in itertools.product(HELD_OUT, ("train", "val")):
        assert photo_region(name, part, 64) is None
        assert not any(s.name.startswith(name) for s in SamplePhotos(part, short_side=64))
    assert any(s.name.startswith(HELD_OUT[0]) for s in SamplePhotos("test", short_side=64))


def test_the_stereo_twin_and_the_style_images_are_in_no_part():
    shown = {s.name.split("[")[0] for part in PARTS for s in SamplePhotos(part, short_side=64)}
    assert shown == set(COLOUR_PHOTOS)
    assert shown.isdisjoint({"motorcycle_right", *sample_photos.STYLE_IMAGES})


@pytest.fixture
def one_colour_a_part(monkeypatch, tmp_path):
    """Replaces every shipped photo by one that is red where train looks, green for val and blue for test."""
    photo = np.zeros((130, 200, 3), np.uint8)
    paths = {}
    for name in [*sample_photos._CUTS, *HELD_OUT]:
        for channel, part in enumerate(PARTS):
            box = region_box(name, part, height=130, width=200)
            if box is not None:
                photo[box[0] : box[1], box[2] : box[3]] = np.eye(3, dtype=np.uint8)[channel] * 255
        paths[name] = tmp_path / f"{name}.png"
        Image.fromarray(photo).save(paths[name])
    monkeypatch.setattr(sample_photos, "_shipped", paths.__getitem__)
    photo_region.cache_clear()
    yield
    photo_region.cache_clear()


@pytest.mark.parametrize("part", PARTS)
def test_resizing_mixes_no_pixel_of_another_part_into_a_region(one_colour_a_part, part):
    for sample in SamplePhotos(part, short_side=47):
        np.testing.assert_array_equal(sample.image, np.broadcast_to(np.eye(3)[PARTS.index(part)] * 255, sample.image.shape))


@pytest.mark.parametrize("part", PARTS)
def test_scenes_may_only_use_photos_of_their_part(one_colour_a_part, part):
    from img2img.data.synthetic.renderer import PhotoTextures

    stock = PhotoTextures(part, 64)
    others = [c for c in range(3) if c != PARTS.index(part)]
    rng = np.random.default_rng(0)
    for _ in range(60):
        assert stock.photo(rng, (20, 30))[:, :, others].max() == 0
    for texture in stock._textures.values():  # grey images: their red channel
        np.testing.assert_array_equal(texture, 255 if part == "train" else 0)


def test_the_shorter_side_of_the_whole_photo_is_as_asked():
    heights = {s.name: s.image.shape[0] for s in SamplePhotos("train", short_side=100)}
    assert all(height == 100 for height in heights.values()), heights  # every photo is as wide as high, or wider
    assert SamplePhotos("test", short_side=100)[-1].image.shape == (100, 150, 3)  # coffee, 400 x 600


@pytest.mark.parametrize("part", PARTS)
def test_every_region_shows_something_at_the_default_size(part):
    for sample in SamplePhotos(part, tile=64):
        assert sample.image.shape == (64, 64, 3)
        assert sample.image.dtype == np.uint8
        assert sample.image.std() > 5, sample.name


def test_tiles_are_the_squares_of_the_region():
    whole = SamplePhotos("test")[-1].image
    tiles = [s for s in SamplePhotos("test", tile=64) if s.name.startswith("coffee")]
    assert [t.name for t in tiles] == [f"coffee[test]#{k}" for k in range(6)]
    np.testing.assert_array_equal(tiles[4].image, whole[64:128, 64:128])


def test_a_tile_larger_than_a_region_is_refused_with_the_sizes_that_would_do():
    with pytest.raises(InputError, match=r"tile=96.*64.*short_side=240"):
        SamplePhotos("test", tile=96)
    assert len(SamplePhotos("test", short_side=240, tile=96)) > 0


def test_an_unknown_part_or_image_is_refused_with_those_that_exist():
    with pytest.raises(InputError, match=r"'training'.*train, val, test"):
        SamplePhotos("training")
    with pytest.raises(InputError, match=r"'starry_night'.*ihc"):
        style_image("starry_night")


def test_style_images_are_files():
    for name in sample_photos.STYLE_IMAGES:
        with Image.open(style_image(name)) as image:
            assert min(image.size) >= 256
