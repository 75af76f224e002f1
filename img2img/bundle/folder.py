"""A bundle on disk: a folder with the backbone, one file a task, and `bundle.json` that says what they are."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from img2img.backbones import Backbone
from img2img.backbones.head_check import check_head
from img2img.backbones.stored import rebuild_backbone
from img2img.bundle.description import FORMAT, VERSION, read_description, same_backbone
from img2img.bundle.packaged import check_not_packaged, near_packaged, packaged_bundle, packaged_bundles
from img2img.errors import InputError, first_line
from img2img.files.atomic import write_bytes
from img2img.files.json_files import read_json, write_json
from img2img.files.lock import hold
from img2img.files.paths import expanded
from img2img.files.tensors import tensor_shapes
from img2img.files.untrusted import naming
from img2img.masks import Basis, MaskedNetwork
from img2img.masks.task_state import TaskState
from img2img.masks.task_store import check_task_name
from img2img.masks.tensors import total_bytes
from img2img.tasks.stored import check_info, stored_task

_SHA256 = re.compile(r"[0-9a-f]{64}")
HEAD = "head"
"""The submodule of every `Backbone` that tasks replace."""
PATIENCE = 600.0
"""Seconds to wait for another process that changes the bundle: it copies files, and trains nothing in that time."""


def save_backbone(
    folder: str | os.PathLike[str], network: MaskedNetwork, spec: Mapping[str, Any], select: Sequence[str] | None = None
) -> None:
    """Write the backbone of `network`, without a head, and a `bundle.json`; `select` is what it was made with.

    A float32 tensor whose values are all those of half precision is stored in half precision, which loses nothing.
    Tasks of a bundle that is there already, on the very same backbone, stay in it; any other is replaced, with its files.

    Raises:
        FolderInUseError: another process changes the bundle, and has not ended in ten minutes.
        InputError: the `bundle.json` that is there cannot be read, or is of a newer format. Nothing has changed.
    """
    folder = expanded(folder)
    state = network.backbone.state_dict()
    # Copies: tied weights are one tensor under two names, and the file has no such thing.
    tensors = {name: _compact(t.detach().cpu().clone(memory_format=torch.contiguous_format)) for name, t in state.items()}
    blob = safetensors.torch.save(tensors, metadata={"format": FORMAT})
    description = describe_backbone(network, spec, select)
    with changing(folder):
        earlier = read_bundle(folder) if (folder / "bundle.json").exists() else {"tasks": [], "bases": {}}
        same = same_backbone(earlier, description)
        kept = {key: earlier[key] for key in ("tasks", "bases")} if same else {"tasks": [], "bases": {}}
        write_bytes(folder / "backbone.safetensors", blob)
        write_json(folder / "bundle.json", description | kept)
        if not same:  # the list goes first: a file that it does not name does no harm
            files = [task_path(folder, task) for task in earlier["tasks"]]
            for file in (*files, *(basis_path(folder, sha256) for sha256 in earlier["bases"].values())):
                file.unlink(missing_ok=True)


def describe_backbone(network: MaskedNetwork, spec: Mapping[str, Any], select: Sequence[str] | None) -> dict[str, Any]:
    """What `bundle.json` says of the backbone; the arguments are those of `save_backbone`."""
    description = {"format": FORMAT, "version": VERSION, "sha256": network.backbone_sha256, "spec": dict(spec)}
    plain: dict[str, Any] = json.loads(json.dumps(description | {"select": ["*"] if select is None else list(select)}))
    return plain  # as it reads back


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """The block changes a bundle, and nobody else does meanwhile.

    Raises:
        FolderInUseError: another process changes it, and has not ended in `PATIENCE` seconds.
        InputError: it came with img2img.
    """
    check_not_packaged(folder)
    with hold(folder, wait=PATIENCE):
        yield


def stored_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that values of a backbone take in its file, where `save_backbone` stores them in half precision if that is exact."""
    return sum(total_bytes({name: _compact(tensor)}) for name, tensor in tensors.items())


def _compact(tensor: Tensor) -> Tensor:
    """A float32 tensor in half precision where that is exact; any other as it is."""
    if tensor.dtype != torch.float32:
        return tensor
    half = tensor.half()
    return half if torch.equal(half.float(), tensor) else tensor


def check_new_name(name: str, others: Iterable[str]) -> None:
    """Refuse the name of a task to come, whose file could not be beside those of `others` on every disk.

    Raises:
        InputError: it is no task name, or differs from another task's in case alone.
    """
    check_task_name(name)
    alike = next((other for other in others if other != name and other.casefold() == name.casefold()), None)
    if alike is not None:
        raise InputError(
            f"task name {name!r} differs from that of the task {alike!r} in case alone: macOS and Windows take their files for "
            "one; choose another name"
        )


