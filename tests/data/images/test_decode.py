"""Decoding: formats, broken files, text in PNGs, and images of 16 bits that use fewer."""

import logging
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from img2img.data import build_data
from img2img.data.cache import CachedDataset
from img2img.data.datasets.folder import ImageFolder
from img2img.data.images import decode
from img2img.data.images.bit_depth import reading_16_bits, to_8_bits
from img2img.data.images.decode import read_image, read_label, read_turned
from img2img.data.images.exif import turned
from img2img.errors import InputError
from img2img.inference.conversion import open_input


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def png(depth: int, colour: int, rows: list[bytes], width: int) -> bytes:
    """A PNG put together by hand, for the kinds that Pillow does not write."""

    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "webp"])
def test_lossless_rgb_comes_back_as_written(tmp_path: Path, rgb: np.ndarray, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    Image.fromarray(rgb).save(path, **({"lossless": True} if extension == "webp" else {}))
    read = read_image(path)
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, rgb)


def test_grey_is_repeated(tmp_path: Path, rgb: np.ndarray) -> None:
    Image.fromarray(rgb[..., 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.stack([rgb[..., 0]] * 3, axis=-1))


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[255] * 3, [0] * 3]])


def test_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 2]], dtype=np.uint8), mode="P")
    image.putpalette([1, 2, 3, 4, 5, 6, 7, 8, 9])
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[1, 2, 3], [7, 8, 9]]])


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - [255, 0, 0]).max() <= 4


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[100, 50, 0, 255], [0, 0, 0, 0], [0, 100, 200, 51]]], dtype=np.uint8)).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read[0, :2].tolist() == [[100, 50, 0], [255, 255, 255]]
    np.testing.assert_allclose(read[0, 2], 0.2 * np.array([0, 100, 200]) + 0.8 * 255, atol=1)


def test_transparent_grey_and_palette_become_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[9, 255], [9, 0]]], dtype=np.uint8), mode="LA").save(tmp_path / "la.png")
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    palette.putpalette([9, 9, 9, 1, 2, 3])
    palette.save(tmp_path / "p.png", transparency=1)
    for name in ("la.png", "p.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name), [[[9] * 3, [255] * 3]])


def test_sixteen_bits_are_scaled_over_the_whole_range(tmp_path: Path) -> None:
    deep = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "little.tif", deep, byteorder="<")
    tifffile.imwrite(tmp_path / "big.tif", deep, byteorder=">")
    for name in ("a.png", "little.tif", "big.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name)[0], [[v] * 3 for v in (0, 0, 1, 1, 128, 255)])


def test_sixteen_bit_colour_is_scaled(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(16, 2, [struct.pack(">6H", 65535, 0, 32896, 257, 5140, 65535)], 2))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[255, 0, 128], [1, 20, 255]]])


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.ones((4, 4), dtype=dtype)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif .*8 or 16 bits.*save it as PNG"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, rgb: np.ndarray, orientation: int) -> None:
    # How the pixels of an upright image are stored under each orientation (EXIF 2.3, tag 274).
    stored = {
        1: rgb, 2: rgb[:, ::-1], 3: rgb[::-1, ::-1], 4: rgb[::-1], 5: rgb.transpose(1, 0, 2), 6: np.rot90(rgb, 1),
        7: np.rot90(rgb, 2).transpose(1, 0, 2), 8: np.rot90(rgb, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), rgb)


@pytest.mark.parametrize("extension", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_told_and_turns_labels_alike(
    tmp_path: Path, rgb: np.ndarray, orientation: int, extension: str
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(rgb).save(tmp_path / f"photo.{extension}", exif=exif)
    read, found = read_turned(tmp_path / f"photo.{extension}")
    assert found == orientation
    if extension in ("png", "tif"):
        np.testing.assert_array_equal(read, turned(rgb, orientation))
        Image.fromarray(rgb[..., 0]).save(tmp_path / f"label.{extension}", exif=exif)
        np.testing.assert_array_equal(read_label(tmp_path / f"label.{extension}", stored=True), rgb[..., 0])
        np.testing.assert_array_equal(read_label(tmp_path / f"label.{extension}"), turned(rgb[..., 0], orientation))
    assert read.shape == turned(rgb, orientation).shape


def test_a_broken_tag_beside_the_orientation_does_not_undo_it(tmp_path: Path, rgb: np.ndarray) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\10" + struct.pack(">H", 2)
    exif += struct.pack(">HHIHH", 274, 3, 1, 3, 0) + struct.pack(">HHII", 282, 5, 1, 9_999) + bytes(4)
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), rgb[::-1, ::-1])


