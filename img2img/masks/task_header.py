"""The header of a task file: JSON whose every field is of a known type before anything relies on it."""

import reprlib
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import torch
from pydantic import Field

from img2img.errors import InputError
from img2img.files.json_files import parse_json
from img2img.masks.file_header import MAX_HEADER, refusing
from img2img.validation import Exact, Number, Size, as_model

FORMAT = "img2img-task"
VERSION = 2
CODED = {"bool": torch.bool, "uint8": torch.uint8}
"""The types of tensors that are coded, by the names that the header uses."""


_REMEDY = "copy it again from where it came from"


class _Method(Exact):
    name: str
    options: dict[str, Any]


class _Storage(Exact):
    weights: Size
    coded_bytes: Size
    entropy_bits: Annotated[Number, Field(ge=0)]
    layers: dict[str, Size]


class _RelativeTo(Exact):
    task: str
    sha256: str


class _BasisName(Exact):
    name: str
    sha256: str


class _Coded(Exact):
    dtype: Literal["bool", "uint8"]
    shape: Annotated[list[Size], Field(max_length=8)]
    entropy_bits: Annotated[Number, Field(ge=0)]


class _Header(Exact):
    version: int
    task: str
    method: _Method
    norm: Literal["own", "statistics", "frozen", "instance"]
    head: dict[str, Any] | None
    backbone_sha256: str
    densities: dict[str, Annotated[Number, Field(ge=0, le=1)]]
    info: dict[str, Any]
    storage: _Storage
    relative_to: _RelativeTo | None
    basis: _BasisName | None
    coded: dict[str, _Coded]
    checksum: str


def parse_header(path: Path, file: BinaryIO, size: int) -> dict[str, Any]:
    """The header at the beginning of `file` of `size` bytes; every field of the type that the rest relies on."""
    with refusing(f"{path} is damaged or no task file"):
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(MAX_HEADER, size - 8):
            raise ValueError(f"{size} bytes, of which {length} are to be the header")
        entries = parse_json(file.read(length))
        metadata = entries.pop("__metadata__", {})
        if metadata.get("format") != FORMAT:
            raise InputError(f"{path} is a safetensors file, but no img2img task; expected one that save_task wrote")
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if end != size:
            raise ValueError(f"{size} bytes, expected {end}")
        header: dict[str, Any] = parse_json(metadata["header"])
        version = header["version"]
        if version != VERSION:
            todo = "upgrade it" if isinstance(version, int) and version > VERSION else "load it with the img2img that wrote it"
            raise InputError(f"{path} has format version {reprlib.repr(version)}, this img2img reads {VERSION}: {todo}")
        as_model(_Header, header, f"{path}, its header", remedy=_REMEDY)
    return header
