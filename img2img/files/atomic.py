"""Files that are either the old one or the new one, never half of each."""

import contextlib
import errno
import itertools
import os
import re
import shutil
import socket
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import safetensors

from img2img.errors import InputError
from img2img.files.paths import check_no_address, expanded
from img2img.files.writable import FORBIDDEN, FULL

_numbers = itertools.count()
_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_TEMPORARY = re.compile(r"\..+\.((?P<host>[0-9a-f]{8})-)?(?P<pid>[0-9]+)(-[0-9]+)?\.tmp(\.(mp4|avi))?", re.DOTALL)
"""`.NAME.HOST-PROCESS-NUMBER.tmp`, and `.NAME.PROCESS.tmp` as versions before wrote it."""
_DAY = 86400.0
_SHORTLY = 2.0
"""Seconds that another process may take to leave a folder that it made by mistake."""


def temporary_beside(path: Path) -> Path:
    """A new name beside `path` for what is to replace it, by which `clear_leftovers` knows whose it is.

    It is legal wherever the name of `path` is: a long one is cut.
    """
    return path.with_name(f".{_cut(path.name)}.{_HOST}-{os.getpid()}-{next(_numbers)}.tmp")


def _cut(name: str) -> str:
    return os.fsencode(name)[:180].decode("utf-8", "ignore")


def write_atomic(path: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Call `write(temporary)` on a path beside `path`, flush it to the disk and rename it to `path`.

    A kill, a power cut or a full disk at any moment leaves the earlier file whole; the temporary file is removed when `write`
    fails.

    Raises:
        OSError: the disk is full or the folder cannot be written; the message says which file, that the old one stands, and what
            helps.
    """
    path = expanded(path)
    temporary = temporary_beside(path)
    try:
        make_folder(path.parent)
        write(temporary)
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except Exception as error:
        cause = _disk_error(error)
        if cause is None:
            raise
        raise cannot_write(path, cause) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return path


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, so that a power cut does not take them away again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            break
        except FileExistsError:
            if os.path.lexists(folder) and not folder.is_dir():
                raise
            # It was there, and another process removed it before pathlib could see that it is a folder.
    for path in missing:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk: without it a power cut may undo a rename.

    Some systems offer no such thing (Windows opens no folders, some network file systems refuse): there it does nothing.
    """
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _disk_error(error: BaseException) -> OSError | None:
    """The `OSError` that made a write fail; libraries written in other languages report some as another error."""
    if isinstance(error, OSError):
        return error
    if not isinstance(error, RuntimeError | safetensors.SafetensorError):
        return None
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    before = error.__cause__ or error.__context__
    cause = None if before is None else _disk_error(before)
    return cause if cause is not None and cause.errno in _OF_THE_DISK else None


_OF_THE_DISK = FULL | {errno.EFBIG, errno.EIO}


def cannot_write(path: Path, error: OSError) -> OSError:
    """The error for a file that could not be written: which, why, what stands now, and what helps."""
    kept = "the earlier file is unchanged" if os.path.exists(path) else "no file was left behind"
    other = error.filename if isinstance(error.filename, str) else ""  # such as a source that is gone
    why = f"{error.strerror or error}" + (f": {other}" if other and not _TEMPORARY.fullmatch(Path(other).name) else "")
    return OSError(error.errno, f"could not write {path} ({why}); {kept}. {_remedy(error.errno)}")


def _remedy(number: int | None) -> str:
    if number in FORBIDDEN:
        return "Make the folder writable or choose another one, then run again"
    if number == errno.ENAMETOOLONG:
        return "Choose a shorter name or another folder, then run again"
    if number == errno.EFBIG:
        return "Raise the limit on the size of files (ulimit -f) or choose another disk, then run again"
    if number in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return "A file is where a folder is needed, or the other way round: choose another path, then run again"
    if number is None or number in FULL:
        return "Free some space or choose another folder, then run again"
    return "Check the path and the disk, then run again"


def clear_leftovers(folder: str | os.PathLike[str], *, below: int = 0) -> list[Path]:
    """Remove temporary files and folders that a process left which was killed while it wrote; returns them.

    Only those by the names that `temporary_beside` gives, of a process of this machine that has ended, or untouched for a day.

    Args:
        folder: where to look; it need not be there.
        below: how many levels of folders below it are looked at too.
    """
    removed: list[Path] = []
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return removed
    for entry in entries:
        found = _TEMPORARY.fullmatch(entry.name)
        with contextlib.suppress(OSError):  # another process may clear it too
            if found and _left(entry, found["host"], int(found["pid"])):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)
                removed.append(Path(entry.path))
            elif below and entry.is_dir(follow_symlinks=False):
                removed += clear_leftovers(entry.path, below=below - 1)
    return removed


