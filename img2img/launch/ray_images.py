"""Many images through tasks on a Ray cluster, through Ray Data: `img2img run TASKS SOURCES --launcher ray`.

Workers read images and write results; each holds the model. The manifest is written by one process alone, a line for each result
after the result is there. So a run that is killed anywhere goes on where its manifest ends. What was made and not noted is made
again, into the same file.
"""

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from img2img.bundle import bundle_folder, read_bundle, task_path
from img2img.errors import InputError
from img2img.extras import require
from img2img.files.json_files import read_json, write_json
from img2img.files.lock import hold
from img2img.files.paths import expanded
from img2img.files.results import write_result
from img2img.inference.open_images import open_each
from img2img.launch.image_sources import ROWS, Done, Piece, hash_of, output_of, pieces_of, tables_of, without
from img2img.launch.ray_launcher import connected, processes_for
from img2img.registry import import_modules, imported

if TYPE_CHECKING:
    from img2img.inference import Model

MANIFEST = "manifest.jsonl"
"""A line for each result: `input`, its `source`, `task`, `output`, `bundle` and `error`."""
RUN = "run.json"
"""What the results are made of, and how."""


@dataclass(frozen=True, kw_only=True)
class ImageRun:
    """What is to be made of what.

    Attributes:
        bundle: its folder.
        tasks: names of its tasks; all run on an image while it is open.
        sources: images, folders of them, lists of files (.txt, a path a line), WebDataset shards (.tar) and Parquet files.
        out: the folder for results; of several tasks each has a folder in it.
        form: as of `Model.run`, as are `side` and `white`.
        side: see there.
        white: see there.
        precision: as of `Model`, as is `device`.
        device: see there.
        imports: modules of the user's own that workers import first, see `import_modules`.
    """

    bundle: str
    tasks: tuple[str, ...]
    sources: tuple[str, ...]
    out: str
    form: str | None = None
    side: int | None = None
    white: int | None = None
    precision: Any = "float32"
    device: str = "auto"
    imports: tuple[str, ...] = ()


@dataclass(frozen=True)
class Counts:
    """How many images have been done: by this call, of those the ones with an error, and before it."""

    images: int
    failed: int
    before: int


