"""The ten datasets of the Visual Domain Decathlon, and the file that its server scores."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from img2img.data.base import DATA, ImageDataset, Sample
from img2img.data.datasets.file_names import nfc, on_disk
from img2img.data.datasets.label_table import unknown_name
from img2img.data.images.decode import read_sized
from img2img.data.images.listing import require_folder
from img2img.errors import InputError
from img2img.files.json_files import read_json, write_json

DECATHLON = (
    "imagenet12", "aircraft", "cifar100", "daimlerpedcls", "dtd",
    "gtsrb", "omniglot", "svhn", "ucf101", "vgg-flowers",
)  # fmt: skip
"""The datasets by their names in the challenge's files."""

UNKNOWN = -1
"""What stands in `Decathlon.categories` for an image of the test part, whose label is the server's secret."""

_FILES = {"train": ("train",), "val": ("val",), "test": ("test_stripped",), "train+val": ("train", "val")}
_SOURCE = (
    "fetch the devkit (decathlon-1.0-devkit) and the images (decathlon-1.0-data, and ImageNet's from ImageNet's site) of the "
    '"Visual Domain Decathlon" (Visual Geometry Group, University of Oxford)'
)


@DATA.register("decathlon")
class Decathlon(ImageDataset):
    """One dataset of the Visual Domain Decathlon (Rebuffi, Bilen and Vedaldi, NIPS 2017), in the order of its file.

    Files, as the devkit lays them out: `annotations/{dataset}_{train,val,test_stripped}.json` in COCO's style (`images` with `id`
    and `file_name`; `annotations` with `image_id` and `category_id`; `categories` with `id` and `name`), and the images where
    `file_name` says, `data/{dataset}/{train,val,test}/...`, their shorter side already 72 pixels.

    Class i is the i-th smallest id among the categories of the *training* file, whatever part is read and whichever categories
    occur in it. The samples of the test part have the category None.

    Args:
        root: the folder `decathlon-1.0`, or the one above it.
        dataset: one of `DECATHLON`.
        part: "train", "val", "test", or "train+val", on which the challenge lets one train before the test.
        data: the folder that `data/` in the files stands for, if the images were unpacked elsewhere than in `root/data`.

    Attributes:
        image_ids: the official id of each image.
        category_ids: the official id of each class.

    Raises:
        InputError: an unknown dataset or part, missing files or images, a file that is not of this format, an image without
            a category or with several, or a category that the training file lacks; at access, a damaged image.
    """

    categories: NDArray[np.int64]

    def __init__(
        self,
        *,
        root: str | os.PathLike[str],
        dataset: str,
        part: Literal["train", "val", "test", "train+val"],
        data: str | os.PathLike[str] | None = None,
    ) -> None:
        if dataset not in DECATHLON:
            raise unknown_name(dataset, DECATHLON, "dataset of the Decathlon named")
        if part not in _FILES:
            raise InputError(f"got part={part!r}: expected one of {', '.join(_FILES)}; correct it")
        root = require_folder(root)
        root = root / "decathlon-1.0" if (root / "decathlon-1.0").is_dir() else root
        if not (root / "annotations").is_dir():
            raise InputError(
                f"no folder annotations in {root}, and no decathlon-1.0 there that has one: expected the devkit's layout, "
                f"annotations/ and data/; {_SOURCE}"
            )
        self.dataset = dataset
        self.name = f"{dataset}-{part}"
        self._data = root / "data" if data is None else require_folder(data)
        files = {stem: root / "annotations" / f"{dataset}_{stem}.json" for stem in ("train", *_FILES[part])}
        # The training file numbers the classes of every part. A dict, since it may be the part itself, and ImageNet's is large.
        contents = {stem: _read(file, stem) for stem, file in files.items()}
        categories = sorted(contents["train"]["categories"], key=lambda c: c["id"])
        self.category_ids = tuple(c["id"] for c in categories)
        self.classes = _names(categories)
        self._annotations = tuple(files.items())
        self.image_ids: tuple[int, ...] = ()
        self._files: tuple[str, ...] = ()
        of_image: dict[int, int] = {}
        for stem in _FILES[part]:
            images = contents[stem]["images"]
            self.image_ids += tuple(i["id"] for i in images)
            self._files += tuple(i["file_name"] for i in images)
            if stem != "test_stripped":
                of_image |= _categories(contents[stem], self.category_ids, files[stem])
        if len(set(self.image_ids)) < len(self.image_ids):
            raise InputError(f"{self.name} has images of one id in its two files: expected each id once; {_SOURCE}")
        self.categories = np.array([of_image.get(i, UNKNOWN) for i in self.image_ids], dtype=np.int64)
        if not (first := self._path(0)).is_file():
            raise InputError(f"no image at {first}, the first of {self.name}: expected it there; {_SOURCE}, or set `data`")

    def __len__(self) -> int:
        return len(self.categories)

    def __getitem__(self, index: int) -> Sample:
        category = int(self.categories[index])
        return Sample(
            image=read_sized(self._path(index)).image,
            category=None if category == UNKNOWN else category,
            name=self._files[index],
        )

    def files(self, index: int) -> Sequence[tuple[str, Path]]:
        """The image."""
        return ((self._files[index], self._path(index)),)

    def common_files(self) -> Sequence[tuple[str, Path]]:
        """The annotations of the part and of the training part."""
        return self._annotations

    def _path(self, index: int) -> Path:
        return on_disk(self._data, self._files[index].removeprefix("data/"))


