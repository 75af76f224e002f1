"""PNGs with one transparent colour (the tRNS chunk): it is compared with the file's own values, at every depth."""

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from img2img.data.images.decode import read_image
from img2img.errors import InputError
from img2img.inference.conversion import open_input

GREYS = [0, 1, 2, 3]
"""Of the two bits that every depth here has; the deeper ones stretch them."""


def png(depth: int, values: Any, key: Any) -> bytes:
    """A PNG of one row, (W,) greys or (W, 3) colours of `depth` bits, with a transparent one."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    values = np.asarray(values)
    bits = "".join(f"{value:0{depth}b}" for value in values.ravel().tolist())
    bits += "0" * (-len(bits) % 8)
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    header = struct.pack(">IIBBBBB", len(values), 1, depth, 0 if values.ndim == 1 else 2, 0, 0, 0)
    colour = struct.pack(f">{np.size(key)}H", *np.ravel(key).tolist())
    parts = [(b"IHDR", header), (b"tRNS", colour), (b"IDAT", zlib.compress(row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def check(encoded: bytes, path: Path, expected: list[int], transparent: int) -> None:
    """The pixels of a file are `expected`, with the transparent one white, and results get its alpha."""
    path.write_bytes(encoded)
    on_white = [255 if i == transparent else grey for i, grey in enumerate(expected)]
    assert read_image(path)[0, :, 0].tolist() == on_white
    for given, options in ((path, {}), (encoded, {}), (encoded, {"white": 65535})):
        opened = open_input(given, **options)
        assert opened.values[0, 0, 0].tolist() == on_white
        assert opened.alpha is not None
        assert opened.alpha[0].tolist() == [0 if i == transparent else 255 for i in range(len(expected))]


@pytest.mark.parametrize("transparent", [0, 1, 3])
@pytest.mark.parametrize("depth", [2, 4, 8, 16])
def test_a_transparent_grey_is_the_one_that_the_file_has(tmp_path: Path, depth: int, transparent: int) -> None:
    values = [grey * (2**depth - 1) // 3 for grey in GREYS]
    encoded = png(depth, values, values[transparent])
    check(encoded, tmp_path / "a.png", [85 * grey for grey in GREYS], transparent)
    with Image.open(BytesIO(encoded)) as image:
        alpha = open_input(image).alpha
        assert alpha is not None
        assert alpha[0, transparent] == 0
        assert "transparency" in image.info, "the caller's own is left alone"


@pytest.mark.parametrize("transparent", [0, 1])
def test_one_bit_has_a_transparent_one_too(tmp_path: Path, transparent: int) -> None:
    check(png(1, [0, 1], transparent), tmp_path / "a.png", [0, 255], transparent)


@pytest.mark.parametrize("transparent", [0, 1, 2, 3])
@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_the_one_that_the_file_has(tmp_path: Path, depth: int, transparent: int) -> None:
    values = np.array([[grey * (2**depth - 1) // 3] * 3 for grey in GREYS])
    check(png(depth, values, values[transparent]), tmp_path / "a.png", [85 * grey for grey in GREYS], transparent)


def test_colours_that_differ_in_their_lower_bits_alone_are_told_apart() -> None:
    opened = open_input(png(16, [[51200] * 3, [51201] * 3, [0] * 3], [51200] * 3))
    assert opened.alpha is not None
    assert opened.alpha.tolist() == [[0, 255, 255]]


def test_a_pil_image_of_16_bits_whose_transparent_colour_is_lost_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(16, [[51200] * 3, [0] * 3], [51200] * 3))
    with Image.open(tmp_path / "a.png") as image, pytest.raises(InputError, match=r"transparent one .*give its path"):
        open_input(image)
    read = Image.open(BytesIO((tmp_path / "a.png").read_bytes()))
    read.load()
    with pytest.raises(InputError, match=r"transparent one .*give its path"):
        open_input(read)


def test_few_bits_are_known_after_the_pixels_were_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(2, GREYS, 1))
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        alpha = open_input(image).alpha
    assert alpha is not None
    assert alpha.tolist() == [[255, 0, 255, 255]]
