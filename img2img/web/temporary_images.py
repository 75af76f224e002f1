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

from img2img.files.lock import NAME, FolderInUseError, hold
from img2img.web.limits import RefusedError

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

_PREFIX = "img2img-images-"


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
                if path.is_file() and path.name != NAME:
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
    """The process's one folder, which goes when the process ends; Gradio is set to use it, and to report nothing about its use.

    Folders of processes that were killed go too. Call it before Gradio is imported.
    """
    _delete_abandoned()
    folder = TemporaryImages(Path(tempfile.mkdtemp(prefix=_PREFIX)))
    lock = contextlib.ExitStack()
    lock.enter_context(hold(folder.path))
    atexit.register(lock.close)
    atexit.register(folder.delete)  # before the lock is given back
    os.environ |= {
        "GRADIO_TEMP_DIR": str(folder.path),
        "GRADIO_EXAMPLES_CACHE": str(folder.path / "examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return folder


def _delete_abandoned() -> None:
    """Delete the folders of services that were killed: those with a lock that no process holds.

    One without a lock may have been made at this moment.
    """
    if not hasattr(os, "getuid"):  # Windows, where the system empties its temporary folder
        return
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, FolderInUseError):
            if not path.is_symlink() and (path / NAME).is_file() and path.stat().st_uid == os.getuid():
                with hold(path, wait=0):
                    shutil.rmtree(path, ignore_errors=True)
