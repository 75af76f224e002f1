"""`img2img add-task` and `img2img absorb`: a new task for a bundle, from images alone or from a fine-tuned network too."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from img2img.cli.options import Bundle, BundleOption
from img2img.cli.process import keep_freed_memory
from img2img.errors import InputError
from img2img.files.paths import expanded
from img2img.files.yaml import read_yaml

if TYPE_CHECKING:
    from img2img.training.results import TaskResult

Name = Annotated[str, typer.Argument(metavar="NAME", help="What the new task is called.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes of the experiment, such as train.optimiser.lr=1e-3."),
]
Pairs = Annotated[Path | None, typer.Option(metavar="DIR", help="A|B images, input and target side by side.")]
Inputs = Annotated[Path | None, typer.Option(metavar="DIR", help="Inputs; with --targets.")]
Targets = Annotated[Path | None, typer.Option(metavar="DIR", help="Targets of the same names; with --inputs.")]
Images = Annotated[Path | None, typer.Option(metavar="DIR", help="Images; alone, with --labels or with --style.")]
Labels = Annotated[Path | None, typer.Option(metavar="DIR", help="Label files; with --images and --classes.")]
Classes = Annotated[str | None, typer.Option(metavar="NAMES", help="sky,tree,house in the labels' order, or a file.")]
Values = Annotated[
    str | None, typer.Option(metavar="VALUES", help="Label values of the classes, such as 0,255; or 0=sky,128=tree,255=tree.")
]
Void = Annotated[
    str | None, typer.Option(metavar="VALUES", help="Label values that count nowhere, such as 255 or 11,255; 255 by default.")
]
Suffix = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="What names of labels or targets have more: _mask for x.jpg and x_mask.png."),
]
Match = Annotated[
    str | None,
    typer.Option(metavar="HOW", help="Other names: {id}_training,{id}_manual1 for 21_training.tif and 21_manual1.gif; or order."),
]
Style = Annotated[Path | None, typer.Option(metavar="IMAGE", help="A style image; alone it is learned on sample photos.")]
Perceptual = Annotated[str, typer.Option(metavar="NAME", help="Of configs/perceptual: what judges a style.")]
Config = Annotated[Path | None, typer.Option(metavar="YAML", help="`task` and `data` as in an experiment's config.")]
Kind = Annotated[str | None, typer.Option(metavar="KIND", help="The kind of task for --images alone.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")]
Resize = Annotated[int | None, typer.Option(min=8, metavar="PIXELS", help="The shorter side of training images.")]
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
    --labels and --classes a segmentation; --style that style, on --images or else on sample photos; --images alone
    colourisation, or what --kind says (denoising, super_resolution, edges, classification by subfolders). Where labels or targets
    have other names than images or inputs, say how with --suffix or --match; where labels hold other values than 0, 1, 2, ...,
    with --values. The run's folder has a report, and the same command goes on after an interruption.

    Examples:

        img2img add-task runs/demo night --inputs day/ --targets night/ --steps 800 --resize 160

        img2img add-task runs/demo parts --images photos/ --labels masks/ --classes ground,car,tree

        img2img add-task runs/demo vessels --images images/ --labels 1st_manual/ --classes ground,vessel --values 0,255
        --match "{id}_training,{id}_manual1"
    """
    from img2img.api import add_task as add_to_bundle

    keep_freed_memory()
    _check_method(method)
    task, data = _task_and_data(
        pairs=pairs, inputs=inputs, targets=targets, images=images, labels=labels, classes=classes, values=values, void=void,
        suffix=suffix, match=match, style=style, perceptual=perceptual, config=config, kind=kind, resize=resize,
    )  # fmt: skip
    train = {} if steps is None else {"steps": steps}
    with _in_options(config):
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
    _check_method(method, ("sparse_signs", "dense_signs"))
    task, data = _task_and_data(
        pairs=pairs, inputs=inputs, targets=targets, images=images, labels=labels, classes=classes, values=values, void=void,
        suffix=suffix, match=match, style=style, perceptual=perceptual, config=config, kind=kind, resize=resize,
    )  # fmt: skip
    name = finetuned.stem if name is None else name
    options: dict[str, Any] = {"name": method} if share is None else {"name": method, "share": share}
    with _in_options(config):
        run = into_bundle(
            bundle, finetuned, name, task=task, data=data, method=options, distil=distil, train_signs=train_signs,
            keep_frozen=keep_frozen, train={} if steps is None else {"steps": steps}, out=out, overrides=overrides or [],
        )  # fmt: skip
    (result,) = read_results(run).tasks
    _print_steps(result)
    typer.echo(f"{name} is in {bundle}; its report: {run / 'report.html'}")


