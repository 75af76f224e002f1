import numpy as np
import pytest

from img2img.data.arrays import ArrayDataset
from img2img.errors import InputError

GREY = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)


def dark(images: np.ndarray) -> np.ndarray:
    return images // 2


def test_grey_images_get_three_channels_one_at_a_time() -> None:
    dataset = ArrayDataset(GREY, np.array([1, 0]), rows=np.array([3, 1]), classes=["a", "b"], name="made", change=dark)
    images, categories = dataset.arrays()
    np.testing.assert_array_equal(images, GREY[[3, 1]] // 2)
    assert categories.tolist() == [1, 0]
    assert len(dataset) == 2
    for sample, image, category, name in zip(dataset, images, (1, 0), ("made/00003", "made/00001"), strict=True):
        assert sample.image.shape == (2, 3, 3)
        for channel in range(3):
            np.testing.assert_array_equal(sample.image[..., channel], image)
        assert (sample.category, sample.name) == (category, name)


def test_colours_stay_and_the_arrays_are_the_callers_own() -> None:
    colour = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    dataset = ArrayDataset(colour, np.array([0, 1]), classes=["a", "b"], name="made")
    np.testing.assert_array_equal(dataset[1].image, colour[1])
    images, categories = dataset.arrays()
    images[:] = 0
    categories[:] = 0
    assert colour.max() == 23
    assert dataset[1].category == 1


@pytest.mark.parametrize(
    ("images", "categories", "rows", "message"),
    [
        (GREY.astype(np.float32), [0] * 4, None, r"\(4, 2, 3\) float32: expected"),
        (GREY[0], [0] * 2, None, r"\(2, 3\) uint8: expected"),
        (np.zeros((4, 2, 2, 4), np.uint8), [0] * 4, None, r"\(4, 2, 2, 4\)"),
        (GREY, [0] * 3, None, "4 images and 3 categories"),
        (GREY, [0, 1, 2, 0], None, r"categories from 0 to 2: expected 0\.\.1"),
        (GREY, [0, -1], [0, 1], r"categories from -1 to 0"),
        (GREY, [0, 0], [1, 4], r"rows from 1 to 4: expected 0\.\.3"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(images, categories, rows, message) -> None:
    with pytest.raises(InputError, match=message):
        ArrayDataset(images, np.array(categories), rows=rows and np.array(rows), classes=["a", "b"], name="made")
