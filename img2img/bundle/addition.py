"""Adding a task to a bundle, which leaves all others as they are."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from img2img.bundle.deletion import check_not_referred_to
from img2img.bundle.folder import basis_path, changing, check_new_name, read_bundle, task_path
from img2img.errors import InputError
from img2img.files.json_files import write_json
from img2img.files.paths import expanded
from img2img.masks import MaskedNetwork
from img2img.masks.storage import read_header


def add_task_to_bundle(
    folder: str | os.PathLike[str], network: MaskedNetwork, task: str, *, options: Mapping[str, Any], info: Mapping[str, Any]
) -> Path:
    """Write the file of `task`, which freezes it, and that of its basis if it has a new one; list both in `bundle.json`.

    A task of that name is replaced, and its place in the list kept.

    Args:
        folder: the bundle's.
        network: holds the task.
        task: its name.
        options: what `tasks.build_task` rebuilds the task from.
        info: further JSON values for the file's header, such as metrics.

    Raises:
        FolderInUseError: another process changes the bundle, and has not ended in ten minutes.
        InputError: the network is not the bundle's; no new task can have that name beside those of the bundle; the masks of
            another task are coded relative to the one that it replaces, or combine another basis of that name. Nothing has
            changed.
    """
    folder = expanded(folder)
    with changing(folder):
        description = read_bundle(folder)
        if network.backbone_sha256 != description["sha256"]:
            raise InputError(
                f"the network of the task {task!r} has the backbone {network.backbone_sha256[:12]}…, expected that of the bundle "
                f"in {folder}, {description['sha256'][:12]}…: its masks mean nothing there; train it on the bundle's backbone "
                "(load_bundle), or save the network into another folder"
            )
        listed = list(description["tasks"])
        others = [name for name in listed if name != task]
        if task in listed:
            check_not_referred_to(folder, task, others)
        else:
            check_new_name(task, listed)
            listed.append(task)
        bases = dict(description["bases"])
        used = network.state(task).method.basis_name()
        basis = None if used is None else network.bases()[used]
        if used is not None and basis is not None and bases.get(used, basis.sha256) != basis.sha256:
            _refuse_another_basis(folder, used, others)
        path = network.save_task(task, task_path(folder, task), info={"task": dict(options), **info})
        if used is not None and basis is not None and bases.get(used) != basis.sha256:
            basis.save(basis_path(folder, basis.sha256))
            bases[used] = basis.sha256
        write_json(folder / "bundle.json", description | {"tasks": listed, "bases": bases})
        return path


def _refuse_another_basis(folder: Path, basis: str, tasks: Sequence[str]) -> None:
    for name in tasks:
        if (read_header(task_path(folder, name))["basis"] or {}).get("name") == basis:
            raise InputError(f"the task {name!r} in {folder} combines another basis {basis!r}: give the new one another name")
