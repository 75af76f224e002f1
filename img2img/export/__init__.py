"""One task of a network as a file of its own, for runtimes that know nothing of masks.

export_task(network, "colour", task, "colour.onnx")
export_bundle("runs/demo", "exported", format="onnx")
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from img2img import validation
from img2img.bundle import bundle_folder, check_outside, load_bundle
from img2img.errors import InputError, memory_explained
from img2img.export.check import Agreement
from img2img.export.graph import interface, task_graph
from img2img.export.state_dict_file import load_exported
from img2img.files.paths import check_no_address
from img2img.files.writable import check_writable
from img2img.masks import MaskedNetwork
from img2img.tasks import Task

__all__ = ["FORMATS", "SHARED", "Agreement", "Exported", "export_bundle", "export_task", "load_exported", "load_tasks"]

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ".safetensors"}
"""The formats of a file that stands alone, with their endings."""

SHARED = "onnx_shared"
"""The format of `export_bundle` in which small ONNX files share one file with the backbone's weights."""

MAX_PIXELS = 1 << 26
"""Of the largest `size`: a file is checked on three such images at once."""


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: the file.
        format: one of `FORMATS`.
        bytes: its size.
        agreement: how near it is to the network.
        values: what the file says of itself: task, kind, input, output, stride, and so on; see docs/guides/export.md.
    """

    path: Path
    format: str
    bytes: int
    agreement: Agreement
    values: dict[str, Any]


def export_task(
    network: MaskedNetwork,
    name: str,
    task: Task,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    raw: bool = False,
    size: tuple[int, int] | None = None,
) -> Exported:
    """Write one task as a file that runs without img2img, and check it against the network.

    Args:
        network: holds the task, on one of `img2img.backbones`.
        name: of the task.
        task: what makes the network's input of an image and a result of its output.
        path: the file; it appears when it has passed the check, and not otherwise.
        format: one of `FORMATS`; None goes by the path's ending.
        raw: give the head's raw output in place of the task's result; a state dict (safetensors) always does.
        size: (height, width) of the only images that the file shall take, for runtimes that want one size; None for all
            sizes that the backbone takes. A state dict has none.

    Raises:
        InputError: an unknown task, format or size; a missing package; a network that the format cannot hold, such as one that
            is not float32; a folder at `path`; a file that does not compute what the network does.
        MemoryError: images of `size` need more than there is.
    """
    path = validation.path("path", path)
    validation.flag("raw", raw)
    size = _checked_size(size)
    format = _format_of(path, format)
    _check_target(path, format, size)
    check_writable(path.parent, "out")
    with memory_explained(f"while the task {name!r} was exported", "give a smaller size, or close other programs"):
        return _export(network, name, task, path, format=format, raw=raw, size=size)


def _check_target(path: Path, format: str, size: tuple[int, int] | None) -> None:
    """Refuse what no minute of tracing would make possible.

    Raises:
        InputError: a folder or a bucket in place of the file, or a size for a format that has none.
    """
    check_no_address(path, "out")
    if path.is_dir():
        raise InputError(f"{path} is a folder: expected the name of a file, or none there yet; choose another")
    if format == "safetensors" and size is not None:
        raise InputError(
            f"size={size}: a state dict takes every size that its network takes; expected none for the format safetensors: leave "
            "it out, or choose onnx or pt2"
        )


def _export(
    network: MaskedNetwork, name: str, task: Task, path: Path, *, format: str, raw: bool, size: tuple[int, int] | None
) -> Exported:
    graph = task_graph(network, name, task, raw=raw or format == "safetensors")
    described = interface(network, name, task, graph, size=size)
    if format == "safetensors":
        from img2img.export.state_dict_file import write_state_dict

        described = described.of_the_network(task)
        found, described = write_state_dict(path, graph, described)
    else:
        from img2img.export.onnx_file import packages, write_onnx
        from img2img.export.pt2 import write_pt2
        from img2img.export.trace import trace

        if format == "onnx":
            packages()  # before the minute's work of tracing
        program = trace(task_graph(network, name, task, raw=raw), described)
        if format == "onnx":
            found = write_onnx(path, program, graph, described)
        else:
            found, described = write_pt2(path, program, graph, described)
    return Exported(path, format, path.stat().st_size, found, described.values)


def export_bundle(
    bundle: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    format: str,
    tasks: Sequence[str] | None = None,
    raw: bool = False,
    size: tuple[int, int] | None = None,
) -> list[Exported]:
    """Write tasks of a bundle, all by default, into `folder` as `NAME.onnx` and so on; see `export_task`.

    With the format `SHARED` the folder gets `backbone.bin` and ONNX files that are small, where masks are binary: keep them
    together.

    Args:
        bundle: its folder, or that of the run.
        folder: where the files go; made if need be.
        format: one of `FORMATS`, or `SHARED`.
        tasks: their names; None for all.
        raw: see `export_task`.
        size: see `export_task`.

    Raises:
        InputError: as `export_task`, or the bundle cannot be read.
    """
    folder = validation.path("folder", folder)
    validation.flag("raw", raw)
    size = _checked_size(size)
    check_no_address(folder, "out")
    check_outside(validation.path("bundle", bundle), folder)
    ending = FORMATS["onnx" if format == SHARED else _format_of(Path(), format)]
    check_writable(folder, "out")
    network, known = load_tasks(bundle)
    names = list(known) if tasks is None else list(tasks)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"no task {unknown[0]!r} in {bundle}: expected one of {', '.join(known)}; choose among them")
    for name in names:
        _check_target(Path(folder) / f"{name}{ending}", format, size)
    if format == SHARED:
        from img2img.export.onnx_shared import write_shared

        with memory_explained("while tasks were exported", "give a smaller size, or close other programs"):
            made = write_shared(network, {name: known[name] for name in names}, Path(folder), raw, size)
        return [Exported(path, SHARED, path.stat().st_size, found, described.values) for path, found, described in made]
    return [
        export_task(network, name, known[name], Path(folder) / f"{name}{ending}", format=format, raw=raw, size=size)
        for name in names
    ]


def _checked_size(size: object) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = list(size) if isinstance(size, tuple | list) else []
    if len(sides) != 2:
        raise InputError(f"size={size!r}: expected (height, width) in pixels, or None")
    height, width = (validation.whole_number("size", side, of="pixel") for side in sides)
    if height is None or width is None:
        raise InputError(f"size={size!r}: expected (height, width) in pixels, or None")
    if height * width > MAX_PIXELS:
        raise InputError(
            f"size={(height, width)} are {height * width:,} pixels: expected at most {MAX_PIXELS:,}, since the file is tried on "
            "three such images; run larger ones in parts"
        )
    return height, width


def load_tasks(bundle: str | os.PathLike[str]) -> tuple[MaskedNetwork, dict[str, Task]]:
    """The network of a bundle, or of a run's `bundle` folder, and its tasks by name.

    Raises:
        InputError: the bundle cannot be read.
    """
    from img2img.tasks.stored import stored_task

    network, _ = load_bundle(bundle_folder(bundle))
    return network, {name: stored_task(network.state(name).info) for name in network.tasks()}


def _format_of(path: Path, format: str | None) -> str:
    by_ending = {ending: name for name, ending in FORMATS.items()}
    by_name = by_ending.get(path.suffix.lower())
    found = by_name if format is None else format
    if not isinstance(found, str) or found not in FORMATS:
        raise InputError(
            f"export got the format {format!r} for {path.name or 'a folder'}: expected one of {', '.join(FORMATS)}; give "
            "format=, or a file name with one of the endings " + ", ".join(by_ending)
        )
    if by_name not in (None, found):
        raise InputError(
            f"export got the format {found!r} for {path.name}, whose ending is that of {by_name!r}: expected {FORMATS[found]}; "
            "correct one of them"
        )
    return found
