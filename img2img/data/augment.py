"""Joint random crops, flips and turns of a sample's image, label and source, as a pure function of the sample and a seed."""

import os
import random
import threading
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from img2img.data.base import VOID, Sample
from img2img.errors import InputError

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # albumentations asks PyPI for a newer version of itself when imported

import albumentations as A
import cv2


class Augment:
    """Cut a random square, magnify it a little, mirror it half of the time, turn it if asked to; the same for image, label
    and source.

    `augment(sample, seed)` is pure: the same sample and seed give the same bytes in any process or thread, whatever was
    called before.

    The square's side is drawn between `crop / zoom[1]` and `crop / zoom[0]` pixels, but never beyond the image's shorter
    side, and resized to `crop`: `image` and `source` by area averaging when that shrinks and linearly when it enlarges, `label`
    by the nearest pixel. So a training crop shows things at the scale of the whole image, give or take `zoom`.
    An image smaller than the crop is first extended by its mirror image on all sides, which keeps the statistics
    of a natural image for the network; its label is extended by `VOID`, since nobody labelled those pixels
    and mirrored objects would be counted twice.

    Args:
        crop: side of the result in pixels.
        zoom: smallest and largest magnification; (1, 1) cuts without resizing, and every pixel is then an original one.
        flip: mirror left and right with probability 1/2.
        rotate: turn by 0, 90, 180 or 270 degrees, each as often; with `flip` that makes all eight symmetries of the square.
        jitter: largest relative change of brightness, contrast and saturation (of hue a tenth of it, in turns), the same for
            `image` and `source`; 0 leaves the colours alone.

    Raises:
        InputError: an option is out of range.
    """

    def __init__(
        self,
        crop: int,
        *,
        zoom: tuple[float, float] = (0.8, 1.25),
        flip: bool = True,
        rotate: bool = False,
        jitter: float = 0.0,
    ) -> None:
        if crop < 1:
            raise InputError(f"crop={crop}: expected a side of 1 pixel or more; give for instance crop=96")
        if not 0 < zoom[0] <= zoom[1]:
            raise InputError(
                f"zoom={tuple(zoom)}: expected 0 < smallest <= largest; give for instance (0.8, 1.25), or (1, 1) for none"
            )
        if not 0 <= jitter < 1:
            raise InputError(f"jitter={jitter}: expected 0 <= jitter < 1; give 0 for none or for instance 0.2")
        self.crop = crop
        self.zoom = (float(zoom[0]), float(zoom[1]))
        self.flip = flip
        self.rotate = rotate
        self.jitter = jitter
        self._prepare()

    def _prepare(self) -> None:
        # An albumentations pipeline holds its random state, so two threads must not be inside one at once.
        self._lock = threading.Lock()
        self._geometry: dict[int, A.Compose] = {}
        j = self.jitter
        around = (1 - j, 1 + j)
        self._colour = A.Compose(
            [A.ColorJitter(brightness=around, contrast=around, saturation=around, hue=(-j / 10, j / 10), p=1)],
            additional_targets={"source": "image"},
        )

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def _pipeline(self, largest: int) -> A.Compose:
        """The pipeline that cuts sides up to `largest`: albumentations fixes the range of sides when it is built."""
        smallest = min(max(round(self.crop / self.zoom[1]), 1), largest)
        if (smallest, largest) == (self.crop, self.crop):
            cut: A.BasicTransform = A.RandomCrop(self.crop, self.crop)
        else:
            cut = A.RandomSizedCrop(
                (smallest, largest),
                (self.crop, self.crop),
                interpolation=cv2.INTER_LINEAR,
                # plain INTER_NEAREST samples half a pixel up and to the left of the linear image
                mask_interpolation=cv2.INTER_NEAREST_EXACT,
                area_for_downscale="image",
            )
        mirror = [A.HorizontalFlip(p=0.5)] if self.flip else []
        turn = [A.RandomRotate90(p=1)] if self.rotate else []
        return A.Compose([cut, *mirror, *turn], additional_targets={"source": "image"})

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """The augmented sample, every image of it (crop, crop, ...); `sample` is left as it was.

        Args:
            sample: image (H, W, 3), label (H, W) and source (H, W, 3) of one size, uint8.
            seed: any integer >= 0.

        Raises:
            InputError: the sample's images differ in size.
        """
        given: dict[str, NDArray[np.uint8]] = {"image": sample.image}
        if sample.label is not None:
            given["mask"] = sample.label
        if sample.source is not None:
            given["source"] = sample.source
        if len({a.shape[:2] for a in given.values()}) > 1:
            sizes = ", ".join(f"{'label' if k == 'mask' else k} {a.shape[:2]}" for k, a in given.items())
            raise InputError(f"{sample.name or 'a sample'} has {sizes}: expected one (height, width); resize or remove it")
        given = {k: _extend(a, self.crop, label=k == "mask") for k, a in given.items()}
        largest = min(round(self.crop / self.zoom[0]), *given["image"].shape[:2])
        with self._lock:
            if largest not in self._geometry:
                self._geometry[largest] = self._pipeline(largest)
            _seed(self._geometry[largest], seed)
            done = self._geometry[largest](**given)
            if self.jitter > 0:
                _seed(self._colour, seed)
                done |= self._colour(**{k: done[k] for k in given if k != "mask"})
        # contiguous and a copy: a crop is a view that would keep the whole image alive
        new = {k: np.array(done[k], order="C") for k in given}
        return replace(sample, image=new["image"], label=new.get("mask"), source=new.get("source"))


def _seed(pipeline: A.Compose, seed: int) -> None:
    # One shared generator; `set_random_seed` would build two for every step of the pipeline (0.1 ms each call).
    pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))


def _extend(image: NDArray[np.uint8], side: int, *, label: bool) -> NDArray[np.uint8]:
    """Extend (H, W, ...) on all sides to at least `side` pixels each way: mirrored, or `VOID` if it is a label."""
    h, w = image.shape[:2]
    if h >= side and w >= side:
        return image
    margins = [((lack := max(side - n, 0)) // 2, lack - lack // 2) for n in (h, w)] + [(0, 0)] * (image.ndim - 2)
    if label:
        return np.pad(image, margins, constant_values=VOID)
    return np.pad(image, margins, mode="reflect")