def run_on_ray(
    run: ImageRun, *, address: str | None = None, workers: int | None = None, gpus: float | None = None, overwrite: bool = False
) -> Counts:
    """Run tasks on many images, or go on with it: each image ends with one result of each task, or one error.

    Images with an error are tried again by the next call.

    Args:
        run: what.
        address: of the cluster, see `connected`; all its machines must see the files and the folder for results.
        workers: processes that hold the model; None: one for each GPU, or each core where there is none.
        gpus: of a worker; None: one where the cluster has any.
        overwrite: begin anew, whatever results there are.

    Raises:
        InputError: nothing there, two images that would become one file, results of another run in the folder, or Ray or a
            package for it is missing.
        FolderInUseError: another process writes there.
    """
    out, bundle = expanded(run.out).absolute(), bundle_folder(run.bundle).absolute()
    run = replace(run, bundle=str(bundle), out=str(out), imports=run.imports or imported())
    pieces = list(pieces_of(run.sources, out))
    checksums = {task: _checksum(bundle, task) for task in run.tasks}
    with hold(out):
        manifest = _begun(out, run, checksums, overwrite=overwrite)
        done = _known(manifest, len(run.tasks))
        pieces = [left for piece in pieces if (left := without(piece, done))]
        count = failed = 0
        if pieces:
            with manifest.open("a", encoding="utf-8") as file:
                for rows in _results(run, pieces, done, address, workers, gpus):
                    for row in rows:
                        file.write(json.dumps({**row, "bundle": checksums[row["task"]]}, ensure_ascii=False) + "\n")
                    file.flush()
                    count += len(rows)
                    failed += sum(row["error"] is not None for row in rows)
        return Counts(count // len(run.tasks), failed, len(done))


def _results(
    run: ImageRun, pieces: Sequence[Piece], done: Done, address: str | None, workers: int | None, gpus: float | None
) -> Iterator[list[dict[str, Any]]]:
    """The manifest's rows of some images at a time, as they are done."""
    require("pyarrow", extra="ray", what="--launcher ray")
    ray, made, _ = connected(address, what="--launcher ray")
    data = require("ray.data", extra="ray", what="--launcher ray")
    try:
        gpus, room = processes_for(ray.cluster_resources(), gpus)
        workers = workers or room
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = 16 << 20
        known = ray.put(done)

        def read(batch: dict[str, Any]) -> Iterator[Any]:
            for piece in batch["piece"]:
                yield from tables_of(json.loads(piece), ray.get(known))

        rows = data.from_items([{"piece": json.dumps(piece)} for piece in pieces], override_num_blocks=min(len(pieces), 2000))
        # Reading waits for disks: it takes no core from the workers, which would else keep all of them.
        images = rows.map_batches(read, batch_size=1, batch_format="numpy", num_cpus=0, concurrency=2 * workers)
        results = images.map_batches(
            _Worker, fn_constructor_args=(run,), batch_size=ROWS, batch_format="pyarrow", num_cpus=1, num_gpus=gpus,
            concurrency=workers,
        )  # fmt: skip
        for table in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield table.to_pylist()
    finally:
        if made:
            ray.shutdown()


class _Worker:
    """Holds the model, and makes results of images."""

    def __init__(self, run: ImageRun) -> None:
        import torch

        from img2img.inference import load

        torch.set_num_threads(1)
        import_modules(run.imports)
        self._run = run
        self._model: Model = load(run.bundle, device=run.device, precision=run.precision)

    def __call__(self, images: Any) -> Any:
        """A table of results from one of images."""
        import pyarrow

        fields = [(name, pyarrow.string()) for name in ("input", "source", "task", "output", "error")]
        return pyarrow.Table.from_pylist(self.results(images.to_pylist()), schema=pyarrow.schema(fields))

    def results(self, images: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The manifest's rows of images, those of an image together, once their results are written."""
        rows: dict[str, list[dict[str, Any]]] = {image["input"]: [] for image in images}
        with tempfile.TemporaryDirectory() as folder:
            sound = []
            for number, image in enumerate(images):
                if image["error"]:
                    rows[image["input"]] = [_row(image, task, image["error"]) for task in self._run.tasks]
                    continue
                path = image["path"]
                if not path:  # every image is opened by its path, so that all are read alike
                    path = os.path.join(folder, f"{number}{PurePosixPath(image['input']).suffix}")
                    Path(path).write_bytes(image["image"])
                sound.append((image, path))
            opened: dict[Any, list[Any]] = {}
            for task in self._run.tasks:
                white = self._run.white if self._run.white is not None else self._model.tasks[task].white
                if white not in opened:
                    opened[white] = list(open_each((path for _, path in sound), white=white))
                for (image, path), result in zip(sound, self._of(task, opened[white]), strict=True):
                    rows[image["input"]].append(self._written(image, path, task, result))
        return [row for several in rows.values() for row in several]

    def _of(self, task: str, opened: Sequence[Any]) -> Iterator[Any]:
        """What comes of images, an error in the place of a result."""
        sound = iter(
            self._model.stream(
                task, [one for one in opened if not hasattr(one, "error")], form=self._run.form, side=self._run.side,
                errors="return",
            )
        )  # fmt: skip
        return (one.error if hasattr(one, "error") else next(sound) for one in opened)

    def _written(self, image: dict[str, Any], path: str, task: str, result: Any) -> dict[str, Any]:
        name = image["input"]
        if isinstance(result, Exception):
            return _row(image, task, str(result).replace(path, name))
        ending = ".json" if isinstance(result, dict) else ".png"
        output = output_of(name, task if len(self._run.tasks) > 1 else "", ending)
        error = write_result(expanded(self._run.out) / output, result)
        return _row(image, task, None, output) if error is None else _row(image, task, str(error))


def _row(image: dict[str, Any], task: str, error: str | None, output: str | None = None) -> dict[str, Any]:
    error = error and " ".join(error.split())
    return {"input": image["input"], "source": image["source"], "task": task, "output": output, "error": error}


def _begun(out: Path, run: ImageRun, checksums: dict[str, str], *, overwrite: bool) -> Path:
    """The manifest, of a run that is the same as the one that began it."""
    path, manifest = out / RUN, out / MANIFEST
    options = {key: value for key, value in asdict(run).items() if key in ("form", "side", "white", "precision")}
    now = {"tasks": list(run.tasks), "bundle": checksums, "options": options}
    if path.is_file() and (before := read_json(path)) != now:
        differs = [key for key in now if not isinstance(before, dict) or before.get(key) != now[key]]
        if not overwrite:
            raise InputError(
                f"the results in {out} are of another run ({', '.join(differs)} differ): give another --out, or --overwrite to "
                "make them all anew"
            )
    if overwrite:
        manifest.unlink(missing_ok=True)
    write_json(path, now)
    return manifest


def _known(manifest: Path, tasks: int) -> Done:
    """The images of which the manifest has all results. Its lines about others are left out of it: they are tried again."""
    hashes: dict[int, int] = {}
    if not manifest.is_file():
        return Done()
    kept = manifest.with_name(f"{MANIFEST}.new")
    with manifest.open("rb") as file, kept.open("wb") as new:
        while lines := list(itertools.islice(file, tasks)):  # those of an image stand together
            if len(lines) < tasks or not lines[-1].endswith(b"\n"):
                break
            rows = [json.loads(line) for line in lines]
            if not any(row["error"] for row in rows):
                hashes[hash_of(rows[0]["input"])] = hash_of(rows[0]["source"])
                new.writelines(lines)
    kept.replace(manifest)
    return Done.of(hashes)


def _checksum(bundle: Path, task: str) -> str:
    """Of all that a task's results come from: the backbone, as the bundle states it, and the task's file."""
    digest = hashlib.sha256(str(read_bundle(bundle)["sha256"]).encode())
    digest.update(task_path(bundle, task).read_bytes())
    return digest.hexdigest()
