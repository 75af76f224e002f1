"""COCO annotations into semantic labels, through pycocotools."""

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO

from img2img.data.base import VOID, PictureSet, Sample
from img2img.data.decode import read_picture, require_folder
from img2img.data.folder import BACKGROUND, unknown_name
from img2img.errors import InputError
from img2img.files import read_json

_REQUIRED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "segmentation"),
    "categories": ("id", "name"),
}


class CocoSegmentation(PictureSet):
    """The pictures of a COCO instance file with semantic labels: 0 is background, then the categories.

    Regions may be polygons or run lengths, compressed or not. COCO gives no order of depth, so where objects overlap the
    smaller region wins: large ones are painted first, and a cup stays visible on its table. A crowd (`iscrowd`) outlines
    many objects loosely, so it is `VOID` where no single object covers it. Pictures are in the order of their ids.

    Args:
        images: the folder of pictures.
        annotations: the instance file (JSON).
        categories: names of the categories to keep, in the order of the classes 1, 2, ...; objects of the others are
            background. None keeps all, in the order of their ids. Categories of one name are one class, and one named
            `background` is class 0.
        keep_empty: whether pictures without any annotation of these categories are kept.

    Raises:
        InputError: a missing folder or file, JSON that is not COCO, an unknown category, no picture left; at access a
            missing or damaged picture, a picture of another size than the file says, a region that cannot be drawn.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        annotations: str | os.PathLike[str],
        *,
        categories: Sequence[str] | None = None,
        keep_empty: bool = False,
    ) -> None:
        self._folder = require_folder(images)
        self._path = Path(annotations).expanduser()
        data = _read(self._path)
        self.name = self._path.stem
        self.classes = (BACKGROUND, *_chosen(data["categories"], categories))
        if len(self.classes) > VOID:
            raise InputError(
                f"{self._path} has {len(self.classes) - 1} categories: expected at most {VOID - 1}, since labels are 8-bit and "
                f"{VOID} is void; choose some by `categories`"
            )
        self._index = {c["id"]: self.classes.index(c["name"]) for c in data["categories"] if c["name"] in self.classes[1:]}
        data["annotations"] = [a for a in data["annotations"] if a["category_id"] in self._index]
        self._coco = COCO()
        self._coco.dataset = data
        with contextlib.redirect_stdout(io.StringIO()):  # it reports on itself with print
            self._coco.createIndex()
        self._ids = sorted(i for i in self._coco.imgs if keep_empty or i in self._coco.imgToAnns)
        if not self._ids:
            raise InputError(
                f"none of the {len(self._coco.imgs)} pictures of {self._path} has an annotation of "
                f"{', '.join(self.classes[1:])}: expected at least one; choose other categories or check the file"
            )

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Sample:
        info = self._coco.imgs[self._ids[index]]
        path = self._folder / info["file_name"]
        image = read_picture(path)
        height, width = image.shape[:2]
        if (height, width) != (info["height"], info["width"]):
            raise InputError(
                f"{path} is {width} x {height}, and {self._path} says {info['width']} x {info['height']}: expected the picture "
                "that was annotated (after its EXIF orientation); restore it, or annotate this one"
            )
        return Sample(image=image, label=self._paint(info), name=info["file_name"])

    def files(self, index: int) -> Sequence[tuple[str, Path]]:
        """The picture."""
        name = str(self._coco.imgs[self._ids[index]]["file_name"])
        return ((name, self._folder / name),)

    def _paint(self, info: dict[str, Any]) -> NDArray[np.uint8]:
        """The (H, W) uint8 label of one picture."""
        label = np.zeros((info["height"], info["width"]), dtype=np.uint8)
        objects: list[tuple[NDArray[np.bool_], int]] = []
        for annotation in self._coco.imgToAnns.get(info["id"], ()):
            region = self._region(annotation, info["height"], info["width"])
            if annotation.get("iscrowd"):
                label[region] = VOID
            else:
                objects.append((region, self._index[annotation["category_id"]]))
        # The areas are counted here: the file's own `area` is optional and often stale.
        for region, value in sorted(objects, key=lambda o: -int(o[0].sum())):
            label[region] = value
        return label

    def _region(self, annotation: dict[str, Any], height: int, width: int) -> NDArray[np.bool_]:
        """The (H, W) bool pixels of one annotation."""
        segmentation = annotation["segmentation"]
        try:
            if isinstance(segmentation, list):
                segmentation = _polygons(segmentation, height, width)
                if not segmentation:
                    return np.zeros((height, width), dtype=bool)
            else:
                _check_runs(segmentation, height, width)
            return self._coco.annToMask({**annotation, "segmentation": segmentation}).astype(bool)
        except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
            raise InputError(
                f"annotation {annotation['id']} in {self._path} cannot be drawn ({error}): expected polygons "
                "[[x, y, ...], ...] or run lengths {size, counts}; correct or remove it"
            ) from error


def _read(path: Path) -> dict[str, Any]:
    """The file's dictionary with the parts that are used, checked."""
    data = read_json(path)
    if not isinstance(data, dict) or any(not isinstance(data.get(part), list) for part in _REQUIRED):
        has = sorted(data) if isinstance(data, dict) else f"a {type(data).__name__}"
        raise InputError(
            f"{path} has {has}: expected a COCO instance file with lists {', '.join(_REQUIRED)}; give an `instances_*.json`"
        )
    for part, keys in _REQUIRED.items():
        for i, item in enumerate(data[part]):
            if not isinstance(item, dict) or (lack := [k for k in keys if k not in item]):
                what = f"lacks {', '.join(lack)}" if isinstance(item, dict) else "is not an object"
                raise InputError(f"{part}[{i}] in {path} {what}: expected {', '.join(keys)}; restore the file")
    images, categories = ({item["id"] for item in data[part]} for part in ("images", "categories"))
    if len(images) < len(data["images"]) or len(categories) < len(data["categories"]):
        raise InputError(f"{path} has images or categories of one id: expected each id once; number them anew")
    for a in data["annotations"]:
        for key, known in (("image_id", images), ("category_id", categories)):
            if a[key] not in known:
                raise InputError(
                    f"annotation {a['id']} in {path} has {key} {a[key]!r}, which the file does not define: expected one of its "
                    f"{len(known)} ids; correct or remove it"
                )
        if not a["segmentation"]:
            raise InputError(
                f"annotation {a['id']} in {path} has no outline (`segmentation` is empty, as in files of boxes): expected "
                "polygons or run lengths; give an instance segmentation file, or remove it"
            )
    return {part: data[part] for part in _REQUIRED}


