"""`bundle.json`: what a bundle consists of, each field checked before anything relies on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from img2img.errors import InputError
from img2img.files.json_files import read_json
from img2img.files.untrusted import check_plain
from img2img.validation import Stored, as_model

FORMAT = "img2img-bundle"
VERSION = 2
MAX_DESCRIPTION = 1 << 22
"""Bytes of the longest `bundle.json`."""
MAX_TASKS = 10_000
MAX_PATTERNS = 4096
MAX_PATTERN = 1000
"""Entries of its lists, and letters of a pattern or a name, at most."""

_Text = Annotated[str, StringConstraints(max_length=MAX_PATTERN)]


class BundleDescription(Stored):
    """The fields of `bundle.json`; a newer version's further ones are kept and not looked at.

    Attributes:
        format: always `FORMAT`.
        version: always `VERSION`.
        sha256: of the backbone's values.
        spec: what `build_backbone` rebuilds the backbone from.
        select: patterns of the weights that tasks mask; the first bundles had none, which is all.
        tasks: their names, in order.
        bases: the SHA-256 of each basis by its name.
    """

    model_config = ConfigDict(extra="allow")

    format: Literal["img2img-bundle"]
    version: int
    sha256: str
    spec: dict[str, Any]
    select: Annotated[list[_Text], Field(max_length=MAX_PATTERNS)] = Field(default=["*"])
    tasks: Annotated[list[_Text], Field(max_length=MAX_TASKS)]
    bases: Annotated[dict[_Text, _Text], Field(max_length=MAX_TASKS)]


def without_head(spec: Any) -> Any:
    """A backbone's `spec` without the outputs of the head that it was made with, which no bundle holds; others as they are."""
    return {key: each for key, each in spec.items() if key != "out_channels"} if isinstance(spec, dict) else spec


def same_backbone(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether tasks of a bundle with one description mean the same in one with the other."""
    return all(without_head(one.get(key)) == without_head(other.get(key)) for key in ("sha256", "spec", "select"))


def read_description(path: Path) -> dict[str, Any]:
    """The values of a `bundle.json` by field.

    Raises:
        InputError: it was edited into something else, or is of a newer format.
    """
    values = read_json(path, max_bytes=MAX_DESCRIPTION)
    version = values.get("version") if isinstance(values, dict) else None
    if type(version) is int and version != VERSION:  # no bool, which is an int too
        remedy = "upgrade it" if version > VERSION else "use the img2img that wrote it, or run the experiment again"
        raise InputError(f"{path} has version {version}, this img2img reads {VERSION}: {remedy}")
    found = as_model(BundleDescription, values, str(path), remedy="restore it from a copy")
    check_plain(found.spec, f"spec in {path}")
    return found.model_dump()
