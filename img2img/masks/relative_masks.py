"""Masks that are coded relative to those of another task, which whoever reads the file must have."""

import hashlib
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from img2img.errors import InputError
from img2img.masks.task_state import TaskState
from img2img.masks.tensors import pack_bits

FindTask = Callable[[str], TaskState | None]
"""`find(name)`: the task of that name, of the network that a file is read for; None if there is none."""

MAX_CHAIN = 50
"""Files that are read to read one whose masks are relative to another's, which are relative in turn."""

# Registered tasks are read when they are used: a circle of references would go on for ever.
_reading: ContextVar[tuple[Path, ...]] = ContextVar("_reading", default=())


def binary_parts(state: TaskState) -> dict[str, dict[str, Tensor]]:
    """The bool parts of a frozen task's masks, by weight and part: what others may be coded relative to."""
    stored = {name: mask.stored() for name, mask in state.named_masks()}
    return {name: {part: t for part, t in parts.items() if t.dtype == torch.bool} for name, parts in stored.items()}


def hash_masks(parts: Mapping[str, Mapping[str, Tensor]]) -> str:
    """SHA-256 over what `binary_parts` gives."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        for part, tensor in sorted(parts[name].items()):
            digest.update(f"{name} {part} {tuple(tensor.shape)}\n".encode())
            digest.update(pack_bits(tensor).cpu().numpy().data)
    return digest.hexdigest()


def read_references(path: Path, header: Mapping[str, Any], find: FindTask) -> dict[str, dict[str, Tensor]]:
    """The masks that those of the file are coded relative to, by weight and part."""
    if header["relative_to"] is None:
        return {}
    task, sha256 = header["relative_to"]["task"], header["relative_to"]["sha256"]
    reading, here = _reading.get(), path.resolve()
    if here in reading or len(reading) >= MAX_CHAIN:
        raise InputError(
            f"{path} is coded relative to tasks that lead back to it, or to a chain of more than {MAX_CHAIN}: "
            "load one of them from a file that was saved without relative_to"
        )
    token = _reading.set((*reading, here))
    try:
        state = find(task)
    finally:
        _reading.reset(token)
    if state is None:
        raise InputError(f"{path} is coded relative to the task {task!r}, which this network does not have: load that task first")
    if not state.frozen:
        raise InputError(f"{path} is coded relative to the task {task!r}, which is in training here: load it as it was saved")
    parts = binary_parts(state)
    if hash_masks(parts) != sha256:
        raise InputError(
            f"{path} is coded relative to a task {task!r} with the masks {sha256[:12]}…, this network's of that name has others: "
            "load the one that it was saved with"
        )
    return parts
