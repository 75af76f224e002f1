"""Folders of images, and folders of images with a folder of label images beside them."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from img2img.data.base import DATA, VOID, ImageDataset, Sample
from img2img.data.datasets.file_matching import Side, pair_files
from img2img.data.datasets.label_table import LabelTable, read_classes
from img2img.data.images.decode import read_label, read_sized
from img2img.data.images.exif import DrawnOn, check_drawn_on, of_which_pixels, turned, warn_of_turned
from img2img.data.images.listing import list_images, require_folder
from img2img.errors import InputError

LOOKED_AT = 8
"""Labels of a folder that are looked at when it is opened, to ask what 255 means."""


@DATA.register("image_folder")
class ImageFolder(ImageDataset):
    """Every image of a folder and its subfolders, sorted by path, without labels.

    Raises:
        InputError: no such folder, no image in it; at access, a damaged image.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = require_folder(root)
        self.name = self.root.name
        self._files = list_images(self.root)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        path = self._files[index]
        return Sample(image=read_sized(path).image, name=path.relative_to(self.root).as_posix())

    def files(self, index: int) -> Sequence[tuple[str, Path]]:
        """The image."""
        path = self._files[index]
        return ((path.relative_to(self.root).as_posix(), path),)


class SegmentationDataset(ImageDataset):
    """Images, each with a label file: what the formats with label images share.

    Args:
        items: (name, image file, label file) of each sample.
        table: what the values in the label files mean.
        drawn_on: what the labels of photos that EXIF turns were drawn on: the photos as "shown" (the default), or the pixels as
            they are "stored"; samples are as shown in both cases. None warns of such photos, if there are any.
        greys: the values are the greys that one sees, see `read_label`.

    Raises:
        InputError: another `drawn_on`; at access, a damaged file, an unknown label value, or an image and a label of different
            sizes.
    """

    def __init__(
        self,
        items: Sequence[tuple[str, Path, Path]],
        table: LabelTable,
        *,
        name: str,
        drawn_on: DrawnOn | None = None,
        greys: bool = False,
    ) -> None:
        check_drawn_on(drawn_on)
        self.classes = table.classes
        self.name = name
        self._items = list(items)
        self._table = table
        self._stored = drawn_on == "stored"
        self._greys = greys
        if drawn_on is None:
            warn_of_turned([item[1:] for item in self._items], "shown", name=name)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        name, file, labels = self._items[index]
        photo = read_sized(file)
        image, orientation = photo.image, photo.orientation
        label = self._label(labels)
        if self._stored:
            label = turned(label, orientation)
        if photo.size != label.shape:
            (height, width), (h, w) = photo.size, label.shape
            if self._stored and orientation >= 5:
                height, width, h, w = width, height, w, h
            raise InputError(
                f"{file} is {width} x {height} and its label {labels} is {w} x {h}: expected the same size "
                f"({of_which_pixels(self._stored, orientation)}); export the label again at the image's size, without "
                "interpolation"
            )
        return Sample(image=image, label=self._table.apply(label, labels), name=name)

    def files(self, index: int) -> Sequence[tuple[str, Path]]:
        """The image and its label."""
        name, file, labels = self._items[index]
        return (name, file), (f"{name} (label)", labels)

    def _label(self, path: Path) -> NDArray[np.uint8]:
        """The values in a label file, (H, W); formats that keep them elsewhere than in an image read them here."""
        return read_label(path, stored=self._stored, greys=self._greys)


@DATA.register("image_label_folder")
class ImageLabelFolder(SegmentationDataset):
    """A folder of images and a folder of label images, paired by the path without the extension.

    `images/a/1.jpg` belongs to `labels/a/1{suffix}.png`. Label files without an image are not used.

    Args:
        images: the folder of images.
        labels: the folder of label files, read by `read_label`; the same one where images and labels lie side by side.
        classes: the class names by label value; or a text file of one name a line, or of `value name` lines.
        void: label values that count nowhere; None for 255, unless `values` says what it is.
        suffix: what label names have more than image names: `_mask` for `1.jpg` and `1_mask.png`.
        match: "name", "order" or two patterns, such as `["{id}_training", "{id}_manual1"]`, see `pair_files`.
        values: where label values are not 0, 1, 2, ...: the value of each class, such as [0, 255] of two; or the name of a class
            for each value, of which several may have one, `{0: ground, 128: roof, 255: roof}`. Values are greys as one sees
            them then: white is 255 in a file of one bit, in a palette and in three equal channels too.
        groups: new classes made of several old ones, `{"upper": ["shirt", "coat"], ...}`; whatever is in no group becomes
            `background`, class 0.
        drawn_on: see `SegmentationDataset`.

    Raises:
        InputError: a missing or empty folder, an image without a label, two labels for one image, an unknown class, labels
            of 0 and 255 alone where neither `void` nor `values` says what 255 is; at access what `SegmentationDataset` raises.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        labels: str | os.PathLike[str],
        classes: Sequence[str] | str | os.PathLike[str],
        *,
        void: Collection[int] | None = None,
        suffix: str = "",
        match: str | Sequence[str] = "name",
        values: Sequence[int] | Mapping[int, str] | None = None,
        groups: Mapping[str, Iterable[str]] | None = None,
        drawn_on: DrawnOn | None = None,
    ) -> None:
        names = read_classes(classes) if isinstance(classes, str | os.PathLike) else list(classes)
        table = LabelTable.build(names, void=void, groups=groups, values=values)
        sides = Side(require_folder(images), "images", "image"), Side(require_folder(labels), "labels", "label")
        pairs = pair_files(*sides, match=match, suffix=suffix)
        root = sides[0].root
        items = [(file.relative_to(root).as_posix(), file, label) for file, label in pairs]
        super().__init__(items, table, name=root.name, drawn_on=drawn_on, greys=values is not None)
        if void is None and values is None and len(names) > 1:
            self._refuse_masks_of_255(names)

    def _refuse_masks_of_255(self, names: Sequence[str]) -> None:
        """Ask what 255 means where labels hold 0 and 255 alone: as void, no class but the first would be learned."""
        found = np.zeros(256, dtype=bool)
        for i in range(shown := min(len(self), LOOKED_AT)):
            try:
                found[np.unique(self._label(self._items[i * len(self) // shown][2]))] = True
            except InputError:  # the file is refused when it is read for use
                return
        if np.flatnonzero(found).tolist() == [0, VOID]:
            raise InputError(
                f"the labels in {self._items[0][2].parent} hold 0 and 255 alone, and 255 is void by default, so nothing would "
                f"be {names[1]!r}: expected the numbers of the classes, 0..{len(names) - 1}; set values: [0, 255] where 255 is "
                f"{names[1]!r}, or void: [255] where it is void"
            )
