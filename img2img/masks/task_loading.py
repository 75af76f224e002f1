"""A task's file is checked against a network and made a frozen task, see `storage` for its form."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

import img2img.masks.coding as coding
from img2img.errors import InputError
from img2img.files.paths import expanded
from img2img.files.untrusted import check_plain, naming
from img2img.masks.base import restore_method
from img2img.masks.basis import Basis
from img2img.masks.file_header import refusing
from img2img.masks.frozen_backbone import FrozenBackbone
from img2img.masks.instance_norm import check_batch_norm
from img2img.masks.relative_masks import FindTask, read_references
from img2img.masks.storage import check_backbone, check_basis, read_task_file
from img2img.masks.stored_tensors import float_dtype, head_tensors, matching, rebuild_head
from img2img.masks.task_header import CODED
from img2img.masks.task_state import TaskState
from img2img.masks.tensors import copy_into

MAX_PARTS = 8
"""Coded parts of one mask at most: with the bound on their elements, a small file cannot become a large task."""

MAX_OPTIONS = 4096
"""Entries of a list among the options of a mask method at most, such as patterns of weight names."""


class LoadedFile(NamedTuple):
    """A task that was read: the name under which it was saved, what it owns, and the checksum of its file."""

    name: str
    state: TaskState
    checksum: str


def load_task_file(
    path: str | os.PathLike[str],
    backbone: FrozenBackbone,
    bases: Mapping[str, Basis],
    find: FindTask,
    head: nn.Module | None = None,
    *,
    checksum: str | None = None,
) -> LoadedFile:
    """Read and check a task file against a backbone, and make its frozen state.

    Args:
        path: the file.
        backbone: which the file must be for.
        bases: those of the network, by name.
        find: gives the task that the file's masks may be coded relative to.
        head: if the file cannot rebuild one; it is written into after everything else was checked.
        checksum: what the file's must be; None for any.

    Raises:
        InputError: the file is damaged, of a newer format, or for another backbone, basis or task, or another file by now.
    """
    path = expanded(path)
    header, tensors = read_task_file(path)
    if checksum is not None and header["checksum"] != checksum:
        raise InputError(
            f"{path} was replaced by another file since the task was first read: delete_task it and register it again, or open "
            "the bundle again"
        )
    check_backbone(path, header, backbone)
    check_basis(path, header, bases)
    references = read_references(path, header, find)
    groups: dict[str, dict[str, Tensor]] = {"mask": {}, "norm": {}, "head": {}}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if kind not in groups:
            raise InputError(f"{path} has an unexpected tensor {key!r}: it is damaged or of another program")
        groups[kind][name] = tensor
    stored = _decode_masks(path, header["coded"], groups["mask"], references, backbone)

    if header["norm"] == "instance":
        with naming(path):
            check_batch_norm(backbone.backbone)
    norm_parameters, norm_buffers = backbone.norm_tensors(header["norm"])
    norm = matching(f"{path}: norm state", groups["norm"], norm_parameters | norm_buffers)
    if header["head"] is None and head is not None:
        raise InputError(f"{path} has no head, but one was passed: leave it out")
    passed = head
    if passed is None and header["head"] is not None:
        head = rebuild_head(path, header["head"], groups["head"], float_dtype(backbone))
    matching(f"{path}: head", groups["head"], head_tensors(head))

    check_plain(header["method"]["options"], f"{path}: options of its method", most=MAX_OPTIONS, largest=1e18)
    with refusing(f"{path}: the masks cannot be restored"):
        method = restore_method(header["method"]["name"], header["method"]["options"])
        if method.basis_name() != (header["basis"] or {}).get("name"):
            raise InputError(f"{path}: the method's basis is {method.basis_name()!r}, the file names {header['basis']}")
        masks = method.restore(stored, backbone.layers(), bases)
        state = TaskState(
            method, masks, {n: norm[n] for n in norm_parameters}, {n: norm[n] for n in norm_buffers}, head, header["norm"]
        )
        state.freeze()
    state.info = header["info"]
    if passed is not None:
        copy_into(passed, groups["head"])
    return LoadedFile(header["task"], state, header["checksum"])


def _decode_masks(
    path: Path,
    coded: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, Tensor],
    references: Mapping[str, Mapping[str, Tensor]],
    backbone: FrozenBackbone,
) -> dict[str, dict[str, Tensor]]:
    """The parts of the masks, by weight and part."""
    layers = backbone.layers()
    stored: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("/")
        if name not in layers:
            raise InputError(f"{path} has a mask of {name!r}, which is no masked weight here: give `select` as it was then")
        entry, parts = coded.get(f"mask/{key}"), stored.setdefault(name, {})
        if entry is None:
            parts[part] = tensor
            continue
        shape, weights = entry["shape"], layers[name].weight.numel()
        if math.prod(shape) > weights or len(parts) >= MAX_PARTS:
            raise InputError(f"{path}: {key} has {shape} elements, or is one part too many, for {weights} weights: it is damaged")
        try:
            parts[part] = coding.decode(tensor, CODED[entry["dtype"]], shape, references.get(name, {}).get(part))
        except InputError as error:
            raise InputError(f"{path}: {key}: {error}") from error
    if missing := coded.keys() - {f"mask/{key}" for key in tensors}:
        raise InputError(f"{path} lacks the masks {sorted(missing)[:3]} that its header lists: it is damaged, copy it again")
    return stored
