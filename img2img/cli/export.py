"""`img2img export`: tasks as files for other runtimes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from img2img.cli.options import ALL, DEFAULT_BUNDLE, BundleOption, Json, Overwrite, check_folder_name, check_new
from img2img.errors import InputError

if TYPE_CHECKING:
    from img2img.export import Exported

Format = Literal["onnx", "pt2", "safetensors", "onnx_shared"]


def export(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task's name, or all.", show_default=False)],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="PATH", help="The file; for all tasks a folder.", show_default=False)
    ],
    bundle: BundleOption = DEFAULT_BUNDLE,
    format: Annotated[
        Format | None, typer.Option(help="By the file's ending where it is left out; onnx_shared is for all tasks.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The head's raw output in place of the task's result.")] = False,
    size: Annotated[str | None, typer.Option(metavar="HxW", help="The only size it takes, such as 256x320; else any.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a task as ONNX, torch.export (.pt2) or a plain state dict (.safetensors), and check it against the network.

    With the task "all" every task is written into a folder; --format onnx_shared then keeps the backbone's weights once, in a
    file beside small ones.

    Examples:

        img2img export colour --bundle runs/demo --out colour.onnx

        img2img export all --bundle runs/demo --format onnx_shared --out exported
    """
    from img2img.bundle import bundle_folder, check_outside, read_bundle
    from img2img.export import FORMATS, SHARED, export_bundle, export_task, load_tasks

    fixed = None if size is None else _size(size)
    check_outside(bundle, out)
    names = read_bundle(bundle_folder(bundle))["tasks"] if task == ALL else [task]
    into_folder = task == ALL or format == SHARED
    if into_folder:
        check_folder_name(out, *FORMATS.values())
    elif format is None and out.suffix.lower() not in FORMATS.values():
        raise InputError(
            f"--out {out} does not say the format: expected a name with one of the endings {', '.join(FORMATS.values())}, or "
            f"--format with one of {', '.join(FORMATS)}"
        )
    ending = FORMATS.get(format or "onnx", ".onnx")
    check_new((out / f"{name}{ending}" for name in names) if into_folder else [out], overwrite=overwrite)
    if task == ALL:
        if task in names:
            raise InputError(
                f"{bundle} has a task {task!r}, and that name stands for every task: name another task, or export this one in "
                "Python, see `img2img.export.export_bundle`"
            )
        made = export_bundle(bundle, out, format=format or "onnx", raw=raw, size=fixed)
    elif format == SHARED:
        made = export_bundle(bundle, out, format=format, tasks=[task], raw=raw, size=fixed)
    else:
        network, tasks = load_tasks(bundle)
        if task not in tasks:
            raise InputError(f"no task {task!r} in {bundle}: expected one of {', '.join(tasks)}")
        made = [export_task(network, task, tasks[task], out, format=format, raw=raw, size=fixed)]
    if as_json:
        typer.echo(json.dumps([_facts(file) for file in made]))
        return
    for file in made:
        facts = _facts(file)
        typer.echo(f"{file.path}  {file.bytes / 1e6:.2f} MB  largest difference {facts['difference']:.2g}")


def _facts(file: "Exported") -> dict[str, Any]:
    agreement = {"difference": float(file.agreement.difference), "labels": file.agreement.labels}
    return {"path": str(file.path), "format": file.format, "bytes": file.bytes, **agreement}


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not all(side.isascii() and side.isdigit() and len(side) < 10 for side in (height, width)):
        raise InputError(f"--size {text!r}: expected height and width in pixels, such as 256x320")
    return int(height), int(width)
