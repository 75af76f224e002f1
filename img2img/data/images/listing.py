"""Which files of a folder are images, and which of them are a dataset's or a command's input."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from img2img.data.warn_once import warn_once
from img2img.errors import InputError
from img2img.files.paths import expanded

EXTENSIONS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
        *(".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        *(".pbm", ".pgm", ".ppm", ".pnm", ".tga", ".pcx", ".qoi"),
    }
)
"""What `list_images` takes for an image, in any case: the formats of photos, scans and drawings that Pillow decodes by itself.

Left out of what it reads are icons (a file holds several sizes), textures of games, page descriptions (EPS, WMF: other
programs draw them), videos, and measurements whose white no file states (FITS, PFM).
"""

_SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # network storage
        *("__macosx", "lost+found", "__pycache__"),
        *("$recycle.bin", "recycler", "system volume information"),
    }
)
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_MARKS = ({"progress.json"}, {"bundle.json"}, {"runs.jsonl"}, {"results.json", "report.html"}, {"summary.json", "index.html"})
"""A folder is one of results where it holds all files of one of these: a run, a bundle, a suite, a report."""

_excluded: ContextVar[frozenset[str]] = ContextVar("excluded", default=frozenset())


@contextmanager
def excluding(folders: Iterable[str | os.PathLike[str]]) -> Iterator[None]:
    """`scan` leaves these folders out for the length of the block, wherever it is called from."""
    token = _excluded.set(_excluded.get() | _real(folders))
    try:
        yield
    finally:
        _excluded.reset(token)


@dataclass(frozen=True)
class SkippedFiles:
    """What of a folder is not read, other than what is hidden or a system's.

    Attributes:
        others: how many files have each extension that is no image's, in lower case.
        results: the folders that hold results.
    """

    others: Counter[str] = field(default_factory=Counter)
    results: tuple[Path, ...] = ()

    def __add__(self, other: "SkippedFiles") -> "SkippedFiles":
        return SkippedFiles(self.others + other.others, self.results + other.results)

    def __str__(self) -> str:
        parts = []
        if count := self.others.total():
            kinds = ", ".join(f"{ending or 'no extension'}: {n}" for ending, n in self.others.most_common(6))
            more = ", ..." if len(self.others) > 6 else ""
            parts.append(f"{count} other {'file' if count == 1 else 'files'} ({kinds}{more})")
        if self.results:
            more = f" and {len(self.results) - 1} more" if len(self.results) > 1 else ""
            parts.append(f"{self.results[0]}{more}, where results are")
        return " and ".join(parts)

    def warn(self, folder: Path, used: int) -> None:
        """Warn of them, if there are any, with the number of `used` images of `folder`."""
        if skipped := str(self):
            warn_once(f"{folder}: {used} images; left out {skipped}. Convert whatever of it should be an image")


def list_images(folder: str | os.PathLike[str], *, exclude: Iterable[str | os.PathLike[str]] = ()) -> list[Path]:
    """Every image in `folder` and its subfolders, known by `EXTENSIONS`, sorted by the path below `folder`.

    Hidden files and folders are skipped, and those that systems make for themselves (`@eaDir`, `__MACOSX`, recycle bins). So are
    subfolders where results are: a run (it has a `progress.json`), a bundle, a suite, a report, and those of `exclude`. Linked
    folders are followed, each once. What was left out, other than what is hidden or a system's, is counted in a warning.

    Args:
        folder: where to look.
        exclude: folders below it that are left out, such as the one that results go to.

    Raises:
        InputError: no such folder, or no image in it.
    """
    listing = scan(folder, exclude=exclude)
    listing.left_out.warn(expanded(folder), len(listing.images))
    return list(listing.images)


@dataclass(frozen=True)
class FolderTimes:
    """When folders that were read had changed last.

    Attributes:
        folders: each one with the time of its last change in nanoseconds: names come and go with such a change.
        time: when the first was read, in nanoseconds.
    """

    folders: dict[str, int]
    time: int

    def is_current(self) -> bool:
        """Whether reading them again would find the same names."""
        try:
            return all(os.stat(path).st_mtime_ns == changed for path, changed in self.folders.items())
        except OSError:
            return False

    def is_settled(self) -> bool:
        """Whether the next change of a folder is sure to get another time: clocks of file systems are coarse."""
        return max(self.folders.values(), default=0) < self.time - _SETTLED


@dataclass(frozen=True)
class Listing:
    """What a walk through a folder found.

    Attributes:
        images: sorted by the path below the folder.
        left_out: what is no image.
        times: those of the folders that were read.
    """

    images: list[Path]
    left_out: SkippedFiles
    times: FolderTimes


def scan(
    folder: str | os.PathLike[str], *, exclude: Iterable[str | os.PathLike[str]] = (), results_alone: bool = False
) -> Listing:
    """What `list_images` returns, and what was left out, without a warning.

    With `results_alone` a folder of results and nothing else gives no image and no error.
    """
    folder = require_folder(folder)
    key = str(folder), os.path.realpath(folder), _excluded.get() | _real(exclude)  # a relative path may come to mean another
    listing = _kept.get(key)
    if listing is None or not listing.times.is_current():
        listing = _walk(folder, key[2])
        with _keeping:
            _kept.pop(key, None)
            if listing.times.is_settled():
                _kept[key] = listing
            while len(_kept) > _KEPT:
                _kept.pop(next(iter(_kept)))
    left_out = listing.left_out
    if not listing.images and not (results_alone and left_out.results and not left_out.others):
        raise InputError(
            f"no image in {folder} ({str(left_out) or 'it is empty'}): expected files that end in "
            f"{', '.join(sorted(EXTENSIONS))}; check the folder"
        )
    return listing


_SETTLED = 2 * 10**9
_KEPT = 8
_kept: dict[tuple[str, str, frozenset[str]], Listing] = {}
"""The last listings: all tasks of a sequence may ask for one folder of a hundred thousand photos."""
_keeping = threading.Lock()


def _walk(folder: Path, excluded: frozenset[str]) -> Listing:
    found: list[tuple[str, str, str]] = []
    others: Counter[str] = Counter()
    results: list[Path] = []
    read: dict[str, int] = {}
    start = time.time_ns()
    for here, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        if (real := os.path.realpath(here)) in read:
            folders.clear()
            continue
        read[real] = os.stat(real).st_mtime_ns
        # The folder itself was asked for, whatever it is.
        if here != str(folder) and (real in excluded or _holds_results(set(files))):
            results.append(Path(here))
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not _is_hidden(f))
        below = "" if here == str(folder) else f"{Path(here).relative_to(folder).as_posix()}/"
        for name in files:
            if name.startswith(".") or name.lower() in _SYSTEM_FILES:
                continue
            if (ending := os.path.splitext(name)[1].lower()) in EXTENSIONS:
                found.append((below + name, here, name))
            else:
                others[ending] += 1
    return Listing(
        [Path(here, name) for _, here, name in sorted(found)], SkippedFiles(others, tuple(results)), FolderTimes(read, start)
    )


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in `folder` that are not hidden, a system's, or left out, sorted."""
    excluded = _excluded.get()
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not _is_hidden(p.name))
    return [name for name in names if os.path.realpath(folder / name) not in excluded and not _holds_results_at(folder / name)]


def require_folder(folder: str | os.PathLike[str]) -> Path:
    """`folder` as a path with `~` expanded, or an `InputError` that names the nearest folder above it that exists."""
    path = expanded(folder)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{path} is a file: expected a folder; give the folder that holds it")
    nearest = next(p for p in path.absolute().parents if p.exists())
    raise InputError(f"no folder at {path} (the nearest that exists is {nearest}): check the path, or unpack the data there")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def _holds_results(files: set[str]) -> bool:
    return any(marks <= files for marks in _MARKS)


def _holds_results_at(folder: Path) -> bool:
    return any(all((folder / name).is_file() for name in marks) for marks in _MARKS)


def _real(folders: Iterable[str | os.PathLike[str]]) -> frozenset[str]:
    return frozenset(os.path.realpath(expanded(folder)) for folder in folders)


def _refuse(error: OSError) -> None:
    """A folder that cannot be read is an error: `os.walk` would leave its images out without a word."""
    raise error
