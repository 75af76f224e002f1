"""A task's graph as a `torch.export` program whose batch, height and width are free."""

import importlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from img2img.errors import InputError, first_line
from img2img.export.graph import INPUT, Interface, TaskGraph, served_input


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
    """Record `graph`, whose network is changed in form (`_plain_padding`), not in what it computes.

    Raises:
        InputError: the network or the task does something that a graph of free sizes cannot hold.
    """
    if interface.size is None:
        _plain_padding(graph, interface)
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
        return _padded(self, x, [_halves(max(dilation * (kernel - 1) + 1 - stride, 0)) for kernel, stride, dilation in shapes])


class _DynamicSame(nn.Conv2d):
    """The same for all sizes, in whole numbers that a graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        shapes = zip(x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True)
        return _padded(self, x, [_sides(*shape) for shape in shapes])


def _sides(size: Any, kernel: int, stride: int, dilation: int) -> tuple[Any, Any]:
    """Pixels of padding before and after, along one axis of a size that need not be known.

    Padded it is exactly what the outputs reach over: then the tracer finds that their number is the size divided by the stride,
    rounded up. Where a stride is longer than a kernel that may be less than there is, and the rest, which nothing reads, is cut.
    """
    reach = dilation * (kernel - 1) + 1
    if stride == 1:
        return _halves(reach - 1)
    needed = ((size + stride - 1) // stride - 1) * stride + reach - size
    before = needed // 2 if reach >= stride else torch.sym_max(needed // 2, 0)
    return before, needed - before


def _halves(total: int) -> tuple[int, int]:
    return total // 2, total - total // 2


def _padded(convolution: nn.Conv2d, x: Tensor, sides: Sequence[tuple[Any, Any]]) -> Tensor:
    weight, bias, stride = convolution.weight, convolution.bias, convolution.stride
    padding = [pixels for pair in reversed(sides) for pixels in pair]
    return F.conv2d(F.pad(x, padding), weight, bias, stride, 0, convolution.dilation, convolution.groups)


def _plain_padding(graph: TaskGraph, interface: Interface) -> None:
    """Write the SAME padding of convolutions in a form that the tracer of free sizes takes, in place.

    Computed from a size that is not known, it costs the tracer minutes. Where every layer sees multiples of its own stride, as it
    does when the image's size is a multiple of the product of all, it needs no size. A classifier takes all sizes: then it does.
    """
    found = [m for m in graph.network.modules() if type(m).__name__ == "Conv2dSame" and isinstance(m, nn.Conv2d)]  # timm's
    odd = {id(m) for m in found} & _see_odd_sizes(graph, interface, found)
    for module in found:
        module.__class__ = _DynamicSame if id(module) in odd else _StaticSame


@torch.no_grad()
def _see_odd_sizes(graph: TaskGraph, interface: Interface, modules: Sequence[nn.Conv2d]) -> set[int]:
    """The `id` of those modules that get something else than multiples of their stride on images of some sizes."""
    odd: set[int] = set()

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        if any(n % stride for n, stride in zip(inputs[0].shape[-2:], module.stride, strict=True)):
            odd.add(id(module))

    if not any(set(module.stride) - {1} for module in modules):
        return odd
    handles = [module.register_forward_pre_hook(look) for module in modules]
    try:
        low, step = interface.min_size, interface.stride
        for height in range(low, low + 4 * step, step):  # of a layer after one that rounds, some of four in a row are odd
            graph.network(served_input(graph.task, torch.zeros(1, 3, height, low + step, dtype=torch.float32)))
    finally:
        for handle in handles:
            handle.remove()
    return odd


def _forget_places(program: ExportedProgram) -> None:
    """Remove which files of this machine each operation came from, which stays private."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
