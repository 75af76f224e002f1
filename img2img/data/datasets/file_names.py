"""Names in files against names of files: one Unicode form for all, text files with one name a line, and names on a disk."""

import functools
import os
from collections.abc import Iterable
from pathlib import Path
from unicodedata import normalize

from img2img.errors import InputError
from img2img.files.paths import expanded


def nfc(text: str) -> str:
    """`text` in Unicode's form NFC, in which names are compared: macOS writes é as two characters, most others as one."""
    return normalize("NFC", text)


def on_disk(folder: Path, name: str) -> Path:
    """The file in `folder` that `name`, a relative path, stands for, in whichever Unicode form the disk has it.

    Where there is none it is the path as `name` has it, for the message.
    """
    path = folder / name
    if name.isascii() or path.exists():
        return path
    found = folder
    for part in Path(name).parts:
        there = found / part
        if not there.exists():
            known = _entries(found, found.stat().st_mtime_ns).get(nfc(part)) if found.is_dir() else None
            if known is None:
                return path
            there = found / known
        found = there
    return found


@functools.lru_cache(maxsize=8)
def _entries(folder: Path, changed: int) -> dict[str, str]:
    """The names in a folder by their form NFC. Not every name is one of the forms: NFC takes some signs of Japanese, and the sign
    of the ångström, for others."""
    return {nfc(name): name for name in os.listdir(folder)}


def read_lines(path: str | os.PathLike[str], expected: str) -> list[str]:
    """The lines of a text file that are not empty, stripped, in NFC, without a byte order mark.

    Args:
        path: the file.
        expected: what it should hold, for messages: "one class name a line".

    Raises:
        InputError: no such file, no UTF-8 text, or nothing in it.
    """
    path = expanded(path)
    if not path.is_file():
        raise InputError(f"no file at {path}: expected a text file with {expected}; check the path")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text ({error}): expected {expected}; save it anew with the encoding UTF-8"
        ) from error
    lines = [nfc(line.strip()) for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path} is empty: expected {expected}; restore it")
    return lines


def read_name_list(path: str | os.PathLike[str]) -> list[str]:
    """The names of images in a list, one a line, such as VOC's.

    Raises:
        InputError: what `read_lines` refuses, a name that occurs twice, or lines with a flag beside the name.
    """
    names = read_lines(path, "one image name a line")
    flagged = [name for name in names if len(name.split()) == 2 and name.split()[1] in ("-1", "0", "1")]
    if flagged:
        raise InputError(
            f"{path} has flags beside its names ({flagged[0]!r}), as the lists of one class in ImageSets/Main have, where -1 "
            "says that the class is not there: expected one image name a line; write the names alone, of the images you want"
        )
    if twice := first_twice(names):
        raise InputError(f"{path} lists {twice} twice: expected each image once; remove one of the lines")
    return names


def first_twice(names: Iterable[str]) -> str | None:
    """The first name that occurs a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
