"""`img2img tasks`: list, show and delete a bundle's tasks, and compare their masks."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from img2img.cli.options import Bundle, Json, Overwrite, TaskName, check_new
from img2img.cli.output import print_facts, print_table
from img2img.cli.task_facts import Measured, legend, measured
from img2img.errors import InputError
from img2img.formatting import DASH, number

if TYPE_CHECKING:
    from img2img.inference.task_info import TaskInfo

app = typer.Typer(help="List, show, delete and compare the tasks of a bundle.", no_args_is_help=True)


@app.command("list")
def list_tasks(bundle: Bundle, as_json: Json = False) -> None:
    """List a bundle's tasks with their kind, primary metric, mask and file.

    Example: img2img tasks list runs/demo
    """
    from img2img.inference import load

    model = load(bundle, device="cpu")
    tested = [(task, measured(model.task(name), task.metrics, task.baseline)) for name, task in model.tasks.items()]
    if as_json:
        typer.echo(json.dumps([_facts(task, test) for task, test in tested]))
        return
    rows = []
    for task, test in tested:
        weights = DASH if task.affected is None else f"{task.affected:.1%} {task.effect}"
        size = DASH if task.bytes is None else f"{task.bytes / 1e6:.2f} MB"
        rows.append((task.name, task.kind, str(test), task.method, weights, size))
    print_table(("task", "kind", "test metric", "masks", "weights", "file"), rows)


@app.command()
def show(bundle: Bundle, task: TaskName, as_json: Json = False) -> None:
    """Show all that is known of one task: metrics, classes, forms of its results.

    Example: img2img tasks show runs/demo colour
    """
    from img2img.inference import load

    model = load(bundle, device="cpu")
    kind = model.task(task)
    info = model.tasks[task]
    test = measured(kind, info.metrics, info.baseline)
    if as_json:
        typer.echo(json.dumps(_facts(info, test)))
        return
    facts = dataclasses.asdict(info) | {"primary_metric": test.named}
    metrics, options, _ = facts.pop("metrics"), facts.pop("options"), facts.pop("baseline")
    shown = {key: number(value) if isinstance(value, float) else value for key, value in facts.items()}
    shown |= {f"option {key}": value for key, value in options.items()}
    shown |= {key: number(value) for key, value in metrics.items()}
    if test.baseline is not None:
        shown[f"{test.metric} of the {test.baseline_name}"] = number(test.baseline)
    print_facts(shown | {f"colour of {name}": colour for name, colour in legend(info.kind, info.classes).items()})


def _facts(info: "TaskInfo", test: Measured) -> dict[str, Any]:
    """All that is known of a task, for JSON."""
    more = {"higher_is_better": test.higher_is_better, "baseline_name": test.baseline_name}
    return dataclasses.asdict(info) | more | {"legend": legend(info.kind, info.classes)}


@app.command()
def delete(
    bundle: Bundle,
    task: TaskName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a task from a bundle; the backbone and all other tasks stay as they are, bit for bit.

    Example: img2img tasks delete runs/demo gravel --yes
    """
    from img2img.bundle import bundle_folder, check_deletable, delete_task_from_bundle

    folder = bundle_folder(bundle)
    check_deletable(folder, task)  # before it asks
    if not yes:
        typer.confirm(f"delete the task {task!r} from {folder}?", abort=True)
    delete_task_from_bundle(folder, task)
    typer.echo(f"deleted {task} from {folder}")


@app.command()
def similarity(
    bundle: Bundle,
    out: Annotated[Path | None, typer.Option("--out", metavar="PNG", help="Draw the matrix into this file too.")] = None,
    corrected: Annotated[bool, typer.Option("--corrected", help="Cohen's κ, which is 0 for masks that agree by chance.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Compare the masks of every two tasks: the share of weights that both keep or both leave out.

    Example: img2img tasks similarity runs/demo --out similarity.png
    """
    from img2img.bundle import check_outside
    from img2img.files.atomic import write_atomic
    from img2img.inference import load
    from img2img.masks.analysis import similarity as similarities
    from img2img.masks.plots import similarity_figure

    if out is not None:
        check_outside(bundle, out)
        if out.suffix.lower() != ".png":
            raise InputError(f"--out {out}: the matrix is drawn as PNG; give a name that ends in .png")
        check_new([out], overwrite=overwrite)
    network = load(bundle, device="cpu").network
    found = similarities(network, chance_corrected=corrected)
    if out is not None:
        figure = similarity_figure(found.names, found.matrix, chance_corrected=corrected)
        write_atomic(out, lambda path: figure.savefig(path, format="png", dpi=150))
    if as_json:
        typer.echo(json.dumps({"tasks": found.names, "matrix": found.matrix}))
        return
    texts = [[DASH if value is None else f"{value:.3f}" for value in row] for row in found.matrix]
    print_table(("", *found.names), [(name, *row) for name, row in zip(found.names, texts, strict=True)])