def _task_and_data(
    *,
    perceptual: str,
    values: str | None,
    void: str | None,
    suffix: str | None,
    match: str | None,
    resize: int | None,
    **given: Path | str | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configs of a task and its data that the options of a command stand for; None is an option that was not given.

    Raises:
        InputError: they stand for none.
    """
    task, data = _described({key: value for key, value in given.items() if value is not None}, perceptual)
    data = data | _of_files(data["kind"], values=values, void=void, suffix=suffix, match=match)
    return task, data if resize is None else {**data, "resize": resize}


def _described(given: Mapping[str, Any], perceptual: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configs of the task and its data that the options stand for.

    Raises:
        InputError: they stand for none.
    """
    paths = {key: str(value) for key, value in given.items()}
    match sorted(paths):
        case ["config"]:
            return _from_file(given["config"])
        case ["pairs"]:
            return {"kind": "translation"}, {"kind": "pairs", "root": paths["pairs"]}
        case ["inputs", "targets"]:
            return {"kind": "translation"}, {"kind": "paired_folders", "inputs": paths["inputs"], "targets": paths["targets"]}
        case ["classes", "images", "labels"]:
            folders = {"images": paths["images"], "labels": paths["labels"]}
            return {"kind": "segmentation"}, {"kind": "image_label_folder", **folders, "classes": _names(paths["classes"])}
        case ["images", "style"] | ["style"]:
            task = {"kind": "style", "picture": paths["style"], "network": _perceptual(perceptual)}
            return task, {"kind": "image_folder", "root": paths["images"]} if "images" in paths else {"kind": "samples"}
        case ["images"] | ["images", "kind"]:
            kind = paths.get("kind", "colourisation")
            task = {"kind": kind, "drawing": "sobel"} if kind == "edges" else {"kind": kind}
            folder = "class_folder" if kind == "classification" else "image_folder"
            return task, {"kind": folder, "root": paths["images"]}
    shown = ", ".join(f"--{key}" for key in paths) or "nothing"
    for all_of_them in (("inputs", "targets"), ("images", "labels", "classes"), ("images", "kind")):
        if paths and not paths.keys() - set(all_of_them):
            lacking = " and ".join(f"--{key}" for key in all_of_them if key not in paths)
            raise InputError(f"got {shown}: expected {lacking} too; add {'it' if ' ' not in lacking else 'them'}")
    raise InputError(
        f"got {shown}: expected --pairs; --inputs and --targets; --images, --labels and --classes; "
        "--style, perhaps with --images; --images, perhaps with --kind; or --config"
    )


def _check_method(method: str, known: Collection[str] = ()) -> None:
    """Refuse a method that is none of the known ones, by default those that a task of a bundle can have.

    Raises:
        InputError: with the known ones.
    """
    from img2img.masks import METHODS
    from img2img.training.compose import config_folder
    from img2img.validation import did_you_mean

    if not known:
        files = {path.stem for path in (config_folder() / "method").glob("*.yaml")}
        known = sorted({*METHODS, *files} - {"mixed"})
    if method not in known:
        raise InputError(f"--method {method}: {did_you_mean(method, known)}expected one of {', '.join(known)}")


@contextmanager
def _in_options(config: Path | None) -> Iterator[None]:
    """Errors in the block that name a key of the data's config name the option for it, where options described the data."""
    try:
        yield
    except InputError as error:
        text = str(error)
        if config is not None:
            raise
        for pattern, option in _KEYS:
            text = re.sub(pattern, option, text)
        raise InputError(text) from error


_KEYS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\['([^']*\{id\}[^']*)', '([^']*\{id\}[^']*)'\]", r'"\1,\2"'),
    (r"set `(suffix|match|values)` to", r"give --\1"),
    (r"`(suffix|match|values|void|images|labels|inputs|targets|classes)`", r"--\1"),
    (r"\bmatch: order\b", "--match order"),
    (r"\b(values|void): \[(\d+)(?:, (\d+))?\]", lambda found: f"--{found[1]} {','.join(filter(None, found.groups()[1:]))}"),
    (r"list the values as void", "list the values with --void"),
)
"""How the datasets' errors spell keys and values of the config, and how the command does."""


def _names(given: str) -> str | list[str]:
    """The path of a file of class names, or names."""
    if expanded(given).is_file():
        return given
    if "," not in given and (Path(given).suffix == ".txt" or len(Path(given).parts) > 1):
        raise InputError(
            f"--classes {given}: there is no such file; expected one, or names such as sky,tree,house; check the path"
        )
    return [name.strip() for name in given.split(",")]


def _of_files(kind: str, *, values: str | None, void: str | None, suffix: str | None, match: str | None) -> dict[str, Any]:
    """The options of data of a kind that say which files belong together, and what labels hold.

    Raises:
        InputError: such data have none, or the texts cannot be read.
    """
    found: dict[str, Any] = {}
    if void is not None:
        ignored = [value.strip() for value in void.split(",")]
        if not all(value.isascii() and value.isdigit() for value in ignored):
            raise InputError(f"--void {void}: expected whole numbers such as 255 or 11,255")
        found["void"] = [int(value) for value in ignored]
    if suffix is not None:
        found["suffix"] = suffix
    if match is not None:
        found["match"] = [pattern.strip() for pattern in match.split(",")] if "," in match else match
    if values is not None:
        pairs = [[part.strip() for part in item.split("=")] for item in values.split(",")]
        whole = all(pair[0].isascii() and pair[0].isdigit() for pair in pairs)
        if not whole or len({len(pair) for pair in pairs}) != 1 or len(pairs[0]) > 2:
            raise InputError(f"--values {values}: expected whole numbers such as 0,255, or names of them such as 0=sky,255=tree")
        found["values"] = {int(v): name for v, name in pairs} if len(pairs[0]) == 2 else [int(v) for (v,) in pairs]
    wanted = {"image_label_folder": "--labels", "paired_folders": "--targets"}
    of_labels = not {"values", "void"}.isdisjoint(found)
    if found and (kind not in wanted or (kind == "paired_folders" and of_labels)):
        given = ", ".join(f"--{key}" for key in found)
        raise InputError(f"got {given}: expected with --images and --labels{'' if of_labels else ', or with --targets'} alone")
    return found


def _from_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from img2img.validation import Options, checked

    class TaskFile(Options):
        task: Mapping[str, Any]
        data: Mapping[str, Any]

    given = checked(TaskFile, read_yaml(path, "the config of a task"), what=str(path))
    return dict(given.task), dict(given.data)


def _perceptual(name: str) -> dict[str, Any]:
    from img2img.training.compose import config_folder

    file = config_folder() / "perceptual" / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
        raise InputError(f"--perceptual {name!r}: expected one of {known}")
    return read_yaml(file, "a perceptual network")


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
