"""Deleting a task from a bundle, which leaves all others as they are."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from img2img.bundle.folder import basis_path, changing, read_bundle, run_of, task_path
from img2img.bundle.packaged import check_not_packaged
from img2img.errors import InputError
from img2img.files.json_files import write_json
from img2img.files.lock import check_free
from img2img.files.paths import expanded
from img2img.masks.storage import read_header


def delete_task_from_bundle(folder: str | os.PathLike[str], task: str) -> None:
    """Take `task` out of `bundle.json`, then remove its file, and that of a basis which no other task combines.

    Raises:
        InputError: there is no such task, another one's masks are coded relative to it, or the bundle is that of a run that goes
            on, or is in use.
    """
    folder = expanded(folder)
    check_deletable(folder, task)  # before anything is written
    with changing(folder):
        description = check_deletable(folder, task)
        names = [name for name in description["tasks"] if name != task]
        headers = {name: read_header(task_path(folder, name)) for name in names}
        used = {(header["basis"] or {}).get("name") for header in headers.values()}
        unused = {name: sha256 for name, sha256 in description["bases"].items() if name not in used}
        kept = {name: sha256 for name, sha256 in description["bases"].items() if name in used}
        # The list goes first: a file that it does not name does no harm.
        write_json(folder / "bundle.json", description | {"tasks": names, "bases": kept})
        task_path(folder, task).unlink(missing_ok=True)
        for sha256 in set(unused.values()) - set(kept.values()):
            basis_path(folder, sha256).unlink(missing_ok=True)


def check_deletable(folder: Path, task: str) -> dict[str, Any]:
    """Refuse to delete a task where `delete_task_from_bundle` would; the bundle's description.

    Raises:
        InputError: as that.
    """
    check_not_packaged(folder)
    description = read_bundle(folder)
    if (run := run_of(folder)) is not None:
        check_free(run)  # a run that goes on needs all of its tasks
    if task not in description["tasks"]:
        raise InputError(f"no task {task!r} in {folder}; it has {', '.join(description['tasks']) or 'none'}")
    check_not_referred_to(folder, task, [name for name in description["tasks"] if name != task])
    return description


def check_not_referred_to(folder: Path, task: str, others: Iterable[str]) -> None:
    """Refuse to delete or replace a task that others cannot be read without.

    Raises:
        InputError: the masks of another one are coded relative to its masks.
    """
    headers = {name: read_header(task_path(folder, name)) for name in others}
    relatives = [name for name, header in headers.items() if (header["relative_to"] or {}).get("task") == task]
    if relatives:
        raise InputError(f"the masks of {', '.join(relatives)} are coded relative to those of {task!r}: delete those first")
