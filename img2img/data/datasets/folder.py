"""Folders of pictures, and folders of pictures with a folder of label pictures beside them."""

import difflib
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from img2img.data.base import VOID, ImageDataset, Sample
from img2img.data.datasets.file_matching import Side, pair_files
from img2img.data.datasets.file_names import nfc, read_lines
from img2img.data.images.decode import read_image, read_label, read_turned
from img2img.data.images.exif import DrawnOn, check_drawn_on, of_which_pixels, turned, warn_of_turned
from img2img.data.images.listing import list_images, require_folder
from img2img.errors import InputError

BACKGROUND = "background"

LOOKED_AT = 8
"""Labels of a folder that are looked at when it is opened, to ask what 255 means."""


class ImageFolder(ImageDataset):
    """Every picture of a folder and its subfolders, sorted by path, without labels.

    Raises:
        InputError: no such folder, no picture in it; at access, a damaged picture.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = require_folder(root)
        self.name = self.root.name
        self._files = list_images(self.root)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        path = self._files[index]
        return Sample(image=read_image(path), name=path.relative_to(self.root).as_posix())

    def files(self, index: int) -> Sequence[tuple[str, Path]]:
        """The picture."""
        path = self._files[index]
        return ((path.relative_to(self.root).as_posix(), path),)


@dataclass(frozen=True)
class LabelTable:
    """What each of the 256 values of a label file stands for.

    Attributes:
        classes: the class names by the index that samples carry.
        to: (256,) uint8, the index (or `VOID`) that each value becomes.
        known: (256,) bool, the values that may occur.
    """

    classes: tuple[str, ...]
    to: NDArray[np.uint8]
    known: NDArray[np.bool_]

    @classmethod
    def build(
        cls,
        names: Sequence[str],
        *,
        void: Collection[int] | None = None,
        values: Sequence[int] | Mapping[int, str] | None = None,
        groups: Mapping[str, Iterable[str]] | None = None,
    ) -> "LabelTable":
        """The table for files whose value `i` means `names[i]`, and whose `void` values mean `VOID`.

        A void value takes its name, if it has one, out of the classes, and the later ones move down: no output channel is
        spent on what is never scored. With `groups`, the classes are `background` and the groups in the given order. With
        `values` other values stand for the names, see `ImageLabelFolder`. Names are in NFC.
        """
        names = [nfc(name) for name in names]
        if not 1 <= len(names) <= VOID:
            raise InputError(f"got {len(names)} class names: expected 1 to {VOID}, since labels are 8-bit and {VOID} is void")
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise InputError(f"the class names {twice} occur twice: expected each once; rename one of each")
        named = _named(names, values)
        if void is None:
            void = tuple({VOID} - named.keys()) if values is not None else (VOID,)
        elif values is not None and (both := sorted(named.keys() & set(void))):
            raise InputError(f"the values {both} are in `values` and in `void`: expected each in one; remove them from the other")
        for what, given in (("void values", void), ("values", named)):
            if wrong := [v for v in given if not 0 <= v <= 255]:
                raise InputError(f"got the {what} {wrong}: expected values of 8-bit label files, 0..255")
        used = {name for value, name in named.items() if value not in void}
        kept = [name for name in names if name in used]
        to = np.full(256, VOID, dtype=np.uint8)
        if groups is None:
            classes = tuple(kept)
            index = {name: i for i, name in enumerate(kept)}
        else:
            groups = {nfc(group): [nfc(n) for n in of] if isinstance(of, list | tuple) else of for group, of in groups.items()}
            classes = (BACKGROUND, *groups)
            index = dict.fromkeys(kept, 0) | _members(groups, tuple(kept))
        for value, name in named.items():
            if value not in void:
                to[value] = index[name]
        known = np.zeros(256, dtype=bool)
        known[[*named, *void]] = True
        return cls(classes, to, known)

    def apply(self, label: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
        """`label`, (H, W) values of the file `path`, as (H, W) class indices with `VOID`.

        Raises:
            InputError: a value that is neither a class nor void.
        """
        found = np.flatnonzero(np.bincount(label.ravel(), minlength=256))
        if len(wrong := found[~self.known[found]]):
            raise InputError(
                f"the label {path} has the values {_ranges(wrong)}: expected {_ranges(np.flatnonzero(self.known))} (classes and "
                "void); correct the file, name the missing classes or list the values as void"
                + (", or set `values`, such as values: [0, 255] where 255 is the second class" if 255 in wrong else "")
                + (", or leave out `values`: this file counts from 0" if set(wrong) == {1} and not self.known[1] else "")
            )
        return self.to[label]


class SegmentationDataset(ImageDataset):
    """Pictures, each with a label file: what the formats with label pictures share.

    Args:
        items: (name, picture file, label file) of each sample.
        table: what the values in the label files mean.
        drawn_on: what the labels of photos that EXIF turns were drawn on: the photos as "shown" (the default), or the pixels as
            they are "stored"; samples are as shown in both cases. None remarks on such photos, if there are any.
        greys: the values are the greys that one sees, see `read_label`.

    Raises:
        InputError: another `drawn_on`; at access, a damaged file, an unknown label value, or a picture and a label of different
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
        name, picture, labels = self._items[index]
        image, orientation = read_turned(picture)
        label = self._label(labels)
        if self._stored:
            label = turned(label, orientation)
        if image.shape[:2] != label.shape:
            (height, width), (h, w) = image.shape[:2], label.shape
            if self._stored and orientation >= 5:
                height, width, h, w = width, height, w, h
            raise InputError(
                f"{picture} is {width} x {height} and its label {labels} is {w} x {h}: expected the same size "
                f"({of_which_pixels(self._stored, orientation)}); export the label again at the picture's size, without "
                "interpolation"
            )
        return Sample(image=image, label=self._table.apply(label, labels), name=name)

    def files(self, index: int) -> Sequence[tuple[str, Path]]:
        """The picture and its label."""
        name, picture, labels = self._items[index]
        return (name, picture), (f"{name} (label)", labels)

    def _label(self, path: Path) -> NDArray[np.uint8]:
        """The values in a label file, (H, W); formats that keep them elsewhere than in a picture read them here."""
        return read_label(path, stored=self._stored, greys=self._greys)


