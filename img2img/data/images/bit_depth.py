"""Images of 16 bits a channel as 8 bits, by the value that is white.

Cameras, scanners and microscopes often use 12 of the 16 bits, and no file says so. Of colours of 16 bits Pillow keeps the upper
8 bits, so OpenCV reads those files.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from img2img.data.warn_once import warn_once
from img2img.errors import InputError

FULL = 65535
"""White of all 16 bits."""
_DARK = 64
"""Where no channel of the upper 8 bits reaches this, the highest value is looked up."""


@dataclass(frozen=True)
class _Depth:
    white: int | None = None
    highest: list[int] | None = None


_PLAIN = _Depth()
_depth: ContextVar[_Depth] = ContextVar("depth", default=_PLAIN)


def check_white(white: Any, what: str = "white") -> int | None:
    """`white` as an option gives it.

    Raises:
        InputError: it is neither None nor a whole number from 1 to 65535.
    """
    if white is None or (isinstance(white, int) and not isinstance(white, bool) and 1 <= white <= FULL):
        return white
    raise InputError(f"{what}={white!r}: expected the value of white in 16-bit images, 1 to {FULL}, such as 4095 (12 bits)")


@contextmanager
def reading_16_bits(white: int | None, highest: list[int] | None = None) -> Iterator[None]:
    """How images of 16 bits are read in the block.

    Args:
        white: the value that becomes 255, and what is above it too; None for 65535.
        highest: takes the highest value of each; None to warn at once where it does not go with `white`.
    """
    token = _depth.set(_Depth(white, highest))
    try:
        yield
    finally:
        _depth.reset(token)


def current_white() -> int | None:
    """The `white` of `reading_16_bits`."""
    return _depth.get().white


def note_highest_value(highest: int, what: str, where: str) -> None:
    """Note the highest value of an image `what` of 16 bits; the warning is given once for all images of `where`."""
    depth = _depth.get()
    if depth.highest is not None:
        depth.highest.append(highest)
    elif text := depth_warning([highest], depth.white):
        warn_once(f"{what}: {text}", once=f"depth of {where}")


def depth_warning(highest: Sequence[int], white: int | None) -> str | None:
    """The warning about images with these highest values, read with `white`; None where there is none."""
    if not highest:
        return None
    most = max(highest)
    if white is not None and most > white:
        return f"16-bit images with values up to {most:,}, beyond white={white}: what is above becomes white; give a larger one"
    bits = next((bits for bits in (8, 10, 12, 14) if most < 1 << bits), None)
    if white is None and most and bits is not None:
        return (
            f"16-bit images with values up to {most:,} of {FULL:,}: they are read as dark as that. If they use {bits} bits, "
            f"give white={(1 << bits) - 1}"
        )
    return None


def to_8_bits(values: NDArray[Any], white: int | None = None) -> NDArray[np.uint8]:
    """16-bit values scaled to 8 bits, rounded to nearest: `white`, 65535 by default, and what is above it become 255."""
    return _scaled(values, white or FULL, 255).astype(np.uint8)


def to_16_bits(values: NDArray[Any], white: int | None) -> NDArray[np.uint16]:
    """16-bit values scaled so that `white` and what is above it become 65535."""
    return _scaled(values, white or FULL, FULL).astype(np.uint16)


def _scaled(values: NDArray[Any], white: int, top: int) -> NDArray[np.uint32]:
    # 65535 * 65535 + 32767 is still below 2 ** 32
    return (np.minimum(values.astype(np.uint32), white) * np.uint32(top) + np.uint32(white // 2)) // np.uint32(white)


def has_deep_colours(kind: str | None, raw: tuple[Any, ...], mode: str) -> bool:
    """Whether a file has colours of 16 bits, of which Pillow keeps 8.

    Args:
        kind: the file's format.
        raw: what Pillow's decoder was told: the name of how the pixels are kept, or a PPM's largest value.
        mode: of the image.
    """
    wide = any(";16" in part if isinstance(part, str) else kind == "PPM" and part > 255 for part in raw[:2])
    return wide and mode in ("RGB", "RGBA", "RGBX", "LA")


def scale_deep_colours(image: Image.Image, what: str, where: str, encoded: Callable[[], bytes]) -> Image.Image:
    """An image of 16-bit colours with the white of `reading_16_bits`, where one is given; else as it is.

    Args:
        image: the file's first frame, as it is stored.
        what: what to call the file.
        where: what to call the set that it is of.
        encoded: gives the whole file, which is read where it is needed.

    Raises:
        InputError: a white is given, and the file is of a kind whose 16 bits cannot be read.
    """
    colours = image.convert("L") if image.mode == "LA" else image.convert("RGB")
    highest, white = int(np.asarray(colours).max()), current_white()
    if white is None and highest >= _DARK:
        note_highest_value(highest * 257, what, where)
        return image
    values = _read(encoded())
    if values is None or values.shape[:2] != (image.height, image.width):
        if white is None:
            return image
        raise InputError(f"{what} has 16-bit colours that cannot be read with white={white}: save it as a PNG of 16 bits")
    opaque, alpha = (values[..., :-1], values[..., -1:]) if values.shape[2] in (2, 4) else (values, None)
    note_highest_value(int(opaque.max()), what, where)
    if white is None:
        return image
    eight = to_8_bits(opaque, white)
    if alpha is not None:
        eight = np.concatenate([eight, to_8_bits(alpha)], axis=2)
    deep = Image.fromarray(eight)
    deep.info = dict(image.info)
    return deep


def _read(encoded: bytes) -> NDArray[np.uint16] | None:
    """(H, W, C) as the file keeps them, red first, alpha last; None where OpenCV reads no 16 bits of it."""
    import cv2

    values = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        return None
    return np.asarray(values[..., [2, 1, 0, 3][: values.shape[2]]] if values.shape[2] >= 3 else values)
