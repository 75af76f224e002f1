"""All tasks as small ONNX files beside one file with the backbone's weights.

The weights that tasks mask lie in `backbone.bin`, to which each file refers as ONNX's external data. A file holds its masks as
bits, unpacked and applied inside the graph: `Where(bits, W, 0)`, which a runtime folds once, when it opens the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from img2img.errors import InputError
from img2img.export.check import Agreement, check_agreement
from img2img.export.graph import Interface, interface, task_graph
from img2img.export.onnx_file import onnx_model, packages, runner
from img2img.export.trace import trace
from img2img.files.atomic import write_atomic, write_bytes
from img2img.masks import MaskedNetwork
from img2img.tasks import Task

WEIGHTS = "backbone.bin"
"""The masked weights of the backbone, float32, little endian, one after another."""
_PREFIX = "network."  # of the network's tensors inside a `TaskGraph`
_POWERS = "bit_values"


def write_shared(
    network: MaskedNetwork, tasks: Mapping[str, Task], folder: Path, raw: bool, size: tuple[int, int] | None
) -> list[tuple[Path, Agreement, Interface]]:
    """Write `WEIGHTS` and a file a task, each compared with the network; see `export.export_bundle`.

    Raises:
        InputError: as `export_task`; or files of another backbone lie in `folder`.
    """
    onnx, _ = packages()
    weights = {name: w.cpu() for name, w in network.masked_weights().items() if w.dtype == torch.float32}
    blob = b"".join(w.contiguous().numpy().astype("<f4").tobytes() for w in weights.values())
    shared = folder / WEIGHTS
    if shared.exists() and shared.read_bytes() != blob:
        raise InputError(f"{shared} holds another backbone, which other files there may refer to: choose an empty folder")
    written: list[tuple[Path, Agreement, Interface]] = []
    for name, task in tasks.items():
        graph = task_graph(network, name, task, raw=raw)
        described = interface(network, name, task, graph, size=size)
        model = onnx_model(trace(task_graph(network, name, task, raw=raw), described), described, optimize=False)
        effective = {key: t.detach() for key, t in graph.network.state_dict().items() if key in weights}
        _share(onnx, model.graph, weights, effective)

        def write(path: Path, model: Any = model, described: Interface = described, graph: Any = graph) -> None:
            path.write_bytes(model.SerializeToString())
            onnx.checker.check_model(str(path), full_check=True)
            found = check_agreement(runner(str(path)), graph, described.shapes(), what=described.values["task"] + ".onnx")
            written.append((path, found, described))

        if not written:
            write_bytes(shared, blob)  # not before the first task has become a graph, which many cannot
        path = write_atomic(folder / f"{name}.onnx", write)
        written[-1] = (path, *written[-1][1:])
    return written


def _share(onnx: Any, graph: Any, weights: Mapping[str, Tensor], effective: Mapping[str, Tensor]) -> None:
    """Replace the effective weights inside `graph` that are W or W times bits by references to `WEIGHTS`, and bits."""
    kept, added, nodes, offset = [], {}, [], 0
    inside = {t.name: t for t in graph.initializer}
    for name, weight in weights.items():
        length, key = weight.numel() * 4, _PREFIX + name
        inside_value = inside.get(key)
        if inside_value is not None and np.array_equal(onnx.numpy_helper.to_array(inside_value), effective[name].numpy()):
            bits = effective[name] == weight
            if bits.all():
                added[key] = _external(onnx, key, weight, offset)
            elif bool((bits | (effective[name] == 0)).all()):
                added[key] = _external(onnx, f"{key}/backbone", weight, offset)
                kept += _bits(onnx, key, bits)
                nodes += _masked(onnx, key)
        offset += length
    kept += [t for t in graph.initializer if t.name not in added]
    if nodes:
        kept.append(onnx.numpy_helper.from_array(2 ** np.arange(8, dtype=np.uint8)[None], _POWERS))
        kept.append(onnx.numpy_helper.from_array(np.zeros((), np.float32), "nothing"))
        kept.append(onnx.numpy_helper.from_array(np.array([0]), "start"))
        kept.append(onnx.numpy_helper.from_array(np.array([-1]), "flat"))
    del graph.initializer[:]
    graph.initializer.extend([*kept, *added.values()])
    before = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *before])


def _external(onnx: Any, name: str, weight: Tensor, offset: int) -> Any:
    """A tensor of the graph whose values lie in `WEIGHTS`."""
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=weight.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS), ("offset", offset), ("length", weight.numel() * 4)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _bits(onnx: Any, key: str, bits: Tensor) -> list[Any]:
    """The bits, eight a byte, lowest first; how many there are; and their shape."""
    packed = np.packbits(bits.numpy().ravel(), bitorder="little")[:, None]
    values = {"bits": packed, "count": np.array([bits.numel()]), "shape": np.array(bits.shape, np.int64)}
    return [onnx.numpy_helper.from_array(value, f"{key}/{part}") for part, value in values.items()]


def _masked(onnx: Any, key: str) -> list[Any]:
    """The operations that make `key` of its bits and the backbone's weight."""
    steps = [
        ("BitwiseAnd", [f"{key}/bits", _POWERS], {}),
        ("Cast", [f"{key}/1"], {"to": onnx.TensorProto.BOOL}),
        ("Reshape", [f"{key}/2", "flat"], {}),
        ("Slice", [f"{key}/3", "start", f"{key}/count"], {}),
        ("Reshape", [f"{key}/4", f"{key}/shape"], {}),
        ("Where", [f"{key}/5", f"{key}/backbone", "nothing"], {}),
    ]
    names = [f"{key}/{i}" for i in range(1, len(steps))] + [key]
    return [onnx.helper.make_node(op, inputs, [out], **more) for (op, inputs, more), out in zip(steps, names, strict=True)]