def run_of(folder: Path) -> Path | None:
    """The folder of the run that a bundle is, or may be, that of; None for one by another name than `bundle`."""
    folder = folder.absolute()
    return folder.parent if folder.name == "bundle" else None


def check_not_planned(folder: Path, names: Iterable[str]) -> None:
    """Refuse names of tasks that the run of a bundle still has to learn: it will write files of those names there.

    Args:
        folder: the bundle's. One of no run takes every name.
        names: of tasks that are to come into the bundle.

    Raises:
        InputError: one is planned, or the run's `progress.json` is damaged.
    """
    run = run_of(folder)
    if run is None or not (run / "progress.json").is_file():
        return
    progress = read_json(run / "progress.json")
    planned, finished = (progress.get(key) for key in ("planned", "tasks")) if isinstance(progress, dict) else (None, None)
    if not isinstance(planned, list) or not isinstance(finished, dict):
        return  # by an earlier version, or of something else: then the run itself refuses to replace the task
    ahead = {other.casefold(): other for other in planned if isinstance(other, str) and other not in finished}
    for name in names:
        if name.casefold() in ahead:
            raise InputError(
                f"the run in {run} still has to learn a task {ahead[name.casefold()]!r} of its own, whose file will go into "
                f"{folder}: give the new one another name, join them into another folder, or let that run go on without the task "
                "in its sequence"
            )


def bundle_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder of a bundle: the one given, the `bundle` folder of a run, or the bundle of that name that comes with img2img."""
    folder = expanded(folder)
    for place in (folder / "bundle", folder):
        if (place / "bundle.json").is_file():
            return place
    return packaged_bundle(folder) or folder


def check_outside(bundle: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Refuse to write to a path within a bundle, whose own files have such names.

    Raises:
        InputError: it is the folder of the bundle, or in it.
    """
    inside, path = bundle_folder(bundle).resolve(), expanded(path)
    if inside in (path.resolve(), *path.resolve().parents):
        raise InputError(f"{path} lies within the bundle in {inside}: its own files could be lost; choose another")


def task_path(folder: Path, task: str) -> Path:
    """The file of a task that a bundle lists.

    Raises:
        InputError: it is no task name.
    """
    _check_listed(folder, task)
    return folder / "tasks" / f"{task}.safetensors"


def _check_listed(folder: Path, task: str) -> None:
    try:
        check_task_name(task, new=False)
    except InputError as error:
        raise InputError(f"{folder / 'bundle.json'} lists a task that can be none: {error}") from error


def basis_path(folder: Path, sha256: str) -> Path:
    """The file of a basis.

    Raises:
        InputError: `sha256` is no SHA-256.
    """
    if not _SHA256.fullmatch(sha256):
        raise InputError(f"{folder / 'bundle.json'}: a basis has the SHA-256 {sha256[:80]!r}: restore it from a copy")
    return folder / "bases" / f"{sha256}.safetensors"


