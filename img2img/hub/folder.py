"""A bundle as a folder in the Hub's conventions: the bundle's files, a model card and `config.json`."""

import hashlib
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from img2img import validation
from img2img.bundle import (
    add_task_to_bundle,
    basis_path,
    bundle_folder,
    check_bundle,
    check_has_tasks,
    check_not_packaged,
    check_outside,
    packaged_bundles,
    read_bundle,
    save_backbone,
    task_path,
)
from img2img.bundle.description import MAX_PATTERNS
from img2img.bundle.folder import PATIENCE, run_of
from img2img.errors import InputError
from img2img.extras import require
from img2img.files.atomic import clear_leftovers, replace_folder, restore_folder, temporary_beside
from img2img.files.json_files import read_json, write_json
from img2img.files.lock import NAME, hold
from img2img.files.paths import check_no_address, expanded
from img2img.files.untrusted import mapping
from img2img.files.writable import check_writable
from img2img.hub.card import model_card
from img2img.masks import MaskedNetwork
from img2img.masks.layers import assign_roles, is_weight
from img2img.validation.arguments import shown

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
        FolderInUseError: another process changes the bundle, or what is at `folder`, and has not ended in ten minutes.
        InputError: no bundle there, a file of it is missing or damaged, results of another backbone, or a `folder` with other
            files, of a run, or within the bundle.
    """
    require("huggingface_hub", extra="hub", what="a model card")
    folder = validation.path("folder", folder)
    check_no_address(folder, "folder")
    folder = folder.absolute()
    notes = None if notes == "" else notes
    _check_texts(folder, license=license, repo_id=repo_id, notes=notes)
    if results is not None and not isinstance(results, Mapping):
        results = validation.path("results", results)
    bundle = None if isinstance(source, MaskedNetwork) else bundle_in(validation.path("source", source))
    target = folder.resolve()  # where it is a link, the folder that it leads to
    restore_folder(target)
    _check_replaceable(target, bundle)
    check_writable(target.parent, "the folder's parent")
    clear_leftovers(target.parent)
    temporary = temporary_beside(target)
    with _held(target, bundle):
        try:
            run = None
            if isinstance(source, MaskedNetwork):
                _write_network(source, temporary)
            elif bundle is not None:
                run = bundle.parent if bundle.name == "bundle" and (bundle.parent / "results.json").is_file() else None
                _copy_bundle(bundle, temporary)
            description = read_bundle(temporary)
            check_has_tasks(temporary if isinstance(source, MaskedNetwork) else expanded(source), description)
            found = results if results is not None or run is None else run / "results.json"
            values = dict(found) if isinstance(found, Mapping) else None if found is None else read_json(found)
            name = repo_id or folder.name
            card = model_card(temporary, name=name, results=values, run=run, license=license, notes=notes)
            (temporary / "README.md").write_text(str(card), encoding="utf-8")
            config = {"library_name": "img2img", "backbone": description["spec"], "tasks": description["tasks"]}
            write_json(temporary / "config.json", config | {"checksums": _checksums(temporary, description["tasks"])})
            _check_replaceable(target, bundle)  # again: it may have come to be while this waited
            _put_in_place(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _check_texts(folder: Path, **texts: str | None) -> None:
    """Refuse what a card cannot have as its text: other types, and names of files that are not UTF-8."""
    examples = {"license": "apache-2.0", "repo_id": "owner/name", "notes": "## Terms"}
    for option, value in texts.items():
        if value is not None:
            validation.text(option, value, examples[option])
    for option, value in {"folder": None if texts["repo_id"] else folder.name, **texts}.items():
        try:
            (value or "").encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{option}={shown(value)} is not UTF-8, which a card is written in: expected text that is; "
                "choose another name, or give repo_id"
            ) from None


@contextmanager
def _held(target: Path, bundle: Path | None) -> Iterator[None]:
    """In the block no other process shares into `target`, and none changes the bundle there or the one that is shared.

    Raises:
        FolderInUseError: another process does, and has not ended in `PATIENCE` seconds.
        InputError: the bundle at `target` came with img2img.
    """
    beside = target.with_name(f".{target.name}.saving")  # not in the folder, which is replaced
    with ExitStack() as stack:
        stack.callback(_remove_if_empty, beside)  # where a process was killed
        stack.enter_context(hold(beside, wait=PATIENCE))
        places = set()
        if (target / "bundle.json").is_file():
            check_not_packaged(target)
            places.add(target)
        packaged = [path.resolve() for path in packaged_bundles().values()]  # never changed
        if bundle is not None and bundle.resolve() not in packaged and os.access(bundle, os.W_OK):  # a lock is a file in it
            places.add(bundle.resolve())
        if os.name == "nt":
            places.discard(target)  # Windows renames no folder with an open file in it
        for place in sorted(places):
            stack.enter_context(hold(place, wait=PATIENCE))
        yield


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _put_in_place(new: Path, folder: Path) -> None:
    """Replace the folder, with the lock that this process holds in it: whoever waits for it goes on waiting."""
    if (folder / NAME).is_file():
        with suppress(OSError):  # a file system without hard links
            os.link(folder / NAME, new / NAME)
    replace_folder(new, folder)


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
    written = description["tasks"] if again else _written(folder, config)
    listed = {task_path(folder, task) for task in description["tasks"] if task in written}
    listed |= {basis_path(folder, sha256) for sha256 in description["bases"].values()}
    found = (entry for name in ("tasks", "bases") if (folder / name).is_dir() for entry in (folder / name).iterdir())
    return sorted(entry.relative_to(folder).as_posix() for entry in found if entry not in listed)


def _written(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """The tasks of a bundle whose files are as `save_pretrained` wrote them; before it kept checksums, those by its names."""
    tasks, checksums = config.get("tasks"), mapping(config.get("checksums"))
    listed = [task for task in read_bundle(folder)["tasks"] if isinstance(tasks, list) and task in tasks]
    found = _checksums(folder, [task for task in listed if task in checksums and task_path(folder, task).is_file()])
    return [task for task in listed if task not in found or found[task] == checksums[task]]


def _checksums(folder: Path, tasks: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of the tasks' files."""
    return {task: hashlib.sha256(task_path(folder, task).read_bytes()).hexdigest() for task in tasks}


