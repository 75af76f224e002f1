"""The two calls that train, each with the page of its run: a whole experiment, and one more task for a bundle."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from img2img import validation
from img2img.bundle import bundle_folder, check_bundle, check_not_packaged, check_not_planned, read_bundle, task_path
from img2img.bundle.join import join_bundles
from img2img.errors import InputError
from img2img.files.paths import paths_in
from img2img.files.writable import check_writable
from img2img.masks import METHODS, MaskMethod
from img2img.masks.task_store import check_task_name
from img2img.registry import import_explained
from img2img.reports.page import write_report
from img2img.training import run as running
from img2img.training.config.read import merged
from img2img.training.run import Then
from img2img.training.run_folder import SavedConfig
from img2img.training.sequence import ProgressFor


def run(
    config: Mapping[str, Any],
    *,
    composed: SavedConfig | None = None,
    then: Then | None = None,
    bars: bool | ProgressFor = True,
) -> dict[str, Any]:
    """Run an experiment into its folder, see `training.run.run`, and write the page `report.html` there."""
    return running.run(config, composed=composed, then=then, report=write_report, bars=bars)


def add_task(
    bundle: str | os.PathLike[str],
    name: str,
    *,
    task: Mapping[str, Any],
    data: Mapping[str, Any],
    method: str | Mapping[str, Any] | MaskMethod = "sparse_signs",
    train: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Train a task on the frozen backbone of a bundle and add it there; its other tasks are left as they are, bit for bit.

    The training is an experiment like any other, in a run folder with a page; the same call goes on after an interruption.

    Example:
        img2img.add_task(
            "runs/demo",
            "night",
            task={"kind": "translation"},
            data={"kind": "paired_folders", "inputs": "day", "targets": "night", "resize": 160},
            train={"steps": 800},
        )

    Args:
        bundle: the folder of a bundle or of a run.
        name: of the new task.
        task: its kind and options, see `tasks.build_task`.
        data: its images, see `data.build_data`.
        method: a config of `configs/method`, a mask method's name and options, or an object such as `masks.LoRA(rank=2)`.
        train: what differs from the defaults of `TrainOptions`, by groups, such as `{"optimiser": {"lr": 1e-3}}`.
        out: the run folder; `runs/NAME` by default.
        overrides: further changes of the experiment's config, as on the command line.

    Returns:
        The run folder.

    Raises:
        InputError: the name is taken or planned, an argument is of a wrong type, `out` is an input, the bundle cannot be written
            to, or whatever the experiment finds wrong. The bundle is as it was.
    """
    check_task_name(validation.text("name", name, "night"))
    task = validation.mapping("task", task, {"kind": "translation"})
    data = validation.mapping("data", data, {"kind": "paired_folders", "inputs": "day", "targets": "night"})
    train = validation.mapping("train", {} if train is None else train, {"steps": 800})
    return _learn(bundle, name, {"task": task, "data": data}, method, train, out, overrides)


