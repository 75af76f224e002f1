"""A bundle as a folder in the Hub's conventions: the bundle's files, a model card and `config.json`."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from img2img import validation
from img2img.bundle import (
    add_task_to_bundle,
    basis_path,
    bundle_folder,
    check_has_tasks,
    check_outside,
    read_bundle,
    save_backbone,
    task_path,
)
from img2img.bundle.folder import run_of
from img2img.errors import InputError
from img2img.extras import require
from img2img.files.atomic import clear_leftovers, replace_folder, temporary_beside
from img2img.files.json_files import read_json, write_json
from img2img.files.lock import NAME
from img2img.files.paths import check_no_address, expanded
from img2img.files.writable import check_writable
from img2img.hub.card import model_card
from img2img.masks import MaskedNetwork

FILES = ("README.md", "config.json", "bundle.json", "backbone.safetensors", "tasks/*.safetensors", "bases/*.safetensors")
"""All that such a folder holds; nothing else is fetched or sent. The Hub counts downloads by `config.json`."""


def save_pretrained(
    source: str | os.PathLike[str] | MaskedNetwork,
    folder: str | os.PathLike[str],
    *,
    results: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    license: str | None = None,
    repo_id: str | None = None,
    notes: str | None = None,
) -> Path:
    """Write a bundle with a model card into `folder`, which then is the new one whole, or as it was.

    Args:
        source: a bundle, or a run's folder, whose `results.json` and `config/` then enter the card; or a network whose
            tasks have the options of `tasks.build_task` in `state(name).info["task"]`, as loaded ones have; writing freezes them.
        folder: new, empty, or one that this function wrote, which is replaced; that may be the source. A bundle of a run, and
            tasks that came into the folder in another way, are never replaced.
        results: a run's `results.json` or its contents, for the card; None takes that of the run's folder, if there is one.
        license: of the weights, as the Hub names licences ("apache-2.0"); None leaves it out.
        repo_id: the name that the card's example loads; None for the folder's name.
        notes: Markdown for the end of the card, such as the terms of the training images.

    Raises:
        InputError: no bundle there, a file of it is missing, results of another backbone, or a `folder` with other files, of a
            run, or within the bundle.
    """
    require("huggingface_hub", extra="hub", what="a model card")
    folder = validation.path("folder", folder)
    check_no_address(folder, "folder")
    folder = folder.absolute()
    if license is not None:
        validation.text("license", license, "apache-2.0")
    bundle = None if isinstance(source, MaskedNetwork) else bundle_in(expanded(source))
    _check_replaceable(folder, bundle)
    check_writable(folder.parent, "the folder's parent")
    clear_leftovers(folder.parent)
    temporary = temporary_beside(folder)
    try:
        run = None
        if isinstance(source, MaskedNetwork):
            _write_network(source, temporary)
        elif bundle is not None:
            run = bundle.parent if bundle.name == "bundle" and (bundle.parent / "results.json").is_file() else None
            _copy_bundle(bundle, temporary)
        description = read_bundle(temporary)
        check_has_tasks(expanded(source) if isinstance(source, str | os.PathLike) else temporary, description)
        found = results if results is not None or run is None else run / "results.json"
        values = dict(found) if isinstance(found, Mapping) else None if found is None else read_json(found)
        card = model_card(temporary, name=repo_id or folder.name, results=values, run=run, license=license, notes=notes)
        (temporary / "README.md").write_text(str(card), encoding="utf-8")
        config = {"library_name": "img2img", "backbone": description["spec"], "tasks": description["tasks"]}
        write_json(temporary / "config.json", config)
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def bundle_in(folder: Path) -> Path:
    """The folder of the bundle in `folder`, which may be a run's, after a look at its `bundle.json`."""
    folder = bundle_folder(folder)
    read_bundle(folder)
    return folder


