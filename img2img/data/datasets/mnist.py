"""MNIST, plain, or as one of many tasks: its pixels permuted or its digits rotated."""

import functools
import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from img2img.data.arrays import ArrayDataset, require_part
from img2img.data.base import DATA, by_part
from img2img.data.images.listing import require_folder
from img2img.errors import InputError
from img2img.files.paths import expanded

MAX_BYTES = 1 << 30
"""A file that claims more values than this is refused before they are read; MNIST's largest has 47 million."""

_UNSIGNED_BYTE = 8


@DATA.register("mnist")
@by_part
class Mnist(ArrayDataset):
    """MNIST (LeCun et al., "Gradient-based learning applied to document recognition", 1998): 28 x 28 pixels, grey, ten digits.

    Files as torchvision lays them out: `MNIST/raw/{train,t10k}-images-idx3-ubyte` and `-labels-idx1-ubyte`, or the same with
    `.gz`. A task is a permutation or a rotation of every image, of training and test alike ("ImpressLearn", 2022, section 4).

    Args:
        root: the folder of `MNIST/raw`, or the folder with the files.
        part: "train", "val" or "test".
        permutation: the number of the task, 0 or more: pixel i of an image, counted row by row, takes the value of pixel p[i],
            where p is `numpy.random.default_rng(permutation).permutation(784)`. 0 leaves the pixels in their places.
        rotation: in degrees, counter-clockwise about the centre: bilinear, black outside (torchvision's `rotate`).
        val: how many training images are the validation part: the last of a shuffle that is the same for every task.

    Raises:
        InputError: missing or damaged files, or an option out of range.
    """

    def __init__(
        self,
        *,
        root: str | os.PathLike[str],
        part: Literal["train", "val", "test"],
        permutation: int | None = None,
        rotation: float | None = None,
        val: int = 0,
    ) -> None:
        require_part(part, val, "val")
        if permutation is not None and rotation is not None:
            raise InputError(f"got permutation={permutation} and rotation={rotation}: expected one of them; remove the other")
        if (permutation or 0) < 0 or not math.isfinite(rotation or 0):
            raise InputError(
                f"got permutation={permutation}, rotation={rotation}: expected a number of 0 or more, or an angle in degrees; "
                "correct it"
            )
        folder = _folder(require_folder(root))
        prefix = "t10k" if part == "test" else "train"
        files = [_file(folder / f"{prefix}-{name}-ubyte") for name in ("images-idx3", "labels-idx1")]
        images, labels = (_read(file, dimensions) for file, dimensions in zip(files, (3, 1), strict=True))
        if len(images) != len(labels) or not len(labels) or labels.max() > 9:
            raise InputError(
                f"{folder} has {len(images)} {prefix} images and {len(labels)} labels up to {labels.max(initial=0)}: expected "
                "a label of 0..9 for each image; unpack the files again"
            )
        rows = np.arange(len(labels))
        if part != "test" and val:
            if val >= len(labels):
                raise InputError(f"got val={val}: expected less than {len(labels)}, the training images; lower it")
            shuffled = np.random.default_rng(0).permutation(len(labels))
            rows = np.sort(shuffled[-val:] if part == "val" else shuffled[:-val])
        name, change = "mnist", None
        if permutation is not None:
            name = f"mnist-permuted{permutation}"
            change = functools.partial(permuted, number=permutation) if permutation else None
        elif rotation is not None:
            name, change = f"mnist-rotated{rotation:g}", functools.partial(_rotated, degrees=float(rotation))
        super().__init__(
            images,
            labels[rows].astype(np.int64),
            rows=rows,
            classes="0123456789",
            name=f"{name}-{part}",
            source=files,
            change=change,
        )


ANGLES = tuple(int(degrees) for degrees in 1 + np.random.default_rng(0).permutation(359))
"""The angle of rotated task n is number n - 1: 1° to 359° (ImpressLearn, table 2), shuffled once for all, so that the first tasks
have angles from all around.
"""

Part = Literal["train", "val", "test"]


