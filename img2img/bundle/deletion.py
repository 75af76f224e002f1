"""Deleting a task from a bundle, which leaves all others as they are."""

import contextlib
import logging
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
from img2img.validation import did_you_mean

logger = logging.getLogger("img2img")

_SHOWN = 20
"""Names of tasks in a message, at most."""


def delete_task_from_bundle(folder: str | os.PathLike[str], task: str) -> None:
    """Take `task` out of `bundle.json`, then remove its file, and that of a basis which no other task combines.

    Of another task whose file cannot be read nobody knows the basis: then all bases stay.

    Raises:
        InputError: there is no such task, another one's masks are coded relative to it, or the bundle is that of a run that goes
            on, or is in use.
    """
    folder = expanded(folder)
    check_deletable(folder, task)  # before anything is written
    with changing(folder):
        description = check_deletable(folder, task)
        names = [name for name in description["tasks"] if name != task]
        headers = _readable(folder, names)
        used = {(header["basis"] or {}).get("name") for header in headers.values()}
        if unread := [name for name in names if name not in headers]:
            used.update(description["bases"])
            logger.warning(
                "%s: the files of the tasks %s are missing or damaged: they count as not relative to %s; copy them again, or "
                "delete them too", folder, ", ".join(unread), task,
            )  # fmt: skip
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
        there = ", ".join(description["tasks"][:_SHOWN]) + (", …" if len(description["tasks"]) > _SHOWN else "")
        remedy = f"{did_you_mean(task, description['tasks'])}expected one of {there}" if there else "it has none to delete"
        raise InputError(f"no task {task!r} in {folder}: {remedy}")
    check_not_referred_to(folder, task, [name for name in description["tasks"] if name != task])
    return description


def check_not_referred_to(folder: Path, task: str, others: Iterable[str]) -> None:
    """Refuse to delete or replace a task that others cannot be read without. One that cannot be read anyway is none of these.

    Raises:
        InputError: the masks of another one are coded relative to its masks.
    """
    headers = _readable(folder, others)
    relatives = [name for name, header in headers.items() if (header["relative_to"] or {}).get("task") == task]
    if relatives:
        raise InputError(f"the masks of {', '.join(relatives)} are coded relative to those of {task!r}: delete those first")


def _readable(folder: Path, tasks: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The headers of the tasks' files, without those that are missing or damaged."""
    headers = {}
    for name in tasks:
        with contextlib.suppress(InputError):
            headers[name] = read_header(task_path(folder, name))
    return headers
