"""The file of a basis: a `safetensors` file with its masks, or with nothing but how random ones were drawn."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from img2img.errors import InputError
from img2img.files.atomic import write_bytes
from img2img.files.json_files import parse_json
from img2img.files.tensors import tensor_bytes
from img2img.files.untrusted import MAX_NAME
from img2img.masks.file_header import MAX_HEADER, checksum, refusing

FORMAT = "img2img-basis"
VERSION = 1

Kind = Literal["binary", "signed", "real"]
"""Masks in {0, 1}, in {-1, 0, 1}, or of real numbers in half precision."""

MAX_MEMBERS = 4096
"""Masks of a basis for one weight, at most."""

# How a mask of n values is kept: one bit each, and the sign in one more, or half a float; all of them are rows of one tensor.
PARTS: dict[str, dict[str, torch.dtype]] = {
    "binary": {"bits": torch.uint8},
    "signed": {"bits": torch.uint8, "negative": torch.uint8},
    "real": {"values": torch.float16},
}


def write_basis_file(path: str | os.PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write a basis's file, atomically.

    Args:
        path: the file.
        header: of the basis: `kind`, `names`, `shapes` by weight, `recipe`, `sha256`.
        tensors: the masks, `<part>/<weight>`; none for a recipe.
    """
    complete = {"version": VERSION, **header}
    complete["checksum"] = checksum(complete, tensors)
    return write_bytes(path, tensor_bytes(dict(tensors), {"format": FORMAT, "header": json.dumps(complete)}))


def read_basis_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and tensors of a basis's file, its checksum verified.

    Raises:
        InputError: there is no such file, or it is damaged, of another kind, or of a newer format version.
    """
    if not path.is_file():
        raise InputError(f"no basis file at {path}; check the path")
    blob = path.read_bytes()
    with refusing(f"{path} is damaged or no basis file"):
        length = int.from_bytes(blob[:8], "little")
        if length > min(MAX_HEADER, len(blob) - 8):
            raise ValueError(f"{len(blob)} bytes, of which {length} are to be the header")
        metadata = parse_json(blob[8 : 8 + length]).get("__metadata__", {})
        if metadata.get("format") != FORMAT:
            raise InputError(f"{path} is a safetensors file, but no img2img basis; expected one that Basis.save wrote")
        header = parse_json(metadata["header"])
        if header["version"] > VERSION:
            raise InputError(f"{path} has format version {header['version']}, this img2img reads up to {VERSION}: upgrade it")
        tensors = safetensors.torch.load(blob)
        intact = header["checksum"] == checksum(header, tensors)
        if intact and not _fits(header, tensors):
            raise ValueError("the header does not fit the tensors")
    if not intact:
        raise InputError(f"{path} was changed after it was written (checksum differs): copy it again from where it came from")
    return header, tensors


def _fits(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether the file holds what its header says: nothing for a recipe, else a row of each part for each mask."""
    count, sizes = len(header["names"]), {name: torch.Size(shape).numel() for name, shape in header["shapes"].items()}
    texts = (header["sha256"], *header["names"])
    if not 1 <= count <= MAX_MEMBERS or not all(isinstance(text, str) and len(text) <= MAX_NAME for text in texts):
        return False
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    if header["recipe"] is None:
        for part, dtype in PARTS[header["kind"]].items():
            columns = {name: n if part == "values" else -(-n // 8) for name, n in sizes.items()}
            expected |= {f"{part}/{name}": (dtype, (count, n)) for name, n in columns.items()}
    elif header["recipe"].keys() - {"allocation"} != {"density", "seed"}:
        return False
    return expected == {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
