"""A task's graph as a `torch.export` program whose batch, height and width are free."""

import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from img2img.errors import InputError, first_line
from img2img.export.graph import INPUT, Interface, TaskGraph


def _size_oblivious(oblivious: bool) -> AbstractContextManager[Any]:
    """Torch's setting by which no size is taken to be other than 1; nothing where it is not there: it is undocumented."""
    try:
        config = importlib.import_module("torch.fx.experimental._config")
    except ImportError:
        return nullcontext()
    known = hasattr(config, "backed_size_oblivious")
    patched: AbstractContextManager[Any] = config.patch(backed_size_oblivious=oblivious) if known else nullcontext()
    return patched


def trace(graph: TaskGraph, interface: Interface) -> ExportedProgram:
    """Record `graph`, whose network is changed in form (`_static_padding`), not in what it computes.

    Raises:
        InputError: the network or the task does something that a graph of free sizes cannot hold.
    """
    _static_padding(graph.network)
    stride, low = interface.stride, interface.min_size
    height, width = interface.size or (low + stride, low + 2 * stride)
    shapes: dict[int, object] = {0: Dim("batch")}
    if interface.size is None:
        for axis, name in ((2, "height"), (3, "width")):
            shapes[axis] = Dim(name, min=low) if stride == 1 else stride * Dim(f"{name}_{stride}", min=low // stride)
    example = torch.linspace(0, 1, 2 * 3 * height * width, dtype=torch.float32).view(2, 3, height, width)
    program, failure = None, None
    # Without the assumption that no size is 1, which would rule out the smallest images; einsum cannot do without it.
    for oblivious in (True, False):
        try:
            with torch.no_grad(), _size_oblivious(oblivious):
                program = torch.export.export(graph, (example,), dynamic_shapes={INPUT: shapes})
            break
        except Exception as error:  # of many kinds
            failure = error
    if program is None:
        assert failure is not None
        raise InputError(
            f"the task {interface.values['task']!r} does not become a graph of torch.export ({first_line(failure)}): "
            "give the images' size (size=(height, width)), or choose the format safetensors, which needs no graph"
        ) from failure
    _forget_places(program)
    return program


class _StaticSame(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding, as it is for sizes that are multiples of the stride."""

    def forward(self, x: Tensor) -> Tensor:
        shapes = zip(self.kernel_size, self.stride, self.dilation, strict=True)
        needed = [max(dilation * (kernel - 1) + 1 - stride, 0) for kernel, stride, dilation in shapes]
        sides = [n for total in reversed(needed) for n in (total // 2, total - total // 2)]
        return F.conv2d(F.pad(x, sides), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _static_padding(network: nn.Module) -> None:
    """Let convolutions with SAME padding take it as it is for multiples of their stride, in place.

    Computed from a size that is not known, it costs the tracer minutes. Every layer sees multiples of its own stride when the
    image's size is a multiple of the network's.
    """
    for module in network.modules():
        if type(module).__name__ == "Conv2dSame" and isinstance(module, nn.Conv2d):  # timm's, which need not be installed
            module.__class__ = _StaticSame


def _forget_places(program: ExportedProgram) -> None:
    """Remove which files of this machine each operation came from: nobody else's business."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
