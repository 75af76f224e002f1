"""What the values in label files stand for: class names, void values and groups of classes."""

import difflib
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from img2img.data.base import VOID
from img2img.data.datasets.file_names import nfc, read_lines
from img2img.errors import InputError

BACKGROUND = "background"
"""The class of what is in no group, and of what no region covers."""


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
