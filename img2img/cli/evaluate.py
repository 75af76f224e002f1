"""`img2img evaluate`: a finished run, measured again."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from img2img.cli.options import Device, Json
from img2img.cli.output import print_table
from img2img.formatting import DASH


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
    task: Annotated[list[str] | None, typer.Option(metavar="TASK", help="Only this task; may be given again.")] = None,
    part: Annotated[Literal["val", "test"], typer.Option(help="Of the data.")] = "test",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure the tasks of a run again, on the data of its config, beside what the run reported.

    Example: img2img evaluate runs/demo --task colour
    """
    from img2img.training.evaluation import evaluate_run

    measured = evaluate_run(run, tasks=task, part=part, device=device)
    if as_json:
        typer.echo(json.dumps(measured))
        return
    rows = []
    for name, entry in measured.items():
        metric = entry["primary_metric"]
        values = [entry["metrics"], entry["baseline"], entry.get("reported") or {}]
        rows.append((name, metric, *(_shown(metrics.get(metric)) for metrics in values), str(entry["images"])))
    for name, entry in measured.items():
        if entry["changed"]:
            typer.echo(f"{name}: measured on other files than the run had: {entry['changed']}", err=True)
    print_table(("task", "metric", "now", "baseline", "reported", "images"), rows)


def _shown(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}"