def absorb(
    bundle: str | os.PathLike[str],
    finetuned: str | os.PathLike[str],
    name: str,
    *,
    task: Mapping[str, Any],
    data: Mapping[str, Any],
    method: str | Mapping[str, Any] | MaskMethod = "sparse_signs",
    distil: bool = True,
    train_signs: bool = True,
    keep_frozen: bool = False,
    train: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Make a task of a bundle from a network that was fine-tuned from its backbone; its other tasks stay as they are.

    The signs of the weights' changes and their scales are the start; then normalisation statistics are averaged anew, and signs,
    scales, normalisation state and head are trained for a while. `results.json` in the run folder has the primary metric after
    each step, and the bytes before and after (`tasks[0]["finetuned"]`). An interrupted call goes on when it is repeated.

    Example:
        img2img.absorb(
            "runs/demo",
            "roofs.safetensors",
            "roofs",
            task={"kind": "segmentation"},
            data={"kind": "image_label_folder", "images": "photos", "labels": "labels", "classes": ["ground", "roof"]},
        )

    Args:
        bundle: the folder of a bundle or of a run.
        finetuned: a file of the network's state dict: the names of the bundle's backbone, and `head.*`.
        name: of the new task.
        task: its kind and options, see `tasks.build_task`; the network's head is for it.
        data: its images, see `data.build_data`: for the training, and to measure before and after.
        method: sparse_signs or dense_signs, its name and options, or an object of it; `share` of sparse signs bounds what
            moves, a tenth of the weights moves at the start otherwise.
        distil: train against the network's outputs, or on the task's own loss.
        train_signs: whether the signs are trained, or the scales, normalisation state and head alone.
        keep_frozen: whether the network may differ from the backbone in tensors that no task has of its own, such as biases.
        train: as of `add_task`.
        out: the run folder; `runs/NAME` by default.
        overrides: further changes of the experiment's config, as on the command line.

    Returns:
        The run folder.

    Raises:
        InputError: as of `add_task`; or the file is no network of the backbone's shapes with a head for the task.
    """
    check_task_name(validation.text("name", name, "night"))
    task = validation.mapping("task", task, {"kind": "segmentation"})
    data = validation.mapping("data", data, {"kind": "image_label_folder", "images": "photos", "labels": "labels"})
    train = validation.mapping("train", {} if train is None else train, {"steps": 400})
    weights = str(validation.path("finetuned", finetuned))
    given = {"weights": weights, "distil": distil, "train_signs": train_signs, "keep_frozen": keep_frozen}
    return _learn(bundle, name, {"task": task, "data": data, "finetuned": given}, method, train, out, overrides)


def _learn(
    bundle: str | os.PathLike[str],
    name: str,
    template: Mapping[str, Any],
    method: str | Mapping[str, Any] | MaskMethod,
    train: Mapping[str, Any],
    out: str | os.PathLike[str] | None,
    overrides: Sequence[str],
) -> Path:
    """Learn one task, as an experiment's config has it (`TaskTemplate`), and join it into the bundle."""
    data = template["data"]
    if isinstance(method, MaskMethod):
        METHODS.check_registered(type(method))
        method = {"name": method.name, **method.options()}
    if not isinstance(method, str):
        method = validation.mapping("method", method, {"name": "sparse_signs"})
    folder = bundle_folder(validation.path("bundle", bundle))
    check_not_packaged(folder)
    description = read_bundle(folder)
    out = Path("runs") / name if out is None else validation.path("out", out)
    _check_out(out, folder, data)
    if name in description["tasks"] and not _is_of(out, folder, name):
        raise InputError(f"the bundle in {folder} has a task {name!r} already: choose another name, or delete that one first")
    check_not_planned(folder, [name])
    check_writable(folder, "bundle", "tasks", "bases")
    changes, (of_task, of_data) = _changes(name, overrides)
    config = _config(name, folder, method, changes)
    import_explained(config.get("imports", ()), "imports")
    chosen = config.get("method", {}).get("name")
    if chosen not in METHODS:
        raise InputError(f"the method {chosen!r} masks nothing: expected one of {', '.join(METHODS)}")
    config |= {"name": name, "out": str(out), "sequence": [name]}
    more = {"task": of_task, "data": of_data}
    config["tasks"] = {name: merged(template, {key: given for key, given in more.items() if given})}
    config["train"] = merged(config["train"], train)
    check_bundle(folder)  # join_bundles does, after the training
    run(config)
    join_bundles(folder, [out])
    return out


def _changes(name: str, overrides: Sequence[str]) -> tuple[list[str], tuple[dict[str, Any], dict[str, Any]]]:
    """The overrides of the experiment, and those of the task and its data, `task.KEY=VALUE` and `data.KEY=VALUE`.

    Raises:
        InputError: one changes what the call itself says, or what a bundle has.
    """
    from img2img.training.overrides import taken_apart

    for text in overrides:
        key = text.partition("=")[0].lstrip("+~")
        group = key.partition(".")[0]
        if key in ("out", "name", "sequence"):
            instead = {"out": "out= of the call, or --out", "name": "the call's name"}.get(key, "a call for each task")
            raise InputError(f"got {text!r} among the changes of the experiment: expected {instead}; leave it out")
        if group == "backbone":
            raise InputError(f"got {text!r}: the backbone of a bundle is fixed; leave it out, or choose another bundle")
        if group == "tasks":
            own = key.removeprefix(f"tasks.{name}.")
            example = own if own != key and own.partition(".")[0] in ("task", "data") else "task.KEY"
            raise InputError(f"got {text!r}: expected {example}=VALUE or data.KEY=VALUE, of the task that is added; correct it")
    others, found = taken_apart(overrides, ("task", "data"))
    return others, (found["task"], found["data"])


def _is_of(run: Path, bundle: Path, name: str) -> bool:
    """Whether a bundle's task came from this run: a call that was ended after it had joined them goes on with the same one."""
    learned, there = task_path(run / "bundle", name), task_path(bundle, name)
    return learned.is_file() and there.is_file() and learned.read_bytes() == there.read_bytes()


def _check_out(out: Path, bundle: Path, data: Mapping[str, Any]) -> None:
    """Refuse a run folder that is the bundle, the run of the bundle, or a folder of the images to learn from."""
    taken = [bundle, *([bundle.parent] if bundle.name == "bundle" else []), *(path for _, path in paths_in(data))]
    for path in taken:
        if out.resolve() == path.resolve() or bundle.resolve() in out.resolve().parents:
            raise InputError(f"out={out}: the run's files would go into {path}, which is an input of it: choose another folder")


def _config(name: str, folder: Path, method: str | Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`configs/add_task.yaml` on the bundle's backbone, with the changes."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from img2img.training.compose import compose, without_script_keys
    from img2img.training.overrides import check_overrides

    changes = [*([f"method={method}"] if isinstance(method, str) else []), f"name={name}", *overrides]
    check_overrides(changes, named=False)
    try:
        composed = compose("add_task", changes)
        composed.backbone.weights = str(folder)
        config = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"the changes {list(overrides)} fit no config ({' '.join(str(error).split())}): correct them") from error
    assert isinstance(config, dict)
    plain = without_script_keys({str(key): value for key, value in config.items()})
    return plain if isinstance(method, str) else plain | {"method": dict(method)}
