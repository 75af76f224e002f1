"""Datasets of images: one file a format, the embedded samples, caching, augmentation and loading."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from img2img.data.base import DATA, PARTS, VOID, Batch, ImageDataset, Sample, by_part, cuts_itself
from img2img.data.cache import CachedDataset
from img2img.data.images.bit_depth import check_white
from img2img.data.images.listing import excluding
from img2img.data.warn_once import collect_warnings
from img2img.errors import InputError
from img2img.validation import call_with

__all__ = ["DATA", "VOID", "Batch", "ImageDataset", "Parts", "Sample", "build_data", "by_part", "kind_of_data"]


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


_COMMON = ("resize", "square", "middle", "limit", "white")
"""Options of every kind."""
_STORED = (*_COMMON, "parts", "fractions")
"""Those of stored kinds."""


def kind_of_data(kind: Any) -> tuple[Callable[..., ImageDataset], tuple[str, ...], bool]:
    """What builds a kind of data, the options besides its own that it may be given, and whether it cuts itself into parts.

    Raises:
        InputError: the kind is unknown.
    """
    build = DATA.find(kind)
    return build, _COMMON if cuts_itself(build) else _STORED, cuts_itself(build)


def build_data(config: Mapping[str, Any], *, exclude: Iterable[str | os.PathLike[str]] = ()) -> Parts:
    """The parts of the dataset that a config describes, cached in memory as they are first read.

    Args:
        config: `kind`, see `DATA`, and the options of that kind. Of stored kinds, `parts` may give options of
            their own to `train`, `val` and `test` (other folders, other lists); without it one set is split by `fractions`,
            three numbers. For a dataset whose official validation set is the one to report on, `parts` has `train` and `test`
            alone, and `fractions`, two numbers, cut `val` from `train`. Kinds that cut themselves into parts need neither.
            `resize` brings the shorter side of every image to that many pixels, once; `square`, in its place, brings both
            sides to so many, whatever the proportions; `middle` cuts val and test images to their middle square of so many.
            `limit` caps the number of images of a part. `white` is the value that is white in images of 16 bits, 65535 by
            default.
        exclude: folders whose images are none of the data's, such as the one that results go to.

    Raises:
        InputError: an unknown kind or option, data that is missing or unusable, or parts with different classes.
    """
    from img2img.data.split import limit as limited

    options = dict(config)
    kind = options.pop("kind", None)
    build = DATA.find(kind)
    resize, square, middle = (options.pop(name, None) for name in ("resize", "square", "middle"))
    limits = options.pop("limit", None)
    what = f"data {kind!r}"
    white = check_white(options.pop("white", None), f"{what}: white")
    for name, pixels in (("resize", resize), ("square", square), ("middle", middle)):
        if pixels is not None and not _positive(pixels):
            raise InputError(f"{what} got {name}: {pixels!r}: expected a whole number of pixels, 1 or more, such as 72")
    limits = {} if limits is None else limits
    if not isinstance(limits, Mapping) or not all(part in PARTS and _positive(n) for part, n in limits.items()):
        raise InputError(
            f"{what} got limit: {limits!r}: expected images by part, such as {{val: 50}}, of {', '.join(PARTS)}; correct it"
        )
    if resize is not None and square is not None:
        raise InputError(
            f"{what} got resize: {resize} and square: {square}: expected one of them, resize for images that keep their "
            "proportions or square for squares; leave the other out"
        )
    with collect_warnings() as warnings, excluding(exclude):
        if cuts_itself(build):
            sets = {part: call_with(build, options | {"part": part}, what=what, others=_COMMON) for part in PARTS}
        else:
            sets = _stored_parts(build, options, what)
    parts = {part: limited(dataset, limits[part]) if part in limits else dataset for part, dataset in sets.items()}
    for part, dataset in parts.items():
        if dataset.classes != parts["train"].classes:  # a label would mean one thing in training and another in the test
            raise InputError(
                f"{what}: {part} has the classes {_shown(dataset)} and train has {_shown(parts['train'])}: expected the same "
                "in the same order; name them in the config, or correct the files"
            )
    middles = {"val": middle, "test": middle}
    shown = {
        part: CachedDataset(p, short_side=resize, square=square, middle=middles.get(part), white=white, warnings=warnings)
        for part, p in parts.items()
    }
    return Parts(**shown)


def _stored_parts(build: Callable[..., ImageDataset], options: Mapping[str, Any], what: str) -> dict[str, ImageDataset]:
    """The three parts of a stored kind, each folder or file of annotations read once: COCO's is half a gigabyte."""
    from img2img.data.split import take

    common = {k: v for k, v in options.items() if k not in ("parts", "fractions")}
    fractions = options.get("fractions")
    if fractions is not None and not (isinstance(fractions, list | tuple) and all(map(_is_number, fractions))):
        raise InputError(f"{what} got fractions: {fractions!r}: expected a list of numbers that sum to 1; correct it")
    if "parts" not in options:
        whole = call_with(build, common, what=what, others=_STORED)
        shares = (0.8, 0.1, 0.1) if fractions is None else fractions
        return {part: take(whole, part, fractions=shares) for part in PARTS}  # type: ignore[arg-type]
    given = options["parts"]
    if not isinstance(given, Mapping) or not all(isinstance(own, Mapping) for own in given.values()):
        raise InputError(
            f"{what} got parts: {given!r}: expected {', '.join(PARTS)}, each with options of its own, such as {{train: {{root: "
            "my/train}, ...}; correct it"
        )
    if set(given) == set(PARTS) and fractions is None:
        return {part: call_with(build, common | dict(given[part]), what=what, others=_STORED) for part in PARTS}
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
    train, test = (call_with(build, common | dict(given[part]), what=what, others=_STORED) for part in ("train", "test"))
    return {part: take(train, part, fractions=(*fractions, 0)) for part in ("train", "val")} | {"test": test}


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(dataset: ImageDataset) -> str:
    shown = ", ".join(dataset.classes[:4]) or "none"
    return f"{shown}, ... ({len(dataset.classes)})" if len(dataset.classes) > 4 else shown
