"""Picture files into arrays: `(H, W, 3)` RGB pictures and `(H, W)` class indices, or an error that names the file."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from img2img.data.greys import as_greys
from img2img.errors import InputError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
"""What `list_pictures` takes for a picture, in any case."""

MAX_PIXELS = 89_478_485
"""Larger pictures are refused before they are decoded: a file of a few kilobytes can claim gigabytes of pixels.

This is the size from which Pillow itself warns of a decompression bomb, a quarter of a gigabyte in RGB.
"""


def read_picture(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Decode a picture of any common kind as 8-bit RGB.

    Grey is repeated, a palette is looked up, 1-bit becomes black and white, CMYK is converted without its colour profile,
    16 bits are scaled to 8, of an animation the first frame is taken, and the EXIF orientation is applied, so that the
    array is what a viewer shows. Transparent pixels are composited on white: the colour stored under them is arbitrary
    (often black), and white is the paper that cut-out products and line drawings are made for.

    Returns:
        (H, W, 3) uint8 RGB in [0, 255].

    Raises:
        InputError: no such file, a damaged file, more than `MAX_PIXELS` pixels, or 32-bit and float pixels, whose range no
            file states.
    """
    image, _ = _decode(Path(path))
    return to_rgb(image, str(path))


def to_rgb(image: Image.Image, what: str) -> NDArray[np.uint8]:
    """A decoded picture of any mode as (H, W, 3) uint8 RGB, as `read_picture` describes it, but as it lies.

    Args:
        image: the picture.
        what: what an error calls it, its file's path for instance.

    Raises:
        InputError: 32-bit or float pixels, or a mode that has no colours.
    """
    if image.mode.startswith("I;16"):
        return np.repeat(to_8_bits(np.asarray(image))[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise InputError(
            f"{what} has {'float' if image.mode == 'F' else '32-bit'} pixels, whose black and white no file states: "
            "expected 8 or 16 bits a channel; scale it to 8 bits and save it as PNG"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    try:
        return np.array(image.convert("RGB"))
    except ValueError as error:
        raise InputError(
            f"{what} has colours of mode {image.mode}: expected grey, palette, RGB, RGBA or CMYK; save it as RGB"
        ) from error


def to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """16-bit values scaled to 8 bits: 65535 / 257 = 255, so both ends of the range land exactly; 128 rounds to nearest."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """The file's first frame, upright, in its own mode; `to_rgb` goes on from there.

    Raises:
        InputError: no such file, a damaged one, or one of more than `MAX_PIXELS` pixels.
    """
    return _decode(Path(path))[0]


def read_label(path: str | os.PathLike[str], *, greys: bool = False) -> NDArray[np.uint8]:
    """Decode a label picture: the values of its pixels are class indices.

    Palette pictures give their indices, not their colours; 1-bit pictures give 0 and 1. Grey PNGs of 2 and 4 bits are
    stretched to 0..255 as the PNG format defines grey, so indices belong in 8-bit or palette files. The EXIF orientation
    is applied as to pictures. A GIF whose colours are all grey gives the greys, since its palette has no fixed order.

    Args:
        path: the file.
        greys: the values are the greys that one sees, see `as_greys`, whatever the file's mode.

    Returns:
        (H, W) uint8 class indices.

    Raises:
        InputError: no such file, a damaged file, a JPEG (its compression alters indices), colours in place of indices, or
            a value above 255.
    """
    path = Path(path)
    image, kind = _decode(path)
    if kind in ("JPEG", "MPO"):
        raise InputError(
            f"the label {path} is a JPEG, whose compression blurs class indices: expected a PNG; export the labels again"
        )
    if greys or kind == "GIF":
        image = as_greys(image)
    if image.mode in ("L", "P", "1"):
        return np.array(image, dtype=np.uint8)
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 255:
            raise InputError(
                f"the label {path} has values from {wide.min()} to {wide.max()}: expected class indices in 0..255; "
                "renumber the classes (16-bit instance ids or depths are not labels)"
            )
        return wide.astype(np.uint8)
    remedy = "replace each colour by the index of its class and save that"
    if as_greys(image).mode == "L":
        remedy = "all that it shows is grey: set `values` to the greys of the classes, such as values: [0, 255]"
    raise InputError(
        f"the label {path} is a picture of mode {image.mode}: expected one channel of class indices (8-bit grey or a "
        f"palette PNG); {remedy}"
    )


def list_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """Every picture in `folder` and its subfolders, known by `EXTENSIONS`, sorted by the path below `folder`.

    Hidden files and folders are skipped; linked folders are followed, each once.

    Raises:
        InputError: no such folder, or no picture in it.
    """
    folder = require_folder(folder)
    found: list[Path] = []
    seen: set[str] = set()
    others = 0
    for here, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        pictures = [f for f in files if not f.startswith(".") and os.path.splitext(f)[1].lower() in EXTENSIONS]
        found += [Path(here, f) for f in pictures]
        others += len(files) - len(pictures)
    if not found:
        raise InputError(
            f"no picture in {folder} ({others} other files): expected files that end in {', '.join(sorted(EXTENSIONS))}; "
            "check the folder"
        )
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def require_folder(folder: str | os.PathLike[str]) -> Path:
    """`folder` as a path with `~` expanded, or an `InputError` that names the nearest folder above it that exists."""
    path = Path(folder).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{path} is a file: expected a folder; give the folder that holds it")
    nearest = next(p for p in path.absolute().parents if p.exists())
    raise InputError(f"no folder at {path} (the nearest that exists is {nearest}): check the path, or unpack the data there")


def _refuse(error: OSError) -> None:
    """A folder that cannot be read is an error: `os.walk` would leave its pictures out without a word."""
    raise error


def _decode(path: Path) -> tuple[Image.Image, str | None]:
    """The first frame of the file, upright and decoded in its own mode, and the file's format."""
    if not path.is_file():
        raise InputError(f"no picture at {path}: expected a file there; restore it or remove it from the dataset")
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{width} x {height}")
            image.load()
            return upright(image), image.format
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:  # Pillow raises it itself for still larger pictures
        raise InputError(
            f"{path} claims too many pixels ({error}): expected at most {MAX_PIXELS:,}; make it smaller or cut it up"
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} ({path.stat().st_size} bytes) is not a picture that can be read: expected JPEG, PNG, WebP, BMP or TIFF "
            "of 8 or 16 bits a channel; replace the file or delete it"
        ) from error
    except Exception as error:  # Pillow's readers raise almost anything on damaged bytes: SyntaxError, struct.error, ...
        # An error of the system (no permission, a lost disk) is not the file's fault, and says so itself.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"{path} is damaged ({error}): expected a whole picture; fetch the file again or delete it") from error


def upright(image: Image.Image) -> Image.Image:
    """A copy with the EXIF orientation applied, where there is a sound one."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block is common and says nothing about the pixels, which have been decoded already
        return image.copy()
