"""A dataset that is decoded and resized once, and then kept in memory or on disk."""

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from img2img.data.base import ImageDataset, Sample
from img2img.data.disk_cache import CachedSet
from img2img.data.images.bit_depth import check_white, depth_warning, reading_16_bits
from img2img.data.images.decode import check_enlarged
from img2img.data.images.resizing import Resize, reading_resized, resized
from img2img.data.warn_once import warn_once
from img2img.errors import InputError

_LOOKED_AT = 8
_IMAGES = ("image", "label", "source")


class CachedDataset(ImageDataset):
    """`dataset`, each decoded and resized on its first access and then kept in memory, or on disk.

    Threads may share it. A process that is forked keeps what is already in memory, so `preload` before worker processes start;
    one that is spawned begins without, as pickling leaves the images behind. What is on disk, all processes share, in this run
    and in later ones: arrays of samples from there are read-only views of the mapped file, so that memory does not grow with the
    set. A file whose size or time of change is another since is decoded again.

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
        stored: where images that are read from files are kept in place of memory, as long as there is room; for a set of options,
            those of this class but for `middle` among them.
        by_index: files alone do not tell a sample of this set; its index does too.
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
        stored: CachedSet | None = None,
        by_index: bool = False,
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
        self._stored, self._by_index = stored, by_index
        self.forget()

    def forget(self) -> None:
        """Let go of the images in memory, and close the files of those on disk; they are read again when they are asked for."""
        if self._stored is not None:
            self._stored.close()
        self._kept: dict[int, Sample] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_kept", "_bytes", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.forget()

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        key = None if self._stored is None else self._key(index)
        sample, is_stored = (None, False) if key is None else (self._load(key), True)
        if sample is None:
            sample, highest = self._decode(index)
            is_stored = key is not None and self._stored is not None and self._stored.put(key, _packed(sample, highest))
        if self._middle is not None:
            sample = center_crop(sample, self._middle)
        if not is_stored:
            self._keep(index, sample)
        return sample

    def _decode(self, index: int) -> tuple[Sample, int]:
        """A sample at its size, and the highest value of its images of 16 bits, 0 without one."""
        found: list[int] = []
        with reading_16_bits(self.white, found), reading_resized(self._resize):
            sample = self._dataset[index]
        highest = max(found, default=0)
        self._highest = max(self._highest, highest)
        return (resize_sample(sample, self._resize) if self._resize else sample), highest

    def _keep(self, index: int, sample: Sample) -> None:
        size = sum(a.nbytes for a in (sample.image, sample.label, sample.source) if a is not None)
        with self._lock:
            if index not in self._kept and self._bytes + size <= self._max_bytes:
                self._kept[index] = sample
                self._bytes += size

    def _key(self, index: int) -> bytes | None:
        """Of the files that a sample is read from, as they are now; None of one that is read from none."""
        try:
            stamps = [(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in self._states(index)]
        except OSError:  # reading it says what is wrong
            return None
        place = (self.name, len(self), index) if self._by_index else None
        return hashlib.blake2b(repr((place, stamps)).encode(), digest_size=16).digest() if stamps else None

    def _states(self, index: int) -> Iterable[tuple[str, os.stat_result]]:
        return ((name, os.stat(path)) for name, path in self._dataset.files(index))

    def _load(self, key: bytes) -> Sample | None:
        content = None if self._stored is None else self._stored.get(key)
        if content is None:
            return None
        sample, highest = _unpacked(content)
        self._highest = max(self._highest, highest)
        return sample

    def warnings(self) -> list[str]:
        """The warnings about the set: those given when it was opened (files that were left out, photos that are
        turned), and, after a look at a few of its images, whether those of 16 bits use fewer."""
        count = min(len(self), _LOOKED_AT)
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

    def preload(self) -> None:
        """Decode until every image is kept or the memory is used up.

        What goes to disk is left to whoever asks for it first, which several processes do at once.
        """
        if self._stored is not None and len(self) and self._key(0) is not None:
            self._stored.warn_if_full(len(self))
            return
        for index in range(len(self)):
            self[index]
            if index not in self._kept:
                warn_once(
                    f"{self.name}: {len(self._kept)} of {len(self)} images fit into the {self._max_bytes / 1e9:.1f} GB of memory "
                    "for decoded ones; the others are decoded at each access: give cache_dir, a folder on a local disk, or make "
                    "them smaller with data.resize"
                )
                break


def _packed(sample: Sample, highest: int) -> bytes:
    """A sample as bytes: the length of what is said about it, that as JSON, and its images, row by row."""
    images = {name: image for name in _IMAGES if (image := getattr(sample, name)) is not None}
    about = {
        "shapes": {name: image.shape for name, image in images.items()},
        "category": sample.category,
        "name": sample.name,
        "highest": highest,
    }
    text = json.dumps(about).encode()
    return b"".join([len(text).to_bytes(4, "little"), text, *(image.tobytes() for image in images.values())])


def _unpacked(content: memoryview) -> tuple[Sample, int]:
    """What `_packed` took, the images as read-only views."""
    at = 4 + int.from_bytes(content[:4], "little")
    about = json.loads(bytes(content[4:at]))
    images: dict[str, NDArray[np.uint8]] = {}
    for name, shape in about["shapes"].items():
        images[name] = np.ndarray(shape, np.uint8, content, at)
        at += images[name].nbytes
    return Sample(**images, category=about["category"], name=about["name"]), about["highest"]


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
