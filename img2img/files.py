"""Files that are either the old one or the new one, never half of each."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from img2img.errors import InputError


_LONGEST = 100
"""Bytes of a name that its temporary one repeats; disks take 255 for a name, often 143 where names are encrypted."""


def write_atomic(path: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Call `write(temporary)` on a path beside `path`, flush it to the disk and rename it to `path`.

    A kill or a full disk at any moment leaves the earlier file whole; the temporary file is removed when `write` fails.

    Raises:
        OSError: the disk is full or the folder cannot be written; the message says which file and that the old one stands.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        write(temporary)
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        kept = "the earlier file is unchanged" if path.exists() else "no file was left behind"
        raise OSError(
            error.errno,
            f"could not write {path} ({error.strerror or error}); {kept}. "
            "Free some space or choose another folder, then run again",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def temporary_name(path: Path) -> Path:
    """Where a file or folder is made before it becomes `path`: beside it, hidden, and no longer than names may be."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.with_name(f".{name}.{os.getpid()}.tmp")


def is_same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether both are there and are one, by whatever names: links, `.` and `..`, another case where the disk knows none."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def check_folder(folder: str | os.PathLike[str], option: str) -> Path:
    """The path of a folder to write into, which need not be there yet; `option` is what the user calls it, for the message.

    Raises:
        InputError: it is a file, or is to be in one.
    """
    folder = Path(folder)
    file = next((path for path in (folder, *folder.parents) if path.is_file()), None)
    if file is not None:
        raise InputError(f"{option}={folder}: {file} is a file; expected a folder, or none there yet: choose another")
    return folder


def write_bytes(path: str | os.PathLike[str], blob: bytes) -> Path:
    """Write `blob`, atomically."""
    return write_atomic(path, lambda p: p.write_bytes(blob))


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` as indented UTF-8 JSON, atomically. NaN and infinity are refused, since JSON has neither."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_atomic(path, lambda p: p.write_text(text, encoding="utf-8"))


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The content of a `safetensors` file, the same bytes for the same values: the library shuffles the keys of its metadata."""
    content = safetensors.torch.save(dict(tensors), metadata=dict(metadata))
    end = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:end])
    entries = {"__metadata__": dict(sorted(entries.pop("__metadata__").items())), **entries}
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)  # so that the tensors are aligned
    return len(header).to_bytes(8, "little") + header + content[end:]


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON, or raise an `InputError` that names the file and the line at fault."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file at {path}: expected a JSON file there; check the path")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): restore it from a copy or write it again") from error
