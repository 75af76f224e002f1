"""Decoding of uploaded image files: the header is checked before any pixel is decoded."""

import math
from io import BytesIO

from PIL import Image

from img2img.data.images.header import open_header
from img2img.errors import InputError
from img2img.inference.conversion import OpenedImages, open_file
from img2img.web.limits import Limits, RefusedError, check_pixels

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Pillow reads some forty formats, a few of them by way of other programs; these are the ones that cameras and browsers write."""

_TILE_WIDTH, _TILE_LENGTH = 322, 323
"""Tags of TIFF."""
_TILE_PIXELS = 1 << 20
"""Of a tile that any image may have."""


def open_upload(blob: bytes, limits: Limits) -> Image.Image:
    """An uploaded image, its header read and its pixels not yet: `decode` does that.

    Raises:
        RefusedError: 415 for no image, 413 for one of too many pixels.
    """
    try:
        image = open_header(BytesIO(blob), FORMATS)
    except Image.DecompressionBombError as error:
        raise RefusedError(413, f"the image has too many pixels: expected {limits.pixels:,} at most; make it smaller") from error
    except MemoryError:
        raise
    except Exception as error:  # a broken header makes Pillow's readers raise almost anything
        raise RefusedError(
            415, f"these {len(blob):,} bytes are no image that can be read: expected JPEG, PNG, WebP, TIFF, BMP or GIF"
        ) from error
    if not all(image.size):
        raise RefusedError(415, "the image has no pixels: send another")
    check_pixels(image.size, None, limits)
    _check_tiles(image, limits)
    return image


def _check_tiles(image: Image.Image, limits: Limits) -> None:
    """Refuse a TIFF of tiles much larger than its image: a whole tile is decoded, though a corner of it is all that is wanted."""
    tags = getattr(image, "tag_v2", {})
    width, length = (tags.get(tag, 0) for tag in (_TILE_WIDTH, _TILE_LENGTH))
    if not isinstance(width, int) or not isinstance(length, int) or width * length > max(_TILE_PIXELS, 4 * math.prod(image.size)):
        raise RefusedError(413, f"the TIFF has tiles of {width} x {length} pixels: save it anew, in strips or small tiles")
    check_pixels((max(1, width), max(1, length)), None, limits)


def decode(blob: bytes, *, white: int | None = None) -> OpenedImages:
    """The first frame of an uploaded image that `open_upload` let pass, decoded and upright.

    Args:
        blob: the file.
        white: the value that is white in images of 16 bits; None for 65535.

    Raises:
        RefusedError: 422 for a damaged one.
    """
    try:
        return open_file(blob, white=white, formats=FORMATS)
    except InputError as error:
        raise RefusedError(422, str(error)) from error
