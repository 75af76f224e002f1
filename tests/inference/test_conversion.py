"""What users give, in all its types, becomes the image that a viewer shows; results go back into the same type."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import decode_image

from img2img import InputError
from img2img.inference.conversion import open_input

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
ALPHA = np.random.default_rng(1).integers(0, 256, (6, 9), dtype=np.uint8)


def _values(image: Any) -> NDArray[np.uint8]:
    opened = open_input(image)
    assert opened.values.shape == (1, 3, 6, 9)
    assert opened.size == (6, 9)
    values: NDArray[np.uint8] = opened.values[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
    return values


def test_every_type_of_an_rgb_image_is_the_same_image(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    tensor = torch.from_numpy(RGB).permute(2, 0, 1) / 255
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(RGB), RGB, tensor, tensor.double(), tensor[None]):
        assert np.array_equal(_values(given), RGB)
    assert torch.equal(open_input(tmp_path / "a.png").values[0], decode_image(str(tmp_path / "a.png"))), "torchvision agrees"


def test_grey_is_repeated_and_16_bits_are_scaled() -> None:
    grey = RGB[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    for given in (grey, grey[..., None], Image.fromarray(grey), torch.from_numpy(grey)[None] / 255, grey.astype(np.uint16) * 257):
        assert np.array_equal(_values(given), expected)
    assert np.array_equal(_values(Image.fromarray(grey.astype(np.uint16) * 257)), expected)
    assert np.array_equal(_values(RGB.astype(np.uint16) * 257), RGB)


def test_transparent_images_lie_on_white_and_results_keep_the_transparency() -> None:
    rgba = np.concatenate([RGB, ALPHA[..., None]], axis=2)
    share = ALPHA[..., None] / 255
    on_white = RGB * share + 255 * (1 - share)
    shown = torch.rand(1, 3, 6, 9)
    for given in (rgba, Image.fromarray(rgba)):
        assert np.abs(_values(given) - on_white).max() <= 1
        assert np.array_equal(np.asarray(open_input(given).image(shown))[..., 3], ALPHA)


def test_a_photo_is_turned_as_its_exif_says() -> None:
    image = Image.fromarray(RGB.transpose(1, 0, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn clockwise
    image.info["exif"] = exif.tobytes()
    assert np.array_equal(_values(image), np.rot90(RGB.transpose(1, 0, 2), -1))
    assert image.size == (6, 9), "the user's own is left alone"


def test_results_have_the_type_of_what_came() -> None:
    shown = torch.rand(1, 3, 6, 9)
    expected = (shown[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = open_input(Image.fromarray(RGB)).image(shown)
    assert isinstance(image, Image.Image)
    assert np.array_equal(np.asarray(image), expected)
    array = open_input(RGB).image(shown)
    assert array.dtype == np.uint8
    assert np.array_equal(array, expected)
    assert torch.equal(open_input(torch.rand(3, 6, 9)).image(shown), shown[0])
    assert torch.equal(open_input(torch.rand(1, 3, 6, 9)).image(shown), shown)


def test_labels_come_as_indices(tmp_path: Path) -> None:
    labels = torch.randint(0, 3, (1, 6, 9))
    image = open_input(Image.fromarray(RGB)).labels(labels, 3)
    image.save(tmp_path / "labels.png")
    from img2img.data.images.decode import read_label

    assert np.array_equal(read_label(tmp_path / "labels.png"), labels[0].numpy()), "a label file that training reads"
    array = open_input(RGB).labels(labels, 3)
    assert array.dtype == np.uint8
    assert np.array_equal(array, labels[0].numpy())
    assert torch.equal(open_input(torch.rand(2, 3, 6, 9)).labels(labels, 3), labels)


def test_scores_come_by_class_the_likeliest_first() -> None:
    scores = torch.tensor([[0.2, 0.7, 0.1]])
    by_class = open_input(RGB).scores(scores, ("cat", "dog", "cow"))
    assert list(by_class) == ["dog", "cat", "cow"]
    assert by_class == pytest.approx({"dog": 0.7, "cat": 0.2, "cow": 0.1})
    assert torch.equal(open_input(torch.rand(3, 6, 9)).scores(scores, ("cat", "dog", "cow")), scores[0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (RGB.astype(np.float32), r"\(6, 9, 3\) float32.*\(H, W, 3\) uint8"),
        (RGB[None], "give many as a list"),
        (RGB[..., :2], "expected"),
        (RGB[:0], "expected"),
        (np.zeros((3, 6, 9), np.int64), "uint8"),
        (torch.zeros(3, 6, 9, dtype=torch.uint8), r"\(3, 6, 9\) torch.uint8.*\(N, 3, H, W"),
        (torch.zeros(6, 9, 3), "expected"),
        (torch.full((3, 6, 9), 200.0), r"200 to 200.*\[0, 1\]"),
        (torch.full((3, 6, 9), torch.nan), "values from nan"),
        (torch.full((3, 6, 9), -1.0), "values from -1"),
        (Image.fromarray(RGB[..., 0].astype(np.float32)), "the image has float pixels"),
        (7, "got a int: expected a path"),
        ("nowhere.png", "at nowhere.png"),
    ],
)
def test_what_is_no_image_is_refused(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_input(given)
