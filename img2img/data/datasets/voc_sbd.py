"""Pascal VOC joined with the Semantic Boundaries Dataset (SBD), which labels five times as many of its images.

Source: Hariharan et al., "Semantic contours from inverse detectors" (ICCV 2011). SBD's training list and VOC's validation list
overlap; the parts here are those that FCN is published with (Shelhamer, Long and Darrell, `data/pascal/README.md` of
fcn.berkeleyvision.org), and that Piggyback's section 6 uses.
"""

import os
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from img2img.data.base import DATA
from img2img.data.datasets.file_names import read_name_list
from img2img.data.datasets.folder import SegmentationDataset
from img2img.data.datasets.label_table import LabelTable
from img2img.data.datasets.matlab import read_uint8_field
from img2img.data.datasets.voc import VOC_CLASSES, Folder, VocSegmentation, check_items
from img2img.data.images.exif import DrawnOn
from img2img.data.images.listing import require_folder
from img2img.errors import InputError

_Item = tuple[str, Path, Path]


@DATA.register("voc_sbd")
class VocSbd(SegmentationDataset):
    """The images to train on, or those to report on, sorted by name.

    Args:
        sbd: SBD's `dataset` folder (`img/*.jpg`, `cls/*.mat`, `train.txt`), or one that holds it, such as `benchmark_RELEASE`.
        voc: a year of Pascal VOC, as `VocSegmentation` takes it; VOC 2011 for the published figures.
        split: "train": SBD's training list (8,498 images) with SBD's labels, which have no void outlines. "test": VOC's
            validation list without SBD's training images (736 of VOC 2011, "seg11valid"), with VOC's labels.
        voc_train: add VOC's own training list to "train", with VOC's labels for those images that SBD's list lacks. The
            published split does not.
        drawn_on: see `SegmentationDataset`.

    No image of "test" is ever in "train".

    Raises:
        InputError: a folder or a list that is not there, a listed image or label that is missing; at access what
            `SegmentationDataset` and `read_uint8_field` raise.
    """

    def __init__(
        self,
        sbd: str | os.PathLike[str],
        voc: str | os.PathLike[str],
        split: Literal["train", "test"],
        *,
        voc_train: bool = False,
        drawn_on: DrawnOn | None = None,
    ) -> None:
        if split not in ("train", "test"):
            raise InputError(f"voc_sbd got the split {split!r}: expected 'train' or 'test'; correct it")
        folder = _dataset(require_folder(sbd))
        held_out = VocSegmentation(voc, "val", drawn_on="shown")  # no warning of it alone
        train = _sbd_items(folder)
        test = {name: item for name, item in _by_name(held_out).items() if name not in train}
        if not test:
            raise InputError(
                f"every image of the list of {held_out.name!r} is in {folder / 'train.txt'}: expected some that are not, to "
                "report on; restore both lists"
            )
        if split == "train" and voc_train:
            train = _by_name(VocSegmentation(voc, "train", drawn_on="shown")) | train
        chosen = test if split == "test" else {name: item for name, item in train.items() if name not in test}
        check_items(chosen.values(), folder / "train.txt")  # of SBD: those of VOC have been looked for
        items = [chosen[name] for name in sorted(chosen)]
        super().__init__(items, LabelTable.build(VOC_CLASSES), name=f"voc_sbd-{split}", drawn_on=drawn_on)

    def _label(self, path: Path) -> NDArray[np.uint8]:
        return read_uint8_field(path, "GTcls", "Segmentation") if path.suffix == ".mat" else super()._label(path)


def _by_name(images: VocSegmentation) -> dict[str, _Item]:
    return {item[0]: item for item in images._items}


def _sbd_items(folder: Path) -> dict[str, _Item]:
    """The items of SBD's training list by name; whether their files exist is not looked at."""
    file = folder / "train.txt"
    if not file.is_file():
        raise InputError(f"no list {file}: expected SBD's train.txt beside img and cls; unpack the data again")
    images = Folder(folder / "img", ".jpg")
    return {n: (n, images.file(n), folder / "cls" / f"{n}.mat") for n in read_name_list(file)}


def _dataset(root: Path) -> Path:
    """The folder at or below `root` that has SBD's layout."""
    for folder in (root, root / "dataset", root / "benchmark_RELEASE" / "dataset"):
        if (folder / "cls").is_dir():
            return folder
    raise InputError(
        f"{root} is not a folder of SBD: expected img, cls and train.txt in it; give the folder benchmark_RELEASE/dataset that "
        "benchmark.tgz unpacks to"
    )
