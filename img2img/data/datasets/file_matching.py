"""Which file of one folder belongs to which of another: by name, by two patterns of names, or by order."""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from img2img.data.datasets.file_names import nfc
from img2img.data.images.listing import EXTENSIONS, list_images
from img2img.data.warn_once import warn_once
from img2img.errors import InputError

ID = "{id}"
Match = str | Sequence[str]


@dataclass(frozen=True)
class Side:
    """A folder whose files are to be paired, and the words for messages.

    Attributes:
        root: the folder.
        option: the option that named it: "images".
        what: what one of its files is: "image".
    """

    root: Path
    option: str
    what: str


def pair_files(first: Side, second: Side, *, match: Match = "name", suffix: str = "") -> list[tuple[Path, Path]]:
    """Every image file of `first` with the one of `second` that belongs to it, in the order of the first.

    Args:
        first: each of its files must have a partner. Where the other folder lies in this one, its files are not of this one.
        second: files without a partner are counted in a warning.
        match: "name": paths below the folders without the extension are equal; "order": the files of both, sorted, with
            numbers in names by their value; or two patterns, such as `["{id}_training", "{id}_manual1"]`, in which `{id}` stands
            for what the two names have in common. A pattern is of the path without the extension, unless it ends in that of an
            image: `["{id}.jpg", "{id}.png"]`. One folder may be given twice, then the patterns tell the files apart.
        suffix: what names of the second have more than those of the first, in place of patterns.

    Raises:
        InputError: a folder without an image, a file without a partner, two files that the patterns do not tell apart, or
            another `match`. The message says which option would pair them, where one would.
    """
    patterns = _patterns(match, suffix)
    firsts, seconds = (list_images(side.root) for side in (first, second))
    if _same(first.root, second.root):
        firsts, seconds = _told_apart(firsts, first, second, patterns)
    else:
        firsts, seconds = _outside(firsts, second.root, first.root), _outside(seconds, first.root, second.root)
    if patterns is None:
        return _by_order(firsts, seconds, first, second)
    of_first, of_second = patterns
    known = _by_id(seconds, second.root, of_second)
    wanted = _by_id(firsts, first.root, of_first)
    if foreign := [path for path in firsts if _id(path, first.root, of_first) is None]:
        raise InputError(
            f"{_some(foreign, first.what)} not called {of_first!r}: expected every {first.what} of `{first.option}` to be; "
            f"correct the pattern in `match`, or move {'it' if len(foreign) == 1 else 'them'} away"
        )
    if missing := [path for i, path in wanted.items() if i not in known]:
        raise _no_partner(missing, firsts, seconds, first, second, (of_first, of_second))
    if unused := [path for i, path in known.items() if i not in wanted]:
        what = f"{len(unused)} of the {len(known)} {second.what}s in {second.root}"
        warn_once(f"{what} belong to no {first.what} in {first.root} and are not used, such as {unused[0].name}")
    return [(path, known[i]) for i, path in wanted.items()]


def stem_of(path: Path, root: Path) -> str:
    """The path below `root` without the extension, in NFC."""
    return nfc(path.relative_to(root).with_suffix("").as_posix())


def by_stem_of(paths: Iterable[Path], root: Path) -> dict[str, Path]:
    """Files by `stem_of`.

    Raises:
        InputError: two differ in their extension alone.
    """
    return _by_id(paths, root, ID)


def _patterns(match: Match, suffix: str) -> tuple[str, str] | None:
    """The patterns of both sides, or None for pairs by order."""
    if match == "name":
        return ID, ID + nfc(suffix)
    if suffix:
        raise InputError(f"got suffix={suffix!r} and match={match!r}: expected one of them; leave suffix out")
    if match == "order":
        return None
    patterns = [] if isinstance(match, str) else [nfc(pattern) if isinstance(pattern, str) else "" for pattern in match]
    if len(patterns) != 2 or any(pattern.count(ID) != 1 for pattern in patterns):
        raise InputError(
            f"got match={match!r}: expected 'name', 'order', or two patterns with {ID} in each for what both names have in "
            f"common, such as ['{ID}_training', '{ID}_manual1']; correct it"
        )
    return patterns[0], patterns[1]


