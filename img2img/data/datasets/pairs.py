"""Pairs of images: A|B files, side by side as pix2pix lays them out (Isola et al., arXiv:1611.07004), or two folders."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from img2img.data.base import DATA, ImageDataset, Sample
from img2img.data.datasets.file_matching import Side, pair_files
from img2img.data.images.decode import read_image, read_sized, read_turned
from img2img.data.images.exif import DrawnOn, check_drawn_on, of_which_pixels, turned, warn_of_turned
from img2img.data.images.listing import list_images, require_folder
from img2img.data.warn_once import warn_once
from img2img.errors import InputError

NARROW = 0.8
"""Width over height of a half below which a file looks like a single photo: halves of 3:2 have 0.75."""


@DATA.register("pairs")
class PairFolder(ImageDataset):
    """Every A|B file of a folder and its subfolders, sorted by path: `source` is A, `image` is B.

    Args:
        root: the folder.
        a_side: the half that A takes. In edges2handbags A, the edges, is on the left.

    Raises:
        InputError: no such folder, no image in it, another side; at access a damaged file or one of an odd width.
    """

    def __init__(self, root: str | os.PathLike[str], *, a_side: Literal["left", "right"] = "left") -> None:
        if a_side not in ("left", "right"):
            raise InputError(f"got a_side={a_side!r}: expected 'left' or 'right', the half of the file that is the source")
        self.root = require_folder(root)
        self.name = self.root.name
        self._a_left = a_side == "left"
        self._files = list_images(self.root)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        path = self._files[index]
        pair = read_image(path)
        width = pair.shape[1]
        if width % 2:
            raise InputError(
                f"{path} is {width} pixels wide: expected an even width, two images of one size side by side; remove the file"
            )
        if width < 2 * NARROW * pair.shape[0]:
            warn_once(
                f"{path} is {width} x {pair.shape[0]} pixels, so that its halves are narrow, {width // 2} x {pair.shape[0]}: is "
                f"each file of {self.root} an input and a target side by side? Single photos are no pairs",
                once=f"narrow halves in {self.root}",
            )
        left, right = (np.ascontiguousarray(half) for half in np.split(pair, 2, axis=1))
        a, b = (left, right) if self._a_left else (right, left)
        return Sample(image=b, source=a, name=path.relative_to(self.root).as_posix())

    def files(self, index: int) -> Sequence[tuple[str, Path]]:
        """The file with both."""
        path = self._files[index]
        return ((path.relative_to(self.root).as_posix(), path),)


@DATA.register("paired_folders")
class PairedFolders(ImageDataset):
    """Two folders, paired by the path without the extension: `inputs/a/1.jpg` belongs to `targets/a/1.png`.

    `source` is the input, `image` the target. Targets without an input are not used.

    Args:
        inputs: the folder of what the network is to be shown.
        targets: the folder of what it is to make of it, of the same sizes; the same one where both lie side by side.
        suffix: what target names have more than input names.
        match: "name", "order" or two patterns, such as `["{id}_low", "{id}_high"]`, see `pair_files`.
        drawn_on: what the targets of inputs that EXIF turns were made from, where their own EXIF says nothing: the inputs as
            "shown" (the default), or the pixels as they are "stored". None warns of such inputs, if there are any.

    Raises:
        InputError: no such folder, no image in it, an input without a target; at access a damaged file, or two sizes.
    """

    def __init__(
        self,
        inputs: str | os.PathLike[str],
        targets: str | os.PathLike[str],
        *,
        suffix: str = "",
        match: str | Sequence[str] = "name",
        drawn_on: DrawnOn | None = None,
    ) -> None:
        check_drawn_on(drawn_on)
        sides = Side(require_folder(inputs), "inputs", "input"), Side(require_folder(targets), "targets", "target")
        self.root = sides[0].root
        self.name = self.root.name
        self._pairs = pair_files(*sides, match=match, suffix=suffix)
        self._stored = drawn_on == "stored"
        if drawn_on is None:
            warn_of_turned(self._pairs, "shown", name=self.name)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        source, target = self._pairs[index]
        a, name = read_sized(source), source.relative_to(self.root).as_posix()
        if self._stored:  # whole, since resizing and then turning would give other pixels than the input has
            b, own = read_turned(target)
            b = turned(b, a.orientation) if own == 1 else b
            size = b.shape[:2]
        else:
            sized = read_sized(target)
            b, own, size = sized.image, sized.orientation, sized.size
        if a.size != size:
            raise InputError(
                f"{source} is {a.size[1]} x {a.size[0]} and its target {target} is {size[1]} x {size[0]}: expected the same size "
                f"({of_which_pixels(self._stored, max(a.orientation, own))}); resize one of them, or remove both"
            )
        return Sample(image=b, source=a.image, name=name)

    def files(self, index: int) -> Sequence[tuple[str, Path]]:
        """The input and its target."""
        source, target = self._pairs[index]
        name = source.relative_to(self.root).as_posix()
        return (name, source), (f"{name} (target)", target)