def check_card(folder: Path) -> None:
    """Refuse a shared folder whose tasks are others than those that its card and its `config.json` were written for.

    Raises:
        InputError: they are.
    """
    if not (folder / "config.json").is_file():
        return  # a bundle with a card of the user's own
    config, tasks = mapping(read_json(folder / "config.json")), read_bundle(folder)["tasks"]
    if config.get("tasks") != tasks or _written(folder, config) != tasks:
        before = config.get("tasks")
        raise InputError(
            f"the card and config.json in {folder} were written for other tasks ({shown(before)}) than the bundle has "
            f"now ({shown(tasks)}), or for other files of them: expected a card of these; write it anew with "
            f"`img2img share save {(there := shlex.quote(str(folder)))} {there} --overwrite --license LICENCE`, then send it"
        )


def files_of(description: Mapping[str, Any]) -> list[Path]:
    """The files of a bundle, relative to its folder, with `bundle.json` first."""
    here = Path()
    tasks = [task_path(here, task) for task in description["tasks"]]
    bases = [basis_path(here, sha256) for sha256 in dict.fromkeys(description["bases"].values())]
    return [Path("bundle.json"), Path("backbone.safetensors"), *tasks, *bases]


def _copy_bundle(bundle: Path, target: Path) -> None:
    for name in files_of(read_bundle(bundle)):
        if not (bundle / name).is_file():
            raise InputError(f"no {name.as_posix()} in {bundle}: copy the bundle again, whole")
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / name, target / name)
    try:
        check_bundle(target)
    except InputError as error:
        # By the names that the user knows.
        raise InputError(str(error).replace(str(target), str(bundle))) from error


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
    save_backbone(target, network, spec, _select(network))
    for name, info in infos.items():
        add_task_to_bundle(target, network, name, options=info["task"], info={})


def _select(network: MaskedNetwork) -> list[str] | None:
    """Patterns of the weights that a network masks: None where they are all that can be, which is how runs write it."""
    everything = assign_roles(network.backbone, is_weight, lambda name, _: name in network.norm_modules())
    if network.roles.masked == everything.masked:
        return None
    if len(network.roles.masked) > MAX_PATTERNS:
        raise InputError(
            f"the network masks {len(network.roles.masked):,} weights of {len(everything.masked):,} by name: expected at most "
            f"{MAX_PATTERNS:,}, or all of them; share the folder of its bundle in its place"
        )
    return list(network.roles.masked)
