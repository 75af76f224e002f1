"""Pairs of pictures: A|B files, side by side as pix2pix lays them out (Isola et al., arXiv:1611.07004), or two folders."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from img2img.data.base import PictureSet, Sample
from img2img.data.decode import list_pictures, read_picture, require_folder
from img2img.data.folder import by_stem_of, stem_of
from img2img.errors import InputError


class PairFolder(PictureSet):
    """Every A|B file of a folder and its subfolders, sorted by path: `source` is A, `image` is B.

    Args:
        root: the folder.
        a_side: the half that A takes. In edges2handbags A, the edges, is on the left.

    Raises:
        InputError: no such folder, no picture in it, another side; at access a damaged file or one of an odd width.
    """

    def __init__(self, root: str | os.PathLike[str], *, a_side: Literal["left", "right"] = "left") -> None:
        if a_side not in ("left", "right"):
            raise InputError(f"got a_side={a_side!r}: expected 'left' or 'right', the half of the file that is the source")
        self.root = require_folder(root)
        self.name = self.root.name
        self._a_left = a_side == "left"
        self._files = list_pictures(self.root)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        path = self._files[index]
        pair = read_picture(path)
        width = pair.shape[1]
        if width % 2:
            raise InputError(
                f"{path} is {width} pixels wide: expected an even width, two pictures of one size side by side; remove the file"
            )
        left, right = (np.ascontiguousarray(half) for half in np.split(pair, 2, axis=1))
        a, b = (left, right) if self._a_left else (right, left)
        return Sample(image=b, source=a, name=path.relative_to(self.root).as_posix())

    def files(self, index: int) -> Sequence[tuple[str, Path]]:
        """The file with both."""
        path = self._files[index]
        return ((path.relative_to(self.root).as_posix(), path),)


class PairedFolders(PictureSet):
    """Two folders, paired by the path without the extension: `inputs/a/1.jpg` belongs to `targets/a/1.png`.

    `source` is the input, `image` the target. Targets without an input are not used.

    Args:
        inputs: the folder of what the network is to be shown.
        targets: the folder of what it is to make of it, of the same sizes.

    Raises:
        InputError: no such folder, no picture in it, an input without a target; at access a damaged file, or two sizes.
    """

    def __init__(self, inputs: str | os.PathLike[str], targets: str | os.PathLike[str]) -> None:
        self.root, targets = require_folder(inputs), require_folder(targets)
        self.name = self.root.name
        sources = by_stem_of(list_pictures(self.root), self.root)
        wanted = by_stem_of(list_pictures(targets), targets)
        if missing := [path for stem, path in sources.items() if stem not in wanted]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(
                f"no target for {missing[0]}{more}: expected {targets / stem_of(missing[0], self.root)} with the extension of a "
                "picture; add the targets, or move the inputs away"
            )
        self._pairs = [(path, wanted[stem]) for stem, path in sources.items()]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        source, target = self._pairs[index]
        a, b = read_picture(source), read_picture(target)
        if a.shape != b.shape:
            raise InputError(
                f"{source} is {a.shape[1]} x {a.shape[0]} and its target {target} is {b.shape[1]} x {b.shape[0]}: expected the "
                "same size (after the EXIF orientation); resize one of them, or remove both"
            )
        return Sample(image=b, source=a, name=source.relative_to(self.root).as_posix())

    def files(self, index: int) -> Sequence[tuple[str, Path]]:
        """The input and its target."""
        source, target = self._pairs[index]
        name = source.relative_to(self.root).as_posix()
        return (name, source), (f"{name} (target)", target)
