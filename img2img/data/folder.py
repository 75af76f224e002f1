"""Folders of pictures, and folders of pictures with a folder of label pictures beside them."""

import difflib
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from img2img.data.base import VOID, PictureSet, Sample
from img2img.data.decode import list_pictures, read_label, read_picture, require_folder
from img2img.errors import InputError

BACKGROUND = "background"


class ImageFolder(PictureSet):
    """Every picture of a folder and its subfolders, sorted by path, without labels.

    Raises:
        InputError: no such folder, no picture in it; at access, a damaged picture.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = require_folder(root)
        self.name = self.root.name
        self._files = list_pictures(self.root)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        path = self._files[index]
        return Sample(image=read_picture(path), name=path.relative_to(self.root).as_posix())

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
        void: Collection[int] = (VOID,),
        groups: Mapping[str, Iterable[str]] | None = None,
    ) -> "LabelTable":
        """The table for files whose value `i` means `names[i]`, and whose `void` values mean `VOID`.

        A void value takes its name, if it has one, out of the classes, and the later ones move down: no output channel is
        spent on what is never scored. With `groups`, the classes are `background` and the groups in the given order.
        """
        if not 1 <= len(names) <= VOID:
            raise InputError(f"got {len(names)} class names: expected 1 to {VOID}, since labels are 8-bit and {VOID} is void")
        if twice := sorted({n for n in names if list(names).count(n) > 1}):
            raise InputError(f"the class names {twice} occur twice: expected each once; rename one of each")
        if wrong := [v for v in void if not 0 <= v <= 255]:
            raise InputError(f"got the void values {wrong}: expected values of 8-bit label files, 0..255")
        values = {name: value for value, name in enumerate(names) if value not in void}
        to = np.full(256, VOID, dtype=np.uint8)
        if groups is None:
            classes = tuple(values)
            to[list(values.values())] = range(len(values))
        else:
            classes = (BACKGROUND, *groups)
            to[list(values.values())] = 0
            for name, index in _members(groups, tuple(values)).items():
                to[values[name]] = index
        known = np.zeros(256, dtype=bool)
        known[[*values.values(), *void]] = True
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
                + (" (in a 0/255 mask, write 1 for 255)" if 255 in wrong else "")
            )
        return self.to[label]


class LabelledPictures(PictureSet):
    """Pictures, each with a label file: what the formats with label pictures share.

    Args:
        items: (name, picture file, label file) of each sample.
        table: what the values in the label files mean.

    Raises:
        InputError: at access, a damaged file, an unknown label value, or a picture and a label of different sizes.
    """

    def __init__(self, items: Sequence[tuple[str, Path, Path]], table: LabelTable, *, name: str) -> None:
        self.classes = table.classes
        self.name = name
        self._items = list(items)
        self._table = table

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        name, picture, labels = self._items[index]
        image, label = read_picture(picture), self._label(labels)
        if image.shape[:2] != label.shape:
            (height, width), (h, w) = image.shape[:2], label.shape
            raise InputError(
                f"{picture} is {width} x {height} and its label {labels} is {w} x {h}: expected the same size (after the EXIF "
                "orientation); export the label again at the picture's size, without interpolation"
            )
        return Sample(image=image, label=self._table.apply(label, labels), name=name)

    def files(self, index: int) -> Sequence[tuple[str, Path]]:
        """The picture and its label."""
        name, picture, labels = self._items[index]
        return (name, picture), (f"{name} (label)", labels)

    def _label(self, path: Path) -> NDArray[np.uint8]:
        """The values in a label file, (H, W); formats that keep them elsewhere than in a picture read them here."""
        return read_label(path)


class ImageLabelFolder(LabelledPictures):
    """A folder of pictures and a folder of label pictures, paired by the path without the extension.

    `images/a/1.jpg` belongs to `labels/a/1{suffix}.png`. Label files without a picture are not used.

    Args:
        images: the folder of pictures.
        labels: the folder of label files, read by `read_label`.
        classes: the class names by label value; or a text file of one name a line, or of `value name` lines.
        void: label values that count nowhere. A foreground mask of 0 and 255 must be rewritten as 0 and 1 first.
        suffix: what label names have more than picture names: `_mask` for `1.jpg` and `1_mask.png`.
        groups: new classes made of several old ones, `{"upper": ["shirt", "coat"], ...}`; whatever is in no group becomes
            `background`, class 0.

    Raises:
        InputError: a missing or empty folder, a picture without a label, two labels for one picture, an unknown class; at
            access what `LabelledPictures` raises.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        labels: str | os.PathLike[str],
        classes: Sequence[str] | str | os.PathLike[str],
        *,
        void: Collection[int] = (VOID,),
        suffix: str = "",
        groups: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        names = read_classes(classes) if isinstance(classes, str | os.PathLike) else list(classes)
        images, labels = require_folder(images), require_folder(labels)
        pictures = list_pictures(images)
        by_stem = by_stem_of(list_pictures(labels), labels)
        by_stem_of(pictures, images)
        wanted = [stem_of(p, images) + suffix for p in pictures]
        if missing := [(p, s) for p, s in zip(pictures, wanted, strict=True) if s not in by_stem]:
            picture, stem = missing[0]
            raise InputError(
                f"no label for {picture}{f' and {len(missing) - 1} more pictures' if len(missing) > 1 else ''}: expected "
                f"{labels / stem}.png; add the labels, move the pictures away, or set `suffix` to what label names have more"
            )
        items = [(p.relative_to(images).as_posix(), p, by_stem[s]) for p, s in zip(pictures, wanted, strict=True)]
        super().__init__(items, LabelTable.build(names, void=void, groups=groups), name=images.name)


def read_classes(path: str | os.PathLike[str]) -> list[str]:
    """The class names in a text file: one a line in the order of their values, or `value name` (`0 sky`, `0: sky`) lines.

    Raises:
        InputError: no such file, no name in it, or values that are not 0, 1, 2, ...
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"no file at {path}: expected a text file with one class name a line; check the path")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}): expected one class name a line") from error
    if not lines:
        raise InputError(f"{path} is empty: expected one class name a line")
    numbered = [re.fullmatch(r"(\d+)\s*[\s:,;=]\s*(\S.*)", line) for line in lines]
    pairs = sorted((int(m[1]), m[2]) for m in numbered if m)
    if len(pairs) < len(lines):
        return lines
    if (values := [v for v, _ in pairs]) != list(range(len(pairs))):
        raise InputError(f"{path} numbers its classes {values}: expected 0, 1, 2, ... without a gap; add the missing lines")
    return [name for _, name in pairs]


def unknown_name(name: str, known: Iterable[str], what: str) -> InputError:
    """The error for a name that is not among `known`, with the names that look like it."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    shown = f"did you mean {', '.join(near)}?" if near else f"expected one of {', '.join(known)}"
    return InputError(f"no {what} {name!r}: {shown}")


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


def stem_of(path: Path, root: Path) -> str:
    """The path below `root` without the extension."""
    return path.relative_to(root).with_suffix("").as_posix()


def by_stem_of(paths: Iterable[Path], root: Path) -> dict[str, Path]:
    """Files by `stem_of`.

    Raises:
        InputError: two differ in their extension alone.
    """
    stems: dict[str, Path] = {}
    for path in paths:
        other = stems.setdefault(stem_of(path, root), path)
        if other is not path:
            raise InputError(f"{other} and {path} differ only in their extension: expected one file of a name; remove one")
    return stems


def _ranges(values: NDArray[np.intp]) -> str:
    """Sorted values in words, `0..10, 255`."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    shown = [f"{r[0]}..{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
