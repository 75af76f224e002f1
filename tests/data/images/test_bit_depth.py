"""Images of 16 bits that use 12 of them: what is said, and what `white` makes of them."""

import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from test_decode import png

from img2img.data import build_data
from img2img.data.cache import CachedDataset
from img2img.data.datasets.folder import ImageFolder
from img2img.data.images.bit_depth import reading_16_bits, to_8_bits
from img2img.data.images.decode import read_image
from img2img.errors import InputError
from img2img.inference.conversion import open_input

SHARES = np.array([[0.0, 0.25, 0.5, 1.0]])
TWELVE = (4095 * SHARES).round().astype(np.uint16)
EIGHT = (255 * SHARES).round().astype(int)


def colours(values: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return np.stack([values, values[:, ::-1], np.zeros_like(values)], axis=-1)


def write(path: Path, values: NDArray[np.uint16]) -> Path:
    """A PNG or TIFF of 16 bits, grey, RGB or RGBA."""
    if path.suffix == ".tif":
        tifffile.imwrite(path, values)
    elif path.suffix == ".ppm":
        path.write_bytes(b"P6 %d %d 65535\n" % values.shape[1::-1] + values.astype(">u2").tobytes())
    else:
        kind = {1: 0, 3: 2, 4: 6}[1 if values.ndim == 2 else values.shape[2]]
        rows = [row.astype(">u2").tobytes() for row in values.reshape(len(values), -1)]
        path.write_bytes(png(16, kind, rows, values.shape[1]))
    return path


def near(read: NDArray[np.uint8], expected: Any) -> bool:
    return bool(np.abs(read.astype(int) - expected).max() <= 1)


def test_all_values_are_scaled_as_before_without_a_white() -> None:
    values = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(to_8_bits(values), (values.astype(np.uint32) + 128) // 257)
    assert np.array_equal(to_8_bits(values, 4095), np.minimum(np.round(values * (255 / 4095)), 255))


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_grey_is_as_bright_as_its_white_says(tmp_path: Path, extension: str) -> None:
    path = write(tmp_path / f"a.{extension}", TWELVE)
    assert read_image(path).max() <= 16
    with reading_16_bits(4095):
        assert near(read_image(path)[..., 0], EIGHT)
    assert near(open_input(path, white=4095).values[0, 0].numpy(), EIGHT)
    with Image.open(path) as image:
        assert near(open_input(image, white=4095).values[0, 0].numpy(), EIGHT)


@pytest.mark.parametrize("extension", ["png", "tif", "ppm"])
def test_colours_keep_all_their_steps(tmp_path: Path, extension: str) -> None:
    path = write(tmp_path / f"a.{extension}", colours(TWELVE))
    expected = np.stack([EIGHT, EIGHT[:, ::-1], np.zeros_like(EIGHT)], axis=-1)
    with reading_16_bits(4095):
        assert near(read_image(path), expected)
        assert near(read_image(write(tmp_path / f"b.{extension}", colours(TWELVE + 16)))[..., 0], EIGHT + 1), "not 8 of 12 bits"


def test_an_alpha_has_all_16_bits(tmp_path: Path) -> None:
    alpha = np.array([[65535, 65535, 65535, 0]], dtype=np.uint16)
    rgba = np.concatenate([colours(TWELVE), alpha[..., None]], axis=2)
    for given in (write(tmp_path / "a.png", rgba), rgba):
        opened = open_input(given, white=4095)
        assert near(opened.values[0, 0, :, :3].numpy(), EIGHT[:, :3])
        assert opened.values[0, :, 0, 3].tolist() == [255, 255, 255], "on white"
        assert opened.alpha is not None
        assert opened.alpha.tolist() == [[255, 255, 255, 0]]


def test_colours_are_turned_like_all_others(tmp_path: Path) -> None:
    import zlib

    def exif(orientation: int) -> bytes:
        data = b"eXIfMM\0*\0\0\0\10" + struct.pack(">HHHIHHI", 1, 274, 3, 1, orientation, 0, 0)
        return struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))

    whole = write(tmp_path / "a.png", colours(TWELVE)).read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:33] + exif(3) + whole[33:])
    with reading_16_bits(4095):
        assert near(read_image(tmp_path / "a.png")[..., 0], EIGHT[:, ::-1])


def test_a_file_that_says_12_bits_is_as_bright_as_it_says(tmp_path: Path) -> None:
    """A TIFF of 12 bits a sample, two samples in three bytes, put together by hand."""
    values = TWELVE[0].tolist()
    pixels = b"".join((a << 12 | b).to_bytes(3, "big") for a, b in zip(values[::2], values[1::2], strict=True))
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, 1), (279, len(pixels))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels)
    assert near(read_image(tmp_path / "a.tif")[..., 0], EIGHT)


def test_a_pgm_is_as_bright_as_its_maxval_says(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 4 1 4095\n" + TWELVE.astype(">u2").tobytes())
    assert near(read_image(tmp_path / "a.pgm")[..., 0], EIGHT)


def test_a_command_says_once_what_range_it_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [write(tmp_path / f"{i}.png", colours(TWELVE)) for i in range(3)] + [write(tmp_path / "grey.png", TWELVE)]
    with caplog.at_level(logging.WARNING, "img2img"):
        for path in paths:
            open_input(path)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "values up to 4,095 of 65,535" in said
    assert "white=4095" in said


@pytest.mark.parametrize(
    ("values", "white", "said"),
    [
        (TWELVE, None, "4,095.*12 bits.*white=4095"),
        (colours(TWELVE), None, "4,095.*12 bits.*white=4095"),
        (TWELVE * 4, None, "16,380.*14 bits.*white=16383"),
        (TWELVE * 16, 4095, "up to 65,520, beyond white=4095"),
        (colours(TWELVE * 16), 4095, "up to 65,520, beyond white=4095"),
        (TWELVE, 4095, None),
        (TWELVE * 16, None, None),
        (colours(TWELVE * 16), None, None),
    ],
)
def test_a_set_says_what_range_it_found(
    tmp_path: Path, values: NDArray[np.uint16], white: int | None, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    import re

    for i in range(20):
        write(tmp_path / f"{i}.png", values if i % 3 else np.zeros_like(values))
    images = CachedDataset(ImageFolder(tmp_path), white=white)
    remarks = images.warnings()
    assert len(remarks) == (said is not None)
    assert said is None or re.search(said, remarks[0])
    assert not caplog.records, "only where it is asked for"


def test_white_is_an_option_of_every_kind_of_data(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path / f"{i}.png", TWELVE)
    parts = build_data({"kind": "image_folder", "root": str(tmp_path), "white": 4095})
    assert near(parts.train[0].image[..., 0], EIGHT)
    assert parts.test.white == 4095
    for white in (0, 65536, "4095", True, 4095.0):
        with pytest.raises(InputError, match=r"image_folder.*white.*4095 \(12 bits\)"):
            build_data({"kind": "image_folder", "root": str(tmp_path), "white": white})


def test_images_of_8_bits_know_no_white(tmp_path: Path) -> None:
    image_file = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(image_file).save(tmp_path / "a.png")
    with reading_16_bits(1000):
        assert np.array_equal(read_image(tmp_path / "a.png"), image_file)
