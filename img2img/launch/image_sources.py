"""The images of folders, lists, WebDataset shards and Parquet files, as pieces of work that processes share out.

Each image has a name of its own, which is that of its result: the path below its folder, or that in its shard or file. Processes
that read need no torch, so `img2img.data` is imported where the pieces are made, and nowhere else.
"""

import hashlib
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from img2img.errors import InputError, first_line
from img2img.files.paths import expanded

Piece = dict[str, Any]
"""Plain JSON: `kind`, and where the images are."""


@dataclass(frozen=True)
class Done:
    """The images that are done: a million take 16 MB.

    Attributes:
        names: the sorted hashes of their names.
        sources: in this order, those of the files, shards or Parquet files that they came from.
    """

    names: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    sources: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))

    @classmethod
    def of(cls, hashes: Mapping[int, int]) -> Self:
        """From the hash of the source by that of the name."""
        names = np.array(sorted(hashes), np.uint64)
        return cls(names, np.array([hashes[int(name)] for name in names], np.uint64))

    def __len__(self) -> int:
        return len(self.names)

    def has(self, name: str, source: str) -> bool:
        """Whether an image is done.

        Raises:
            InputError: one of its name is, which came from elsewhere.
        """
        value = np.uint64(hash_of(name))
        place = int(np.searchsorted(self.names, value))
        if place >= len(self.names) or self.names[place] != value:
            return False
        if self.sources[place] != np.uint64(hash_of(source)):
            raise InputError(
                f"the results have an image {name!r} already, which did not come from {source}: give another --out, or "
                "--overwrite to make all of them anew"
            )
        return True


FILES = 32
"""Files that are one piece of work."""
ROWS = 8
"""Images that a worker holds at once."""
COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "bytes")
"""The columns of a Parquet file that may have images, the first of them that it has: bytes, or a structure with `bytes`."""


def output_of(name: str, task: str = "", ending: str = "") -> str:
    """The path of a result below the folder for results; `task` is its folder there, "" for none."""
    return str(PurePosixPath(task) / PurePosixPath(name).with_suffix(ending))


