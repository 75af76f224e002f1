"""Datasets that make images smaller as they read them: the pixels of reading the whole image and resizing it afterwards."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile

from img2img.data.cache import CachedDataset
from img2img.data.datasets.folder import ImageFolder, ImageLabelFolder
from img2img.data.datasets.pairs import PairedFolders
from img2img.data.images.decode import read_image, read_sized
from img2img.data.images.resizing import Resize, reading_resized


def photo(path: Path, *, size: tuple[int, int] = (120, 91), orientation: int = 1, mode: str = "RGB") -> Path:
    """A photo of that width and height, smooth with some edges."""
    noise = np.random.default_rng(3).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    image[20:40, 30:70] = (200, 40, 90)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(image).convert(mode).save(path, exif=exif)
    return path


def lanczos(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("resize", "size"), [(Resize(30), (30, 40)), (Resize(square=25), (25, 25)), (Resize(), (91, 120))])
def test_pixels_are_those_of_the_whole_image_resized(
    tmp_path: Path, name: str, mode: str, orientation: int, resize: Resize, size: tuple[int, int]
) -> None:
    path = photo(tmp_path / name, orientation=orientation, mode=mode)
    whole = read_image(path)
    with reading_resized(resize):
        read = read_sized(path)
    assert read.size == whole.shape[:2] == ((91, 120) if orientation == 1 else (120, 91))
    assert read.orientation == orientation
    expected = lanczos(whole, *(size if orientation == 1 else size[::-1]))
    np.testing.assert_array_equal(read.image, expected)


def test_nothing_is_enlarged_by_reading(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.jpg")
    with reading_resized(Resize(200, fast=True)):
        assert read_sized(path).image.shape == (91, 120, 3)
    with reading_resized(Resize(square=100)):
        assert read_sized(path).image.shape == (91, 120, 3)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("side", "part"), [(80, 1), (45, 2), (46, 1), (22, 4), (11, 8), (2, 8)])
def test_fast_decoding_asks_libjpeg_for_the_smallest_part_that_is_large_enough(
    tmp_path: Path, side: int, part: int, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = photo(tmp_path / "a.jpg", orientation=orientation)
    whole = read_image(path)
    sizes: list[tuple[int, int]] = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: (sizes.append(self.size), load(self))[1])
    with reading_resized(Resize(side, fast=True)):
        read = read_sized(path)
    assert sizes[:1] == [(-(-120 // part), -(-91 // part))]
    height, width = Resize(side).of(*whole.shape[:2])
    assert read.image.shape == (height, width, 3)
    assert read.size == whole.shape[:2]
    difference = np.abs(read.image.astype(int) - lanczos(whole, height, width))
    assert difference.max() == 0 if part == 1 else 0 < difference.mean() < 5


def test_labels_and_targets_fit_the_images_that_are_made_smaller(tmp_path: Path) -> None:
    for folder in ("images", "labels", "targets"):
        (tmp_path / folder).mkdir()
    photo(tmp_path / "images" / "a.jpg", size=(121, 91))
    label = np.random.default_rng(0).integers(0, 2, (91, 121), dtype=np.uint8)
    Image.fromarray(label).save(tmp_path / "labels" / "a.png")
    photo(tmp_path / "targets" / "a.png", size=(121, 91))
    labelled = ImageLabelFolder(tmp_path / "images", tmp_path / "labels", ["a", "b"])
    paired = PairedFolders(tmp_path / "images", tmp_path / "targets")
    whole = labelled[0]
    assert whole.image.shape == (91, 121, 3)
    for options in ({"short_side": 30}, {"square": 20}):
        size = Resize(**options).of(91, 121)
        sample, pair = CachedDataset(labelled, **options)[0], CachedDataset(paired, **options)[0]
        np.testing.assert_array_equal(sample.image, lanczos(whole.image, *size))
        np.testing.assert_array_equal(
            sample.label, np.asarray(Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST))
        )
        np.testing.assert_array_equal(pair.source, sample.image)
        np.testing.assert_array_equal(pair.image, lanczos(paired[0].image, *size))
        fast = CachedDataset(labelled, **options, fast_decode=True)[0]
        assert fast.image.shape == sample.image.shape
        assert not np.array_equal(fast.image, sample.image)
        np.testing.assert_array_equal(fast.label, sample.label)


def test_a_dataset_reads_whole_images_outside_of_a_cache(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    images = ImageFolder(tmp_path)
    assert CachedDataset(images, short_side=20)[0].image.shape[0] == 20
    assert images[0].image.shape == (91, 120, 3)
    assert CachedDataset(images)[0].image.shape == (91, 120, 3)
