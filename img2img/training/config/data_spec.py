"""The data of a task as a config describes it, checked without opening anything."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from img2img.data import Parts, build_data, kind_of_data
from img2img.data.base import PARTS
from img2img.validation import parsed


@dataclass(frozen=True)
class DataSpec:
    """A kind of data with its options.

    Attributes:
        kind: its name.
        options: by name, those that every kind has among them, see `data.build_data`.
    """

    kind: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The data that a config describes.

        Raises:
            InputError: the kind or an option is unknown, one is missing, or a value is of another type.
        """
        options = dict(given)
        kind = options.pop("kind", None)
        builder, common, by_part = kind_of_data(kind)
        own = {name: value for name, value in options.items() if name not in common}
        for more in [{"part": "train"}] if by_part else _parts(options):
            parsed(builder, own | more, what=f"data {kind!r}", others=common)
        return cls(kind, options)

    def plain(self) -> dict[str, Any]:
        """As a config has it."""
        return {"kind": self.kind, **self.options}

    def build(self, *, exclude: Iterable[str | os.PathLike[str]] = ()) -> Parts:
        """Open it, see `data.build_data`."""
        return build_data(self.plain(), exclude=exclude)


def _parts(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What stored data has for each of its parts; nothing where they have no such form, which is refused when it is opened."""
    parts = options.get("parts", {"whole": {}})
    if not isinstance(parts, Mapping) or not all(isinstance(own, Mapping) for own in parts.values()):
        return []
    sound = set(parts) in ({"whole"}, set(PARTS)) or (set(parts) == {"train", "test"} and "fractions" in options)
    return [dict(own) for own in parts.values()] if sound else []
