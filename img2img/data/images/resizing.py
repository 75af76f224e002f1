"""Images made smaller as they are read: a JPEG of 640 x 480 that is used at 160 pixels need not become an array of its full size.

A dataset reads by `decode.read_sized`, which takes the size from `reading_resized`, and whose pixels are those of reading the
whole image and resizing it afterwards, bit for bit. With `fast` they are not: libjpeg can decode a JPEG at 1/2, 1/4 or 1/8 of its
size, which leaves out most of the work, and the antialiased resize goes on from there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from img2img.errors import InputError


@dataclass(frozen=True)
class Resize:
    """A size for images, or none.

    Args:
        short_side: the shorter side in pixels, proportions kept.
        square: in its place, both sides, whatever the proportions.
        fast: JPEGs may be decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 of their size that is not below the size asked for.

    Raises:
        InputError: a side below 1, or both kinds of size.
    """

    short_side: int | None = None
    square: int | None = None
    fast: bool = False

    def __post_init__(self) -> None:
        if any(pixels is not None and pixels < 1 for pixels in (self.short_side, self.square)):
            raise InputError(
                f"short_side={self.short_side}, square={self.square}: expected 1 pixel or more, or none; give for instance "
                "short_side=128"
            )
        if self.short_side is not None and self.square is not None:
            raise InputError(
                f"short_side={self.short_side} and square={self.square}: expected one of them, since both say a size"
            )

    def __bool__(self) -> bool:
        return self.short_side is not None or self.square is not None

    def of(self, height: int, width: int) -> tuple[int, int]:
        """The height and width in pixels that an image of these becomes. An image that has its size keeps it."""
        if self.square is not None:
            return self.square, self.square
        if self.short_side is None:
            return height, width
        scale = self.short_side / min(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))


AS_IT_IS = Resize()
"""No size: images keep theirs."""
_resize: ContextVar[Resize] = ContextVar("resize", default=AS_IT_IS)


@contextmanager
def reading_resized(resize: Resize) -> Iterator[None]:
    """`decode.read_sized` makes images smaller in the block; it enlarges none."""
    token = _resize.set(resize)
    try:
        yield
    finally:
        _resize.reset(token)


def current_resize() -> Resize:
    """That of `reading_resized`."""
    return _resize.get()


def resized(image: NDArray[np.uint8], height: int, width: int, *, label: bool = False) -> NDArray[np.uint8]:
    """An image (H, W, 3) at another size, antialiased (Lanczos); a label (H, W) by its nearest pixels."""
    if image.shape[:2] == (height, width):
        return image
    method = Image.Resampling.NEAREST if label else Image.Resampling.LANCZOS
    return np.array(Image.fromarray(image).resize((width, height), method))