def write_decathlon_results(
    path: str | os.PathLike[str],
    predictions: Iterable[tuple[Decathlon, Mapping[int, int]]],
    *,
    partial: bool = False,
) -> Path:
    """Write `results.json` for the challenge's server: a list of `{"image_id": ..., "category_id": ...}`, in official ids.

    Args:
        path: the file; the server takes it in a ZIP archive and by the name `results.json`.
        predictions: for each dataset its test part and the class index of each image by the image's id (`image_ids`).
        partial: allow datasets of the ten to be missing, whose images then count as wrong.

    Raises:
        InputError: a dataset missing or given twice, an image missing or unknown, or a class index out of range.
    """
    results: list[dict[str, int]] = []
    given: list[str] = []
    for dataset, classes in predictions:
        given.append(dataset.dataset)
        for ids, what, wanted in (
            (set(dataset.image_ids) - set(classes), "lack", "a class index for each image"),
            (set(classes) - set(dataset.image_ids), "have the unknown", "ids of its images alone"),
        ):
            if ids:
                raise InputError(
                    f"the predictions for {dataset.name} {what} {len(ids)} images, such as {min(ids)}: expected {wanted} "
                    f"({len(dataset)}); predict the whole set"
                )
        for image in dataset.image_ids:
            index = classes[image]
            if not isinstance(index, Integral) or not 0 <= index < len(dataset.classes):
                raise InputError(
                    f"the prediction for image {image} of {dataset.name} is {index!r}: expected a class index in "
                    f"0..{len(dataset.classes) - 1}; give the index, not the official id"
                )
            results.append({"image_id": image, "category_id": dataset.category_ids[index]})
    if twice := [name for name, n in Counter(given).items() if n > 1]:
        raise InputError(f"got predictions for {', '.join(twice)} twice: expected each dataset once; remove one of each")
    if not partial and (missing := [d for d in DECATHLON if d not in given]):
        raise InputError(f"no predictions for {', '.join(missing)}: expected all ten datasets; add them, or set partial=True")
    return write_json(path, results)


def _read(path: Path, stem: str) -> dict[str, Any]:
    """The content of an annotation file, its parts checked."""
    if not path.is_file():
        raise InputError(f"no file at {path}: expected the challenge's annotations there; {_SOURCE}")
    content = read_json(path)
    required = {"images": {"id": int, "file_name": str}}
    if stem != "test_stripped":
        required["annotations"] = {"image_id": int, "category_id": int}
    if stem == "train":
        required["categories"] = {"id": int}
    for part, keys in required.items():
        items = content.get(part) if isinstance(content, dict) else None
        if not isinstance(items, list) or not items:
            raise InputError(f"{path} has no list {part!r}: expected {', '.join(required)} as in COCO's files; {_SOURCE}")
        for i, item in enumerate(items):
            if not isinstance(item, dict) or any(type(item.get(key)) is not kind for key, kind in keys.items()):
                raise InputError(f"{part}[{i}] in {path} is {item!r:.200}: expected an object with {', '.join(keys)}; {_SOURCE}")
        if "id" in keys and len({item["id"] for item in items}) < len(items):
            raise InputError(f"{path} has {part} of one id: expected each id once; {_SOURCE}")
    return content


def _categories(content: Mapping[str, Any], ids: tuple[int, ...], path: Path) -> dict[int, int]:
    """The class index of each image of a file, by the image's id."""
    index = {category: i for i, category in enumerate(ids)}
    of_image: dict[int, int] = {}
    for annotation in content["annotations"]:
        image, category = annotation["image_id"], annotation["category_id"]
        if category not in index:
            raise InputError(
                f"{path} gives image {image} the category {category}, which the training file lacks: expected one of its "
                f"{len(ids)}, {ids[0]} to {ids[-1]}; use files of one release"
            )
        if of_image.setdefault(image, index[category]) != index[category]:
            raise InputError(f"{path} gives image {image} two categories: expected one; restore the file")
    for image in content["images"]:
        if image["id"] not in of_image:
            raise InputError(f"{path} gives image {image['id']} no category: expected one; restore the file")
    return of_image


def _names(categories: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The names of the classes; those that share a name, as ImageNet's two cranes do, with their id."""
    names = [(nfc(str(c.get("name", c["id"]))), c["id"]) for c in categories]
    count = Counter(name for name, _ in names)
    return tuple(f"{name} ({i})" if count[name] > 1 else name for name, i in names)
