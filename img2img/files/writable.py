"""Whether results can be written where they are to go: asked before hours of work, by trying."""

import errno
import os
from pathlib import Path

from img2img.errors import InputError
from img2img.files.paths import check_no_address, expanded

FORBIDDEN = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def ends_all(error: BaseException) -> bool:
    """Whether the next file would meet an error as well: the disk is full, or nobody may write to it."""
    return isinstance(error, OSError) and error.errno in FULL | {errno.EROFS}


def check_writable(folder: str | os.PathLike[str], option: str, *inside: str) -> None:
    """Raise an `InputError` unless files can be written into a folder, or the folder be made; nothing stays behind.

    Args:
        folder: it need not be there yet: then the nearest above it that is has to take it.
        option: what the user calls it, for the message, such as "out".
        inside: folders in it that are written to as well, where they are there.

    Raises:
        InputError: with what helps: permission, space or another folder. It may be the address of a bucket.
    """
    check_no_address(folder, option)
    folder = expanded(folder)
    nearest = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), Path())
    for place in (nearest, *(path for name in inside if (path := folder / name).is_dir())):
        try:
            _try(place)
        except OSError as error:
            raise InputError(
                f"{option}={folder}: nothing can be written in {place} ({error.strerror or error}): {_remedy(error.errno)}, or "
                "choose another folder"
            ) from error


def _try(folder: Path) -> None:
    file = folder / f".writable.{os.getpid()}.tmp"
    try:
        file.write_bytes(b"0")
    finally:
        file.unlink(missing_ok=True)


def _remedy(number: int | None) -> str:
    if number in FORBIDDEN:
        return "expected a folder that this user may write to; give it the permission, or mount its disk for writing"
    if number in FULL:
        return "expected room on its disk; free some space"
    return "expected a folder that takes files; check its disk"
