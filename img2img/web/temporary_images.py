"""The images of the page: a private folder of files that live for an hour, and nothing else that a URL can name.

What is outside knows an image as `/images/TOKEN/image.png`; where the folder is stays private.
"""

import atexit
import contextlib
import functools
import os
import secrets
import shutil
import tempfile
import threading
import time
from pathlib import Path

from img2img.web.limits import RefusedError

try:
    import fcntl
except ImportError:  # Windows, where the system empties its temporary folder
    fcntl = None  # type: ignore[assignment]

KEEP_SECONDS = 3600
KEEP_BYTES = 2_000_000_000
URL_PREFIX = "/images"
TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
}
"""What is served as what: images, which no browser runs."""

_PREFIX = "img2img-served-"


class TemporaryImages:
    """A folder that only this user can read, of no more than `KEEP_BYTES` at any moment.

    Args:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._lasting: set[Path] = set()
        self._writing = threading.Lock()

    def add(self, blob: bytes, suffix: str) -> Path:
        """Keep an image under a name that cannot be guessed; the oldest ones go where there is no room for it.

        Raises:
            RefusedError: 503 where it finds no room, even so.
        """
        folder = self.path / secrets.token_urlsafe(24)
        path = folder / f"image{suffix}"
        with self._writing:  # one at a time, so that none counts bytes that another is about to write
            if self._make_room(len(blob)) + len(blob) > KEEP_BYTES:
                raise RefusedError(503, "the service has no room for another image: try again later")
            folder.mkdir()
            try:
                path.write_bytes(blob)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return path

    def keep_all(self) -> None:
        """Never clean away what is there now."""
        self._lasting.update(path for path in self.path.rglob("*") if path.is_file())

    def public(self, path: Path) -> str:
        """The name by which an image of the folder is known outside."""
        return f"{URL_PREFIX}/{path.relative_to(self.path).as_posix()}"

    def find(self, name: str) -> Path | None:
        """The image of a public name, or None where there is none in the folder: whatever else the name may lead to."""
        if not name.startswith(f"{URL_PREFIX}/"):
            return None
        try:
            path = Path(f"{self.path}/{name.removeprefix(f'{URL_PREFIX}/')}").resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            return None
        return path if path.is_relative_to(self.path) and path.is_file() and path.suffix in TYPES else None

    def delete(self) -> None:
        """Delete it, with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def clean(self) -> None:
        """Delete what is older than `KEEP_SECONDS`."""
        with self._writing:
            self._make_room(0)

    def _make_room(self, size: int) -> int:
        """Delete what is old, and then the oldest until `size` more bytes fit into `KEEP_BYTES`; how many bytes are left."""
        found, total = [], 0
        for path in self.path.rglob("*"):
            try:
                if path.is_file():
                    status = path.stat()
                    total += status.st_size
                    if path not in self._lasting:
                        found.append((status.st_mtime, status.st_size, path))
            except OSError:
                continue
        oldest = time.time() - KEEP_SECONDS
        for modified, bytes_, path in sorted(found):
            if modified >= oldest and total + size <= KEEP_BYTES:
                break
            path.unlink(missing_ok=True)
            total -= bytes_
            with contextlib.suppress(OSError):
                path.parent.rmdir()  # where it is empty
        return total


@functools.cache
def private_folder() -> TemporaryImages:
    """The process's one folder, which goes when the process ends; Gradio is told to use it, and to tell nobody of it.

    Folders of processes that were killed go too. Call it before Gradio is imported.
    """
    _delete_abandoned()
    folder = TemporaryImages(_locked_folder())
    atexit.register(folder.delete)
    os.environ |= {
        "GRADIO_TEMP_DIR": str(folder.path),
        "GRADIO_EXAMPLES_CACHE": str(folder.path / "examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return folder


def _locked_folder() -> Path:
    """A new folder that this process holds a lock on for as long as it lives, however it ends."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        if fcntl is None or _lock(path) is not None:
            return path


def _delete_abandoned() -> None:
    """Delete the folders that no process holds: those of services that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if fcntl is None or path.is_symlink() or not path.is_dir() or path.stat().st_uid != os.getuid():
                continue
            if (held := _lock(path)) is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(held)
        except OSError:
            continue


def _lock(path: Path) -> int | None:
    """A lock on a folder, as an open file; None where another process has it, or has just deleted the folder."""
    try:
        opened = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(opened).st_nlink and path.is_dir():
            return opened
    except OSError:
        pass
    os.close(opened)
    return None
