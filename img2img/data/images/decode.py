"""Image files into arrays: `(H, W, 3)` RGB images and `(H, W)` class indices, or an error that names the file."""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from img2img.data.images.bit_depth import (
    FULL,
    current_white,
    has_deep_colours,
    note_highest_value,
    scale_deep_colours,
    to_8_bits,
    to_16_bits,
)
from img2img.data.images.colour_key import with_true_key
from img2img.data.images.exif import orientation_of, turn, turned
from img2img.data.images.header import decoder_arguments, open_header
from img2img.data.images.icc_profile import to_srgb
from img2img.data.images.resizing import AS_IT_IS, Resize, current_resize
from img2img.errors import InputError
from img2img.files.paths import expanded, no_file

MAX_PIXELS = 89_478_485
"""Larger images are refused before they are decoded: a file of a few kilobytes can claim gigabytes of pixels.

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
        size: the stored height and width in pixels, which `image` has unless it was decoded at a part of it.
        encoded: gives the whole file, for what more of it is read than Pillow gives.
    """

    image: Image.Image
    kind: str | None
    orientation: int
    raw: tuple[Any, ...]
    size: tuple[int, int]
    encoded: Callable[[], bytes]

    @property
    def shown_size(self) -> tuple[int, int]:
        """The height and width as a viewer shows them."""
        return self.size[::-1] if self.orientation >= 5 else self.size


@dataclass(frozen=True)
class SizedImage:
    """An image as a dataset uses it.

    Attributes:
        image: (H, W, 3) uint8 RGB in [0, 255].
        orientation: EXIF's, 1 to 8, by which the stored pixels were turned.
        size: the height and width of the whole image as it is shown, before it was made smaller.
    """

    image: NDArray[np.uint8]
    orientation: int
    size: tuple[int, int]


def check_enlarged(height: int, width: int, what: str, remedy: str) -> None:
    """Refuse to enlarge an image beyond `MAX_PIXELS` pixels: a strip of 2 x 6000 with a shorter side of 256 is 197 million.

    Args:
        height: that it would have, in pixels.
        width: the same.
        what: the image and its size, as the error calls it.
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
    """Decode an image of any common kind as 8-bit RGB.

    Colours become sRGB by the profile that the file carries, CMYK and Lab too; a damaged profile, or one of other colours than
    the file's, is left aside, and what has none is taken for sRGB. Grey is repeated, a palette is looked up, 1-bit becomes black
    and white, 16 bits are scaled to 8 (`bit_depth.reading_16_bits` gives what is white), of an animation the first frame is
    taken, and the EXIF orientation is applied, so that the array is what a viewer shows. Transparent pixels are composited on
    white: the colour stored under them is arbitrary (often black), and white is the paper that cut-out products and line drawings
    are made for.

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
    return to_rgb(_shown(decoded, str(path), str(path.parent)), str(path), where=str(path.parent)), decoded.orientation


def read_sized(path: str | os.PathLike[str]) -> SizedImage:
    """The image that `read_image` reads, made smaller where `resizing.reading_resized` says so; raises the same.

    What would have to be enlarged stays as it is. Without `Resize.fast` the pixels are those of the whole image resized.
    """
    path, resize = expanded(path), current_resize()
    decoded = _decode(path, resize)
    height, width = decoded.shown_size
    shown = _colours(_shown(decoded, str(path), str(path.parent)), str(path), str(path.parent))
    to_height, to_width = resize.of(height, width)
    if isinstance(shown, Image.Image):
        if (to_height, to_width) != (shown.height, shown.width) and to_height <= height and to_width <= width:
            shown = shown.resize((to_width, to_height), Image.Resampling.LANCZOS)
        shown = np.array(shown)
    return SizedImage(shown, decoded.orientation, (height, width))


def to_rgb(image: Image.Image, what: str, *, where: str | None = None) -> NDArray[np.uint8]:
    """A decoded image of any mode as (H, W, 3) uint8 RGB, as `read_image` describes it, but as it lies.

    Args:
        image: the image.
        what: what an error calls it, its file's path for instance.
        where: whose images share a warning about their 16 bits, the file's folder for instance; `what` by default.

    Raises:
        InputError: 32-bit or float pixels, or a mode that has no colours.
    """
    return np.array(_colours(image, what, where or what))


