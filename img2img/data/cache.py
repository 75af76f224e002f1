"""A dataset that is decoded and resized once."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from img2img.data.base import ImageDataset, Sample
from img2img.data.images.bit_depth import check_white, depth_warning, reading_16_bits
from img2img.data.images.decode import check_enlarged
from img2img.data.images.resizing import Resize, reading_resized, resized
from img2img.errors import InputError

_LOOKED_AT = 8


class CachedDataset(ImageDataset):
    """`dataset`, each decoded and resized on its first access and then kept in memory.

    Threads may share it. A process that is forked keeps what is already there, so `preload` before worker processes start;
    one that is spawned begins with an empty cache, as pickling leaves the images behind.

    Args:
        dataset: the set to read.
        short_side: resize every image so that its shorter side has this many pixels, smaller images are enlarged; `image`
            and `source` antialiased (Lanczos), `label` to the nearest pixel. None keeps the sizes.
        square: in its place, resize every image likewise so that both of its sides have this many pixels, whatever its
            proportions.
        middle: keep the middle square of this many pixels of every image, extended by its edge where it is smaller; None
            keeps all of it.
        white: the value that is white in images of 16 bits, and what is above it; None for 65535.
        fast_decode: decode JPEGs at 1/2, 1/4 or 1/8 of their size where what is asked for is smaller still: faster, with pixels
            that differ a little, see `resizing.Resize`.
        max_bytes: keep images until they take this much memory; those beyond it are decoded at each access.
        warnings: those that were given when the set was opened.

    Raises:
        InputError: an option is out of range; at access, an image that would be enlarged beyond `decode.MAX_PIXELS`.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        *,
        short_side: int | None = None,
        square: int | None = None,
        middle: int | None = None,
        white: int | None = None,
        fast_decode: bool = False,
        max_bytes: int = 2 << 30,
        warnings: Sequence[str] = (),
    ) -> None:
        if (middle is not None and middle < 1) or max_bytes < 0:
            raise InputError(
                f"middle={middle}, max_bytes={max_bytes}: expected 1 pixel or more, or none, and 0 bytes or more; give for "
                "instance middle=128"
            )
        self.classes = dataset.classes
        self.categories = dataset.categories
        self.name = dataset.name
        self._dataset = dataset
        self._resize = Resize(short_side, square, fast=fast_decode)
        self._middle = middle
        self.white = check_white(white)
        self._highest = 0
        self._warnings = tuple(warnings)
        self._max_bytes = max_bytes
        self.forget()

    def forget(self) -> None:
        """Let go of the kept images; they are decoded again when they are asked for."""
        self._kept: dict[int, Sample] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_kept", "_bytes", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.forget()

    @property
    def bytes_kept(self) -> int:
        """How much memory the kept images take, in bytes."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        highest: list[int] = []
        with reading_16_bits(self.white, highest), reading_resized(self._resize):
            sample = self._dataset[index]
        self._highest = max(self._highest, *highest, 0)
        if self._resize:
            sample = resize_sample(sample, self._resize)
        if self._middle is not None:
            sample = center_crop(sample, self._middle)
        size = sum(a.nbytes for a in (sample.image, sample.label, sample.source) if a is not None)
        with self._lock:
            if index not in self._kept and self._bytes + size <= self._max_bytes:
                self._kept[index] = sample
                self._bytes += size
        return sample

    def warnings(self) -> list[str]:
        """The warnings about the set: those given when it was opened (files that were left out, photos that are
        turned), and, after a look at a few of its images, whether those of 16 bits use fewer."""
        count = min(len(self), _LOOKED_AT)
        if self.arrays() is None:  # whose images are no files
            for i in range(count):
                self[i * len(self) // count]
        dark = depth_warning([self._highest], self.white)
        return [*self._warnings, *([dark] if dark else [])]

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """Those of the set that is read, where its images stay as they are."""
        return None if self._resize or self._middle is not None else self._dataset.arrays()

    def files(self, index: int) -> Sequence[tuple[str, Path]]:
        """Those of the set that is read."""
        return self._dataset.files(index)

    def common_files(self) -> Sequence[tuple[str, Path]]:
        """Those of the set that is read."""
        return self._dataset.common_files()

    def preload(self, progress: Callable[[int, int], object] | None = None) -> None:
        """Decode until every image is kept or the memory is used up; `progress(done, total)` is called after each."""
        for index in range(len(self)):
            self[index]
            if progress is not None:
                progress(index + 1, len(self))
            if index not in self._kept:
                break


def resize_sample(sample: Sample, resize: Resize) -> Sample:
    """The sample at another size, see `CachedDataset`; what its dataset has made smaller already stays as it is."""
    h, w = sample.image.shape[:2]
    height, width = resize.of(h, w)
    if height > h or width > w:
        what = f"{sample.name or 'an image'}, of {w} x {h}"
        check_enlarged(height, width, what, "remove the image, or give a smaller `resize` or `square`")
    return replace(
        sample,
        image=resized(sample.image, height, width),
        label=None if sample.label is None else resized(sample.label, height, width, label=True),
        source=None if sample.source is None else resized(sample.source, height, width),
    )


def center_crop(sample: Sample, side: int) -> Sample:
    """The sample with `image`, `label` and `source` cut to their middle square of `side` pixels, see `CachedDataset`."""
    height, width = sample.image.shape[:2]
    lack = [(max(side - n, 0) // 2, (max(side - n, 0) + 1) // 2) for n in (height, width)]
    top, left = (max(n - side, 0) // 2 for n in (height, width))
    if side > min(height, width):
        what = f"{sample.name or 'an image'}, of {width} x {height}"
        check_enlarged(side, side, what, "give a smaller `middle`")

    def cut(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if any(map(any, lack)):
            image = np.pad(image, [*lack, (0, 0)][: image.ndim], mode="edge")
        return np.array(image[top : top + side, left : left + side])

    return replace(
        sample,
        image=cut(sample.image),
        label=None if sample.label is None else cut(sample.label),
        source=None if sample.source is None else cut(sample.source),
    )