def _id(path: Path, root: Path, pattern: str) -> str | None:
    """What stands for `{id}` in the path of a file; None where the pattern does not fit it."""
    whole = os.path.splitext(pattern)[1].lower() in EXTENSIONS
    name = nfc(path.relative_to(root).as_posix()) if whole else stem_of(path, root)
    before, after = pattern.split(ID)
    if len(name) <= len(before) + len(after) or not (name.startswith(before) and name.endswith(after)):
        return None
    return name[len(before) : len(name) - len(after)]


def _by_id(paths: Iterable[Path], root: Path, pattern: str) -> dict[str, Path]:
    """The files that the pattern fits by what stands for `{id}`."""
    found: dict[str, Path] = {}
    for path in paths:
        if (i := _id(path, root, pattern)) is None:
            continue
        other = found.setdefault(i, path)
        if other is not path:
            raise InputError(
                f"{other} and {path} differ only in their extension: expected one file of a name; remove one, or name the "
                f"extension in `match`, such as ['{ID}', '{ID}{path.suffix}']"
            )
    return found


def _same(a: Path, b: Path) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)


def _outside(paths: list[Path], inner: Path, outer: Path) -> list[Path]:
    """The files below `outer` that are not in `inner`, which may be a folder below it."""
    inner, outer = inner.resolve(), outer.resolve()
    if outer not in inner.parents:
        return paths
    folders = {path.parent for path in paths}
    inside = {folder for folder in folders if inner in (real := folder.resolve(), *real.parents)}
    return [path for path in paths if path.parent not in inside]  # the folder decides: files may be links to elsewhere


def _told_apart(
    paths: Sequence[Path], first: Side, second: Side, patterns: tuple[str, str] | None
) -> tuple[list[Path], list[Path]]:
    """The files of one folder that holds both: of the second side are those that its pattern fits."""
    if patterns is None or patterns[0] == patterns[1]:
        raise InputError(
            f"`{first.option}` and `{second.option}` are the same folder {first.root}, and nothing tells the {first.what}s from "
            f"the {second.what}s: expected two folders, or `suffix` (_mask for x.png and x_mask.png), or `match` with two "
            f"patterns, such as ['{ID}.jpg', '{ID}.png']; add one of them"
        )
    specific = 1 if len(patterns[1]) >= len(patterns[0]) else 0  # of "{id}" and "{id}_mask" the longer one decides
    decided = [path for path in paths if _id(path, first.root, patterns[specific]) is not None]
    others = [path for path in paths if _id(path, first.root, patterns[specific]) is None]
    firsts, seconds = (others, decided) if specific == 1 else (decided, others)
    if not seconds or not firsts:
        lacking, pattern = (second, patterns[1]) if not seconds else (first, patterns[0])
        raise InputError(f"no {lacking.what} in {first.root} is called {pattern!r}: expected some; correct `suffix` or `match`")
    ids = {_id(path, first.root, patterns[0]) for path in firsts}
    if alone := [path for path in seconds if _id(path, first.root, patterns[1]) not in ids]:
        raise InputError(
            f"{_some(alone, second.what)} without its {first.what}: expected one called {patterns[0]!r} beside it, since both "
            f"lie in {first.root}; add it, or move the {second.what} away"
        )
    return firsts, seconds


def _by_order(firsts: list[Path], seconds: list[Path], first: Side, second: Side) -> list[tuple[Path, Path]]:
    if len(firsts) != len(seconds):
        raise InputError(
            f"{first.root} has {len(firsts)} {first.what}s and {second.root} has {len(seconds)} {second.what}s: expected as many "
            "of both, to be paired by their order; add or remove some, or pair them by `match` with two patterns"
        )
    ordered = [sorted(paths, key=_in_order(side.root)) for paths, side in ((firsts, first), (seconds, second))]
    pairs = list(zip(*ordered, strict=True))
    shown = ", ".join(f"{a.name} with {b.name}" for a, b in (pairs[0], pairs[-1]))
    warn_once(f"{first.root} and {second.root} are paired by order, from first to last: {shown}")
    return pairs


