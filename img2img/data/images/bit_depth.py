"""Images of 16 bits a channel as 8 bits, by the value that is white.

Cameras, scanners and microscopes often use 12 of the 16 bits, and no file says so. Of colours of 16 bits Pillow keeps the upper
8 bits, so OpenCV reads those files where a white is given.
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
DEEP_MODES = ("RGB", "RGBA", "RGBX", "LA")
"""Pillow's modes of colours that may have had 16 bits in their file."""
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
    # 65535 * 65535 + 32767 is still below 2 ** 32. In place: images are large.
    scaled = values.astype(np.uint32)
    np.minimum(scaled, np.uint32(white), out=scaled)
    scaled *= np.uint32(top)
    scaled += np.uint32(white // 2)
    scaled //= np.uint32(white)
    return scaled


def has_deep_colours(kind: str | None, raw: tuple[Any, ...], mode: str) -> bool:
    """Whether a file has colours of 16 bits, of which Pillow keeps 8.

    Args:
        kind: the file's format.
        raw: what Pillow's decoder was told: the name of how the pixels are kept, or a PPM's largest value.
        mode: of the image.
    """
    wide = any(";16" in part if isinstance(part, str) else kind == "PPM" and part > 255 for part in raw[:2])
    return wide and mode in DEEP_MODES


def scale_deep_colours(
    image: Image.Image, raw: tuple[Any, ...], what: str, where: str, encoded: Callable[[], bytes]
) -> Image.Image:
    """An image of 16-bit colours with 8 bits, by the white of `reading_16_bits`; its transparent colour becomes an alpha.

    Without a white the colours stay as Pillow has them, which are not rounded but cut, as those of a PIL image are.

    Args:
        image: the file's first frame, as it is stored.
        raw: as of `has_deep_colours`.
        what: what to call the file.
        where: what to call the set that it is of.
        encoded: gives the whole file.

    Raises:
        InputError: a white is given, and the file is of a kind whose 16 bits cannot be read.
    """
    white, key = current_white(), image.info.get("transparency")
    highest = int(np.asarray(image.convert("RGB")).max())
    if white is None and highest >= _DARK and not isinstance(key, tuple):
        note_highest_value(highest * 257, what, where)
        return image
    values = _read(encoded(), image, raw)
    if values is None:
        if white is None:
            return image
        raise InputError(f"{what} has 16-bit colours that cannot be read with white={white}: save it as a PNG of 16 bits")
    colours, alpha = values[..., :3], values[..., 3:] if image.mode == "RGBA" else None
    note_highest_value(int(colours.max()), what, where)
    if white is None and not isinstance(key, tuple):
        return image
    if isinstance(key, tuple):
        alpha = np.where((colours == np.array(key)).all(axis=2, keepdims=True), 0, FULL)
    eight = np.asarray(image) if white is None else to_8_bits(colours, white)
    if alpha is not None:
        eight = np.concatenate([eight, to_8_bits(alpha)], axis=2)
    deep = Image.fromarray(eight)
    deep.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return deep


def _is_ppm(raw: tuple[Any, ...]) -> bool:
    return len(raw) > 1 and isinstance(raw[1], int) and raw[1] > 255


def _read(encoded: bytes, image: Image.Image, raw: tuple[Any, ...]) -> NDArray[np.uint16] | None:
    """(H, W, 3) or (H, W, 4), RGB and alpha; None where OpenCV does not read the 16 bits of what Pillow has read."""
    import cv2

    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_ERROR)  # it warns of every TIFF tag that it does not know
    try:
        found = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        log.setLogLevel(level)
    if found is None or found.dtype != np.uint16 or found.ndim != 3 or found.shape[2] < len(image.getbands()):
        return None
    values: NDArray[np.uint16] = np.asarray(found[..., [2, 1, 0, 3][: found.shape[2]]], np.uint16)
    del found  # images are large
    if raw[0].startswith("RGBa"):  # colours multiplied by their alpha
        alpha = np.maximum(values[..., 3:], 1).astype(np.uint32)
        values[..., :3] = np.minimum((values[..., :3] * np.uint32(FULL) + alpha // 2) // alpha, FULL)
    elif not _is_ppm(raw) and not np.array_equal(values[..., :3] >> 8, np.asarray(image)[..., :3]):
        return None
    return values if values.shape[:2] == (image.height, image.width) else None
