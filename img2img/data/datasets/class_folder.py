"""Folders of images by class, as torchvision's `ImageFolder` lays them out."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from img2img.data.base import DATA, ImageDataset, Sample
from img2img.data.datasets.file_names import first_twice, nfc
from img2img.data.datasets.label_table import unknown_name
from img2img.data.images.decode import read_sized
from img2img.data.images.listing import EXTENSIONS, FolderTimes, SkippedFiles, require_folder, scan, subfolders
from img2img.data.split import SplitClasses
from img2img.data.warn_once import warn_once
from img2img.errors import InputError

_PARTS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


@DATA.register("class_folder")
class ClassFolder(ImageDataset):
    """One part of a dataset that has a folder a class: `root/CLASS/**/*.jpg`, in the order of the classes, then of the paths.

    So are laid out ImageNet (`train/n01440764/*.JPEG`; the validation images sorted into class folders), Places365 ("easy
    format"), PACS (`photo/train/dog/*.jpg`) and the sets of ImageNet-to-Sketch as Piggyback's code expects them (Mallya, Davis
    and Lazebnik, ECCV 2018): `cubs_cropped`, `stanford_cars_cropped`, `flowers`, `wikiart`, `sketches`, each with
    `train/CLASS/*.jpg` and `test/CLASS/*.jpg`. Images keep their size. What `list_images` skips is no class and no image
    here either; images beside the folders are counted in a warning. Names are compared in Unicode's form NFC.

    Args:
        root: the folder of one part, which holds the folders of the classes.
        classes: class names in the order of their indices; they may lack a folder here, as a class without an image in the
            test part does, but every folder must be among them. None takes the sorted names of the folders.

    Raises:
        InputError: no such folder, no folder of a class in it, one without an image or not among `classes`; at access, a
            damaged image.
    """

    categories: NDArray[np.int64]

    def __init__(self, *, root: str | os.PathLike[str], classes: Sequence[str] | None = None) -> None:
        self.root = require_folder(root)
        self.name = "-".join(self.root.absolute().parts[-2:])  # "cubs_cropped-train": "train" alone says little
        folders = subfolders(self.root)
        if not folders or _holds_parts(self.root, folders):
            raise InputError(
                f"{self.root} holds {f'the folders {folders}' if folders else 'no folder'}: expected one folder of images for "
                "each class, as ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg have; give the folder of one part, such as "
                "ROOT/train, or sort the images of a dataset that comes as lists (CUBS, Cars, Flowers) into such folders"
            )
        named = {nfc(folder): folder for folder in folders}
        if len(named) < len(folders):
            raise InputError(
                f"{self.root} has two folders of the name {first_twice(map(nfc, folders))!r}, in two Unicode forms (NFC, NFD): "
                "expected one; move the images of one into the other"
            )
        left_out, read, start = SkippedFiles(), {str(self.root): self.root.stat().st_mtime_ns}, time.time_ns()
        # Texts, not paths: ImageNet has 1.3 million of them, and a path takes five times the memory.
        of_class: dict[str, list[str]] = {}
        for name, folder in named.items():
            listing = scan(self.root / folder, results_alone=True)
            if listing.images:  # else it holds runs
                of_class[name] = [p.relative_to(self.root).as_posix() for p in listing.images]
            left_out += listing.left_out
            read |= listing.times.folders
        self.classes = tuple(sorted(of_class) if classes is None else map(nfc, classes))
        if len(set(self.classes)) < len(self.classes):
            twice = sorted({c for c in self.classes if self.classes.count(c) > 1})
            raise InputError(f"the classes {twice} are listed twice: expected each once; remove one of each")
        for name in of_class:
            if name not in self.classes:
                what = f"class for {self.root / named[name]}; among `classes` there is none"
                raise unknown_name(name, self.classes, what)
        files = (p for p in self.root.iterdir() if p.is_file() and not p.name.startswith("."))
        if beside := [p.name for p in files if p.suffix.lower() in EXTENSIONS]:
            warn_once(f"{len(beside)} images in {self.root} lie in no folder of a class and are left out, such as {min(beside)}")
        self._files = [file for name in self.classes for file in of_class.get(name, ())]
        categories = [category for category, name in enumerate(self.classes) for _ in of_class.get(name, ())]
        left_out.warn(self.root, len(self._files))
        self.categories = np.array(categories, dtype=np.int64)
        self.times = FolderTimes(read, start)

    def __len__(self) -> int:
        return len(self.categories)

    def __getitem__(self, index: int) -> Sample:
        file = self._files[index]
        return Sample(image=read_sized(self.root / file).image, category=int(self.categories[index]), name=file)

    def files(self, index: int) -> Sequence[tuple[str, Path]]:
        """The image, with the folder of its class."""
        return ((self._files[index], self.root / self._files[index]),)


def _holds_parts(root: Path, folders: Sequence[str]) -> bool:
    """Whether folders are parts, two of them at least or all; or domains, each of which holds parts and nothing else."""
    parts = _PARTS.intersection(folder.lower() for folder in folders)
    if len(parts) == len(folders) or len(parts) > 1:
        return True
    inside = ([entry for entry in os.scandir(root / folder) if not entry.name.startswith(".")] for folder in folders)
    return all(entries and all(e.name.lower() in _PARTS and e.is_dir() for e in entries) for entries in inside)


def listed(root: str | os.PathLike[str]) -> ClassFolder:
    """`ClassFolder(root=root)`, listed once for all that ask until a folder in it changes: every task of split ImageNet asks for
    the same 1.3 million names."""
    folder = require_folder(root)
    key = str(folder), os.path.realpath(folder)  # a relative path may come to mean another
    kept = _kept.get(key)
    if kept is None or not kept.times.is_current():
        kept = ClassFolder(root=folder)
        _kept.pop(key, None)
        if kept.times.is_settled():
            _kept[key] = kept
        while len(_kept) > _KEPT:
            _kept.pop(next(iter(_kept)))
    return kept


_KEPT = 2
_kept: dict[tuple[str, str], ClassFolder] = {}
"""Those asked for last."""


@DATA.register("split_class_folder")
def _split_class_folder(*, root: str, number: int, classes_per_task: int, order: str = "sorted", seed: int = 0) -> ImageDataset:
    return SplitClasses(listed(root), number=number, classes_per_task=classes_per_task, order=order, seed=seed)  # type: ignore[arg-type]
