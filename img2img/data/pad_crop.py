"""The augmentation of small images, whole batches at once: a border, a random cut of it, a mirror, a square left out."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from img2img.data.base import Sample
from img2img.errors import InputError


class PadCrop:
    """Add a black border, cut a square of it, mirror it half of the time: what CIFAR's images are commonly given.

    `shift.batch(images, seed)` is pure, as `Augment` is. Nothing is resized.

    Args:
        crop: side of the result in pixels.
        pad: width of the border in pixels.
        flip: mirror left and right with probability 1/2.
        cutout: side in pixels of a black square, whose middle is a random pixel of the result (DeVries and Taylor 2017); 0: none.

    Raises:
        InputError: an option is out of range.
    """

    def __init__(self, crop: int, *, pad: int = 0, flip: bool = True, cutout: int = 0) -> None:
        if crop < 1 or pad < 0 or cutout < 0:
            raise InputError(
                f"crop={crop}, pad={pad}, cutout={cutout}: expected a side of 1 pixel or more, and 0 or more of the others"
            )
        self.crop, self.pad, self.flip, self.cutout = crop, pad, flip, cutout

    def batch(self, images: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Cuts of (N, H, W) or (N, H, W, C) images: (N, C, crop, crop), C = 1 for the former.

        Raises:
            InputError: the images are too small for the cut.
        """
        images = images[..., None] if images.ndim == 3 else images
        count, height, width, _ = images.shape
        rows, columns = (n + 2 * self.pad - self.crop + 1 for n in (height, width))
        if rows < 1 or columns < 1:
            raise InputError(
                f"images of {height} x {width} pixels with a border of {self.pad} cannot be cut to {self.crop}: give a "
                "train.augmentation.crop of their size, or a larger train.augmentation.pad"
            )
        rng = np.random.default_rng(seed)
        top, left = rng.integers(rows, size=count), rng.integers(columns, size=count)
        mirrored = rng.random(count) < 0.5 if self.flip else np.zeros(count, bool)
        if self.pad:
            border = (self.pad, self.pad)
            images = np.pad(images, ((0, 0), border, border, (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(images, (self.crop, self.crop), axis=(1, 2))
        cut = windows[np.arange(count), top, left]
        cut[mirrored] = cut[mirrored][..., ::-1]
        done: NDArray[np.uint8] = np.ascontiguousarray(cut)
        if self.cutout:
            places = np.arange(self.crop)
            first = rng.integers(self.crop, size=(2, count, 1)) - self.cutout // 2
            rows, columns = (first <= places) & (places < first + self.cutout)
            done[np.broadcast_to((rows[:, :, None] & columns[:, None, :])[:, None], done.shape)] = 0
        return done

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """One sample alone; it has neither label nor source.

        Raises:
            InputError: it has, or is too small.
        """
        if sample.label is not None or sample.source is not None:
            raise InputError("train.augmentation.pad is for images of one category each: give 0 where these have labels")
        return replace(sample, image=self.batch(sample.image[None], seed)[0].transpose(1, 2, 0))
