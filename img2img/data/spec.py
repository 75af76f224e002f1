"""Data as a config describes them: checked without opening anything, and then opened as the three parts of a dataset."""

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import PIL

from img2img.data.base import DATA, PARTS, ImageDataset, cuts_itself
from img2img.data.cache import CachedDataset
from img2img.data.disk_cache import CachedSet, DiskCache
from img2img.data.images.bit_depth import check_white
from img2img.data.images.listing import excluding
from img2img.data.split import limit as limited
from img2img.data.split import take
from img2img.data.warn_once import collect_warnings
from img2img.errors import InputError
from img2img.files.paths import paths_in
from img2img.validation import parsed
from img2img.version import __version__

_COMMON = ("resize", "square", "middle", "limit", "white", "fast_decode")
"""Options of every kind."""
_STORED = (*_COMMON, "parts", "fractions", "blocks")
"""Those of stored kinds."""
_FORMAT = 2
"""Of cached samples."""
_WHOLE = "whole"
"""Stands for a set that is split into parts."""


@dataclass(frozen=True)
class Parts:
    """The three parts of a dataset: to train on, to choose the model by, to report on."""

    train: CachedDataset
    val: CachedDataset
    test: CachedDataset

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names of the training part."""
        return self.train.classes


@dataclass(frozen=True)
class DataSpec:
    """A kind of data with its options, checked: what opens it, and how a config or a fingerprint writes it.

    Attributes:
        kind: its name.
        options: by name, as given, those that every kind has among them, see `build_data`.
        builder: the class or function of that kind.
        arguments: what `builder` is called with, for each part or for the whole set that is split.
    """

    kind: str
    options: Mapping[str, Any]
    builder: Callable[..., ImageDataset]
    arguments: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The data that a config describes.

        Raises:
            InputError: the kind or an option is unknown, one is missing, or a value cannot be used.
        """
        options = dict(given)
        kind = options.pop("kind", None)
        builder = DATA.find(kind)
        what = f"data {kind!r}"
        itself = cuts_itself(builder)
        common = _COMMON if itself else _STORED
        _check_common(options, what)
        own = {name: value for name, value in options.items() if name not in common}
        more = {part: {"part": part} for part in PARTS} if itself else _check_parts(options, what)
        arguments = {part: parsed(builder, own | dict(of_part), what=what, others=common) for part, of_part in more.items()}
        return cls(kind, options, builder, arguments)

    def plain(self) -> dict[str, Any]:
        """As a config has it."""
        return {"kind": self.kind, **self.options}

    def build(self, *, exclude: Iterable[str | os.PathLike[str]] = (), cache: DiskCache | None = None) -> Parts:
        """Open it, see `build_data`."""
        with collect_warnings() as warnings, excluding([*exclude, *([] if cache is None else [cache.folder])]):
            sets = {part: self.builder(**arguments) for part, arguments in self.arguments.items()}
        parts = self._split(sets)
        stored = {} if cache is None else self._stored(cache, sets)
        parts = {part: self._limited(dataset, part) for part, dataset in parts.items()}
        for part, dataset in parts.items():
            if dataset.classes != parts["train"].classes:  # a label would mean one thing in training and another in the test
                raise InputError(
                    f"data {self.kind!r}: {part} has the classes {_shown(dataset)} and train has {_shown(parts['train'])}: "
                    "expected the same in the same order; name them in the config, or correct the files"
                )
        if _WHOLE not in self.arguments and not cuts_itself(self.builder):
            warnings += _in_two_parts(parts)
        cached = {part: self._cached(images, part, warnings, stored.get(part)) for part, images in parts.items()}
        return Parts(**cached)

    def build_test(self) -> CachedDataset:
        """Open what to measure on alone: the test part of data in parts, else every image.

        Options that speak of other parts too (`fractions`, `blocks`, a `limit` of train or val) are those of a training, and cut
        a set as the training does. A `limit` of test alone takes so many of all images, and a warning says so.

        Raises:
            InputError: see `build_data`.
        """
        other_limits = (self.options.get("limit") or {}).keys() - {"test"}
        if "test" not in self.arguments and any((self.options.get("fractions"), self.options.get("blocks"), other_limits)):
            return self.build().test
        with collect_warnings() as warnings:
            images = self.builder(**self.arguments.get("test", self.arguments.get(_WHOLE, {})))
        chosen = self._limited(images, "test")
        if _WHOLE in self.arguments and len(chosen) < len(images):
            warnings += [
                f"{len(chosen)} of all {len(images)} images are measured; if the task was trained on this set, some of them were "
                "trained on: give fractions too, [0.8, 0.1, 0.1] unless the training had others, for those that it left out"
            ]
        return self._cached(chosen, "test", warnings)

    def _limited(self, images: ImageDataset, part: str) -> ImageDataset:
        limits = self.options.get("limit") or {}
        return limited(images, limits[part]) if part in limits else images

    def _cached(self, images: ImageDataset, part: str, warnings: Sequence[str], stored: CachedSet | None = None) -> CachedDataset:
        """A part, resized as the options say."""
        return CachedDataset(
            images,
            short_side=self.options.get("resize"),
            square=self.options.get("square"),
            fast_decode=bool(self.options.get("fast_decode")),
            middle=None if part == "train" else self.options.get("middle"),
            white=self.options.get("white"),
            warnings=warnings,
            stored=stored,
            by_index=not DATA.has_own(self.kind),
        )

    def _stored(self, cache: DiskCache, sets: Mapping[str, ImageDataset]) -> dict[str, CachedSet]:
        """Where the cache keeps the samples of each part: by all that they depend on, but for their own files."""
        of_set: dict[str, CachedSet] = {}
        for name, images in sets.items():
            arguments = self.arguments[name]
            named = [*images.common_files(), *((key, path) for key, path in paths_in(arguments) if os.path.isfile(path))]
            depends: dict[str, Any] = {
                "kind": self.kind,
                "options": arguments,
                "classes": list(images.classes),  # that of a folder has another number once another folder is there
                "files": {key: _stamp(path) for key, path in named},
                "size": {key: self.options.get(key) for key in ("resize", "square", "white", "fast_decode")},
                "versions": {"img2img": __version__, "Pillow": PIL.__version__, "format": _FORMAT},
            }
            if not DATA.has_own(self.kind):  # of another's kind a sample may depend on its place, and its code changes
                depends |= {"all_options": self.options, "code": _stamp(inspect.getsourcefile(self.builder))}
            of_set[name] = cache.open_set(depends)
        # A part that is cut from a set shares its place: the split does not matter to a sample.
        return {part: of_set[next(name for name in (part, "train", _WHOLE) if name in of_set)] for part in PARTS}

    def _split(self, sets: Mapping[str, ImageDataset]) -> dict[str, ImageDataset]:
        """The three parts of what was opened. Each folder or file of annotations is read once: COCO's is half a gigabyte."""
        fractions, blocks = self.options.get("fractions"), self.options.get("blocks")
        if _WHOLE in sets:
            shares = (0.8, 0.1, 0.1) if fractions is None else fractions
            return {part: take(sets[_WHOLE], part, fractions=shares, blocks=blocks) for part in PARTS}  # type: ignore[arg-type]
        if "val" in sets:
            return dict(sets)
        shares = (*(fractions or ()), 0)
        train, val = (take(sets["train"], part, fractions=shares, blocks=blocks) for part in ("train", "val"))
        return {"train": train, "val": val, "test": sets["test"]}


