"""Which files a set reads, and whether they are still what they were: sizes and hashes of contents by name.

A file is known by its content, since a copy of a folder has other times, and lies elsewhere. Where size and time are as they were
noted, the noted hash is taken for the content's, so that only what is new or was touched is opened. The time is that of the last
change that the system knows of: archives and programs that set times back do not hide one.
"""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_READERS = 8
"""Threads that read files: a disk far away answers several at once."""
_AT_ONCE = 4096
_SHOWN = 3


class FileChecksum(NamedTuple):
    """What tells a file's content from others.

    Attributes:
        size: in bytes; -1 where it could not be read.
        time: of its last change, of content or name, in nanoseconds; a hint only, see the module.
        digest: of its content, hexadecimal.
    """

    size: int
    time: int
    digest: str


def file_checksums(files: Iterable[tuple[str, Path]], known: Mapping[str, FileChecksum] | None = None) -> dict[str, FileChecksum]:
    """The stamp of every file by name, sorted by name.

    Args:
        files: names and paths; the names say nothing of where the data lies.
        known: stamps that were made of them before, whose digests stand where size and time have not changed.
    """
    named = sorted(files)
    found: dict[str, FileChecksum] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(named), _AT_ONCE):
            some = named[start : start + _AT_ONCE]
            made = pool.map(lambda entry: _stamp(entry[1], (known or {}).get(entry[0])), some)
            found |= {name: stamp for (name, _), stamp in zip(some, made, strict=True)}
    return found


def _stamp(path: Path, known: FileChecksum | None) -> FileChecksum:
    try:
        state = path.stat()
        size, time = state.st_size, max(state.st_mtime_ns, state.st_ctime_ns)
        if known is not None and (known.size, known.time) == (size, time):
            return known
        return FileChecksum(size, time, _digest(path, size, time))
    except OSError:  # whoever needs the file says so; here it is one that is not there
        return FileChecksum(-1, 0, "")


_KEPT = 1 << 20
"""Digests that are kept in memory, 200 bytes each: the parts and tasks of a run share files."""
_digests: dict[bytes, bytes] = {}


def _digest(path: Path, size: int, time: int) -> str:
    """Of a file's content, read once in a process while it stays what it is.

    What is kept first stays: of files that are asked for in one order, the one used longest ago is the next.
    """
    stamp = hashlib.blake2b(f"{path}\0{size}\0{time}".encode("utf-8", "surrogateescape"), digest_size=16).digest()
    found = _digests.get(stamp)
    if found is None:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
        if len(_digests) < _KEPT:
            _digests[stamp] = found
    return found.hex()


def combined_digest(found: Mapping[str, FileChecksum]) -> str | None:
    """A hash of names and contents, the same wherever the files lie; None where there are no files."""
    if not found:
        return None
    lines = (f"{name}\0{found[name].size}\0{found[name].digest}\n" for name in sorted(found))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class FileChanges:
    """What is another between two sets of files, by name; false where nothing is.

    Attributes:
        added: only in the second.
        removed: only in the first.
        changed: in both, with another content.
        moved: in both with the same content, but in another part: the names in the second.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    moved: tuple[str, ...]

    def __bool__(self) -> bool:
        return any((self.added, self.removed, self.changed, self.moved))

    def __str__(self) -> str:
        kinds = {"added": self.added, "removed": self.removed, "changed": self.changed, "moved to another part": self.moved}
        return ", ".join(f"{len(names)} {what} ({_few(names)})" for what, names in kinds.items() if names)


def file_changes(before: Mapping[str, FileChecksum], now: Mapping[str, FileChecksum]) -> FileChanges:
    """What differs between two sets of stamps; times do not count. What stands before the first "/" of a name is its part."""

    def content(found: Mapping[str, FileChecksum], name: str) -> tuple[str, int, str]:
        return name.partition("/")[2], found[name].size, found[name].digest

    added, removed = sorted(now.keys() - before.keys()), sorted(before.keys() - now.keys())
    gone = {content(before, name) for name in removed}
    moved = tuple(name for name in added if content(now, name) in gone)
    come = {content(now, name) for name in moved}
    return FileChanges(
        added=tuple(name for name in added if content(now, name) not in come),
        removed=tuple(name for name in removed if content(before, name) not in come),
        changed=tuple(n for n in sorted(before.keys() & now.keys()) if before[n]._replace(time=0) != now[n]._replace(time=0)),
        moved=moved,
    )


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
