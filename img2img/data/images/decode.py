"""Picture files into arrays: `(H, W, 3)` RGB pictures and `(H, W)` class indices, or an error that names the file."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from img2img.data.images.bit_depth import FULL, current_white, note_highest_value, scale_deep_colours, to_8_bits, to_16_bits
from img2img.data.images.decode import as_greys
from img2img.data.images.exif import orientation_of, turn, turned, upright
from img2img.data.images.header import without_large_text
from img2img.data.images.icc_profile import to_srgb
from img2img.data.images.listing import EXTENSIONS, list_images, require_folder
from img2img.errors import InputError
from img2img.files.paths import expanded

__all__ = [
    "EXTENSIONS",
    "MAX_PIXELS",
    "check_enlarged",
    "list_images",
    "open_header",
    "open_image",
    "read_image",
    "read_label",
    "read_turned",
    "require_folder",
    "to_8_bits",
    "to_rgb",
    "turned",
    "upright",
]

MAX_PIXELS = 89_478_485
"""Larger pictures are refused before they are decoded: a file of a few kilobytes can claim gigabytes of pixels.

This is the size from which Pillow itself warns of a decompression bomb, a quarter of a gigabyte in RGB.
"""


@dataclass(frozen=True)
class _Decoded:
    """A file's first frame.

    Attributes:
        image: the pixels as they are stored, in their own mode.
        kind: the file's format.
        orientation: EXIF's, from 1 to 8.
        raw: how the format keeps the pixels: what Pillow's decoder was told.
    """

    image: Image.Image
    kind: str | None
    orientation: int
    raw: tuple[Any, ...]


def check_enlarged(height: int, width: int, what: str, remedy: str) -> None:
    """Refuse to enlarge a picture beyond `MAX_PIXELS` pixels: a strip of 2 x 6000 with a shorter side of 256 is 197 million.

    Args:
        height: that it would have, in pixels.
        width: the same.
        what: the picture and its size, as the error calls it.
        remedy: what to do.

    Raises:
        InputError: it would have more.
    """
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{what} would be enlarged to {width} x {height}, {height * width:,} pixels: expected at most {MAX_PIXELS:,}; "
            f"{remedy}"
        )


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Decode a picture of any common kind as 8-bit RGB.

    Colours become sRGB by the profile that the file carries, CMYK and Lab too; a damaged profile, or one of other colours than
    the file's, is left aside, and what has none is taken for sRGB. Grey is repeated, a palette is looked up, 1-bit becomes black
    and white, 16 bits are scaled to 8 (`depth.reading` says what is white), of an animation the first frame is taken, and the
    EXIF orientation is applied, so that the array is what a viewer shows. Transparent pixels are composited on white: the colour
    stored under them is arbitrary (often black), and white is the paper that cut-out products and line drawings are made for.

    Returns:
        (H, W, 3) uint8 RGB in [0, 255].

    Raises:
        InputError: no such file, a damaged file, more than `MAX_PIXELS` pixels, or 32-bit and float pixels, whose range no
            file states.
    """
    return read_turned(path)[0]


def read_turned(path: str | os.PathLike[str]) -> tuple[NDArray[np.uint8], int]:
    """What `read_image` returns, and the EXIF orientation (1 to 8) by which the stored pixels were turned; see `turned`."""
    path = expanded(path)
    decoded = _decode(path)
    return to_rgb(_shown(decoded, path), str(path), where=str(path.parent)), decoded.orientation


def to_rgb(image: Image.Image, what: str, *, where: str | None = None) -> NDArray[np.uint8]:
    """A decoded picture of any mode as (H, W, 3) uint8 RGB, as `read_image` describes it, but as it lies.

    Args:
        image: the picture.
        what: what an error calls it, its file's path for instance.
        where: whose pictures share a remark on their 16 bits, the file's folder for instance; `what` by default.

    Raises:
        InputError: 32-bit or float pixels, or a mode that has no colours.
    """
    if image.mode.startswith("I;16"):
        return _deep_grey(image, what, where or what)
    if image.mode in ("I", "F"):
        raise InputError(
            f"{what} has {'float' if image.mode == 'F' else '32-bit'} pixels, whose black and white no file states: "
            "expected 8 or 16 bits a channel; scale it to 8 bits and save it as PNG"
        )
    image = to_srgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    try:
        return np.array(image.convert("RGB"))
    except ValueError as error:
        raise InputError(
            f"{what} has colours of mode {image.mode}: expected grey, palette, RGB, RGBA or CMYK; save it as RGB"
        ) from error


def _deep_grey(image: Image.Image, what: str, where: str) -> NDArray[np.uint8]:
    values, white = np.asarray(image), current_white()
    note_highest_value(int(values.max()), what, where)
    if profile := image.info.get("icc_profile"):
        wide = Image.fromarray(to_16_bits(values, white))
        wide.info["icc_profile"] = profile
        if (converted := to_srgb(wide)) is not wide:
            return np.array(converted)
    return np.repeat(to_8_bits(values, white)[..., None], 3, axis=2)


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """The file's first frame, upright, in its own mode and colours; `to_rgb` goes on from there.

    Raises:
        InputError: no such file, a damaged one, or one of more than `MAX_PIXELS` pixels.
    """
    path = expanded(path)
    return _shown(_decode(path), path)