def _check_replaceable(folder: Path, source: Path | None) -> None:
    """Refuse a folder with anything that was not written by `save_pretrained`, and so could be lost.

    Args:
        folder: which is to be replaced, if it is there.
        source: the folder of the bundle that is to be shared; None for a network.

    Raises:
        InputError: it is that of a run's bundle, lies within the source, or is neither new, nor empty, nor a shared bundle.
    """
    there = os.path.lexists(folder)
    again = source is not None and there and source.resolve() == folder.resolve()
    if source is not None and not again:
        check_outside(source, folder)
    run = run_of(folder)
    if run is not None and any((run / name).exists() for name in ("progress.json", "results.json")):
        raise InputError(
            f"{folder} is the bundle of the run in {run}, whose tasks would be lost: expected a new or empty folder, or one that "
            "save_pretrained wrote; choose another"
        )
    if not there or (folder.is_dir() and not any(folder.iterdir())):
        return
    odd = [folder.name] if not folder.is_dir() else _odd_names(folder) or _unlisted(folder, again=again)
    if odd:
        raise InputError(
            f"{folder} holds something else than a shared bundle ({', '.join(odd[:3])}): expected a new or empty folder, or one "
            "that save_pretrained wrote, as it wrote it; choose another"
        )


def _odd_names(folder: Path) -> list[str]:
    """What at the top of a folder shows that `save_pretrained` did not write it: names of its entries, or what is missing."""
    known = {NAME, *(pattern.split("/")[0] for pattern in FILES)}  # a lock may lie there, of a process that was killed
    names = {entry.name for entry in folder.iterdir()}
    if odd := sorted(names - known):
        return odd
    missing = [name for name in ("bundle.json", "config.json", "README.md") if not (folder / name).is_file()]
    if missing:
        return [f"no {name}" for name in missing]
    config = read_json(folder / "config.json")
    by_us = isinstance(config, dict) and config.get("library_name") == "img2img"
    return [] if by_us else ["config.json of another library"]


def _unlisted(folder: Path, *, again: bool) -> list[str]:
    """Files among tasks and bases that `save_pretrained` did not write; with `again` those that the bundle does not list."""
    description, config = read_bundle(folder), read_json(folder / "config.json")
    written = description["tasks"] if again else config.get("tasks")
    tasks = [task for task in description["tasks"] if isinstance(written, list) and task in written]
    listed = {task_path(folder, task) for task in tasks}
    listed |= {basis_path(folder, sha256) for sha256 in description["bases"].values()}
    found = (entry for name in ("tasks", "bases") if (folder / name).is_dir() for entry in (folder / name).iterdir())
    return sorted(entry.relative_to(folder).as_posix() for entry in found if entry not in listed)


def _copy_bundle(bundle: Path, target: Path) -> None:
    description = read_bundle(bundle)
    files = [bundle / "bundle.json", bundle / "backbone.safetensors"]
    files += [task_path(bundle, task) for task in description["tasks"]]
    files += [basis_path(bundle, sha256) for sha256 in dict.fromkeys(description["bases"].values())]
    for file in files:
        name = file.relative_to(bundle)
        if not file.is_file():
            raise InputError(f"no {name.as_posix()} in {bundle}: copy the bundle again, whole")
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / name)


def _write_network(network: MaskedNetwork, target: Path) -> None:
    spec = getattr(network.backbone, "spec", None)
    if spec is None:
        raise InputError(
            f"the network's backbone is a {type(network.backbone).__name__}: expected one of img2img.backbones, which a bundle "
            "can build again; save your own network's tasks with network.save_task"
        )
    infos = {name: network.state(name).info for name in network.tasks()}
    bare = [name for name, info in infos.items() if "task" not in info]
    if bare:
        raise InputError(
            f"the tasks {bare[:5]} do not say what they are: put build_task's options into network.state(name).info['task']"
        )
    save_backbone(target, network, spec, list(network.roles.masked))
    for name, info in infos.items():
        add_task_to_bundle(target, network, name, options=info["task"], info={})