def test_a_broken_exif_block_does_not_cost_the_image(tmp_path: Path, rgb: np.ndarray) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=b"Exif\0\0not a TIFF header at all")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), rgb)


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path, rgb: np.ndarray) -> None:
    frames = [Image.fromarray(rgb), Image.fromarray(255 - rgb)]
    for name, options in (("a.png", {}), ("a.webp", {"lossless": True}), ("a.tif", {})):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(read_image(tmp_path / name), rgb)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "bmp", "tif"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5])
def test_a_cut_off_file_is_named(tmp_path: Path, extension: str, kept: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"cut.{extension}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(InputError, match=rf"cut\.{extension}.*expected.*delete it"):
        read_image(path)


def test_a_text_file_with_a_image_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(InputError, match=r"a\.png \(8 bytes\) is not an image"):
        read_image(tmp_path / "a.png")


def test_a_missing_file_is_named_and_what_was_given_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file: .*gone\.png: expected an image; check the path"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(InputError, match="is a folder: expected an image"):
        read_image(tmp_path)
    with pytest.raises(InputError, match=r"\*\.jpg is a pattern that the shell left as it is"):
        read_image(tmp_path / "*.jpg")
    for address in ("https://a.org/b/c.jpg", Path("https://a.org/b/c.jpg")):  # a path loses a slash
        with pytest.raises(InputError, match=r"^https://a\.org/b/c\.jpg is a web address: .*download it"):
            read_image(address)


def test_a_failing_disk_is_not_called_a_damaged_file(tmp_path: Path, rgb: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.png")

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(decode.Image, "open", fail)
    with pytest.raises(OSError, match="Input/output error"):
        read_image(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 100_000])
def test_a_image_that_claims_too_many_pixels_is_refused_undecoded(tmp_path: Path, side: int) -> None:
    data = bytearray(png(8, 2, [b"\0\0\0"], 1))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(InputError, match=r"bomb\.png.*pixels.*at most"):
        read_image(tmp_path / "bomb.png")


def test_palette_labels_keep_their_indices(tmp_path: Path) -> None:
    label = np.array([[0, 1, 15, 255]], dtype=np.uint8)
    image = Image.fromarray(label, mode="P")
    image.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    image.save(tmp_path / "a.png")
    read = read_label(tmp_path / "a.png")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, label)


def test_small_palettes_packed_into_few_bits_keep_their_indices(tmp_path: Path) -> None:
    label = np.array([[0, 1, 2, 3, 3]], dtype=np.uint8)
    image = Image.fromarray(label, mode="P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", bits=2)
    assert (tmp_path / "a.png").read_bytes()[24] == 2  # the file really has 2 bits a pixel
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), label)


@pytest.mark.parametrize(
    ("extension", "dtype"),
    [("png", np.uint8), ("png", np.uint16), ("tif", np.uint8), ("tif", np.uint16), ("tif", np.int32)],
)
def test_grey_labels_keep_their_values(tmp_path: Path, extension: str, dtype: type) -> None:
    label = np.array([[0, 7], [254, 255]])
    Image.fromarray(label.astype(dtype)).save(tmp_path / f"a.{extension}")
    np.testing.assert_array_equal(read_label(tmp_path / f"a.{extension}"), label)


def test_gif_labels_are_greys_and_colours_are_refused(tmp_path: Path) -> None:
    """Pillow, as other programs, packs the palette of each GIF anew: class 4 alone beside the background is stored as 1."""
    grey = np.array([[0, 255, 255, 0], [3, 3, 9, 9]], dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.gif")
    np.testing.assert_array_equal(read_label(tmp_path / "grey.gif"), grey)
    image = Image.fromarray(np.array([[0, 4, 4, 0]], dtype=np.uint8), mode="P")
    image.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    image.save(tmp_path / "colours.gif")
    with pytest.raises(InputError, match="GIF of colours, which stand at other indices in every file: expected a palette PNG"):
        read_label(tmp_path / "colours.gif")


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("a.jpg", {}, "a JPEG"),
        ("a.avif", {}, "an AVIF"),
        ("a.jp2", {}, "a JPEG 2000"),
        ("a.tif", {"compression": "jpeg"}, "a TIFF with lossy compression"),
    ],
)
def test_labels_with_lossy_compression_are_refused(tmp_path: Path, name: str, options: dict[str, Any], what: str) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (32, 32), dtype=np.uint8)).save(tmp_path / name, **options)
    with pytest.raises(InputError, match=f"is {what}, whose compression blurs class indices: expected a PNG"):
        read_label(tmp_path / name)


