"""Images that come in for a training: one by one or in a zip, into folders of their own, each checked before it is kept.

A name becomes a path below the training's folder or is refused. What a zip says of its sizes is not believed: its list of files
is bounded before it is read, and each file while it is unpacked.
"""

import os
import shutil
import struct
import threading
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from img2img.data.images.listing import EXTENSIONS
from img2img.web.image_decode import open_upload
from img2img.web.limits import Limits, RefusedError, TeachOptions

Kind = Literal["pairs", "labels", "style"]
ROLES: Mapping[Kind, Mapping[str, Sequence[str]]] = {
    "pairs": {"inputs": ("inputs", "input"), "targets": ("targets", "target")},
    "labels": {"images": ("images", "image", "photos"), "labels": ("labels", "label", "masks", "mask", "annotations")},
    "style": {"style": ("style",), "images": ("images", "photos")},
}
"""What each kind of training takes, and the names of folders in which it is found where one upload holds all: outermost ones, or
within a single folder around them.
"""

FORMATS = EXTENSIONS & {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
MAX_DEPTH, MAX_NAME = 8, 120
LIST_BYTES = 16_000_000
"""Of a zip's list of files."""
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Of a zip's files: of others `zipfile` unpacks a whole block of what it reads, which may be millions of times as large."""


class TeachFiles:
    """The images of one training.

    Args:
        folder: where they go, each role in a folder of its own.
        kind: of the training.
        options: the bounds.
    """

    def __init__(self, folder: Path, kind: Kind, options: TeachOptions) -> None:
        self.folder, self._kind, self._options = folder, kind, options
        self._limits = replace(Limits(), pixels=options.pixels)
        self._lock = threading.Lock()
        self._sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        self._names: dict[Path, tuple[str, str]] = {}
        self._closed = ""

    @property
    def counts(self) -> dict[str, int]:
        """How many images each role has."""
        return {role: sum(path.is_relative_to(self.folder / role) for path in list(self._sizes)) for role in ROLES[self._kind]}

    @property
    def size(self) -> int:
        """Bytes of all images."""
        return sum(list(self._sizes.values()))

    def add(self, role: str, name: str, blob: bytes) -> None:
        """Keep an image; one of the same name is replaced.

        Args:
            role: what it is, unless a folder in its name says.
            name: a path with slashes.
            blob: the file.

        Raises:
            RefusedError: no image, too large, one too many, a name that is none, or one whose place another image has; or no more
                are taken.
        """
        path = self._path(role, name)
        if path.suffix.lower() not in FORMATS:
            raise RefusedError(415, f"{name[-80:]!r} is no image: expected a name that ends in {', '.join(sorted(FORMATS))}")
        open_upload(blob, self._limits)
        with self._lock:
            if self._closed:
                raise RefusedError(409, f"the training {self._closed}: it takes no more images")
            self._check_room(path, len(blob))
            self._check_place(path, role, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(blob)
            self._sizes[path], self._names[path] = len(blob), (role, name)

    def add_zip(self, role: str, archive: BinaryIO, *, most: int) -> int:
        """Keep the images of a zip, of no more than `most` bytes each; how many other files it had.

        Raises:
            RefusedError: no zip, too much in it, a name that leads elsewhere, or one of the images is refused.
        """
        _check_list(archive, self._options.files)
        others = 0
        try:
            with zipfile.ZipFile(archive) as opened:
                if len(opened.infolist()) > 2 * self._options.files:  # what its end says of their number is not believed
                    raise _too_many_files(self._options.files)
                for entry in opened.infolist():
                    if entry.is_dir() or _is_hidden(entry.filename):
                        continue
                    self._path(role, entry.filename)
                    if PurePosixPath(entry.filename).suffix.lower() not in FORMATS:
                        others += 1
                        continue
                    if entry.compress_type not in COMPRESSIONS:
                        raise RefusedError(
                            422,
                            f"{entry.filename[-80:]!r} is compressed in an unusual way: expected a zip whose files are deflated "
                            "or stored, as most programs make them; pack it anew",
                        )
                    with opened.open(entry) as content:
                        blob = content.read(most + 1)
                    if len(blob) > most:
                        raise RefusedError(413, f"{entry.filename[-80:]!r} is larger than {most:,} bytes: make it smaller")
                    self.add(role, entry.filename, blob)
        except RefusedError:
            raise
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OSError, struct.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise RefusedError(
                422, "the zip cannot be read: it is damaged, encrypted or of an unusual kind; pack it anew"
            ) from error
        except Exception as error:  # zlib.error, lzma.LZMAError, ...
            raise RefusedError(422, "the zip is damaged: pack it anew") from error
        return others

    def root(self, role: str) -> Path:
        """The folder of a role, without folders around it that hold nothing but one other."""
        folder = self.folder / role
        while folder.is_dir() and len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
            folder = inside[0]
        return folder

    def close(self, why: str) -> None:
        """Take no more images, as the training "has begun" or "was discarded"."""
        with self._lock:
            self._closed = why

    def delete(self) -> None:
        """Delete all images, and take no more; one that is just being written is whole before it is deleted."""
        with self._lock:
            self._closed = self._closed or "was discarded"
            shutil.rmtree(self.folder, ignore_errors=True)
            self._sizes.clear()
            self._names.clear()

    def _path(self, role: str, name: str) -> Path:
        roles = ROLES[self._kind]
        if role not in roles:
            raise RefusedError(404, f"no {role[:40]!r} in this training: expected {' or '.join(roles)}")
        parts = PurePosixPath(name.replace("\\", "/")).parts
        fine = 0 < len(parts) <= MAX_DEPTH and all(_is_name(part) for part in parts)
        if not fine:
            raise RefusedError(422, f"{name[:80]!r} is no name of an image: expected one such as photos/1.jpg")
        for i, part in enumerate(parts[:-1][:2]):
            found = next((role for role, words in roles.items() if part.lower() in words), None)
            if found is not None:
                role, parts = found, parts[i + 1 :]
                break
        return self.folder.joinpath(role, *parts)

    def _check_place(self, path: Path, role: str, name: str) -> None:
        """Refuse an image that would take the place of another, or of a folder of others."""
        place = path.relative_to(self.folder).as_posix()
        other = self._names.get(path, (role, name))
        if other != (role, name):
            raise RefusedError(
                409, f"{name[-80:]!r} would become {place[-80:]}, as {other[1][-80:]!r} has: give one of them another name"
            )
        above = next((folder for folder in path.parents if folder in self._sizes), None)
        if above is not None or path.is_dir():
            raise RefusedError(
                409, f"{place[-80:]!r}: there is an image where its folder would be, or a folder where it would be"
            )

    def _check_room(self, path: Path, size: int) -> None:
        options, known = self._options, self._sizes.get(path)
        if known is None and len(self._sizes) >= options.files:
            raise RefusedError(413, f"too many files: expected {options.files:,} at most; leave some out")
        if self.size - (known or 0) + size > options.upload_bytes:
            raise RefusedError(413, f"too many bytes: expected {options.upload_bytes:,} for all images; leave some out")


def _is_name(part: str) -> bool:
    return (
        part not in ("", ".", "..", "/")
        and len(part.encode()) <= MAX_NAME
        and part.isprintable()
        and not set(part) & set('/\\:*?"<>|')
    )


def _is_hidden(name: str) -> bool:
    """Whether a system made it for itself."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts)


def _check_list(file: BinaryIO, files: int) -> None:
    """Refuse a zip whose list of files is longer than bounds, before `zipfile` reads the list into memory."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 65_557))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < 22:
        raise RefusedError(415, "these bytes are no zip, or not all of one: expected a zip of images")
    entries, list_bytes = struct.unpack_from("<HI", tail, at + 10)
    if tail[max(0, at - 20) : at].startswith(b"PK\6\7") or entries == 0xFFFF:
        raise RefusedError(422, "a zip of the kind Zip64, for more than 65,535 files or 4 GB: pack fewer images")
    if entries > 2 * files or list_bytes > LIST_BYTES:
        raise _too_many_files(files)


def _too_many_files(files: int) -> RefusedError:
    return RefusedError(413, f"too many files in the zip: expected {files:,} at most; leave some out")
