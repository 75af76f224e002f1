"""What was decoded once, on disk: bytes by key, for several processes that read and write at once.

A cache is a folder with a folder for each set of options. Such a set is two files that only grow: `images`, the bytes one after
another, read through memory maps, and `index`, a record of fixed size for each entry: key, place, checksums. Whoever writes holds
the cache's lock, appends the bytes first and then the record, so that a process that is killed at any moment leaves at most bytes
that no record names; the next one writes over them. A record or bytes that a lost disk left damaged fail their checksum and are
decoded again.

The cache never grows beyond its bound. Where something new does not fit, whole sets that no process has open are deleted, the
one opened longest ago first. Of a set in use nothing is deleted: what finds no room is not stored. An order in which the least
recently used images went first would lose every image of a set that is a little too large just before its next epoch asks for it.
"""

import contextlib
import hashlib
import json
import mmap
import os
import re
import shutil
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from img2img.data.warn_once import warn_once
from img2img.errors import InputError
from img2img.files.atomic import make_folder
from img2img.files.paths import expanded

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

KEEP_FREE = 1 << 30
"""Bytes of the disk that are left to others, such as a run's checkpoints."""
_RECORD = struct.Struct("<16sQQII")
"""Key, offset, length, checksum of the bytes, checksum of the record before this."""
_opening = threading.Lock()
_LOCK, _INDEX, _DATA, _ABOUT = "lock", "index", "images", "about.json"
_SET = re.compile("[0-9a-f]{32}")
"""The name of a set's folder, see `DiskCache.open_set`."""