def _left(entry: "os.DirEntry[str]", host: str | None, process: int) -> bool:
    if host in (None, _HOST) and not is_running(process):
        return True
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY and process != os.getpid()


def is_running(process: int) -> bool:
    """Whether this machine has a process of that number, or may have: not every system says so."""
    if os.name != "posix":
        return True  # on Windows the question, os.kill(process, 0), would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def replace_folder(new: Path, folder: Path) -> None:
    """Put the folder `new` in the place of `folder`; at every moment one of the two is there, whole.

    Both are on one disk: make `new` by `temporary_beside(folder)`. Where `folder` is a link, the folder that it leads to is
    replaced. One that a killed process had put aside comes back first, see `restore_folder`.
    """
    folder = folder.resolve()
    make_folder(folder.parent)
    restore_folder(folder)
    # By another ending than `clear_leftovers` removes: where the process is killed between the two renames, this is the only one.
    while os.path.lexists(old := temporary_beside(folder).with_suffix(".old")):
        pass  # of a process that had this number before
    try:
        if folder.exists():
            os.replace(folder, old)
        _rename_patiently(new, folder)
    finally:
        if old.exists() and not folder.exists():  # it failed, or Ctrl-C came between the two
            os.replace(old, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _rename_patiently(new: Path, folder: Path) -> None:
    """Rename a folder; another process that waits for a lock in it may make it anew at this moment, and soon leaves it empty."""
    until = time.monotonic() + _SHORTLY
    while True:
        try:
            return os.replace(new, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or time.monotonic() >= until:
                raise
            time.sleep(0.01)


def restore_folder(folder: Path) -> None:
    """Bring back `folder` where a process was killed while `replace_folder` had put it aside; where it is there, clear that up.

    Nothing is touched of a process that may still be running, unless it was put aside a day ago.
    """
    folder = folder.resolve()
    name = re.escape(_cut(folder.name))
    put_aside = re.compile(rf"\.{name}\.(?:(?P<host>[0-9a-f]{{8}})-)?(?P<pid>[0-9]+)(?:-[0-9]+)?\.old", re.DOTALL)
    try:
        found = [(entry, match) for entry in folder.parent.iterdir() if (match := put_aside.fullmatch(entry.name))]
    except OSError:
        return
    for old, match in found:
        with contextlib.suppress(OSError):  # another process may do it too
            ended = match["host"] in (None, _HOST) and not is_running(int(match["pid"]))
            if not ended and time.time() - old.stat().st_ctime < _DAY:  # a renaming sets that time, and not the other
                continue
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(old, folder)


def check_folder(folder: str | os.PathLike[str], option: str) -> Path:
    """The path of a folder to write into, which need not be there yet; `option` is what the user calls it, for the message.

    Raises:
        InputError: it is a file, or is to be in one, or is the address of a bucket.
    """
    check_no_address(folder, option)
    folder = expanded(folder)
    file = next((path for path in (folder, *folder.parents) if path.is_file()), None)
    if file is not None:
        raise InputError(f"{option}={folder}: {file} is a file; expected a folder, or none there yet: choose another")
    return folder


def write_bytes(path: str | os.PathLike[str], blob: bytes) -> Path:
    """Write `blob`, atomically."""
    return write_atomic(path, lambda p: p.write_bytes(blob))
