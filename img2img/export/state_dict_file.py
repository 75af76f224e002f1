"""A task as the state dict of an ordinary module, `.safetensors`, with a header that says how to build the module."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from img2img.backbones import Backbone, build_backbone
from img2img.backbones.head_check import check_head
from img2img.backbones.stored import HEAD, rebuild_backbone
from img2img.errors import InputError, first_line
from img2img.export.check import Agreement, check_agreement
from img2img.export.graph import Interface, TaskGraph
from img2img.files.atomic import write_bytes
from img2img.files.json_files import parse_json
from img2img.files.paths import expanded
from img2img.files.tensors import Shapes, tensor_shapes
from img2img.files.untrusted import check_plain, mapping, naming
from img2img.masks.heads import build_head, describe_head
from img2img.masks.instance_norm import is_by_instance
from img2img.masks.meta import meta_device
from img2img.masks.stored_tensors import rebuild_head

KEY = "img2img"
"""The entry of the file's metadata with the interface as JSON."""

_DEPTH = 24
"""Lists and mappings in each other in the header, at most: of a head with layers in layers each level has two."""


def write_state_dict(path: Path, graph: TaskGraph, interface: Interface) -> tuple[Agreement, Interface]:
    """Write the merged network's tensors, rebuild the network from them and compare it with `graph`.

    Returns:
        How near it is; and the interface, which describes the head too where that is of another form than the backbone's own.

    Raises:
        InputError: the head cannot be described, or the rebuilt network does not agree.
    """
    if is_by_instance(graph.network):
        raise InputError(
            "the task normalises by each image's own statistics (norm='instance'), which a state dict cannot say: export it "
            "as onnx or pt2"
        )
    rebuilt = build_backbone(interface.values["backbone"] | {"weights": None, "out_channels": interface.values["out_channels"]})
    head = _head_of_its_own(graph, rebuilt, interface)
    if head is not None:
        interface = replace(interface, values=interface.values | {"head": head})
        rebuilt.head = build_head(head)
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in graph.network.state_dict().items()}
    blob = safetensors.torch.save(tensors, metadata={"format": "pt", KEY: json.dumps(interface.values)})
    rebuilt.load_state_dict(tensors)
    again = TaskGraph(rebuilt.requires_grad_(False).eval(), graph.task, raw=graph.raw)
    found = check_agreement(again, graph, interface.shapes(), what=path.name, by_torch=True)
    write_bytes(path, blob)
    return found, interface


def _head_of_its_own(graph: TaskGraph, backbone: Backbone, interface: Interface) -> dict[str, Any] | None:
    """The description of the task's head; None where it has the form of the backbone's own for as many channels.

    Raises:
        InputError: it is of a class that no file can describe.
    """
    head = graph.network.head
    assert isinstance(head, nn.Module)
    described: dict[str, Any] = json.loads(json.dumps(describe_head(head)))
    if described == json.loads(json.dumps(describe_head(backbone.head))):
        return None
    try:
        check_plain(described, "its description", depth=_DEPTH - 1)
        with meta_device():
            build_head(described)
    except InputError as error:
        raise InputError(
            f"the head of the task {interface.values['task']!r}, a {type(head).__name__}, has another form than the backbone's "
            f"own, and a state dict cannot say which ({error}): export the task as onnx or pt2"
        ) from error
    return described


def _rebuild(values: dict[str, Any], tensors: dict[str, Any], shapes: Shapes, path: Path) -> Backbone:
    spec, described = {**values["backbone"], "out_channels": values["out_channels"]}, values.get("head")
    if described is None:
        module = rebuild_backbone(spec, shapes, path, with_head=True)
    else:
        module = rebuild_backbone(spec, {key: shape for key, shape in shapes.items() if not key.startswith(HEAD)}, path)
        own = {name.removeprefix(HEAD): tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
        module.head = rebuild_head(path, mapping(described), own, torch.float32)
        with naming(path):
            check_head(module, module.head, values["out_channels"])
    module.load_state_dict(tensors)
    return module.requires_grad_(False).eval()


def load_exported(path: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a file that `export_task` wrote as safetensors, and what its header says.

    Returns:
        An ordinary module in evaluation mode, from the task's input to the head's raw output, and the header's values: `kind`
        and `options` rebuild the task with `img2img.tasks.build_task(values["options"])`.

    Raises:
        InputError: it is no such file, or damaged.
    """
    path = expanded(path)
    if not path.is_file():
        raise InputError(f"no file at {path}: expected a task that was exported as safetensors; check the path")
    shapes = tensor_shapes(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            values = parse_json((file.metadata() or {})[KEY])
            check_plain(values, f"{path}: its header", depth=_DEPTH)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _rebuild(values, tensors, shapes, path), values
    except InputError:
        raise
    except (safetensors.SafetensorError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is no task that img2img exported, or it is damaged ({first_line(error)}): export it again"
        ) from error
