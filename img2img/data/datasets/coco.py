"""COCO annotations into semantic labels, through pycocotools."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from img2img.data.base import DATA, VOID, ImageDataset, Sample
from img2img.data.datasets.coco_file import id_order, read_coco
from img2img.data.datasets.coco_regions import EXPECTED, draw_region
from img2img.data.datasets.file_names import nfc, on_disk
from img2img.data.datasets.label_table import BACKGROUND, unknown_name
from img2img.data.images.decode import read_sized
from img2img.data.images.exif import DrawnOn, check_drawn_on, of_which_pixels, turned, warn_of_turned
from img2img.data.images.listing import require_folder
from img2img.data.warn_once import warn_once
from img2img.errors import InputError
from img2img.files.paths import expanded


@DATA.register("coco")
class CocoSegmentation(ImageDataset):
    """The images of a COCO instance file with semantic labels: 0 is background, then the categories.

    Regions may be polygons or run lengths, compressed or not. COCO gives no order of depth, so where objects overlap the
    smaller region wins: large ones are painted first, and a cup stays visible on its table. A crowd (`iscrowd`) outlines
    many objects loosely, so it is `VOID` where no single object covers it. Images are in the order of their ids. An annotation
    of which nothing can be drawn is refused, see `draw_region`: it would be background without a word.

    Args:
        images: the folder of images.
        annotations: the instance file (JSON).
        categories: names of the categories to keep, in the order of the classes 1, 2, ...; objects of the others are
            background. None keeps all, in the order of their ids. Categories of one name are one class, and one named
            `background` is class 0.
        keep_empty: whether images without any annotation of these categories are kept.
        drawn_on: what the outlines in photos that EXIF turns were drawn on: the pixels as they are "stored" (the default, since
            COCO's own tools, and torchvision's reader of COCO, know no EXIF, and `height` and `width` are those of the stored
            pixels), or the photos as "shown", as some tools for drawing do. Samples are as shown in both cases. None warns of
            such photos, if there are any.

    Raises:
        InputError: a missing folder or file, what `read_coco` refuses, an unknown category, no image left; at access a missing
            or damaged image, an image of another size than the file says, a region that cannot be drawn.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        annotations: str | os.PathLike[str],
        *,
        categories: Sequence[str] | None = None,
        keep_empty: bool = False,
        drawn_on: DrawnOn | None = None,
    ) -> None:
        check_drawn_on(drawn_on)
        self._folder = require_folder(images)
        self._path = expanded(annotations)
        data = read_coco(self._path)
        self.name = self._path.stem
        self.classes = (BACKGROUND, *_chosen(data["categories"], categories))
        if len(self.classes) > VOID:
            raise InputError(
                f"{self._path} has {len(self.classes) - 1} categories: expected at most {VOID - 1}, since labels are 8-bit and "
                f"{VOID} is void; choose some by `categories`"
            )
        self._index = {c["id"]: self.classes.index(c["name"]) for c in data["categories"] if c["name"] in self.classes[1:]}
        self._images = {image["id"]: image for image in data["images"]}
        self._annotations: dict[Any, list[dict[str, Any]]] = {}
        for annotation in data["annotations"]:
            if annotation["category_id"] in self._index:
                self._annotations.setdefault(annotation["image_id"], []).append(annotation)
        self._ids = sorted((i for i in self._images if keep_empty or i in self._annotations), key=id_order)
        if left_out := len(self._images) - len(self._ids):
            warn_once(
                f"{left_out} of the {len(self._images)} images of {self._path} have no annotation of these categories and are "
                "left out; keep_empty: true keeps them, as background"
            )
        if not self._ids:
            raise InputError(
                f"none of the {len(self._images)} images of {self._path} has an annotation of "
                f"{', '.join(self.classes[1:])}: expected at least one; choose other categories or check the file"
            )
        self._stored = drawn_on != "shown"
        if drawn_on is None:
            photos = [(on_disk(self._folder, self._images[i]["file_name"]), None) for i in self._ids]
            warn_of_turned(photos, "stored", name=self.name)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Sample:
        info = self._images[self._ids[index]]
        path = on_disk(self._folder, info["file_name"])
        photo = read_sized(path)
        (height, width), orientation = photo.size, photo.orientation
        if self._stored and orientation >= 5:
            height, width = width, height
        if (height, width) != (info["height"], info["width"]):
            raise InputError(
                f"{path} is {width} x {height}, and {self._path} says {info['width']} x {info['height']}: expected the image "
                f"that was annotated ({of_which_pixels(self._stored, orientation)}); restore it, or annotate this one"
            )
        label = self._paint(info)
        return Sample(image=photo.image, label=turned(label, orientation) if self._stored else label, name=info["file_name"])

    def files(self, index: int) -> Sequence[tuple[str, Path]]:
        """The image."""
        name = str(self._images[self._ids[index]]["file_name"])
        return ((name, on_disk(self._folder, name)),)

    def _paint(self, info: dict[str, Any]) -> NDArray[np.uint8]:
        """The (H, W) uint8 label of one image."""
        label = np.zeros((info["height"], info["width"]), dtype=np.uint8)
        objects: list[tuple[NDArray[np.bool_], int]] = []
        for annotation in self._annotations.get(info["id"], ()):
            region = self._region(annotation, info["height"], info["width"])
            if annotation["iscrowd"]:
                label[region] = VOID
            else:
                objects.append((region, self._index[annotation["category_id"]]))
        # The areas are counted here: the file's own `area` is optional and often stale.
        for region, value in sorted(objects, key=lambda o: -int(o[0].sum())):
            label[region] = value
        return label

    def _region(self, annotation: dict[str, Any], height: int, width: int) -> NDArray[np.bool_]:
        """The (H, W) bool pixels of one annotation."""
        try:
            return draw_region(annotation["segmentation"], height, width, crowd=annotation["iscrowd"])
        except (ValueError, OverflowError) as error:
            where = f"{self._path} (of {self._images[annotation['image_id']]['file_name']})"
            raise InputError(
                f"annotation {annotation['id']} in {where} cannot be drawn: {error}; expected {EXPECTED}; correct or remove it"
            ) from error


def _chosen(categories: list[dict[str, Any]], names: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the classes 1, 2, ..."""
    ordered = sorted(categories, key=lambda c: id_order(c["id"]))
    known = tuple(dict.fromkeys(c["name"] for c in ordered if c["name"] != BACKGROUND))
    if names is None:
        return known
    names = [nfc(name) for name in names]
    for name in names:
        if name not in known:
            raise unknown_name(name, known, "category")
    if len(set(names)) < len(names) or not names:
        raise InputError(f"got the categories {list(names)}: expected at least one and each once")
    return tuple(names)