def hash_of(name: str) -> int:
    """Of an image's name, 64 bits: a million names take 8 MB."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "little")


def without(piece: Piece, done: Done) -> Piece | None:
    """A piece of work without the files that are done; None where nothing is left of it."""
    if piece["kind"] != "files":
        return piece
    files = [(name, path) for name, path in piece["files"] if not done.has(name, path)]
    return {**piece, "files": files} if files else None


def pieces_of(sources: Iterable[str], out: Path) -> Iterator[Piece]:
    """Work for one process at a time: some files, a shard, or a row group of a Parquet file."""
    from img2img.data.images.listing import EXTENSIONS, list_images

    outputs: dict[str, str] = {}
    files_in: dict[str, str] = {}  # the first file whose result goes into a folder

    def is_new(output: str, path: str, name: str) -> bool:
        """Whether it was not given before, as several sources may overlap."""
        other, where = outputs.get(output), f"become {name}"
        folder, slash, below = output.partition("/")
        if other is None and slash:  # the folder of a shard's results is its own, whatever the shard has
            other, where = (outputs.get(f"{folder}/") if below else files_in.get(folder)), f"write into {folder}/"
        if other not in (None, path):
            raise InputError(f"{other} and {path} would both {where}: give them in two calls with two --out")
        outputs[output] = path
        if below:
            files_in.setdefault(folder, path)
        return other is None

    for source in map(expanded, sources):
        whole = os.path.abspath(source)
        if source.suffix in (".tar", ".parquet") and not source.is_dir():
            if is_new(f"{source.stem}/", whole, source.stem):  # the folder of their results
                shard = {"kind": "tar", "path": whole, "endings": sorted(EXTENSIONS)}
                yield from [shard] if source.suffix == ".tar" else _row_groups(Path(whole))
            continue
        if source.is_dir():
            named = [(path.relative_to(source).as_posix(), path) for path in list_images(source, exclude=[out])]
        elif source.suffix == ".txt":
            named = [(_inside(name), source.parent / name) for name in _lines(source)]
        else:
            named = [(source.name, source)]
        absolute = ((name, os.path.abspath(path)) for name, path in named)
        files = [(name, path) for name, path in absolute if is_new(output_of(name), path, name)]
        for first in range(0, len(files), FILES):
            yield {"kind": "files", "files": files[first : first + FILES]}


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): expected a list of image files, a path a line") from error
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def _inside(name: str) -> str:
    """A name below the folder for results, of whatever path."""
    return "/".join(part for part in PurePosixPath(name).parts if part not in ("/", "..", "."))


def _row_groups(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        found = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise InputError(f"{path} is no Parquet file ({first_line(error)}): check it, or leave it out") from error
    names = found.schema_arrow.names
    column = next((name for name in COLUMNS if name in names), None)
    if column is None:
        raise InputError(
            f"{path} has the columns {', '.join(names)}: expected one of {', '.join(COLUMNS)} with images; rename it"
        )
    first = 0
    for group in range(found.num_row_groups):
        yield {"kind": "parquet", "path": str(path), "group": group, "first": first, "column": column}
        first += found.metadata.row_group(group).num_rows


def _image(name: str, source: str, *, path: str = "", image: bytes = b"", error: str = "") -> dict[str, Any]:
    return {"input": name, "source": source, "path": path, "image": image, "error": error}


def images_of(piece: Piece, done: Done) -> Iterator[dict[str, Any]]:
    """The images of a piece of work that are not done yet: `input`, `source`, and `path`, the bytes `image`, or an `error`."""
    if piece["kind"] == "files":
        yield from (_image(name, path, path=path) for name, path in piece["files"])
        return
    source = piece["path"]
    stem = Path(source).stem
    if piece["kind"] == "parquet":
        yield from _in_parquet(piece, stem, done)
        return
    names, outputs = set[str](), set[str]()
    try:
        with tarfile.open(piece["path"], mode="r|*") as shard:
            for member in shard:
                name = f"{stem}/{_inside(member.name)}"
                if not member.isfile() or PurePosixPath(name).suffix.lower() not in piece["endings"] or name in names:
                    continue
                twice = output_of(name) in outputs
                names.add(name)
                outputs.add(output_of(name))
                if not done.has(name, source):
                    content = shard.extractfile(member)
                    error = "another image of the shard has the same name but for its ending: rename it" if twice else ""
                    yield _image(name, source, image=b"" if content is None else content.read(), error=error)
    except (OSError, tarfile.TarError, EOFError) as error:
        if not done.has(f"{stem}.tar", source):
            yield _image(
                f"{stem}.tar", source, error=f"the shard ends here or cannot be read ({first_line(error)}): copy it again"
            )


def _in_parquet(piece: Piece, stem: str, done: Done) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    column, number = piece["column"], piece["first"]
    file = pyarrow.parquet.ParquetFile(piece["path"])
    for batch in file.iter_batches(batch_size=ROWS, row_groups=[piece["group"]], columns=[column]):
        for value in batch.column(0).to_pylist():
            name, number = f"{stem}/{number:08d}", number + 1
            if not done.has(name, piece["path"]):
                content = value.get("bytes") if isinstance(value, dict) else value
                if isinstance(content, bytes):
                    yield _image(name, piece["path"], image=content)
                else:
                    yield _image(name, piece["path"], error=f"row {number - 1} has no bytes of an image")


def tables_of(piece: Piece, done: Done) -> Iterator[Any]:
    """The images of a piece of work that are not done yet, a few at a time; files by their path, others as bytes."""
    import pyarrow

    kinds = {"image": pyarrow.binary()}
    fields = [(name, kinds.get(name, pyarrow.string())) for name in ("input", "source", "path", "image", "error")]
    some: list[dict[str, Any]] = []
    for image in images_of(piece, done):
        some.append(image)
        if len(some) >= ROWS:
            yield pyarrow.Table.from_pylist(some, schema=pyarrow.schema(fields))
            some = []
    if some:
        yield pyarrow.Table.from_pylist(some, schema=pyarrow.schema(fields))
