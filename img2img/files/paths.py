"""Paths: the one way in which one that a user gave is read, and folders that come with the package."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from img2img.errors import InputError


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with `~` at its start as the user's home folder, and `~name` as that of another user who has one.

    A file's name that only begins with `~`, as programs name their drafts, stays as it is.

    Raises:
        InputError: it begins with `~/`, and nothing says where this account's home folder is.
    """
    found = Path(os.path.expanduser(os.fsdecode(path)))
    if found.parts[:1] == ("~",):
        raise InputError(f"{found}: this account has no home folder, so ~ means nothing: give the whole path, or set HOME")
    return found


_ADDRESS = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/+(?=[^/])")
"""How a web address begins, also one that a `Path` has taken a slash from; a drive of Windows has one letter."""


def check_no_address(path: str | os.PathLike[str], option: str, *, remedy: str = "") -> None:
    """Refuse the address of a bucket, or of the web, where a file or a folder is to be written.

    Args:
        path: what was given.
        option: what the user calls it, for the message, such as "--out".
        remedy: what helps; by default a folder, from which the files can be copied.

    Raises:
        InputError: it is one; without this a folder `s3:` would be made here.
    """
    text = os.fsdecode(path)
    if _ADDRESS.match(text):
        remedy = remedy or "expected one on a disk that this machine sees; write there, and copy it into the bucket"
        shown = _ADDRESS.sub(r"\1://", text)
        raise InputError(f"{option}={shown} is no folder: {remedy}")


def no_file(path: str | os.PathLike[str], wanted: str) -> InputError:
    """The error for a path at which there is no file: a folder, a web address, a pattern, or nothing at all.

    Args:
        path: what was given.
        wanted: what the file should be, such as "an image".
    """
    text = os.fsdecode(path)
    if _ADDRESS.match(text):
        shown = _ADDRESS.sub(r"\1://", text)
        return InputError(f"{shown} is a web address: expected {wanted} on this machine; download it and give the file")
    if os.path.isdir(text):
        return InputError(f"{text} is a folder: expected {wanted}; give a file in it")
    if set(text) & set("*?["):
        return InputError(
            f"no such file: {text} is a pattern that the shell left as it is: expected {wanted}; leave out quotes, check that "
            "files match it, or give their folder"
        )
    return InputError(f"no such file: {text}: expected {wanted}; check the path")


def paths_in(options: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Path]]:
    """The texts among options, nested ones too, that may be paths: each with its name, such as `parts.train.root`.

    Whether there is such a file or folder is for the caller to see. Kinds and names are no paths.
    """
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from paths_in(value, f"{above}{key}.")
        elif isinstance(value, str) and "\0" not in value and key not in ("kind", "name"):
            yield f"{above}{key}", expanded(value)


def shipped_folder(name: str) -> Path:
    """A folder that a wheel carries inside the package, and that lies beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / name
    return installed if installed.is_dir() else package.parent / name