def _in_two_parts(parts: Mapping[str, ImageDataset]) -> list[str]:
    """A warning for each part that has images of a part before it: what is measured on them is too good.

    A file is the same by whatever name or link it is reached.
    """
    found, seen = [], dict[Any, str]()
    for part in PARTS:
        own = dict[Any, str]()
        for i in range(len(parts[part])):
            for _, path in parts[part].files(i)[:1]:
                own[_identity(path)] = str(path)
        if twice := sorted(seen.keys() & own.keys(), key=own.__getitem__):
            others = " and ".join(dict.fromkeys(seen[file] for file in twice))
            found.append(
                f"{len(twice)} of {len(own)} {part} images are among those of {others} too, such as {own[twice[0]]}: what is "
                "measured on them is too good; give each part files of its own"
            )
        seen = dict.fromkeys(own, part) | seen
    return found


def _identity(path: str | os.PathLike[str]) -> Any:
    """What tells a file from all others: its place on the disk; its path where the system says no such place."""
    try:
        state = os.stat(path)
    except OSError:  # reading it says what is wrong
        return str(path)
    return (state.st_dev, state.st_ino) if state.st_ino else os.path.realpath(path)


def _stamp(path: str | os.PathLike[str] | None) -> list[int]:
    """What tells a file from what it was: its size, and the times of its last changes."""
    try:
        state = os.stat(path or "")
    except OSError:
        return []
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def build_data(
    config: Mapping[str, Any], *, exclude: Iterable[str | os.PathLike[str]] = (), cache: DiskCache | None = None
) -> Parts:
    """The parts of the dataset that a config describes, cached in memory, or on disk, as they are first read.

    Args:
        config: `kind`, see `DATA`, and the options of that kind. Of stored kinds, `parts` may give options of
            their own to `train`, `val` and `test` (other folders, other lists); without it one set is split by `fractions`,
            three numbers. For a dataset whose official validation set is the one to report on, `parts` has `train` and `test`
            alone, and `fractions`, two numbers, cut `val` from `train`. Kinds that cut themselves into parts need neither.
            `blocks` cuts so many blocks of neighbours in place of single images, for frames of a video (see `split.take`).
            `resize` brings the shorter side of every image to that many pixels, once; `square`, in its place, brings both
            sides to so many, whatever the proportions; `middle` cuts val and test images to their middle square of so many.
            `fast_decode` lets JPEGs be decoded at a part of their size for that, with pixels that differ a little.
            `limit` caps the number of images of a part. `white` is the value that is white in images of 16 bits, 65535 by
            default.
        exclude: folders whose images are none of the data's, such as the one that results go to.
        cache: keeps decoded and resized images on disk in place of memory, for all processes and later runs; see `DiskCache`.

    Raises:
        InputError: an unknown kind or option, data that is missing or unusable, or parts with different classes.
    """
    return DataSpec.of(config).build(exclude=exclude, cache=cache)