def _colours(image: Image.Image, what: str, where: str) -> Image.Image | NDArray[np.uint8]:
    """What `to_rgb` returns, of most modes not yet as an array."""
    if image.mode.startswith("I;16"):
        return _deep_grey(image, what, where)
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
        return image if image.mode == "RGB" else image.convert("RGB")
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
    return _shown(_decode(path), str(path), str(path.parent))


def open_encoded(encoded: bytes, *, formats: tuple[str, ...] | None = None) -> Image.Image:
    """What `open_image` gives, of the bytes of a file.

    Args:
        encoded: the whole file.
        formats: those of Pillow that it may have; None for all.

    Raises:
        InputError: see `open_image`.
    """
    decoded = _first_frame(io.BytesIO(encoded), "the image", lambda: encoded, formats=formats)
    return _shown(decoded, "the image", "images in memory")


_LOSSY = {"JPEG": "JPEG", "MPO": "JPEG", "JPEG2000": "JPEG 2000", "AVIF": "AVIF"}
"""Formats whose compression alters values, or usually does."""


def read_label(path: str | os.PathLike[str], *, stored: bool = False, greys: bool = False) -> NDArray[np.uint8]:
    """Decode a label image: the values of its pixels are class indices.

    Palette images give their indices, not their colours; 1-bit images give 0 and 1 (white). Grey PNGs of 2 and 4 bits are
    stretched to 0..255 as the PNG format defines grey, so indices belong in 8-bit or palette files. The EXIF orientation is
    applied as to images. A GIF has to be grey, and gives its greys: programs order the palette of each file anew.

    Args:
        path: the file.
        stored: leave the pixels as they are stored, whatever the EXIF orientation.
        greys: the values are the greys that one sees, see `as_greys`, whatever the file's mode.

    Returns:
        (H, W) uint8 class indices.

    Raises:
        InputError: no such file, a damaged file, one whose compression alters indices (JPEG, JPEG 2000, AVIF), colours in place
            of indices, or a value above 255.
    """
    path = expanded(path)
    decoded = _decode(path)
    if (lossy := _LOSSY.get(decoded.kind or "")) or decoded.image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
        kind = lossy or "TIFF with lossy compression"
        raise InputError(
            f"the label {path} is {'an' if kind == 'AVIF' else 'a'} {kind}, whose compression blurs class indices: expected a "
            "PNG; export the labels again"
        )
    image = as_greys(decoded.image) if greys or decoded.kind == "GIF" else decoded.image
    if decoded.kind == "GIF" and image.mode != "L":
        raise InputError(
            f"the label {path} is a GIF of colours, which stand at other indices in every file: expected a palette PNG or 8-bit "
            "grey; replace each colour by the index of its class and save that"
        )
    if image.mode not in ("L", "P", "1", "I") and not image.mode.startswith("I;16"):
        remedy = "replace each colour by the index of its class and save that"
        if as_greys(image).mode == "L":
            remedy = "all that it shows is grey: set `values` to the greys of the classes, such as values: [0, 255]"
        raise InputError(
            f"the label {path} is an image of mode {image.mode}: expected one channel of class indices (8-bit grey or a "
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


def as_greys(image: Image.Image) -> Image.Image:
    """The image as 8-bit grey (mode "L") where all that it shows is grey and opaque; else as it is.

    So a mask of black and white is 0 and 255 whether a file has it as grey, as one bit, in a palette, whose order is the
    program's that wrote it, or in three equal channels.
    """
    if image.mode == "1":
        return image.convert("L")
    if image.mode not in ("P", "PA", "LA", "RGB", "RGBA", "RGBX"):
        return image
    shown = np.asarray(image.convert("RGBA"))
    grey = np.all(shown[..., :3] == shown[..., :1]) and np.all(shown[..., 3] == 255)
    return Image.fromarray(np.ascontiguousarray(shown[..., 0])) if grey else image


def _as_written(values: NDArray[Any], decoded: _Decoded) -> NDArray[Any]:
    """The numbers in a PGM, which Pillow stretches from 0..maxval to all of 8 or 16 bits."""
    if decoded.kind != "PPM" or decoded.image.mode == "1" or len(decoded.raw) < 2 or not isinstance(decoded.raw[1], int):
        return values
    maxval = decoded.raw[1]
    top = 255 if decoded.image.mode == "L" else FULL
    return (values.astype(np.int64) * maxval + top // 2) // top


def _shown(decoded: _Decoded, what: str, where: str) -> Image.Image:
    """The image upright, with grey of more than 8 bits as 16."""
    image = decoded.image
    if decoded.kind == "PPM" and image.mode == "I":  # of 16 bits: Pillow has no other mode for what it stretches
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    elif image.mode == "I;16" and decoded.raw[:1] == ("I;12",):  # the file itself says 12 bits
        image = Image.fromarray(to_16_bits(np.asarray(image), 4095))
    elif has_deep_colours(decoded.kind, decoded.raw, image.mode):
        image = scale_deep_colours(image, decoded.raw, what, where, decoded.encoded)
    else:
        image = with_true_key(image, decoded.raw, what, where)
    image.info |= {k: v for k, v in decoded.image.info.items() if k == "icc_profile"}
    return image if decoded.orientation == 1 else turn(image, decoded.orientation)


def _reduced(image: Image.Image, resize: Resize) -> Image.Image | None:
    """A JPEG's image resized from 1/2, 1/4 or 1/8 of its size; None where it is to be decoded whole."""
    if not (resize and resize.fast and image.format == "JPEG"):
        return None
    whole = image.size
    turned_round = orientation_of(image) >= 5
    height, width = resize.of(*(whole if turned_round else whole[::-1]))
    size = (height, width) if turned_round else (width, height)
    drafted = image.draft(None, size)
    if drafted is None or image.size == whole:
        return None
    # The last row and column may be of a part of a pixel.
    return image.resize(size, Image.Resampling.LANCZOS, box=drafted[1])


def _decode(path: Path, resize: Resize = AS_IT_IS) -> _Decoded:
    """The first frame of the file, decoded as it is stored; with `Resize.fast` a JPEG perhaps at a part of its size."""
    if not path.is_file():
        raise no_file(path, "an image")
    with open(path, "rb") as file:
        return _first_frame(file, str(path), path.read_bytes, resize)


def _first_frame(
    file: BinaryIO,
    what: str,
    encoded: Callable[[], bytes],
    resize: Resize = AS_IT_IS,
    *,
    formats: tuple[str, ...] | None = None,
) -> _Decoded:
    try:
        with open_header(file, formats) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{width} x {height}")
            told = decoder_arguments(image) or ()
            orientation = orientation_of(image) if image.format == "TIFF" else 1
            stored = _reduced(image, resize)
            if stored is not None:
                size = height, width
            else:
                image.load()
                stored = image.copy()
                size = stored.height, stored.width  # a TIFF's may have been turned
            if orientation != 1:  # Pillow turns TIFFs itself, and says no more that it did
                stored = turn(stored, {6: 8, 8: 6}.get(orientation, orientation))
            else:
                orientation = orientation_of(image)
            return _Decoded(stored, image.format, orientation, told, size, encoded)
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:  # Pillow raises it itself for still larger images
        raise InputError(
            f"{what} claims too many pixels ({error}): expected at most {MAX_PIXELS:,}; make it smaller or cut it up"
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{what} ({file.seek(0, os.SEEK_END)} bytes) is not an image that can be read: expected JPEG, PNG, WebP, AVIF, GIF, "
            "BMP or TIFF of 8 or 16 bits a channel; replace the file or delete it"
        ) from error
    except Exception as error:  # Pillow's readers raise almost anything on damaged bytes: SyntaxError, struct.error, ...
        # An error of the system (no permission, a lost disk) is not the file's fault, and says so itself.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"{what} is damaged ({error}): expected a whole image; fetch the file again or delete it") from error
