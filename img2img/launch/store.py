"""Where run folders lie: in a folder that all machines see, or in a bucket, through fsspec.

A folder is used where it is. From a bucket a machine copies a run folder to its own disk, works there, and copies what has
changed back every few seconds and at the end, oldest changes first. So the bucket has what the folder had at some moment. A run
that is killed goes on from there on another machine.
"""

import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from img2img.errors import InputError, first_line
from img2img.extras import require
from img2img.files.json_files import parse_json
from img2img.files.lock import NAME as LOCK
from img2img.files.paths import expanded

logger = logging.getLogger("img2img")

EVERY = 10.0
"""Seconds between two copies of what has changed into a bucket."""


def is_remote(root: str) -> bool:
    """Whether `root` is the address of a bucket (`s3://…`), not a folder."""
    return "://" in root


class Store:
    """Run folders below a root, by names such as `jobs/colour`; "" is the root itself.

    Args:
        root: a folder, or an address that fsspec knows.

    Raises:
        InputError: fsspec does not know the address, or lacks the package for it.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._fs: Any = None
        if is_remote(root):
            fsspec = require("fsspec", extra="ray", what=f"out={root}")
            try:
                self._fs, self._prefix = fsspec.core.url_to_fs(root.rstrip("/"))
            except (ImportError, ValueError) as error:
                raise InputError(
                    f"out={root} cannot be reached ({first_line(error)}): install fsspec's package for it, such as s3fs for "
                    "s3://, or give a folder that all machines see"
                ) from error

    @property
    def remote(self) -> bool:
        """Whether it is a bucket."""
        return self._fs is not None

    def path(self, name: str = "") -> Path:
        """A folder of a root that is one."""
        return expanded(self.root) / name

    @contextmanager
    def working(self, name: str) -> Iterator[Path]:
        """A folder to work in; of a bucket a copy, whose changes are in the bucket after the block, and mostly during it."""
        if not self.remote:
            yield self.path(name)
            return
        with self.copy(name) as folder:
            mirror = _Mirror(self._fs, self._address(name), folder)
            with mirror.kept():
                yield folder

    @contextmanager
    def copy(self, name: str) -> Iterator[Path]:
        """A folder to read; of a bucket a copy that is removed after the block."""
        if not self.remote:
            yield self.path(name)
            return
        folder = Path(tempfile.mkdtemp(prefix="img2img-"))
        try:
            for file in self._files(name):
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(f"{self._address(name)}/{file}", str(target))
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def read_json(self, name: str, file: str) -> Any:
        """The value of a JSON file in a run folder; None where there is none, or half of one."""
        try:
            if not self.remote:
                return parse_json((self.path(name) / file).read_bytes())
            return parse_json(self._fs.cat_file(f"{self._address(name)}/{file}"))
        except (OSError, ValueError):
            return None

    def remove(self, name: str) -> None:
        """Remove a folder and all in it; one that is not there is none to remove."""
        if not self.remote:
            shutil.rmtree(self.path(name), ignore_errors=True)
        elif files := self._files(name):
            self._fs.rm([f"{self._address(name)}/{file}" for file in files])

    def _address(self, name: str) -> str:
        return f"{self._prefix}/{name}" if name else str(self._prefix)

    def _files(self, name: str) -> list[str]:
        """The files of a run folder in a bucket; of the root without those of jobs."""
        self._fs.invalidate_cache()
        start = self._address(name) + "/"
        found = [path.removeprefix(start) for path in self._fs.find(start) if path.startswith(start)]
        return found if name else [file for file in found if not file.startswith("jobs/")]


class _Mirror:
    """Copies what changes in a folder into a bucket.

    Args:
        fs: fsspec's file system.
        address: of the folder there.
        folder: holds what the bucket has.
    """

    def __init__(self, fs: Any, address: str, folder: Path) -> None:
        self._fs, self._address, self._folder = fs, address, folder
        self._there = self._now()
        self._ended = threading.Event()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Copy every few seconds for the length of the block, and at its end, whether or not it fails."""
        thread = threading.Thread(target=self._repeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            self.push()

    def push(self) -> None:
        """Copy what has changed, oldest changes first, then remove what is gone."""
        now = self._now()
        for file, stamp in sorted(now.items(), key=lambda each: each[1]):
            if self._there.get(file) != stamp:
                try:
                    self._fs.put_file(str(self._folder / file), f"{self._address}/{file}")
                except FileNotFoundError:
                    continue  # it was removed since
                self._there[file] = stamp
        for file in self._there.keys() - now.keys():
            self._fs.rm_file(f"{self._address}/{file}")
            del self._there[file]

    def _repeat(self) -> None:
        while not self._ended.wait(EVERY):
            try:
                self.push()
            except Exception as error:  # the next time may be better, and the last one raises what is wrong
                logger.warning("could not copy into %s (%s): trying again", self._address, first_line(error))

    def _now(self) -> dict[str, tuple[int, int]]:
        """The files, with the time of their last change and their bytes."""
        found = {}
        for path in self._folder.rglob("*"):
            if path.name == LOCK or path.name.endswith(".tmp"):
                continue
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            if path.is_file():
                found[path.relative_to(self._folder).as_posix()] = stat.st_mtime_ns, stat.st_size
        return found