def _check_common(options: Mapping[str, Any], what: str) -> None:
    resize, square, middle = (options.get(name) for name in ("resize", "square", "middle"))
    for name, pixels in (("resize", resize), ("square", square), ("middle", middle)):
        if pixels is not None and not _positive(pixels):
            raise InputError(f"{what} got {name}: {pixels!r}: expected a whole number of pixels, 1 or more, such as 72")
    limits = {} if options.get("limit") is None else options["limit"]
    if not isinstance(limits, Mapping) or not all(part in PARTS and _positive(n) for part, n in limits.items()):
        raise InputError(
            f"{what} got limit: {limits!r}: expected images by part, such as {{val: 50}}, of {', '.join(PARTS)}; correct it"
        )
    if resize is not None and square is not None:
        raise InputError(
            f"{what} got resize: {resize} and square: {square}: expected one of them, resize for images that keep their "
            "proportions or square for squares; leave the other out"
        )
    fast = options.get("fast_decode")
    if fast is not None and not isinstance(fast, bool):
        raise InputError(f"{what} got fast_decode: {fast!r}: expected true or false; correct it")
    if fast and resize is None and square is None:
        raise InputError(f"{what} got fast_decode: true without a size: give resize or square too, or leave it out")
    check_white(options.get("white"), f"{what}: white")


def _check_parts(options: Mapping[str, Any], what: str) -> Mapping[str, Mapping[str, Any]]:
    """The options that stored data have for each part alone, or none for the whole set that is split."""
    fractions = options.get("fractions")
    if fractions is not None and not (isinstance(fractions, list | tuple) and all(map(_is_number, fractions))):
        raise InputError(f"{what} got fractions: {fractions!r}: expected a list of numbers that sum to 1; correct it")
    blocks = options.get("blocks")
    if blocks is not None and not _positive(blocks):
        raise InputError(f"{what} got blocks: {blocks!r}: expected a whole number of blocks, 1 or more, such as 12")
    if "parts" not in options:
        return {_WHOLE: {}}
    given = options["parts"]
    if not isinstance(given, Mapping) or not all(isinstance(own, Mapping) for own in given.values()):
        raise InputError(
            f"{what} got parts: {given!r}: expected {', '.join(PARTS)}, each with options of its own, such as {{train: {{root: "
            "my/train}, ...}; correct it"
        )
    if set(given) == set(PARTS) and fractions is None:
        if blocks is not None:
            raise InputError(f"{what} got blocks: {blocks}, but its parts have sets of their own: leave blocks out")
        return {part: given[part] for part in PARTS}
    if set(given) != {"train", "test"} or fractions is None:
        raise InputError(
            f"{what}: parts must be {', '.join(PARTS)}, or train and test with `fractions` that cut val from train, got "
            f"{', '.join(map(str, given))}{' without fractions' if fractions is None else ' with fractions'}"
        )
    if len(fractions) != 2:
        raise InputError(
            f"{what}: got the fractions {list(fractions)}: expected two, of train and val, since test has a set of its own; "
            "give for instance [0.9, 0.1]"
        )
    return {part: given[part] for part in ("train", "test")}


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(dataset: ImageDataset) -> str:
    shown = ", ".join(dataset.classes[:4]) or "none"
    return f"{shown}, ... ({len(dataset.classes)})" if len(dataset.classes) > 4 else shown
