"""A PNG is read whatever text it carries: Pillow's limits on text say nothing about the pixels."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from img2img.data.images.decode import read_image, read_label
from img2img.errors import InputError

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
MEGABYTES = "prompt " * 400_000


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(extra: bytes, *, behind: bool = False, image_file: np.ndarray = IMAGE) -> bytes:
    """A PNG with chunks put in before its pixels, or behind them."""
    file = BytesIO()
    Image.fromarray(image_file).save(file, "PNG")
    whole = file.getvalue()
    at = len(whole) - 12 if behind else 8 + 25
    return whole[:at] + extra + whole[at:]


def international(text: str, *, packed: bool) -> bytes:
    data = text.encode()
    return b"parameters\0" + (b"\1\0" if packed else b"\0\0") + b"\0\0" + (zlib.compress(data) if packed else data)


TEXTS: dict[str, Callable[[], bytes]] = {
    "packed": lambda: chunk(b"zTXt", b"parameters\0\0" + zlib.compress(MEGABYTES.encode())),
    "international and packed": lambda: chunk(b"iTXt", international(MEGABYTES, packed=True)),
    "many, beyond all that Pillow keeps": lambda: chunk(b"tEXt", b"log\0" + b"x" * 900_000) * 80,
    "with a wrong checksum": lambda: chunk(b"tEXt", b"log\0words")[:-1] + b"?",
    "EXIF with a wrong checksum": lambda: chunk(b"eXIf", b"MM\0*\0\0\0\10\0\0\0\0\0\0")[:-1] + b"?",
    "a profile": lambda: chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2_000_000))),
}


@pytest.mark.parametrize("behind", [False, True], ids=["before the pixels", "behind them"])
@pytest.mark.parametrize("kind", TEXTS)
def test_the_pixels_are_read_without_the_text(tmp_path: Path, kind: str, behind: bool) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_with(TEXTS[kind](), behind=behind))
    if not (behind and kind in ("a profile", "with a wrong checksum", "EXIF with a wrong checksum")):
        with pytest.raises((ValueError, SyntaxError, OSError)), Image.open(path) as image:  # Pillow alone refuses it
            image.load()
    assert np.array_equal(read_image(path), IMAGE)


def test_labels_with_much_text_are_read(tmp_path: Path) -> None:
    label = np.array([[0, 1, 2]], dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(png_with(TEXTS["packed"](), image_file=label))
    assert np.array_equal(read_label(tmp_path / "a.png"), label)


def test_a_large_profile_still_gives_the_colours(tmp_path: Path) -> None:
    from colour_profiles import WIDE

    Image.fromarray(IMAGE).save(tmp_path / "small.png", icc_profile=WIDE["adobe"])
    large = WIDE["adobe"] + bytes(2_000_000)
    (tmp_path / "large.png").write_bytes(png_with(chunk(b"iCCP", b"p\0\0" + zlib.compress(large))))
    read = read_image(tmp_path / "large.png")
    assert not np.array_equal(read, IMAGE)
    assert np.array_equal(read, read_image(tmp_path / "small.png"))


def test_small_text_stays_and_says_which_way_is_up(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="3"/>')
    info.add_text("parameters", MEGABYTES, zip=True)
    Image.fromarray(IMAGE).save(tmp_path / "a.png", pnginfo=info)
    assert np.array_equal(read_image(tmp_path / "a.png"), IMAGE[::-1, ::-1])


def test_a_damaged_png_with_much_text_is_still_called_damaged(tmp_path: Path) -> None:
    whole = png_with(TEXTS["packed"]())
    (tmp_path / "a.png").write_bytes(whole[: whole.index(b"IDAT") + 20])
    with pytest.raises(InputError, match=r"a\.png is damaged"):
        read_image(tmp_path / "a.png")


def test_a_text_that_unpacks_to_gigabytes_costs_no_memory(tmp_path: Path) -> None:
    import tracemalloc

    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 24)) for _ in range(16)) + packer.flush()
    (tmp_path / "a.png").write_bytes(png_with(chunk(b"zTXt", b"bomb\0\0" + bomb)))
    tracemalloc.start()
    assert np.array_equal(read_image(tmp_path / "a.png"), IMAGE)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 16 << 20
