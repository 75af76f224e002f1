"""Tasks that come from elsewhere into a bundle: those of bundles of one backbone, and adapters of PEFT and LyCORIS."""

import copy
import filecmp
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from img2img.backbones import Backbone
from img2img.backbones.head_check import check_head
from img2img.bundle import (
    add_task_to_bundle,
    basis_path,
    bundle_folder,
    changing,
    check_has_tasks,
    check_new_name,
    check_not_packaged,
    check_not_planned,
    check_not_referred_to,
    check_task_file,
    load_backbone,
    load_tasks,
    read_bundle,
    task_path,
)
from img2img.bundle.description import without_head
from img2img.errors import InputError
from img2img.files.atomic import clear_leftovers, write_atomic
from img2img.files.json_files import write_json
from img2img.files.paths import check_no_address, expanded
from img2img.files.untrusted import naming
from img2img.files.writable import check_writable
from img2img.masks import MaskedNetwork
from img2img.masks.adapter_files import Adapter, read_adapter
from img2img.masks.adapter_tasks import add_adapter
from img2img.masks.storage import check_backbone, check_basis, read_header, read_task_file
from img2img.tasks import build_task
from img2img.tasks.stored import stored_task


def join_bundles(into: str | os.PathLike[str], sources: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Put the tasks of bundles that share one backbone into one bundle, as if one run had learned them all.

    Tasks and bases come in the order of the sources; files are copied as they are. A task that several sources hold, such as the
    one that trained the backbone, is taken once, from the first: the same masks, normalisation and head count as the same task,
    whatever metrics were measured on each machine. Everything is read and checked before anything is written, and `bundle.json`,
    which says what belongs to the bundle, is written last: whatever happens, the bundle at `into` is the old one or the new one.
    Another join into the same bundle waits until this one is done.

    Args:
        into: the folder of the bundle to be. If it holds a bundle (or is a run with one), that one comes first and is extended.
            Any other has to be free of files that a bundle would have, but for those that the same join left when it was killed.
        sources: folders of bundles, or of runs.

    Returns:
        The names of all tasks in the bundle, in order.

    Raises:
        InputError: a bundle is missing or damaged, the backbones differ, two tasks or bases of one name do, the run whose bundle
            is at `into` still has to learn a task of such a name, two names differ in case alone, the bundle there came with
            img2img, there are files of something else, or another process has been changing it for ten minutes.
    """
    if not sources:
        raise InputError("no bundles to join: name the folders of one or more runs or bundles")
    check_no_address(into, "into")
    target = bundle_folder(into)
    check_not_packaged(target)
    check_writable(target, "into", "tasks", "bases")
    with changing(target):
        clear_leftovers(target, below=1)
        present = (target / "bundle.json").is_file()
        folders = [bundle_folder(folder) for folder in ([into] if present else []) + list(sources)]
        joint = _Joint()
        for folder in folders:
            joint.add(folder, may_be_empty=present and folder is folders[0])
        new = [name for name, folder in joint.tasks.items() if folder != target]
        check_not_planned(target, new)
        for name in new:
            check_new_name(name, joint.tasks)
        copies = {task_path(target, name): task_path(folder, name) for name, folder in joint.tasks.items()}
        copies |= {basis_path(target, sha256): basis_path(folder, sha256) for sha256, folder in joint.files_of_bases.items()}
        if not present:
            copies[target / "backbone.safetensors"] = folders[0] / "backbone.safetensors"
            _check_unused(target, copies)
        for copied, source in copies.items():
            _copy(source, copied)
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
        masked: the names of the weights that are masked, by whatever patterns they are selected.
    """

    description: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Path] = field(default_factory=dict)
    bases: dict[str, str] = field(default_factory=dict)
    files_of_bases: dict[str, Path] = field(default_factory=dict)
    masked: frozenset[str] = frozenset()

    def add(self, folder: Path, *, may_be_empty: bool = False) -> None:
        """Take the bundle in `folder` up, after checking everything in it."""
        description = read_bundle(folder)
        if not may_be_empty:
            check_has_tasks(folder, description)
        network, backbone = load_backbone(folder, description)  # checks backbone and bases
        load_tasks(folder, description["tasks"], network, backbone)  # and that each would open, before it is joined
        masked = frozenset(network.roles.masked)
        if not self.description:
            self.description, self.masked = description, masked
        first = self.description
        for key, what, same in (
            ("sha256", "backbone", description["sha256"] == first["sha256"]),
            ("spec", "description of the backbone", without_head(description["spec"]) == without_head(first["spec"])),
            ("select", "selection of weights", masked == self.masked),
        ):
            if not same:
                raise InputError(
                    f"{folder} has another {what} than the bundles before it ({description[key]!r:.60}, not "
                    f"{first[key]!r:.60}): its masks mean nothing there; train its tasks on the same backbone, with "
                    "backbone_from=RUN or backbone=bundle"
                )
        for name, sha256 in description["bases"].items():
            if self.bases.setdefault(name, sha256) != sha256:
                raise InputError(f"{folder} has another basis {name!r} than the bundles before it: leave one of them out")
            self.files_of_bases.setdefault(sha256, folder)
        for name in description["tasks"]:
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
    info = {key: value for key, value in header["info"].items() if key not in ("figures", "baseline", "finetuned")}
    return {key: value for key, value in header.items() if key != "checksum"} | {"info": info}


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _check_unused(target: Path, copies: Mapping[Path, Path]) -> None:
    """Refuse a folder without `bundle.json` that holds files of something else where those of a bundle go.

    Args:
        target: the folder.
        copies: by each file to be written there the one that it is copied from: a join that was killed left some of them.
    """
    for path in (target / "backbone.safetensors", *(target / "tasks").glob("*"), *(target / "bases").glob("*")):
        if path.exists() and not (path in copies and path.is_file() and filecmp.cmp(copies[path], path, shallow=False)):
            raise InputError(
                f"{target} has no bundle.json, and holds {path.relative_to(target)} of something else: expected a bundle, or a "
                "folder without backbone.safetensors, tasks/ and bases/; choose another, or move that away"
            )


