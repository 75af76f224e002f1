"""Files that a later run reads back: each with a SHA-256 of its content, so that one flipped bit is noticed.

JSON has it under the key `checksum`, a `safetensors` file in its metadata, a checkpoint at its end. What an earlier version wrote
without one is read as it is, but for checkpoints.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from img2img.errors import InputError, first_line, is_out_of_memory
from img2img.files.atomic import write_atomic, write_bytes
from img2img.files.json_files import read_json
from img2img.files.tensors import tensor_bytes
from img2img.masks.file_header import checksum

_KEY = "checksum"
_END = b"img2img\1"
"""What a checkpoint ends with, after the digest."""
_CHANGED = "it was changed after it was written: its checksum differs"


# ---------------------------------------------------------------------- JSON


def write_checked_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Write a JSON object with its checksum, atomically."""
    plain = json.loads(json.dumps(value, allow_nan=False))  # as it will read back
    # In one line: json indents in Python, an order slower, and what a hundred tasks keep is written after each of them.
    write_bytes(path, json.dumps(plain | {_KEY: checksum(plain, {})}, allow_nan=False).encode())


def read_checked_json(path: str | os.PathLike[str], *, remedy: str) -> dict[str, Any]:
    """What `write_checked_json` wrote, without the checksum.

    Raises:
        InputError: it is missing, no JSON object, or changed; ends with `remedy`.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {value!r:.60}: expected an object; {remedy}")
    seal = value.pop(_KEY, None)
    if seal is not None and seal != checksum(value, {}):
        raise InputError(f"{path} cannot be used ({_CHANGED}): {remedy}")
    return value


# ---------------------------------------------------------------------- tensors


def write_checked_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any device with their checksum, atomically."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_bytes(path, tensor_bytes(plain, {_KEY: checksum({}, plain)}))


def read_checked_tensors(path: str | os.PathLike[str], *, remedy: str) -> dict[str, Tensor]:
    """What `write_checked_tensors` wrote.

    Raises:
        InputError: it is missing, damaged or changed; ends with `remedy`.
    """
    try:
        blob = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {remedy}") from None
    try:
        tensors = safetensors.torch.load(blob)
        seal = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")]).get("__metadata__", {}).get(_KEY)
    except Exception as error:  # a damaged header gives many kinds
        if is_out_of_memory(error):
            raise
        raise InputError(f"{path} is damaged ({first_line(error)}): {remedy}") from error
    if seal is not None and seal != checksum({}, tensors):
        raise InputError(f"{path} is damaged ({_CHANGED}): {remedy}")
    return tensors


# ---------------------------------------------------------------------- tensors and plain types, by torch.save


class _Hashing:
    """A file that is written in one go, whose content is hashed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write_checked(path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
    """Write tensors and plain types with their checksum, atomically."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            hashing = _Hashing(file)
            torch.save(dict(values), hashing)  # type: ignore[arg-type]  # it needs no more of a file
            file.write(hashing.digest.digest() + _END)

    write_atomic(path, write)


def read_checked(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_checked` wrote, on the CPU; tensors and plain types only, nothing is unpickled.

    Raises:
        ValueError: it is damaged, cut off, or has no checksum.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END) - hashlib.sha256().digest_size - len(_END)
        if size < 0:
            raise ValueError("it is empty or cut off")
        file.seek(size)
        end = file.read()
        if not end.endswith(_END):
            raise ValueError("it is cut off, or an earlier version of img2img wrote it without a checksum")
        file.seek(0)
        digest = hashlib.sha256()
        left = size
        while chunk := file.read(min(left, 1 << 22)):
            digest.update(chunk)
            left -= len(chunk)
        if end.removesuffix(_END) != digest.digest():
            raise ValueError(_CHANGED)
    values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return values
