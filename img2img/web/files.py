"""The pictures of the page: a private folder of files that live for an hour, and nothing else that a URL can name."""

import atexit
import functools
import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path

KEEP_SECONDS = 3600
KEEP_BYTES = 2_000_000_000
TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
}
"""What is served as what: pictures, which no browser runs."""


class PictureFolder:
    """A folder that only this user can read.

    Args:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._lasting: set[Path] = set()

    def add(self, blob: bytes, suffix: str) -> Path:
        """Keep a picture under a name that cannot be guessed."""
        folder = self.path / secrets.token_urlsafe(24)
        folder.mkdir()
        path = folder / f"picture{suffix}"
        path.write_bytes(blob)
        return path

    def keep_all(self) -> None:
        """Never clean away what is there now."""
        self._lasting.update(path for path in self.path.rglob("*") if path.is_file())

    def find(self, name: str) -> Path | None:
        """The picture of this path, or None where there is none in the folder: whatever else the path may lead to."""
        try:
            path = Path(name).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            return None
        return path if path.is_relative_to(self.path) and path.is_file() and path.suffix in TYPES else None

    def clean(self) -> None:
        """Delete what is older than `KEEP_SECONDS`, and then the oldest until `KEEP_BYTES` are left at most."""
        found = []
        for path in self.path.rglob("*"):
            try:
                if path.is_file() and path not in self._lasting:
                    status = path.stat()
                    found.append((status.st_mtime, status.st_size, path))
            except OSError:
                continue
        total, oldest = sum(size for _, size, _ in found), time.time() - KEEP_SECONDS
        for modified, size, path in sorted(found):
            if modified >= oldest and total <= KEEP_BYTES:
                break
            path.unlink(missing_ok=True)
            total -= size
        for folder in self.path.iterdir():
            try:
                folder.rmdir()  # the empty ones
            except OSError:
                continue


@functools.cache
def private_folder() -> PictureFolder:
    """The process's one folder, which goes when the process ends; Gradio is told to use it, and to tell nobody of it.

    Call it before Gradio is imported.
    """
    path = Path(tempfile.mkdtemp(prefix="img2img-serve-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    os.environ |= {
        "GRADIO_TEMP_DIR": str(path.resolve()),
        "GRADIO_EXAMPLES_CACHE": str(path.resolve() / "examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return PictureFolder(path)