def test_a_tiff_label_with_lossless_compression_is_read(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, 9, (32, 32), dtype=np.uint8)
    Image.fromarray(label).save(tmp_path / "a.tif", compression="tiff_deflate")
    np.testing.assert_array_equal(read_label(tmp_path / "a.tif"), label)


@pytest.mark.parametrize(
    ("head", "values"), [(b"P5 3 1 5\n", bytes([0, 2, 5])), (b"P2 3 1 5\n", b"0 2 5\n"), (b"P5 3 1 300\n", b"\0\0\0\2\0\5")]
)
def test_a_pgm_keeps_the_numbers_that_are_in_it(tmp_path: Path, head: bytes, values: bytes) -> None:
    (tmp_path / "a.pgm").write_bytes(head + values)  # Pillow stretches them to all of 8 or 16 bits
    assert read_label(tmp_path / "a.pgm").tolist() == [[0, 2, 5]]


def test_one_bit_labels_are_zero_and_one(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), [[1, 0]])


def test_deep_labels_above_255_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 300]], dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png.*0 to 300.*0\.\.255"):
        read_label(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_coloured_labels_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (3, 3)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=rf"a\.png.*mode {mode}: expected one channel"):
        read_label(tmp_path / "a.png")


def test_jpeg_labels_are_refused(tmp_path: Path) -> None:
    Image.new("L", (3, 3)).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg is a JPEG"):
        read_label(tmp_path / "a.jpg")


def test_damaged_labels_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.png \(0 bytes\)"):
        read_label(tmp_path / "a.png")


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


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_a_fourth_channel_of_16_bits_is_what_the_tiff_says_it_is(tmp_path: Path, kind: str) -> None:
    values = np.array([[[20000, 10000, 0, 40000], [30000, 30000, 30000, 65535]]], dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=[kind])
    share = values[..., 3:] / 65535
    colours = {
        "unassalpha": values[..., :3] * share + 65535 * (1 - share),
        "assocalpha": values[..., :3] + 65535 * (1 - share),
        "unspecified": values[..., :3],
    }[kind]
    for white in (None, 65535):
        with reading_16_bits(white):
            assert near(read_image(tmp_path / "a.tif"), colours / 257)


def test_tags_that_opencv_does_not_know_are_not_warned_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tag = [(65000, "I", 1, 7, True)]
    tifffile.imwrite(tmp_path / "a.tif", colours(TWELVE), photometric="rgb", extratags=tag)
    read_image(tmp_path / "a.tif")
    assert capfd.readouterr().err == ""


def test_a_read_pil_image_knows_its_depth_by_its_file_or_is_refused_with_a_white(tmp_path: Path) -> None:
    """Pillow forgets how the pixels were stored once it has read them."""
    write(tmp_path / "deep.png", colours(TWELVE))
    eight = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(eight).save(tmp_path / "eight.png")
    with Image.open(tmp_path / "deep.png") as image:
        image.load()
        with pytest.raises(InputError, match="white=4095 cannot be applied: give its path"):
            open_input(image, white=4095)
    with Image.open(tmp_path / "eight.png") as image:
        image.load()
        assert np.array_equal(open_input(image, white=4095).values[0].permute(1, 2, 0).numpy(), eight)
    image = Image.open(BytesIO((tmp_path / "eight.png").read_bytes()))
    image.load()
    with pytest.raises(InputError, match=r"a PNG whose pixels were read already.*image\.copy\(\)"):
        open_input(image, white=4095)
    for given, white in ((image, None), (image.copy(), 4095)):
        assert np.array_equal(open_input(given, white=white).values[0].permute(1, 2, 0).numpy(), eight)


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
