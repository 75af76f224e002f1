"""`img2img add-task` and `img2img absorb`: a new task for a bundle, from images alone or from a fine-tuned network too."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from img2img.cli.data_options import (
    Classes,
    Config,
    Images,
    Inputs,
    Labels,
    Match,
    Pairs,
    Perceptual,
    Resize,
    Style,
    Suffix,
    Targets,
    Values,
    Void,
    in_options,
    task_and_data,
)
from img2img.cli.options import Bundle, BundleOption
from img2img.cli.process import keep_freed_memory
from img2img.errors import InputError
from img2img.files.paths import check_no_address, expanded

if TYPE_CHECKING:
    from img2img.training.results import TaskResult

Name = Annotated[str, typer.Argument(metavar="NAME", help="What the new task is called.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Changes of the task, its data or the experiment: task.sigma=50, data.square=96, train.batch_size=4.",
    ),
]
Kind = Annotated[
    str | None,
    typer.Option(
        metavar="KIND", help="The kind of task for --images alone; its options are task.KEY=VALUE, such as task.sigma=50."
    ),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run's folder; runs/NAME by default.")]


def add_task(
    bundle: Bundle,
    name: Name,
    overrides: Overrides = None,
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
    perceptual: Perceptual = "lite0",
    config: Config = None,
    kind: Kind = None,
    method: Annotated[str, typer.Option(help="The mask method: sparse_signs, piggyback, affine, lora, ...")] = "sparse_signs",
    steps: Steps = None,
    resize: Resize = None,
    out: Out = None,
) -> None:
    """Teach a bundle a new task from images of your own; its other tasks stay as they are, bit for bit.

    What is learned depends on what is given: --pairs, or --inputs and --targets, a translation from one to the other; --images,
    --labels and --classes a segmentation, by cross entropy and Dice; --style that style, on --images or else on sample photos;
    --images alone colourisation, or what --kind says (denoising, super_resolution, edges, classification by subfolders). Where
    labels or targets have other names than images or inputs, say how with --suffix or --match; where labels hold other values
    than 0, 1, 2, ..., with --values. The run's folder has a report, and the same command goes on after an interruption.

    Examples:

        img2img add-task runs/demo night --inputs day/ --targets night/ --steps 800 --resize 160

        img2img add-task runs/demo parts --images photos/ --labels masks/ --classes ground,car,tree

        img2img add-task runs/demo vessels --images images/ --labels 1st_manual/ --classes ground,vessel --values 0,255
        --match "{id}_training,{id}_manual1"
    """
    from img2img.api import add_task as add_to_bundle

    keep_freed_memory()
    _check_out(out)
    _check_method(method)
    task, data = task_and_data(
        pairs=pairs, inputs=inputs, targets=targets, images=images, labels=labels, classes=classes, values=values, void=void,
        suffix=suffix, match=match, style=style, perceptual=perceptual, config=config, kind=kind, resize=resize,
    )  # fmt: skip
    train = {} if steps is None else {"steps": steps}
    with in_options(config):
        run = add_to_bundle(bundle, name, task=task, data=data, method=method, train=train, out=out, overrides=overrides or [])
    typer.echo(f"{name} is in {bundle}; its report: {run / 'report.html'}")


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
    void: Void = None,
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

    for word in overrides or ():
        if "=" not in word and not word.startswith("~"):
            raise InputError(f"got {word!r} after the file: expected KEY=VALUE; the new task's name goes behind --name")
    keep_freed_memory()
    _check_out(out)
    _check_method(method, ("sparse_signs", "dense_signs"))
    if share is not None and method != "sparse_signs":
        raise InputError(
            f"--share {share:g} with --method {method}: a share is an option of sparse_signs alone, since dense signs move all "
            "weights; leave --share out, or take --method sparse_signs"
        )
    task, data = task_and_data(
        pairs=pairs, inputs=inputs, targets=targets, images=images, labels=labels, classes=classes, values=values, void=void,
        suffix=suffix, match=match, style=style, perceptual=perceptual, config=config, kind=kind, resize=resize,
    )  # fmt: skip
    if not expanded(finetuned).is_file():
        raise InputError(f"no file at {finetuned}: expected the weights of a network; check the path")
    name = finetuned.stem if name is None else name
    options: dict[str, Any] = {"name": method} if share is None else {"name": method, "share": share}
    with in_options(config):
        run = into_bundle(
            bundle, finetuned, name, task=task, data=data, method=options, distil=distil, train_signs=train_signs,
            keep_frozen=keep_frozen, train={} if steps is None else {"steps": steps}, out=out, overrides=overrides or [],
        )  # fmt: skip
    (result,) = read_results(run).tasks
    _print_steps(result)
    typer.echo(f"{name} is in {bundle}; its report: {run / 'report.html'}")


def _check_out(out: Path | None) -> None:
    if out is not None:
        check_no_address(out, "--out")


def _check_method(method: str, known: Collection[str] = ()) -> None:
    """Refuse a method that is none of the known ones, by default those that a task of a bundle can have.

    Raises:
        InputError: with the known ones.
    """
    from img2img.masks import METHODS
    from img2img.training.config_files import config_folder
    from img2img.validation import did_you_mean

    if not known:
        files = {path.stem for path in (config_folder() / "method").glob("*.yaml")}
        known = sorted({*METHODS, *files} - {"mixed"})
    if method not in known:
        raise InputError(f"--method {method}: {did_you_mean(method, known)}expected one of {', '.join(known)}")


def _print_steps(task: "TaskResult") -> None:
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