class DiskCache:
    """A folder that keeps decoded images within a bound.

    Args:
        folder: it is made if need be; whatever else lies in it is left alone. Any number of processes of one
            machine may use it at once.
        max_bytes: the bound on all files in it.

    Raises:
        InputError: a bound below 0, a folder that cannot be written, or a system or disk without file locks.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int) -> None:
        if max_bytes < 0:
            raise InputError(f"cache: got a bound of {max_bytes} bytes: expected 0 or more; correct cache_gb")
        self.folder = expanded(folder)
        self.max_bytes = max_bytes
        self._owner = os.getpid()
        try:
            if fcntl is None:
                raise OSError("this system has no flock")
            make_folder(self.folder)
            with self.locked():
                pass
        except OSError as error:
            raise InputError(
                f"cache_dir={self.folder} cannot be used ({error}): expected a folder that can be written, on a disk with file "
                "locks; give one on a local disk, or leave cache_dir out"
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other writers out, threads among them."""
        handle = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # the system drops it when the process ends, however it ends
            yield
        finally:
            os.close(handle)

    def open_set(self, about: Mapping[str, Any]) -> "CachedSet":
        """What is kept for these options, plain values, which are written beside it for people to read."""
        text = json.dumps(about, sort_keys=True, indent=1, default=str)
        name = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        return CachedSet(self, name, text)

    def warn_full(self, more: str) -> None:
        """Say once that nothing more can be stored; the processes that load images for this one leave that to it."""
        if os.getpid() == self._owner:
            warn_once(
                f"the cache {self.folder} is full{more}; its bound is {self.max_bytes / 1e9:g} GB (cache_gb), and "
                f"{KEEP_FREE / 1e9:.1f} GB of the disk are left free. It keeps what it has, and other images are decoded each "
                "time: raise cache_gb, make room on the disk, or make the images smaller with data.resize"
            )

    def used_bytes(self) -> int:
        """What the files of all sets take."""
        total = 0
        for path in self._sets():
            for name in (_INDEX, _DATA, _ABOUT):
                with contextlib.suppress(OSError):
                    total += os.stat(f"{path}/{name}").st_size
        return total

    def make_room(self, size: int) -> bool:
        """Whether so many bytes more may be written; deletes sets that no process has open. For whoever holds the lock."""
        if size > self.max_bytes or shutil.disk_usage(self.folder).free < size + KEEP_FREE:
            return False
        excess = self.used_bytes() + size - self.max_bytes
        if excess <= 0:
            return True
        for path in sorted(self._sets(), key=_opened):
            if _delete_unused(path):
                excess = self.used_bytes() + size - self.max_bytes
                if excess <= 0:
                    return True
        return False

    def _sets(self) -> list[str]:
        """The folders of sets. What else lies in the cache's folder is a user's, and is neither counted nor touched."""
        with os.scandir(self.folder) as entries:
            named = [e.path for e in entries if _SET.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
        return [path for path in named if {_INDEX, _DATA, _ABOUT}.issuperset(os.listdir(path))]


def _opened(path: str) -> float:
    try:
        return os.stat(f"{path}/{_ABOUT}").st_mtime
    except OSError:
        return 0.0


def _delete_unused(path: str) -> bool:
    """Delete a set unless a process has it open."""
    with contextlib.suppress(OSError):
        handle = os.open(f"{path}/{_INDEX}", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in (_DATA, _ABOUT, _INDEX):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{path}/{name}")
            os.rmdir(path)
        finally:
            os.close(handle)
        return True
    return False


def _renew() -> None:
    global _opening
    _opening = threading.Lock()  # a thread that does not exist in the child may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


class CachedSet:
    """Bytes by key of one set of options; made by `DiskCache.open_set`. Threads may share it, and processes that are forked."""

    def __init__(self, cache: DiskCache, name: str, about: str) -> None:
        self._cache, self._name, self._about = cache, name, about
        self._process = 0  # the one that has the files open
        self._numbers: dict[int, int] = {}
        self._map: mmap.mmap | bytes = b""
        self._full = False

    def __getstate__(self) -> dict[str, Any]:
        return {"_cache": self._cache, "_name": self._name, "_about": self._about}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state.values())  # type: ignore[misc]

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; the next access opens them again. Only then may others delete the set."""
        with contextlib.suppress(OSError):
            if self._process == os.getpid():
                self._process = 0
                os.close(self._index)
                os.close(self._data)
                self._map, self._numbers = b"", {}

    def get(self, key: bytes) -> memoryview | None:
        """What was stored under a key of 16 bytes, as a view of the mapped file; None where there is nothing sound."""
        self._open()
        with self._mutex:
            number = self._numbers.get(_short(key))
            if number is None:
                self._read_index()
                number = self._numbers.get(_short(key))
            record = None if number is None else self._record(number)
            if record is None or record[0] != key:
                return None
            _, offset, length, checksum, _ = record
            if offset + length > len(self._map):
                self._map_again()
                if offset + length > len(self._map):
                    return None
            found = memoryview(self._map)[offset : offset + length]
            assert number is not None
            if not self._checked[number]:
                if zlib.crc32(found) != checksum:
                    del self._numbers[_short(key)]
                    return None
                self._checked[number] = 1
            return found

    def put(self, key: bytes, content: bytes) -> bool:
        """Store bytes under a key of 16 bytes, unless another process has; whether they are there now."""
        self._open()
        if self._full:
            return False
        try:
            with self._mutex, self._cache.locked():
                self._read_index()
                if _short(key) in self._numbers:
                    return True
                if not os.fstat(self._index).st_nlink:  # somebody deleted the folder
                    self._full = True
                elif self._cache.make_room(len(content) + _RECORD.size):
                    self._append(key, content)
                    return True
                else:
                    self._full = True
                    self._cache.warn_full("")
        except OSError as error:
            self._full = True
            self._cache.warn_full(f" ({error})")
        return False

    def warn_if_full(self, count: int) -> None:
        """Warn where fewer than `count` entries are kept and there is no room for one more of their mean size."""
        self._open()
        with self._mutex, self._cache.locked():
            self._read_index()
            kept = len(self._numbers)
            if kept < count and not self._cache.make_room(self._end // max(kept, 1) + _RECORD.size):
                self._cache.warn_full(f", with {kept} of {count} images")

    def _append(self, key: bytes, content: bytes) -> None:
        self._write(self._data, content, self._end)
        start = _RECORD.pack(key, self._end, len(content), zlib.crc32(content), 0)[:-4]
        self._write(self._index, start + struct.pack("<I", zlib.crc32(start)), self._count * _RECORD.size)
        self._read_index()

    @staticmethod
    def _write(handle: int, content: bytes, offset: int) -> None:
        left = memoryview(content)
        while left:
            written = os.pwrite(handle, left, offset)
            left, offset = left[written:], offset + written

    def _open(self) -> None:
        """Open the files in this process: locks belong to open files, which a forked process would share."""
        if self._process == os.getpid():
            return
        with _opening, self._cache.locked():
            if self._process == os.getpid():  # another thread has
                return
            self._mutex = threading.Lock()
            folder = self._cache.folder / self._name
            folder.mkdir(exist_ok=True)
            (folder / _ABOUT).write_text(self._about, encoding="utf-8", errors="surrogateescape")
            self._index, self._data = (os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666) for name in (_INDEX, _DATA))
            fcntl.flock(self._index, fcntl.LOCK_SH)  # says that the set is in use
            self._numbers = {}
            self._checked = bytearray()
            self._count = self._end = 0
            self._full = False
            self._map = b""
            self._read_index()
            self._process = os.getpid()

    def _read_index(self) -> None:
        """Learn of the records that were added, by this process or another."""
        count = os.fstat(self._index).st_size // _RECORD.size
        while self._count < count:
            found = os.pread(self._index, min(count - self._count, 1 << 14) * _RECORD.size, self._count * _RECORD.size)
            for record in _RECORD.iter_unpack(found[: len(found) // _RECORD.size * _RECORD.size]):
                if _is_sound(record):
                    self._numbers[_short(record[0])] = self._count
                    self._end = max(self._end, record[1] + record[2])
                self._count += 1
        self._checked.extend(bytes(self._count - len(self._checked)))

    def _record(self, number: int) -> tuple[bytes, int, int, int, int]:
        found: tuple[bytes, int, int, int, int] = _RECORD.unpack(os.pread(self._index, _RECORD.size, number * _RECORD.size))
        return found

    def _map_again(self) -> None:
        """Map all that the file has now; views of the map before keep that one alive."""
        size = os.fstat(self._data).st_size
        self._map = mmap.mmap(self._data, size, prot=mmap.PROT_READ) if size else b""


def _is_sound(record: tuple[bytes, int, int, int, int]) -> bool:
    return zlib.crc32(_RECORD.pack(*record)[:-4]) == record[4]


def _short(key: bytes) -> int:
    """Half of a key: the whole one is compared with the record's."""
    return int.from_bytes(key[:8], "little")
