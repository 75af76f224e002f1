"""The options of commands that say which images a task is about: what they stand for in a config."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from img2img.errors import InputError
from img2img.files.paths import expanded
from img2img.files.yaml import read_yaml

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
Perceptual = Annotated[
    str, typer.Option(metavar="NAME[=FILE]", help="Of configs/perceptual: what judges a style. FILE has its weights.")
]
Config = Annotated[Path | None, typer.Option(metavar="YAML", help="`task` and `data` as in an experiment's config.")]
Resize = Annotated[int | None, typer.Option(min=8, metavar="PIXELS", help="The shorter side of training images.")]


def task_and_data(
    *,
    known: str | None = None,
    perceptual: str,
    values: str | None,
    void: str | None,
    suffix: str | None,
    match: str | None,
    resize: int | None,
    **given: Path | str | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configs of a task and its data that the options of a command stand for; None is an option that was not given.

    Of a task that there is already, `known` is the kind. Its classes are known, and its config has what was given beside them.

    Raises:
        InputError: they stand for none.
    """
    found = {key: value for key, value in given.items() if value is not None}
    task, data = _from_options(found, perceptual) if known is None else _of_known(known, found, perceptual)
    data = data | _of_files(data["kind"], values=values, void=void, suffix=suffix, match=match)
    return task, data if resize is None else {**data, "resize": resize}


def _of_known(kind: str, given: Mapping[str, Any], perceptual: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if given.keys() == {"images", "labels"}:
        return {}, {"kind": "image_label_folder", **{key: str(value) for key, value in given.items()}}
    task, data = _from_options({**given, **({"kind": kind} if given.keys() == {"images"} else {})}, perceptual)
    return task if given.keys() & {"config", "style"} else {}, data


def _from_options(given: Mapping[str, Any], perceptual: str) -> tuple[dict[str, Any], dict[str, Any]]:
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
            from img2img.tasks.segmentation import SUGGESTED_LOSS  # with torch, which other commands do without

            task = {"kind": "segmentation", "loss": dict(SUGGESTED_LOSS)}
            return task, {"kind": "image_label_folder", **folders, "classes": _names(paths["classes"])}
        case ["images", "style"] | ["style"]:
            task = {"kind": "style", "picture": paths["style"], "network": perceptual_network(perceptual)}
            return task, {"kind": "image_folder", "root": paths["images"]} if "images" in paths else {"kind": "samples"}
        case ["images"] | ["images", "kind"]:
            kind = paths.get("kind", "colourisation")
            if wanted := _ALONE_IS_TOO_LITTLE.get(kind):
                raise InputError(f"got --images alone for a {kind} task: expected {wanted}; give them too")
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


_ALONE_IS_TOO_LITTLE = {
    "segmentation": "--labels too, and --classes where it is new",
    "translation": "--inputs and --targets, or --pairs",
    "style": "--style too",
}
"""What kinds of task are learned from, or measured by, beside images."""


@contextmanager
def in_options(config: Path | None) -> Iterator[None]:
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
    (r"\(out=\.\.\.\)", "(--out DIR)"),
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


def perceptual_network(given: str) -> dict[str, Any]:
    """The config of the perceptual network that NAME stands for, or NAME=FILE, a file of its weights.

    Raises:
        InputError: there is none of that name, or no such file.
    """
    from img2img.training.config_files import config_folder

    name, equals, weights = given.partition("=")
    file = config_folder() / "perceptual" / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
        raise InputError(f"--perceptual {name!r}: expected one of {known}, or NAME=FILE with a file of its weights")
    config = read_yaml(file, "a perceptual network", resolve=False)
    if not equals and "${" in str(config["weights"]):
        raise InputError(f"--perceptual {name}: its weights are no file that everyone has; give yours, --perceptual {name}=FILE")
    if equals and not expanded(weights).is_file():
        raise InputError(f"--perceptual {given}: no file at {weights!r}: expected one of weights; check the path")
    return {**config, "weights": str(expanded(weights))} if equals else config
