"""What is white in pictures of 16 bits: cameras, scanners and microscopes often use 12 of them, and no file says so."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from img2img.data.warn_once import warn_once
from img2img.errors import InputError

FULL = 65535
"""White of all 16 bits."""


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
    raise InputError(f"{what}={white!r}: expected the value of white in 16-bit pictures, 1 to {FULL}, such as 4095 (12 bits)")


@contextmanager
def reading_16_bits(white: int | None, highest: list[int] | None = None) -> Iterator[None]:
    """How pictures of 16 bits are read in the block.

    Args:
        white: the value that becomes 255, and what is above it too; None for 65535.
        highest: takes the highest value of each; None to say it at once where it does not go with `white`.
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
    """Note the highest value of a picture `what` of 16 bits; it is said once for all pictures of `where`."""
    depth = _depth.get()
    if depth.highest is not None:
        depth.highest.append(highest)
    elif text := depth_warning([highest], depth.white):
        warn_once(f"{what}: {text}", once=f"depth of {where}")


def depth_warning(highest: Sequence[int], white: int | None) -> str | None:
    """What is to be said of pictures with these highest values, read with `white`; None for nothing."""
    if not highest:
        return None
    most = max(highest)
    if white is not None and most > white:
        return f"16-bit pictures with values up to {most:,}, beyond white={white}: what is above becomes white; give a larger one"
    bits = next((bits for bits in (8, 10, 12, 14) if most < 1 << bits), None)
    if white is None and most and bits is not None:
        return (
            f"16-bit pictures with values up to {most:,} of {FULL:,}: they are read as dark as that. If they use {bits} bits, "
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
