"""A task as the state dict of an ordinary module, `.safetensors`, with a header that says how to build the module."""

import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from img2img.backbones import Backbone, build_backbone
from img2img.backbones.stored import rebuild_backbone
from img2img.errors import InputError, first_line
from img2img.export.check import Agreement, check_agreement
from img2img.export.graph import Interface, TaskGraph
from img2img.files.atomic import write_bytes
from img2img.files.json_files import parse_json
from img2img.files.paths import expanded
from img2img.files.tensors import Shapes, tensor_shapes
from img2img.files.untrusted import check_plain
from img2img.masks.instance_norm import is_by_instance

KEY = "img2img"
"""The entry of the file's metadata with the interface as JSON."""


def write_state_dict(path: Path, graph: TaskGraph, interface: Interface) -> Agreement:
    """Write the merged network's tensors, rebuild the network from them and compare it with `graph`.

    Raises:
        InputError: the rebuilt network does not agree.
    """
    if is_by_instance(graph.network):
        raise InputError(
            "the task normalises by each image's own statistics (norm='instance'), which a state dict cannot say: export it "
            "as onnx or pt2"
        )
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in graph.network.state_dict().items()}
    blob = safetensors.torch.save(tensors, metadata={"format": "pt", KEY: json.dumps(interface.values)})
    rebuilt = build_backbone(interface.values["backbone"] | {"weights": None, "out_channels": interface.values["out_channels"]})
    rebuilt.load_state_dict(tensors)
    again = TaskGraph(rebuilt.requires_grad_(False).eval(), graph.task, raw=graph.raw)
    found = check_agreement(again, graph, interface.shapes(), what=path.name)
    write_bytes(path, blob)
    return found


def _rebuild(values: dict[str, Any], tensors: dict[str, Any], shapes: Shapes, path: Path) -> Backbone:
    spec = {**values["backbone"], "out_channels": values["out_channels"]}
    module = rebuild_backbone(spec, shapes, path, with_head=True)
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
            check_plain(values, f"{path}: its header", depth=6)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _rebuild(values, tensors, shapes, path), values
    except InputError:
        raise
    except (safetensors.SafetensorError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is no task that img2img exported, or it is damaged ({first_line(error)}): export it again"
        ) from error
