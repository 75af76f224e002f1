"""A task as an ONNX file, checked with onnxruntime."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from img2img.export.check import Agreement, check_agreement
from img2img.export.graph import INPUT, Interface, TaskGraph
from img2img.extras import require
from img2img.files.atomic import write_bytes

OPSET = 20
"""The version of ONNX's operators in the files; onnxruntime reads it since 1.17 (2024)."""


def packages() -> tuple[Any, Any]:
    """`onnx` and `onnxruntime`, the latter told to report nothing about its use unless the user asked for it.

    Raises:
        InputError: one of them, or onnxscript, is not installed.
    """
    # Since 1.29 it sends reports and keeps an ID of the machine in the home's cache, from the moment that it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    onnx, runtime, _ = (require(name, extra="export", what="an ONNX file") for name in ("onnx", "onnxruntime", "onnxscript"))
    return onnx, runtime


def write_onnx(path: Path, program: ExportedProgram, graph: TaskGraph, interface: Interface) -> Agreement:
    """Write the program as ONNX, after comparing it with `graph`.

    Raises:
        InputError: a package is missing, an operation has no ONNX form, or onnxruntime does not agree.
    """
    onnx, _ = packages()
    model = onnx_model(program, interface)
    blob = model.SerializeToString()
    onnx.checker.check_model(blob, full_check=True)
    found = check_agreement(runner(blob), graph, interface.shapes(), what=path.name)
    write_bytes(path, blob)
    return found


def onnx_model(program: ExportedProgram, interface: Interface, *, optimize: bool = True) -> Any:
    """The program as an `onnx.ModelProto` with named axes and the interface in its metadata.

    Args:
        program: what `trace` recorded.
        interface: of the same task.
        optimize: fold constants, normalisation into convolutions among them; without it the weights are the network's own.
    """
    onnx, _ = packages()
    exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, optimize=optimize)
    assert exported is not None
    model = exported.model_proto
    _rename(onnx, model, {model.graph.input[0].name: INPUT, model.graph.output[0].name: interface.output})
    _name_axes(model, interface)
    _strip(model.graph)
    model.graph.name = str(interface.values["task"])
    model.producer_name = str(interface.values["made_by"])
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, text_values(interface.values))
    return model


def text_values(values: Mapping[str, Any]) -> dict[str, str]:
    """Values as texts, JSON where they are none."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def runner(source: bytes | str) -> Callable[[Tensor], Tensor]:
    """The file as onnxruntime runs it on the CPU: a batch in, the output out."""
    _, runtime = packages()
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # warnings of its optimiser are not the user's
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])

    return run


def _rename(onnx: Any, model: Any, names: Mapping[str, str]) -> None:
    for node in model.graph.node:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)


def _name_axes(model: Any, interface: Interface) -> None:
    """Call the free axes batch, height and width in place of the tracer's expressions."""
    axes = model.graph.input[0].type.tensor_type.shape.dim
    names = {axes[i].dim_param: name for i, name in ((0, "batch"), (2, "height"), (3, "width")) if axes[i].dim_param}
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = names.get(axis.dim_param, "")


def _strip(graph: Any) -> None:
    """Leave out what the exporter notes of this machine's files, and the shapes of values in between."""
    del graph.value_info[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                _strip(inner)
