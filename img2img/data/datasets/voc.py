"""Pascal VOC segmentation: `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation` of one year."""

import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from img2img.data.base import DATA
from img2img.data.datasets.file_matching import by_stem_of
from img2img.data.datasets.file_names import on_disk, read_name_list
from img2img.data.datasets.folder import SegmentationDataset
from img2img.data.datasets.label_table import LabelTable
from img2img.data.images.exif import DrawnOn
from img2img.data.images.listing import EXTENSIONS, require_folder
from img2img.errors import InputError

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The 21 classes by label value; 255 is void, the outline that VOC draws around every object."""


@DATA.register("voc")
class VocSegmentation(SegmentationDataset):
    """One list of Pascal VOC with semantic labels (Everingham et al., "The Pascal Visual Object Classes Challenge", 2010).

    Args:
        root: the folder of one year (`VOCdevkit/VOC2012`), or a folder above it that holds one year only.
        split: a list in `ImageSets/Segmentation`: "train", "val" or "trainval". Its images may have other extensions than
            .jpg and .png, such as .JPG.
        drawn_on: see `SegmentationDataset`.

    Raises:
        InputError: no VOC layout there, several years, no such list, one that `read_name_list` refuses, a listed image or label
            that is missing; at access what `SegmentationDataset` raises.
    """

    def __init__(self, root: str | os.PathLike[str], split: str, *, drawn_on: DrawnOn | None = None) -> None:
        year = _year(require_folder(root))
        lists = year / "ImageSets" / "Segmentation"
        file = lists / f"{split}.txt"
        if not file.is_file():
            known = sorted(p.stem for p in lists.glob("*.txt"))
            raise InputError(f"no list {file}: expected {f'one of {known}' if known else 'VOC segmentation lists there'}")
        names = read_name_list(file)
        images, labels = Folder(year / "JPEGImages", ".jpg"), Folder(year / "SegmentationClass", ".png")
        items = [(n, images.file(n), labels.file(n)) for n in names]
        check_items(items, file)
        super().__init__(items, LabelTable.build(VOC_CLASSES), name=f"{year.name}-{split}", drawn_on=drawn_on)


class Folder:
    """The files that the names of a list stand for: `NAME.jpg`, else an image of that name with another extension.

    Args:
        root: the folder.
        ending: the extension that they should have.
    """

    def __init__(self, root: Path, ending: str) -> None:
        self._root, self._ending = root, ending

    def file(self, name: str) -> Path:
        """The file of a name; where there is none, the path that it should have."""
        path = on_disk(self._root, f"{name}{self._ending}")
        return path if path.is_file() else self._others.get(name, path)

    @cached_property
    def _others(self) -> dict[str, Path]:
        if not self._root.is_dir():
            return {}
        return by_stem_of((p for p in self._root.rglob("*") if p.suffix.lower() in EXTENSIONS), self._root)


def check_items(items: Iterable[tuple[str, Path, Path]], file: Path) -> None:
    """Refuse items of which an image or a label is missing.

    Raises:
        InputError: some are.
    """
    missing = [path for _, image, label in items for path in (image, label) if not path.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]} is missing{f', and {len(missing) - 1} more files' if len(missing) > 1 else ''}: expected every "
            f"image and label of the list {file}; unpack the data again or take the names off the list"
        )


def _year(root: Path) -> Path:
    """The one folder at or below `root` that has the VOC layout."""
    if (root / "JPEGImages").is_dir():
        return root
    years = sorted(p.parent for pattern in ("*", "VOCdevkit/*") for p in root.glob(f"{pattern}/JPEGImages"))
    if not years:
        raise InputError(
            f"{root} is not a Pascal VOC folder: expected JPEGImages, SegmentationClass and ImageSets in it or in one "
            "folder in it; give the folder of one year, such as VOCdevkit/VOC2012"
        )
    if len(years) > 1:
        raise InputError(f"{root} holds {[y.name for y in years]}: expected one year; give the folder of the one you want")
    return years[0]