def _in_order(root: Path) -> Callable[[Path], list[str | int]]:
    """Sorts by name, numbers in it by their value: img2 comes before img10, as gt_02 comes before gt_10."""

    def key(path: Path) -> list[str | int]:
        parts = re.split(r"([0-9]+)", stem_of(path, root))
        return [int(part) if part.isdigit() and part.isascii() else part for part in parts]

    return key


def _no_partner(
    missing: Sequence[Path],
    firsts: Sequence[Path],
    seconds: Sequence[Path],
    first: Side,
    second: Side,
    patterns: tuple[str, str],
) -> InputError:
    before, after = patterns[1].split(ID)
    wanted = before + str(_id(missing[0], first.root, patterns[0])) + after
    ending = "" if os.path.splitext(wanted)[1].lower() in EXTENSIONS else ".png"
    names = [stem_of(path, first.root) for path in firsts], [stem_of(path, second.root) for path in seconds]
    remedy = _suggested(*names)
    if remedy is None:
        near = [name for name in names[1] if name.casefold() == wanted.casefold()]
        near = near or (difflib.get_close_matches(wanted, names[1], n=1) if len(names[1]) < 20_000 else [])
        there = f" (there is {near[0]})" if near else ""
        by_order = ", or match: order, which pairs them as they are sorted" if len(firsts) == len(seconds) else ""
        remedy = (
            f"add the {second.what}s{there}, move the {first.what}s away, or set `suffix` to what {second.what} names have more, "
            f"or `match` to two patterns, such as ['{ID}_training', '{ID}_manual1']{by_order}"
        )
    more = f" and {len(missing) - 1} more {first.what}s" if len(missing) > 1 else ""
    return InputError(f"no {second.what} for {missing[0]}{more}: expected {second.root / wanted}{ending}; {remedy}")


def _suggested(firsts: Sequence[str], seconds: Sequence[str]) -> str | None:
    """The option that would pair all of the first names, by what all names of a side begin and end with."""
    frames = _frame(firsts), _frame(seconds)
    sides = zip((firsts, seconds), frames, strict=True)
    ids = [{name[len(before) : len(name) - len(after)] for name in names} for names, (before, after) in sides]
    if len(firsts) < 2 or len(ids[0]) < len(firsts) or not ids[0] <= ids[1]:
        return None
    patterns = [f"{before}{ID}{after}" for before, after in frames]
    if patterns[0] == patterns[1]:
        return "leave out `suffix` and `match`: the names are the same"
    if patterns[0] == ID and patterns[1].startswith(ID):
        return f"set `suffix` to {frames[1][1]!r}, which pairs all of them"
    return f"set `match` to {patterns}, which pairs all of them"


def _frame(names: Sequence[str]) -> tuple[str, str]:
    """What all names begin and end with: no digits at the inner ends, which belong to a number, and from a mark such as _ on."""
    before = _beginning(names).rstrip("0123456789")
    after = _beginning([name[len(before) :][::-1] for name in names])[::-1]
    mark = re.search(r"[^0-9A-Za-z]", after)
    return before, after[mark.start() :] if mark else ""


def _beginning(names: Sequence[str]) -> str:
    """What all names begin with: it is what the first and the last of them begin with."""
    low, high = min(names), max(names)
    return low[: next((i for i, character in enumerate(low) if high[i : i + 1] != character), len(low))]


def _some(paths: Sequence[Path], what: str) -> str:
    """The first of some files in words."""
    return f"the {what} {paths[0]} is" if len(paths) == 1 else f"the {what} {paths[0]} and {len(paths) - 1} more are"
