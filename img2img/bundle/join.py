"""Bundles of one backbone joined into one: tasks that were trained side by side become one network."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from img2img.bundle import (
    PATIENCE,
    basis_path,
    bundle_folder,
    check_has_tasks,
    check_not_planned,
    load_backbone,
    load_tasks,
    read_bundle,
    task_path,
)
from img2img.errors import InputError
from img2img.files.atomic import clear_leftovers, write_atomic
from img2img.files.json_files import write_json
from img2img.files.lock import hold
from img2img.files.writable import check_writable
from img2img.masks import MaskedNetwork
from img2img.masks.storage import check_backbone, check_basis, read_task_file
from img2img.masks.task_store import check_task_name


def join_bundles(into: str | os.PathLike[str], sources: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Put the tasks of bundles that share one backbone into one bundle, as if one run had learned them all.

    Tasks and bases come in the order of the sources; files are copied as they are. A task that several sources hold, such as the
    one that trained the backbone, is taken once, from the first: the same masks, normalisation and head count as the same task,
    whatever metrics were measured on each machine. Everything is read and checked before anything is written, and `bundle.json`,
    which says what belongs to the bundle, is written last: whatever happens, the bundle at `into` is the old one or the new one.
    Another join into the same bundle waits until this one is done.

    Args:
        into: the folder of the bundle to be. If it holds a bundle (or is a run with one), that one comes first and is extended.
        sources: folders of bundles, or of runs.

    Returns:
        The names of all tasks in the bundle, in order.

    Raises:
        InputError: a bundle is missing or damaged, the backbones differ, or two tasks or bases of one name do, the run whose
            bundle is at `into` still has to learn a task of such a name, or another process has been changing the bundle for ten
            minutes.
    """
    if not sources:
        raise InputError("no bundles to join: name the folders of one or more runs or bundles")
    target = bundle_folder(into)
    check_writable(target, "into", "tasks", "bases")
    with hold(target, wait=PATIENCE):
        clear_leftovers(target, below=1)
        present = (target / "bundle.json").is_file()
        folders = [bundle_folder(folder) for folder in ([into] if present else []) + list(sources)]
        joint = _Joint()
        for folder in folders:
            joint.add(folder, may_be_empty=present and folder is folders[0])
        check_not_planned(target, (name for name, folder in joint.tasks.items() if folder != target))
        for name, folder in joint.tasks.items():
            _copy(task_path(folder, name), task_path(target, name))
        for sha256, folder in joint.files_of_bases.items():
            _copy(basis_path(folder, sha256), basis_path(target, sha256))
        if not present:
            _copy(folders[0] / "backbone.safetensors", target / "backbone.safetensors")
        write_json(target / "bundle.json", joint.description | {"tasks": list(joint.tasks), "bases": joint.bases})
        return list(joint.tasks)


@dataclass
class _Joint:
    """What the bundles read so far come to.

    Attributes:
        description: that of the first, without its tasks and bases.
        tasks: the folder of the bundle that each task is taken from, by name.
        bases: SHA-256 by name.
        files_of_bases: the folder of a bundle that has the basis, by SHA-256.
    """

    description: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Path] = field(default_factory=dict)
    bases: dict[str, str] = field(default_factory=dict)
    files_of_bases: dict[str, Path] = field(default_factory=dict)

    def add(self, folder: Path, *, may_be_empty: bool = False) -> None:
        """Take the bundle in `folder` up, after checking everything in it."""
        description = read_bundle(folder)
        if not may_be_empty:
            check_has_tasks(folder, description)
        network, backbone = load_backbone(folder, description)  # checks backbone and bases
        load_tasks(folder, description["tasks"], network, backbone)  # and that each would open, before it is joined
        self.description = self.description or description
        for key, what in (("sha256", "backbone"), ("spec", "description of the backbone"), ("select", "selection of weights")):
            if description[key] != self.description[key]:
                raise InputError(
                    f"{folder} has another {what} than the bundles before it ({description[key]!r:.60}, not "
                    f"{self.description[key]!r:.60}): its masks mean nothing there; train its tasks on the same backbone, with "
                    "backbone_from=RUN or backbone=bundle"
                )
        for name, sha256 in description["bases"].items():
            if self.bases.setdefault(name, sha256) != sha256:
                raise InputError(f"{folder} has another basis {name!r} than the bundles before it: leave one of them out")
            self.files_of_bases.setdefault(sha256, folder)
        for name in description["tasks"]:
            check_task_name(name)
            content = _read(folder, name, network)
            if name not in self.tasks:
                self.tasks[name] = folder
            elif not _same(content, _read(self.tasks[name], name, network)):
                raise InputError(
                    f"{folder} and {self.tasks[name]} have different tasks {name!r}: learn one of them under another name, or "
                    "leave it out"
                )


Content = tuple[dict[str, Any], dict[str, Tensor]]


def _read(folder: Path, name: str, network: MaskedNetwork) -> Content:
    """A task's header and tensors, checked against what the bundle holds."""
    path = task_path(folder, name)
    header, tensors = read_task_file(path)
    check_backbone(path, header, network)
    check_basis(path, header, network.bases())
    return header, tensors


def _same(a: Content, b: Content) -> bool:
    """Whether two tasks are one, but for metrics, which another machine measures otherwise in the last digit."""
    ours, theirs = a[1], b[1]
    alike = _unmeasured(a[0]) == _unmeasured(b[0]) and ours.keys() == theirs.keys()
    return alike and all(_equal(ours[key], theirs[key]) for key in ours)


def _unmeasured(header: Mapping[str, Any]) -> dict[str, Any]:
    info = {key: value for key, value in header["info"].items() if key != "figures"}
    return {key: value for key, value in header.items() if key != "checksum"} | {"info": info}


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _copy(source: Path, target: Path) -> None:
    if source.resolve() != target.resolve():
        write_atomic(target, lambda temporary: shutil.copyfile(source, temporary))
