"""`img2img absorb`: a small task for a bundle from a network that was fine-tuned from its backbone."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from img2img.cli.add_task import (
    Classes,
    Config,
    Images,
    Inputs,
    Kind,
    Labels,
    Match,
    Out,
    Overrides,
    Pairs,
    Perceptual,
    Resize,
    Steps,
    Style,
    Suffix,
    Targets,
    Values,
    task_and_data,
)
from img2img.cli.options import BundleOption
from img2img.cli.process import keep_freed_memory

if TYPE_CHECKING:
    from img2img.training.results import TaskResult


def absorb(
    finetuned: Annotated[
        Path,
        typer.Argument(
            metavar="FINETUNED", help="The network's weights: .safetensors, or a state dict of torch.save.", show_default=False
        ),
    ],
    overrides: Overrides = None,
    bundle: BundleOption = Path("runs/demo"),
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="What the new task is called; the file's name by default.")
    ] = None,
    pairs: Pairs = None,
    inputs: Inputs = None,
    targets: Targets = None,
    images: Images = None,
    labels: Labels = None,
    classes: Classes = None,
    values: Values = None,
    suffix: Suffix = None,
    match: Match = None,
    style: Style = None,
    perceptual: Perceptual = "lite0",
    config: Config = None,
    kind: Kind = None,
    method: Annotated[str, typer.Option(help="sparse_signs or dense_signs.")] = "sparse_signs",
    share: Annotated[
        float | None, typer.Option(metavar="SHARE", help="The largest share of weights that sparse signs move.")
    ] = None,
    distil: Annotated[
        bool, typer.Option("--distil/--no-distil", help="Train against the network's outputs, or on the task's own loss.")
    ] = True,
    train_signs: Annotated[
        bool, typer.Option("--train-signs/--keep-signs", help="Train the signs too, or keep those of the network.")
    ] = True,
    keep_frozen: Annotated[
        bool, typer.Option("--keep-frozen", help="Biases and the like may differ; the task keeps the backbone's.")
    ] = False,
    steps: Steps = None,
    resize: Resize = None,
    out: Out = None,
) -> None:
    """Make a small task of a bundle from a network that was fine-tuned from its backbone; its other tasks stay as they are.

    The task and its images are given as for add-task; the network's head must be one for that task. The signs of the weights'
    changes and one scale a channel are the start. Then normalisation statistics are averaged anew, and the task is trained for a
    while. What each step brings is printed, and is in the run's results.json; the same command goes on after an interruption.

    Examples:

        img2img absorb roofs.safetensors --bundle runs/demo --images photos/ --labels masks/ --classes ground,roof

        img2img absorb night.safetensors --bundle runs/demo --name dusk --inputs day/ --targets night/ --share 0.05
    """
    from img2img.api import absorb as into_bundle
    from img2img.training.results import read_results

    given = {"pairs": pairs, "inputs": inputs, "targets": targets, "images": images, "labels": labels, "classes": classes}
    given |= {"style": style, "config": config, "kind": kind}
    keep_freed_memory()
    task, data = task_and_data(given, perceptual=perceptual, values=values, suffix=suffix, match=match, resize=resize)
    name = finetuned.stem if name is None else name
    options: dict[str, Any] = {"name": method} if share is None else {"name": method, "share": share}
    run = into_bundle(
        bundle, finetuned, name, task=task, data=data, method=options, distil=distil, train_signs=train_signs,
        keep_frozen=keep_frozen, train={} if steps is None else {"steps": steps}, out=out, overrides=overrides or [],
    )  # fmt: skip
    (result,) = read_results(run).tasks
    _print(result)
    typer.echo(f"{name} is in {bundle}; its report: {run / 'report.html'}")


def _print(task: "TaskResult") -> None:
    """The primary metric after each step, and the bytes before and after."""
    from img2img import formatting
    from img2img.cli.output import print_table
    from img2img.training.results import finetuned_steps

    def shown(value: float | None) -> str:
        return "" if value is None else formatting.number(value)

    rows = [
        [step.text, shown(step.val), shown(step.test), "" if step.bytes is None else formatting.size(step.bytes)]
        for step in finetuned_steps(task)
    ]
    arrow = "↑" if task.higher_is_better else "↓"
    print_table(["", f"validation {task.primary_metric} {arrow}", "test", "bytes"], rows)
    if task.finetuned is not None and task.finetuned.not_kept:
        some = next(iter(task.finetuned.not_kept))
        typer.echo(f"{len(task.finetuned.not_kept)} tensors differ and are the backbone's in the task, such as {some}")
