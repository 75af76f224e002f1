"""One `safetensors` file a task: packed masks, norm state, head, and a header that binds them to their backbone.

Tensors are named `mask/<weight>/<part>`, `norm/<name>` and `head/<name>`. The header is JSON in the file's metadata; it
carries a SHA-256 over everything else in the file, so that any change is noticed.
"""

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.files import write_bytes
from img2img.masks.base import MaskMethod
from img2img.masks.heads import build_head, describe_head
from img2img.masks.identity import Identity
from img2img.masks.piggyback import Piggyback
from img2img.masks.task import TaskState, copy_into

if TYPE_CHECKING:
    from img2img.masks.network import MaskedNetwork

FORMAT = "img2img-task"
VERSION = 1
METHODS: dict[str, type[MaskMethod]] = {method.name: method for method in (Identity, Piggyback)}


def build_method(name: str, options: Mapping[str, Any]) -> MaskMethod:
    """The mask method of that name with those options, as a config or a task file gives them.

    Raises:
        InputError: the name or an option is unknown, or an option's value is not allowed.
    """
    if name not in METHODS:
        raise InputError(f"mask method {name!r} is unknown; known: {sorted(METHODS)}")
    try:
        return METHODS[name](**options)
    except TypeError as error:
        known = list(getattr(METHODS[name], "__dataclass_fields__", {}))
        raise InputError(f"mask method {name!r}: {error}; its options are {known}") from error


def checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the header without its own `checksum`, and over every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256()
    bare = {k: v for k, v in header.items() if k != "checksum"}
    digest.update(json.dumps(bare, sort_keys=True, ensure_ascii=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def save_task_file(path: str | os.PathLike[str], task: str, state: TaskState, network: "MaskedNetwork") -> Path:
    """Write the frozen `state` of `task`, atomically."""
    masks = {name: mask.stored() for name, mask in state.named_masks()}
    tensors = {f"mask/{name}/{part}": t for name, parts in masks.items() for part, t in parts.items()}
    tensors |= {f"norm/{name}": t for name, t in state.norm_tensors().items()}
    if state.head is not None:
        tensors |= {f"head/{name}": t for name, t in state.head.state_dict().items()}
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    header = {
        "version": VERSION,
        "task": task,
        "method": {"name": state.method.name, "options": state.method.options()},
        "norm": state.norm_mode,
        "head": None if state.head is None else describe_head(state.head),
        "backbone_sha256": network.backbone_sha256,
        "densities": state.densities(),
        "info": state.info,
    }
    header = json.loads(json.dumps(header, allow_nan=False))  # tuples become lists, as they will read back
    header["checksum"] = checksum(header, tensors)
    blob = safetensors.torch.save(tensors, metadata={"format": FORMAT, "header": json.dumps(header)})
    return write_bytes(path, blob)


def read_task_file(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and tensors of a task file, its checksum verified.

    Raises:
        InputError: there is no such file, or it is damaged, of another kind, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no task file at {path}; check the path")
    blob = path.read_bytes()
    try:
        (length,) = struct.unpack("<Q", blob[:8])
        metadata = json.loads(blob[8 : 8 + length]).get("__metadata__", {})
        if metadata.get("format") != FORMAT:
            raise InputError(f"{path} is a safetensors file, but no img2img task; expected one that save_task wrote")
        header = json.loads(metadata["header"])
        if header["version"] > VERSION:
            raise InputError(f"{path} has format version {header['version']}, this img2img reads up to {VERSION}: upgrade it")
        tensors = safetensors.torch.load(blob)
        intact = header["checksum"] == checksum(header, tensors)
    except InputError:
        raise
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"{path} is damaged or no task file ({error}): copy it again from where it came from") from error
    if not intact:
        raise InputError(f"{path} was changed after it was written (checksum differs): copy it again from where it came from")
    return header, tensors


def load_task_file(
    path: str | os.PathLike[str], network: "MaskedNetwork", head: nn.Module | None = None
) -> tuple[str, TaskState]:
    """Read and check a task file against `network`, and make its frozen state; `network` is left as it is."""
    header, tensors = read_task_file(path)
    if header["backbone_sha256"] != network.backbone_sha256:
        raise InputError(
            f"{path} belongs to the backbone {header['backbone_sha256'][:12]}…, this network's is "
            f"{network.backbone_sha256[:12]}…: load the backbone that the task was trained on"
        )
    stored: dict[str, dict[str, Tensor]] = {}
    for key in [k for k in tensors if k.startswith("mask/")]:
        name, _, part = key.removeprefix("mask/").rpartition("/")
        stored.setdefault(name, {})[part] = tensors.pop(key)
    norm = {k.removeprefix("norm/"): tensors.pop(k) for k in [k for k in tensors if k.startswith("norm/")]}
    head_tensors = {k.removeprefix("head/"): tensors.pop(k) for k in [k for k in tensors if k.startswith("head/")]}
    if tensors:
        raise InputError(f"{path} has unexpected tensors {sorted(tensors)[:3]}")

    roles, reference = network.roles, network.frozen_tensors()
    own = header["norm"] == "own"
    expected = {n: reference[n] for n in roles.norm_parameters + roles.norm_buffers} if own else {}
    _check_shapes(f"{path}: norm state", norm, expected)
    if header["head"] is not None:
        head = build_head(header["head"]) if head is None else head
        _check_shapes(f"{path}: head", head_tensors, head.state_dict())
        copy_into(head, head_tensors)
    elif head is not None:
        raise InputError(f"{path} has no head, but one was passed: leave it out")

    method = build_method(header["method"]["name"], header["method"]["options"])
    masks = method.restore(stored, network.masked_weights())
    state = TaskState(
        method,
        masks,
        {n: norm[n] for n in roles.norm_parameters if own},
        {n: norm[n] for n in roles.norm_buffers if own},
        head,
        header["norm"],
    )
    state.info = header["info"]
    state.freeze()
    return header["task"], state


def _check_shapes(what: str, got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if got.keys() != expected.keys():
        odd = sorted(got.keys() ^ expected.keys())
        raise InputError(f"{what}: {odd[:3]} missing or unexpected ({len(got)} tensors, expected {len(expected)})")
    for name, tensor in got.items():
        if tensor.shape != expected[name].shape:
            raise InputError(f"{what}: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}")