def read_bundle(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of `bundle.json`, checked: every field of its type, every name one that may name a file.

    Raises:
        InputError: no bundle there, or it was edited into something else, or is of a newer format.
    """
    path = expanded(folder) / "bundle.json"
    if not path.is_file():
        known = ", ".join(packaged_bundles())
        raise InputError(
            f"no bundle in {folder}: {near_packaged(folder)}expected the file bundle.json there; give the folder that a run wrote"
            + (f", or the name of a bundle that comes with img2img ({known})" if known else "")
        )
    description = read_description(path)
    for task in description["tasks"]:
        _check_listed(path.parent, task)
    for sha256 in description["bases"].values():
        basis_path(path.parent, sha256)
    return description


def check_has_tasks(folder: Path, description: Mapping[str, Any]) -> None:
    """Refuse a bundle that is nothing but a backbone.

    Raises:
        InputError: it has no tasks.
    """
    if not description["tasks"]:
        raise InputError(
            f"the bundle in {folder} has no tasks: let its run finish one, or add one with img2img add-task. What comparison "
            "methods (packnet, finetune, lwf, ...) learn is in no bundle: their metrics are in the run's results.json"
        )


def load_bundle(folder: str | os.PathLike[str]) -> tuple[MaskedNetwork, Backbone]:
    """Rebuild the network of a bundle and load all of its tasks.

    Returns:
        The network in evaluation mode, and the plain backbone, which knows `stride`, `min_size` and `make_head`.

    Raises:
        InputError: a file is missing, damaged, or does not belong to the others, or there is no task.
    """
    return _with_tasks(folder, load_tasks)


def open_bundle(folder: str | os.PathLike[str], **bounds: int | None) -> tuple[MaskedNetwork, Backbone]:
    """Rebuild the network of a bundle, with tasks of which each is read, and checked, when it is first used.

    Of a thousand tasks those that are used take time and memory, and no others. Beyond `loaded_bytes` those used last are kept,
    and the others are read again. The files have to stay where they are.

    Args:
        folder: the bundle's.
        bounds: as of `load_backbone`.

    Returns:
        As of `load_bundle`.

    Raises:
        InputError: a file is missing, the backbone or a basis is damaged, or there is no task. What the file of a task holds is
            checked when it is read.
    """
    return _with_tasks(folder, register_tasks, **bounds)


def _with_tasks(
    folder: str | os.PathLike[str], add: Callable[[Path, Sequence[str], MaskedNetwork, Backbone], None], **bounds: int | None
) -> tuple[MaskedNetwork, Backbone]:
    """The network of a bundle in evaluation mode, with its tasks as `add` adds them, and the plain backbone."""
    folder = expanded(folder)
    description = read_bundle(folder)
    check_has_tasks(folder, description)
    network, backbone = load_backbone(folder, description, **bounds)
    add(folder, description["tasks"], network, backbone)
    network.eval()
    return network, backbone


def register_tasks(folder: Path, names: Sequence[str], network: MaskedNetwork, backbone: Backbone) -> None:
    """Add tasks of a bundle to `network`, each to be read when it is first used.

    Raises:
        InputError: a file is missing, or `network` has such a task already.
    """
    network.register_files({name: task_path(folder, name) for name in names}, check=partial(_check_task, backbone))


def load_tasks(folder: Path, names: Sequence[str], network: MaskedNetwork, backbone: Backbone) -> None:
    """Load tasks of a bundle into `network`, and check that what they say of themselves fits their heads.

    Raises:
        InputError: a file is missing, damaged, of another network, or its head does not give what the task needs.
    """
    for name in names:
        path = task_path(folder, name)
        network.load_task(path, name=name)
        _check_task(backbone, path, network.state(name))


def check_task_file(path: Path, network: MaskedNetwork, backbone: Backbone) -> None:
    """Refuse the file of a task that could not be one of a bundle's; `network` has the tasks and bases that it may need.

    Raises:
        InputError: see `load_tasks`.
    """
    network.check_file(path, check=partial(_check_task, backbone))


def _check_task(backbone: Backbone, path: Path, state: TaskState) -> None:
    """Refuse a task whose head does not give what its file says of it."""
    check_info(path, state.info)
    with naming(path):
        check_head(backbone, state.head, stored_task(state.info).out_channels)


def check_bundle(folder: str | os.PathLike[str]) -> None:
    """Read all of a bundle, with or without tasks.

    Raises:
        InputError: see `load_bundle`.
    """
    folder = expanded(folder)
    description = read_bundle(folder)
    load_tasks(folder, description["tasks"], *load_backbone(folder, description))


def load_backbone(folder: Path, description: Mapping[str, Any], **bounds: int | None) -> tuple[MaskedNetwork, Backbone]:
    """The network of a bundle without its tasks, and the plain backbone.

    Args:
        folder: the bundle's.
        description: of `read_bundle`.
        bounds: `cache_bytes` and `loaded_bytes` of `MaskedNetwork`; None for its own.
    """
    path = folder / "backbone.safetensors"
    if not path.is_file():
        raise InputError(f"no backbone at {path}: copy the bundle again, whole")
    # No weights of another origin, whatever an edited file may ask for: they come from the bundle.
    backbone = rebuild_backbone({"out_channels": 1} | description["spec"], tensor_shapes(path), path)
    try:
        backbone.load_state_dict(safetensors.torch.load(path.read_bytes()), strict=False)
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise InputError(f"{path} is damaged or of another network ({first_line(error)}): copy it again") from error
    given: Any = {name: value for name, value in bounds.items() if value is not None}
    network = MaskedNetwork(backbone, head=HEAD, select=description["select"], strict=False, **given)
    if network.backbone_sha256 != description["sha256"]:
        raise InputError(
            f"the backbone in {path} has the SHA-256 {network.backbone_sha256[:12]}…, bundle.json says "
            f"{description['sha256'][:12]}…: one of them was changed; copy both again"
        )
    load_bases(folder, description["bases"], network)
    return network, backbone


def load_bases(folder: Path, bases: Mapping[str, str], network: MaskedNetwork) -> None:
    """Add the bases of a bundle, SHA-256 by name, to `network`, but for names that it has."""
    for name, sha256 in bases.items():
        if name in network.bases():
            continue
        basis = Basis.load(basis_path(folder, sha256), network.layers())
        if basis.sha256 != sha256:
            raise InputError(f"{basis_path(folder, sha256)} holds the basis {basis.sha256[:12]}…: copy the bundle again, whole")
        network.add_basis(name, basis)
