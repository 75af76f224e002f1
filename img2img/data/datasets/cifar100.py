"""CIFAR-100, whole or as tasks of a few classes each."""

import functools
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from img2img.data.arrays import ArrayDataset, require_part
from img2img.data.base import DATA, by_part
from img2img.data.images.listing import require_folder
from img2img.errors import InputError
from img2img.files.unpickle import read_pickled_arrays

SUPERCLASSES: dict[str, tuple[str, ...]] = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
"""The five classes of each of the 20 superclasses, both in the order of CIFAR-100's own indices."""

CLASSES = tuple(sorted(name for names in SUPERCLASSES.values() for name in names))
"""The 100 classes by index, which is their alphabetical order."""

_EXPECTED = (
    "CIFAR-100 as torchvision keeps it (cifar-100-python/train, test and meta), or train.npz and test.npz with x, y and classes"
)
_REMEDY = 'unpack the Python version there, from the page "The CIFAR-10 and CIFAR-100 datasets" (University of Toronto)'


@DATA.register("cifar100")
@by_part
class Cifar100(ArrayDataset):
    """CIFAR-100 (Krizhevsky, "Learning multiple layers of features from tiny images", 2009): 32 x 32 pixels, RGB.

    Files: `cifar-100-python/{train,test,meta}` as torchvision unpacks them, of whose pickles nothing but arrays is read; or
    `{train,test}.npz` with `x` (N, 32, 32, 3) uint8, `y` (N,) indices and `classes` (100,) names.

    Tasks: `number` 1 to 20 is a superclass in the official order, aquatic mammals first: the twenty tasks of CPG and KSM, 2,500
    training and 500 test images each. With `grouping="random"` it is a part of the 100 classes, shuffled by
    `numpy.random.default_rng(seed).permutation(100)` and cut into `groups` parts. Labels follow the names' alphabetical order.

    Args:
        root: the folder with the files, or the folder of `cifar-100-python`.
        part: "train", "val" or "test".
        number: the task, from 1; None for all 100 classes.
        grouping: "superclass" or "random".
        groups: the number of random tasks, a divisor of 100; there are always 20 superclasses.
        seed: of the random grouping, 0 or more.
        val_per_class: how many training images of each class are the validation part: the last of a shuffle that is the same
            for every task and every seed.

    Raises:
        InputError: missing or damaged files, files of another dataset, or an option out of range.
    """

    def __init__(
        self,
        *,
        root: str | os.PathLike[str],
        part: Literal["train", "val", "test"],
        number: int | None = None,
        grouping: Literal["superclass", "random"] = "superclass",
        groups: int = 20,
        seed: int = 0,
        val_per_class: int = 0,
    ) -> None:
        require_part(part, val_per_class, "val_per_class")
        chosen = _group(number, grouping, groups, seed)
        file = _file(require_folder(root), "test" if part == "test" else "train")
        images, labels = _read(file)
        rows = np.flatnonzero(np.isin(labels, chosen))
        if part != "test" and val_per_class:
            held_back = np.isin(rows, _held_back(labels, val_per_class))
            rows = rows[held_back if part == "val" else ~held_back]
        names = ["cifar100", *([] if number is None else [f"{grouping}{number}"]), part]
        super().__init__(
            images,
            np.searchsorted(chosen, labels[rows]),
            rows=rows,
            classes=[CLASSES[c] for c in chosen],
            name="-".join(names),
            source=[file] if file.suffix == ".npz" else [file, file.with_name("meta")],
        )


def _group(number: int | None, grouping: str, groups: int, seed: int) -> NDArray[np.int64]:
    """The sorted indices of a task's classes."""
    if grouping not in ("superclass", "random"):
        raise InputError(f"got grouping={grouping!r}: expected 'superclass' or 'random'; correct it")
    if groups < 1 or 100 % groups or (grouping == "superclass" and groups != 20) or seed < 0:
        raise InputError(
            f"got groups={groups}, seed={seed} for grouping={grouping!r}: expected a divisor of 100, for superclasses 20, and "
            "a seed of 0 or more; correct them"
        )
    if number is None:
        return np.arange(100)
    if not 1 <= number <= groups:
        raise InputError(f"got the task number {number} of CIFAR-100: expected 1..{groups}, or none for all classes")
    if grouping == "random":
        return np.sort(np.random.default_rng(seed).permutation(100).reshape(groups, -1)[number - 1])
    return np.array([CLASSES.index(name) for name in list(SUPERCLASSES.values())[number - 1]])


def _held_back(labels: NDArray[np.int64], per_class: int) -> NDArray[np.int64]:
    """The rows of the validation part."""
    if per_class >= (least := int(np.bincount(labels, minlength=100).min())):
        raise InputError(
            f"got val_per_class={per_class}: expected less than {least}, the training images of a class, since some must stay "
            "to train on; lower it"
        )
    shuffled = np.random.default_rng(0).permutation(len(labels))
    return np.concatenate([shuffled[labels[shuffled] == c][-per_class:] for c in range(100)])


def _file(root: Path, stem: str) -> Path:
    for path in (root / "cifar-100-python" / stem, root / stem, root / f"{stem}.npz"):
        if path.is_file():
            return path
    raise InputError(f"no CIFAR-100 in {root}: expected {_EXPECTED}; {_REMEDY}")


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images (N, 32, 32, 3) and the classes (N,) of a file; those read last are kept, since every task asks again."""
    state = path.stat()
    return _kept(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=2)
def _kept(path: Path, changed: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels, names = _read_npz(path) if path.suffix == ".npz" else _read_pickle(path)
    try:
        images, labels, names = np.asarray(images), np.asarray(labels), tuple(map(str, names))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} is not CIFAR-100 ({error}): expected {_EXPECTED}; {_REMEDY}") from error
    if names != CLASSES:
        shown = f"{', '.join(names[:3])}, ... ({len(names)})"
        raise InputError(
            f"{path} has the classes {shown}: expected the 100 of CIFAR-100 from {CLASSES[0]} to {CLASSES[-1]}; {_REMEDY}"
        )
    if (
        images.dtype != np.uint8
        or labels.dtype.kind not in "iu"
        or images.shape != (len(images), 32, 32, 3)
        or labels.shape != images.shape[:1]
        or not (len(labels) and 0 <= labels.min() <= labels.max() < 100)
    ):
        raise InputError(
            f"{path} has images {images.shape} {images.dtype} and labels {labels.shape} {labels.dtype}: expected N images of "
            f"32 x 32 pixels, RGB, uint8 with N labels in 0..99; {_REMEDY}"
        )
    images.setflags(write=False)  # every task of this process shares it
    return images, labels.astype(np.int64)


def _read_npz(path: Path) -> tuple[Any, Any, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["x"], arrays["y"], arrays["classes"]
    except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}): expected arrays x, y and classes; write it again") from error


def _read_pickle(path: Path) -> tuple[Any, Any, Any]:
    def content(file: Path, *keys: str) -> list[Any]:
        read = read_pickled_arrays(file, dtypes=("u1", "|u1"), expected=_EXPECTED, remedy=_REMEDY, encoding="latin1")
        if not isinstance(read, Mapping) or any(key not in read for key in keys):
            raise InputError(f"{file} lacks {' or '.join(keys)}: expected {_EXPECTED}; {_REMEDY}")
        return [read[key] for key in keys]

    (names,) = content(path.with_name("meta"), "fine_label_names")
    data, labels = content(path, "data", "fine_labels")
    try:  # a row has 1,024 red, then green, then blue values
        return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels, names
    except (AttributeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): expected rows of 3,072 values; {_REMEDY}") from error
