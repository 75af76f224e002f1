"""A|B pair files: two pictures side by side in one file, as pix2pix lays them out (Isola et al., arXiv:1611.07004)."""

import os
from typing import Literal

import numpy as np

from img2img.data.base import PictureSet, Sample
from img2img.data.decode import list_pictures, read_picture, require_folder
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
