"""Decoding of uploaded image files: the header is checked before any pixel is decoded."""

from io import BytesIO

from PIL import Image

from img2img.data.images.header import open_header
from img2img.web.limits import Limits, RefusedError, check_pixels

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Pillow reads some forty formats, a few of them by way of other programs; these are the ones that cameras and browsers write."""


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
    return image


def decode(image: Image.Image) -> Image.Image:
    """The first frame of an opened image, decoded.

    Raises:
        RefusedError: 422 for a damaged one.
    """
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # the same of broken pixels
        raise RefusedError(422, "the image is damaged: expected a whole one; send it again, or save it anew") from error
    return image