@DATA.register("permuted_mnist")
@by_part
def permuted_task(part: Part, *, root: str, number: int, val: int = 0) -> Mnist:
    """Task `number`, from 1: the permutation of that number."""
    return Mnist(root=root, part=part, permutation=number, val=val)


@DATA.register("rotated_mnist")
@by_part
def rotated_task(part: Part, *, root: str, number: int, val: int = 0) -> Mnist:
    """Task `number`, from 1 to 359: the rotation by `ANGLES[number - 1]`.

    Raises:
        InputError: there is no such task.
    """
    if not 1 <= number <= len(ANGLES):
        raise InputError(f"got the task number {number} of rotated MNIST: expected 1..{len(ANGLES)}, one for each degree")
    return Mnist(root=root, part=part, rotation=ANGLES[number - 1], val=val)


def permuted(images: NDArray[np.uint8], *, number: int) -> NDArray[np.uint8]:
    """Images (N, H, W) with their pixels in the order of the permutation of that number, see `Mnist`."""
    pixels = images.reshape(len(images), -1)
    order = np.random.default_rng(number).permutation(pixels.shape[1])
    return np.take(pixels, order, axis=1).reshape(images.shape)


def _rotated(images: NDArray[np.uint8], *, degrees: float) -> NDArray[np.uint8]:
    import torch
    from torchvision.transforms.v2 import InterpolationMode, functional

    rotated = np.empty_like(images)
    for start in range(0, len(images), 1000):  # a thousand at once are three times as fast as all
        some = torch.from_numpy(images[start : start + 1000].copy())[:, None]
        turned = functional.rotate(some, degrees, interpolation=InterpolationMode.BILINEAR)
        rotated[start : start + 1000] = turned[:, 0].numpy()
    return rotated


def _folder(root: Path) -> Path:
    for folder in (root / "MNIST" / "raw", root / "raw", root):
        if any(folder.glob("*-ubyte*")):
            return folder
    raise InputError(
        f"no MNIST in {root}: expected MNIST/raw/train-images-idx3-ubyte and three more such files, with or without .gz; fetch "
        'them from "The MNIST database of handwritten digits", or by torchvision.datasets.MNIST with download=True'
    )


def _file(path: Path) -> Path:
    """`path` or `path.gz`."""
    for file in (path, path.with_name(f"{path.name}.gz")):
        if file.is_file():
            return file
    raise InputError(f"no file {path} or {path.name}.gz: expected the four files of MNIST; fetch the missing ones")


def _read(file: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in a file; those read last are kept, since every task asks again."""
    state = file.stat()
    return _kept(file, dimensions, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=4)
def _kept(path: Path, dimensions: int, changed: int, size: int) -> NDArray[np.uint8]:
    return read_idx(path, dimensions)


def read_idx(path: str | os.PathLike[str], dimensions: int) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file, gzipped if its name ends in `.gz`.

    The format: two zero bytes, the type, the number of dimensions, each dimension as four bytes, big-endian, then the values
    ("The MNIST database of handwritten digits", "File formats").

    Args:
        path: the file.
        dimensions: how many it should have.

    Returns:
        uint8 of that many dimensions, not writeable.

    Raises:
        InputError: another type or number of dimensions, or more or fewer values than the file says.
    """
    path = expanded(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            magic = file.read(4)
            if magic != bytes((0, 0, _UNSIGNED_BYTE, dimensions)):
                raise ValueError(f"it begins with {magic.hex()}")
            shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
            if (size := math.prod(shape)) > MAX_BYTES:
                raise ValueError(f"it claims {shape} values")
            content = file.read(size + 1)
    except (ValueError, struct.error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path} is not an IDX file of unsigned bytes in {dimensions} dimensions ({error}): fetch it again"
        ) from error
    if len(content) != size:
        raise InputError(f"{path} has {'more' if len(content) > size else len(content)} values: expected {shape}; fetch it again")
    return np.frombuffer(content, np.uint8).reshape(shape)
