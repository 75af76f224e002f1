"""A task's file is written, see `storage` for its form."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import img2img.masks.coding as coding
from img2img.errors import InputError
from img2img.files.atomic import write_bytes
from img2img.files.json_files import parse_json
from img2img.files.tensors import tensor_bytes
from img2img.masks.basis import Basis
from img2img.masks.file_header import MAX_HEADER, checksum
from img2img.masks.frozen_backbone import FrozenBackbone
from img2img.masks.heads import describe_head
from img2img.masks.relative_masks import binary_parts, hash_masks
from img2img.masks.stored_tensors import head_tensors
from img2img.masks.task_header import CODED, FORMAT, VERSION
from img2img.masks.task_state import TaskState
from img2img.masks.tensors import total_bytes


def save_task_file(
    path: str | os.PathLike[str],
    task: str,
    state: TaskState,
    backbone: FrozenBackbone,
    bases: Mapping[str, Basis],
    relative_to: tuple[str, TaskState] | None = None,
) -> Path:
    """Write the frozen `state` of `task`, atomically.

    Args:
        path: the file.
        task: the name that it is loaded under by default.
        state: what is written.
        backbone: which the task belongs to.
        bases: those of the network, by name.
        relative_to: the name and state of a frozen task of that backbone: masks are coded relative to its masks where that is
            smaller. Whoever loads the file must have it. Where it is smaller for no mask, the file does not depend on it.

    Raises:
        InputError: `relative_to` is no other frozen task, or the task's `info` is no plain JSON.
    """
    references: dict[str, dict[str, Tensor]] = {}
    if relative_to is not None:
        name, other = relative_to
        if name == task or not other.frozen:
            raise InputError(f"relative_to={name!r}: expected another task that is frozen; freeze_task it first")
        references = binary_parts(other)

    tensors, coded, layers = _code_masks(state, backbone, references)
    coded_bytes = total_bytes(tensors)
    raw_bytes = total_bytes({name: t for name, t in tensors.items() if name not in coded})
    relative = any(coding.coder(tensors[name]) == "relative" for name in coded)

    tensors |= {f"norm/{name}": t for name, t in state.norm_tensors().items()}
    tensors |= {f"head/{name}": t for name, t in head_tensors(state.head).items()}
    # Copies, since safetensors refuses tensors that share memory.
    tensors = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    basis = state.method.basis_name()
    header = {
        "version": VERSION,
        "task": task,
        "method": {"name": state.method.name, "options": state.method.stored_options()},
        "norm": state.norm_mode,
        "head": None if state.head is None else describe_head(state.head),
        "backbone_sha256": backbone.backbone_sha256,
        "densities": state.densities(),
        "info": state.info,
        "storage": {
            "weights": sum(layers.values()),
            "coded_bytes": coded_bytes,
            "entropy_bits": math.fsum((8 * raw_bytes, *(entry["entropy_bits"] for entry in coded.values()))),
            "layers": layers,
        },
        "relative_to": {"task": relative_to[0], "sha256": hash_masks(references)} if relative_to and relative else None,
        "basis": None if basis is None else {"name": basis, "sha256": bases[basis].sha256},
        "coded": coded,
    }
    try:
        header = parse_json(json.dumps(header, allow_nan=False))  # tuples become lists, as they will read back
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"task {task!r}: its info is no plain JSON ({error}): keep to numbers, text, lists and dicts") from error
    header["checksum"] = checksum(header, tensors)
    content = tensor_bytes(tensors, {"format": FORMAT, "header": json.dumps(header)})
    if int.from_bytes(content[:8], "little") > MAX_HEADER:
        raise InputError(f"task {task!r}: its header is longer than {MAX_HEADER} bytes; keep what is large out of `info`")
    return write_bytes(path, content)


def _code_masks(
    state: TaskState, backbone: FrozenBackbone, references: Mapping[str, Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]], dict[str, int]]:
    """The masks' tensors as they are stored, the header's `coded`, and the number of weights by layer."""
    tensors: dict[str, Tensor] = {}
    coded: dict[str, dict[str, Any]] = {}
    layers: dict[str, int] = {}
    for name, mask in state.named_masks():
        layers[name] = backbone.layers()[name].weight.numel()
        for part, values in mask.stored().items():
            key = f"mask/{name}/{part}"
            if values.dtype not in CODED.values() or values.numel() > layers[name]:  # more is not read back, see _decode_masks
                tensors[key] = values
                continue
            reference = references.get(name, {}).get(part)
            if reference is not None and (values.dtype != torch.bool or reference.shape != values.shape):
                reference = None
            tensors[key] = coding.encode(values, reference)
            used = reference if coding.coder(tensors[key]) == "relative" else None
            coded[key] = {
                "dtype": str(values.dtype).removeprefix("torch."),
                "shape": list(values.shape),
                "entropy_bits": coding.entropy_bits(values, used),
            }
    return tensors, coded, layers