def _chosen(categories: list[dict[str, Any]], names: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the classes 1, 2, ..."""
    ordered = sorted(categories, key=lambda c: c["id"])
    known = tuple(dict.fromkeys(c["name"] for c in ordered if c["name"] != BACKGROUND))
    if names is None:
        return known
    for name in names:
        if name not in known:
            raise unknown_name(name, known, "category")
    if len(set(names)) < len(names) or not names:
        raise InputError(f"got the categories {list(names)}: expected at least one and each once")
    return tuple(names)


def _polygons(polygons: list[Any], height: int, width: int) -> list[list[float]]:
    """The polygons that have an area, checked: pycocotools reads four numbers as a box, and allocates by the coordinates."""
    for polygon in polygons:
        points = np.asarray(polygon, dtype=float)
        if points.ndim != 1 or len(points) % 2:
            raise ValueError(f"a polygon of shape {points.shape} is not a list of x, y, x, y, ...")
        size = max(height, width)
        if not np.all((points >= -size) & (points <= 2 * size)):  # False for NaN too
            raise ValueError(f"a polygon reaches far outside the {width} x {height} picture")
    return [list(p) for p in polygons if len(p) >= 6]


def _check_runs(rle: Any, height: int, width: int) -> None:
    """Refuse run lengths that do not fill the picture: pycocotools leaves uninitialised memory behind their end."""
    if list(rle["size"]) != [height, width]:
        raise ValueError(f"its size {rle['size']} is not the picture's [{height}, {width}]")
    counts = rle["counts"]
    runs = _run_lengths(counts) if isinstance(counts, str) else list(counts)
    if not all(isinstance(n, int) and n >= 0 for n in runs) or sum(runs) != height * width:
        raise ValueError(f"its run lengths do not add up to {height} * {width} pixels")


def _run_lengths(counts: str) -> list[int]:
    """The run lengths in COCO's compressed string (`rleFrString` of pycocotools' maskApi.c).

    Five bits a character, low ones first, from character 48 on; bit 5 says that more follow, bit 4 of the last is the sign;
    from the fourth run on, the difference to the run two before.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode("ascii"):
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("its run lengths break off")
    return runs
