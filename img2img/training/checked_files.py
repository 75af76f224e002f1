"""Files that a later run reads back: each with a SHA-256 of its content, so that one flipped bit is noticed.

JSON has it under the key `checksum`, a `safetensors` file in its metadata. Without one, as an earlier version wrote them, they
are read as they are. Of checkpoints see `checkpoint`.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from img2img.errors import InputError, first_line, is_out_of_memory
from img2img.files.atomic import write_bytes
from img2img.files.json_files import read_json
from img2img.files.tensors import tensor_bytes
from img2img.masks.file_header import checksum

_KEY = "checksum"
CHANGED = "it was changed after it was written: its checksum differs"


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
        raise InputError(f"{path} cannot be used ({CHANGED}): {remedy}")
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
        raise InputError(f"{path} is damaged ({CHANGED}): {remedy}")
    return tensors