class ImageLabelFolder(SegmentationDataset):
    """A folder of pictures and a folder of label pictures, paired by the path without the extension.

    `images/a/1.jpg` belongs to `labels/a/1{suffix}.png`. Label files without a picture are not used.

    Args:
        images: the folder of pictures.
        labels: the folder of label files, read by `read_label`; the same one where pictures and labels lie side by side.
        classes: the class names by label value; or a text file of one name a line, or of `value name` lines.
        void: label values that count nowhere; None for 255, unless `values` says what it is.
        suffix: what label names have more than picture names: `_mask` for `1.jpg` and `1_mask.png`.
        match: "name", "order" or two patterns, such as `["{id}_training", "{id}_manual1"]`, see `pair_files`.
        values: where label values are not 0, 1, 2, ...: the value of each class, such as [0, 255] of two; or the name of a class
            for each value, of which several may have one, `{0: ground, 128: roof, 255: roof}`. Values are greys as one sees
            them then: white is 255 in a file of one bit, in a palette and in three equal channels too.
        groups: new classes made of several old ones, `{"upper": ["shirt", "coat"], ...}`; whatever is in no group becomes
            `background`, class 0.
        drawn_on: see `SegmentationDataset`.

    Raises:
        InputError: a missing or empty folder, a picture without a label, two labels for one picture, an unknown class, labels
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
        sides = Side(require_folder(images), "images", "picture"), Side(require_folder(labels), "labels", "label")
        pairs = pair_files(*sides, match=match, suffix=suffix)
        root = sides[0].root
        items = [(picture.relative_to(root).as_posix(), picture, label) for picture, label in pairs]
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


def read_classes(path: str | os.PathLike[str]) -> list[str]:
    """The class names in a text file: one a line in the order of their values, or `value name` (`0 sky`, `0: sky`) lines.

    Raises:
        InputError: what `read_lines` refuses, values that are not 0, 1, 2, ..., or a first line that is a header or a comment,
            which would move every class by one.
    """
    lines = read_lines(path, "one class name a line")
    numbered = [re.fullmatch(r"(\d+)\s*[\s:,;=]\s*(\S.*)", line) for line in lines]
    pairs = sorted((int(m[1]), m[2]) for m in numbered if m)
    values = [v for v, _ in pairs]
    if lines[0].startswith("#") or (numbered[0] is None and len(pairs) > 1 and len(pairs) == len(lines) - 1):
        raise InputError(
            f"{path} begins with {lines[0]!r}, by its looks a {'comment' if lines[0].startswith('#') else 'header'}: expected "
            "class names alone, or values with names in every line; remove that line"
        )
    if len(pairs) < len(lines):
        return lines
    if values != list(range(len(pairs))):
        raise InputError(f"{path} numbers its classes {values}: expected 0, 1, 2, ... without a gap; add the missing lines")
    return [name for _, name in pairs]


def unknown_name(name: str, known: Iterable[str], what: str) -> InputError:
    """The error for a name that is not among `known`, with the names that look like it."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    shown = f"did you mean {', '.join(near)}?" if near else f"expected one of {', '.join(known)}"
    return InputError(f"no {what} {name!r}: {shown}")


def _named(names: Sequence[str], values: Sequence[int] | Mapping[int, str] | None) -> dict[int, str]:
    """The name that each label value has."""
    if values is None:
        return dict(enumerate(names))
    if not isinstance(values, Mapping):
        if len(values) != len(names) or len(set(values)) < len(values):
            raise InputError(
                f"got {len(values)} values {list(values)} for {len(names)} classes: expected one value for each class, in their "
                "order and each once; or a mapping of values to class names, in which several values may have one"
            )
        return dict(zip(values, names, strict=True))
    named = {value: nfc(name) for value, name in values.items()}
    for name in named.values():
        if name not in names:
            raise unknown_name(name, names, "class for `values` named")
    if lack := [name for name in names if name not in named.values()]:
        raise InputError(f"`values` has no value for {', '.join(lack)}: expected one or more for each class; add it")
    return named


def _members(groups: Mapping[str, Iterable[str]], known: tuple[str, ...]) -> dict[str, int]:
    """The index of the group of each class that is in one; group 0 is the background."""
    if not groups or BACKGROUND in groups:
        raise InputError(f"got the groups {list(groups)}: expected at least one, and no {BACKGROUND!r}, which is all the rest")
    members: dict[str, int] = {}
    for index, (group, names) in enumerate(groups.items(), start=1):
        if isinstance(names, str) or not (names := list(names)):
            raise InputError(f"group {group!r} is {names!r}: expected a list of class names")
        for name in names:
            if name not in known:
                raise unknown_name(name, known, f"class for group {group!r} named")
            if name in members:
                raise InputError(f"the class {name!r} is in two groups, or twice in {group!r}: expected it in one; remove it")
            members[name] = index
    return members


def _ranges(values: NDArray[np.intp]) -> str:
    """Sorted values in words, `0..10, 255`."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    shown = [f"{r[0]}..{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
