"""`img2img evaluate`: a finished run, or a task of a bundle on other images, measured again."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from img2img.cli.data_options import (
    Classes,
    Config,
    Images,
    Inputs,
    Labels,
    Match,
    Pairs,
    Style,
    Suffix,
    Targets,
    Values,
    Void,
    in_options,
    perceptual_network,
    task_and_data,
)
from img2img.cli.options import Device, Json
from img2img.cli.output import print_table
from img2img.errors import InputError
from img2img.formatting import DASH


def evaluate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN|BUNDLE", help="A run's folder; with images of your own a bundle.", show_default=False)
    ],
    task: Annotated[list[str] | None, typer.Option(metavar="TASK", help="Only this task; may be given again.")] = None,
    part: Annotated[Literal["val", "test"] | None, typer.Option(help="Of a run's own data; test by default.")] = None,
    pairs: Pairs = None,
    inputs: Inputs = None,
    targets: Targets = None,
    images: Images = None,
    labels: Labels = None,
    classes: Classes = None,
    values: Values = None,
    void: Void = None,
    suffix: Suffix = None,
    match: Match = None,
    style: Style = None,
    config: Config = None,
    resize: Annotated[
        int | None, typer.Option(min=8, metavar="PIXELS", help="The shorter side of the images; the task's own by default.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Perceptual metrics too: lpips,dists,kid; with --perceptual.")
    ] = None,
    perceptual: Annotated[
        str | None,
        typer.Option(metavar="NAME[=FILE]", help="Of configs/perceptual, for --metrics and --style. FILE has its weights."),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure the tasks of a run again, on the data of its config, beside what the run reported.

    With images of your own, given as for add-task, it measures one task of a bundle on them. The task's classes are known, and
    the images are brought to the size that it was measured on before.

    Examples:

        img2img evaluate runs/demo --task colour

        img2img evaluate runs/demo --task parts --images photos/ --labels masks/

        img2img evaluate starter --task denoise --images photos/ --metrics lpips --perceptual vgg16=vgg16.safetensors
    """
    names = () if metrics is None else tuple(name.strip() for name in metrics.split(","))
    if perceptual is not None and metrics is None and style is None:
        raise InputError(f"got --perceptual {perceptual}: expected --metrics or --style too, which it is for; add one of them")
    network = None if perceptual is None else perceptual_network(perceptual)
    given: dict[str, Any] = {
        "pairs": pairs, "inputs": inputs, "targets": targets, "images": images, "labels": labels, "classes": classes,
        "style": style, "config": config,
    }  # fmt: skip
    of_files: dict[str, Any] = {"values": values, "void": void, "suffix": suffix, "match": match, "resize": resize}
    measured: Mapping[str, Mapping[str, Any]]
    if any(value is not None for value in given.values()):
        if part is not None:
            raise InputError(f"got --part {part} and images of your own, all of which are measured: leave --part out")
        measured = _on_images(run, task, given | of_files, names, perceptual, network, device)
    else:
        if unused := [f"--{key}" for key, value in of_files.items() if value is not None]:
            raise InputError(f"got {', '.join(unused)} alone: expected images of your own too, such as --images; add them")
        from img2img.training.evaluation import evaluate_run

        measured = evaluate_run(run, tasks=task, part=part or "test", device=device, metrics=names, perceptual=network)
    if as_json:
        typer.echo(json.dumps(measured))
    else:
        _print(measured, names)


def _on_images(
    bundle: Path,
    tasks: Sequence[str] | None,
    given: Mapping[str, Any],
    metrics: Sequence[str],
    perceptual: str | None,
    network: Mapping[str, Any] | None,
    device: str,
) -> dict[str, dict[str, Any]]:
    """One task of a bundle on images of the user's own."""
    from img2img.inference import load
    from img2img.inference.evaluation import evaluate as evaluate_task

    model = load(bundle, device=device)
    names = list(model.tasks) if tasks is None else tasks
    if len(names) != 1:
        raise InputError(f"got {len(names)} tasks for these images: expected one; name it (--task), of {', '.join(model.tasks)}")
    kind = model.task(names[0]).kind
    if kind == "style" and given["style"] is None and given["config"] is None:
        raise InputError(f"{names[0]!r} is a style task, whose file has no style image: give it by --style, and --perceptual too")
    options, data = task_and_data(known=kind, perceptual=perceptual or "lite0", **given)
    with in_options(given["config"]):
        found = evaluate_task(model, names[0], data, options=options, metrics=metrics, perceptual=network)
    return {names[0]: {**found.plain(), "reported": dict(model.tasks[names[0]].metrics)}}


def _print(measured: Mapping[str, Mapping[str, Any]], asked: Collection[str]) -> None:
    """All metrics of one task, or of several the primary one and those that were asked for."""
    rows = []
    for name, entry in measured.items():
        for metric, value in entry["metrics"].items():
            kind = metric.split(" (")[0].lower()  # of "LPIPS (vgg16)"
            if len(measured) == 1 or metric == entry["primary_metric"] or kind in asked:
                others = [entry["baseline"].get(metric), (entry.get("reported") or {}).get(metric)]
                rows.append((name, metric, *map(_shown, (value, *others)), str(entry["images"])))
        if entry.get("changed"):
            typer.echo(f"{name}: measured on other files than the run had: {entry['changed']}", err=True)
    print_table(("task", "metric", "now", "baseline", "reported", "images"), rows)


def _shown(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}"