def _copy(source: Path, target: Path) -> None:
    if source.resolve() != target.resolve():
        write_atomic(target, lambda temporary: shutil.copyfile(source, temporary))


def add_task_file(
    folder: str | os.PathLike[str],
    path: Path,
    network: MaskedNetwork,
    backbone: Backbone,
    *,
    name: str | None = None,
    replace: bool = False,
) -> str:
    """Put the file of one task into a bundle, after checking everything in it; the task's name.

    Args:
        folder: the bundle's.
        path: the task's file.
        network: the bundle's, with the tasks and bases that the file may need.
        backbone: the plain backbone.
        name: another name than the one in the file.
        replace: take the place of a task of that name.

    Raises:
        FolderInUseError: another process changes the bundle, and has not ended in ten minutes.
        InputError: the file is damaged, of another network, or needs a basis or a task that the bundle has not; there is a task
            of that name, or the masks of another one are coded relative to it; or the bundle's run still has to learn it. The
            bundle is as it was.
    """
    folder = expanded(folder)
    name = str(read_header(path)["task"]) if name is None else name
    with changing(folder):
        description = read_bundle(folder)
        others = [other for other in description["tasks"] if other != name]
        if len(others) < len(description["tasks"]):
            if not replace:
                raise InputError(f"there is a task {name!r} in {folder}: give the new one another name, or replace it")
            check_not_referred_to(folder, name, others)
        else:
            check_new_name(name, others)
        check_not_planned(folder, [name])
        if (read_header(path)["relative_to"] or {}).get("task") == name:
            raise InputError(f"the masks of {path} are coded relative to the task {name!r}: give it another name")
        check_task_file(path, network, backbone)
        _copy(path, task_path(folder, name))
        write_json(folder / "bundle.json", description | {"tasks": [*others, name]})
    return name