def read_label(path: str | os.PathLike[str], *, stored: bool = False, greys: bool = False) -> NDArray[np.uint8]:
    """Decode a label picture: the values of its pixels are class indices.

    Palette pictures give their indices, not their colours; 1-bit pictures give 0 and 1 (white). Grey PNGs of 2 and 4 bits are
    stretched to 0..255 as the PNG format defines grey, so indices belong in 8-bit or palette files. The EXIF orientation is
    applied as to pictures. A GIF whose colours are all grey gives the greys, since its palette has no fixed order.

    Args:
        path: the file.
        stored: leave the pixels as they are stored, whatever the EXIF orientation.
        greys: the values are the greys that one sees, see `as_greys`, whatever the file's mode.

    Returns:
        (H, W) uint8 class indices.

    Raises:
        InputError: no such file, a damaged file, a JPEG (its compression alters indices), colours in place of indices, or
            a value above 255.
    """
    path = expanded(path)
    decoded = _decode(path)
    if decoded.kind in ("JPEG", "MPO"):
        raise InputError(
            f"the label {path} is a JPEG, whose compression blurs class indices: expected a PNG; export the labels again"
        )
    image = as_greys(decoded.image) if greys or decoded.kind == "GIF" else decoded.image
    if image.mode not in ("L", "P", "1", "I") and not image.mode.startswith("I;16"):
        remedy = "replace each colour by the index of its class and save that"
        if as_greys(image).mode == "L":
            remedy = "all that it shows is grey: set `values` to the greys of the classes, such as values: [0, 255]"
        raise InputError(
            f"the label {path} is a picture of mode {image.mode}: expected one channel of class indices (8-bit grey or a "
            f"palette PNG); {remedy}"
        )
    values = np.array(image) if greys else _as_written(np.array(image), decoded)
    if values.min() < 0 or values.max() > 255:
        raise InputError(
            f"the label {path} has values from {values.min()} to {values.max()}: expected class indices in 0..255; "
            "renumber the classes (16-bit instance ids or depths are not labels)"
        )
    label = values.astype(np.uint8)
    return label if stored else turned(label, decoded.orientation)


def _as_written(values: NDArray[Any], decoded: _Decoded) -> NDArray[Any]:
    """The numbers in a PGM, which Pillow stretches from 0..maxval to all of 8 or 16 bits."""
    if decoded.kind != "PPM" or decoded.image.mode == "1" or len(decoded.raw) < 2 or not isinstance(decoded.raw[1], int):
        return values
    maxval = decoded.raw[1]
    top = 255 if decoded.image.mode == "L" else FULL
    return (values.astype(np.int64) * maxval + top // 2) // top


def _shown(decoded: _Decoded, path: Path) -> Image.Image:
    """The picture upright, with grey of more than 8 bits as 16."""
    image = decoded.image
    if decoded.kind == "PPM" and image.mode == "I":  # of 16 bits: Pillow has no other mode for what it stretches
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    elif image.mode == "I;16" and decoded.raw[:1] == ("I;12",):  # the file itself says 12 bits
        image = Image.fromarray(to_16_bits(np.asarray(image), 4095))
    else:
        image = scale_deep_colours(image, decoded.kind, path, decoded.raw)
    image.info |= {k: v for k, v in decoded.image.info.items() if k == "icc_profile"}
    return turn(image, decoded.orientation)


def _decode(path: Path) -> _Decoded:
    """The first frame of the file, decoded as it is stored."""
    if not path.is_file():
        raise InputError(f"no picture at {path}: expected a file there; restore it or remove it from the dataset")
    try:
        with open(path, "rb") as file, open_header(file) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{width} x {height}")
            tiles = getattr(image, "tile", ())  # what Pillow's decoders are told
            args = tiles[0].args if tiles else ()
            orientation = orientation_of(image) if image.format == "TIFF" else 1
            image.load()
            stored = image.copy()
            if orientation != 1:  # Pillow turns TIFFs itself, and says no more that it did
                stored = turn(stored, {6: 8, 8: 6}.get(orientation, orientation))
            else:
                orientation = orientation_of(image)
            return _Decoded(stored, image.format, orientation, args if isinstance(args, tuple) else (args,))
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:  # Pillow raises it itself for still larger pictures
        raise InputError(
            f"{path} claims too many pixels ({error}): expected at most {MAX_PIXELS:,}; make it smaller or cut it up"
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} ({path.stat().st_size} bytes) is not a picture that can be read: expected JPEG, PNG, WebP, AVIF, GIF, BMP "
            "or TIFF of 8 or 16 bits a channel; replace the file or delete it"
        ) from error
    except Exception as error:  # Pillow's readers raise almost anything on damaged bytes: SyntaxError, struct.error, ...
        # An error of the system (no permission, a lost disk) is not the file's fault, and says so itself.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"{path} is damaged ({error}): expected a whole picture; fetch the file again or delete it") from error


def open_header(file: BinaryIO, formats: tuple[str, ...] | None = None) -> Image.Image:
    """The picture of a file, its header read and its pixels not yet; a PNG without those texts that are larger than Pillow reads.

    Raises whatever Pillow raises.
    """
    read, profile = without_large_text(file)
    image = Image.open(read, formats=formats)
    if profile is not None:
        image.info["icc_profile"] = profile
    return image