@dataclass(frozen=True)
class ImportedAdapter:
    """What became of an adapter.

    Attributes:
        task: the new task's name.
        adapter: what the file has.
        head_of: the task whose head and kind the new one has; None where both were given.
        rounding: the largest share by which half precision moved the change of a weight.
    """

    task: str
    adapter: Adapter
    head_of: str | None
    rounding: float


def import_adapter(
    path: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    task: str,
    *,
    head_of: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> ImportedAdapter:
    """Add an adapter of PEFT or LyCORIS to a bundle as a task. It is joined to the others as `join_bundles` does it.

    What a file of weights cannot say is the kind of task: it is that of another task, or given. The head is the file's
    (`modules_to_save`), else that of the other task. Normalisation layers are the file's, else the backbone's.

    Args:
        path: see `read_adapter`.
        bundle: its folder, or that of its run.
        task: the new task's name.
        head_of: a task of the bundle; may be left out where the bundle has one only.
        options: the kind of task and its options, as a config has them, in place of `head_of`; the file must have a head.

    Raises:
        InputError: the adapter is refused (see `read_adapter`), the name is taken, or there is no head or kind. The bundle is as
            it was.
    """
    folder = bundle_folder(bundle)
    check_not_packaged(folder)
    description = read_bundle(folder)
    if task in description["tasks"]:
        raise InputError(f"there is a task {task!r} in {folder} already: choose another name, or delete that one first")
    check_new_name(task, description["tasks"])
    check_not_planned(folder, [task])
    network, backbone = load_backbone(folder, description)
    adapter = read_adapter(path, network)
    info: dict[str, Any] = {}
    head: nn.Module | None
    if options is not None:
        if head_of is not None:
            raise InputError(
                "the kind of task was given twice, by options and by head_of (--config and --head-of on the command line): leave "
                "one out"
            )
        if not adapter.head:
            raise InputError(
                f"{adapter.path} has no head: name a task of the bundle whose head it is to have, by head_of, --head-of on the "
                "command line, and no options of its own"
            )
        described = build_task(options)
        head = backbone.make_head(described.out_channels)
        options = described.options()
    else:
        head_of = _only_task(folder, description["tasks"], head_of)
        load_tasks(folder, description["tasks"], network, backbone)
        other = network.state(head_of)
        described, options, head = stored_task(other.info), other.info["task"], copy.deepcopy(other.head)
        info = {key: other.info[key] for key in ("side", "white") if key in other.info}
    assert head is not None
    with naming(adapter.path):
        check_head(backbone, head, described.out_channels)
    rounding = add_adapter(network, task, adapter, head=head)
    info |= {"adapter": {"form": adapter.form, "file": adapter.path.name}}
    with tempfile.TemporaryDirectory() as made:
        alone = Path(made) / "adapter"
        write_json(alone / "bundle.json", description | {"tasks": [], "bases": {}})
        shutil.copyfile(folder / "backbone.safetensors", alone / "backbone.safetensors")
        add_task_to_bundle(alone, network, task, options=options, info=info)
        join_bundles(folder, [alone])
    return ImportedAdapter(task, adapter, head_of, rounding)


def _only_task(folder: Path, tasks: Sequence[str], asked: str | None) -> str:
    """The task asked for, or the only one."""
    if asked is not None and asked in tasks:
        return asked
    if asked is None and len(tasks) == 1:
        return tasks[0]
    if not tasks:
        raise InputError(
            f"{folder} has no task whose head and kind the new one could have: give the kind of task "
            "(options in Python, --config on the command line)"
        )
    got = "no task" if asked is None else f"head_of={asked!r}"
    raise InputError(
        f"{folder}: got {got} whose head and kind the new one has, expected one of {', '.join(tasks)}: name it by head_of, "
        "--head-of on the command line"
    )
