"""One task as one module: an image in, the task's result out, in torch operations alone."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from img2img.backbones import Backbone
from img2img.data.base import Batch
from img2img.errors import InputError
from img2img.masks import MaskedNetwork
from img2img.tasks import Task
from img2img.version import __version__

INPUT = "image"
"""The name of the input of every exported graph."""


def served_input(task: Task, image: Tensor) -> Tensor:
    """What the network is fed for images (N, 3, H, W) in [0, 1]; exact for 8-bit ones."""
    return task.served_input(Batch(image=image * 255))


class TaskGraph(nn.Module):
    """What is exported: the task's own input, the merged network, and the task's result.

    Args:
        network: a merged network, on the CPU.
        task: its task.
        raw: give the head's raw output in place of the result.
        border: pixels that are mirrored at the edges of images that are larger, see `Task.mirrored`.
    """

    def __init__(self, network: nn.Module, task: Task, *, raw: bool, border: int = 0) -> None:
        super().__init__()
        self.border = border
        self.network = network.requires_grad_(False).eval()
        self.task = task
        self.raw = raw

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) float in [0, 1] to the form that `Interface.output` tells."""
        input = served_input(self.task, image)
        if self.raw:
            raw: Tensor = self.network(input)
            return raw
        height, width = input.shape[-2:]
        if self.border and height > self.border and width > self.border:
            raw = self._compact(F.pad(input, [self.border] * 4, mode="reflect"))
            raw = raw[..., self.border : self.border + height, self.border : self.border + width]
        else:
            raw = self._compact(input)
        return self.task.show(self.task.prediction(raw, input), input, _form(self.task))

    def _compact(self, input: Tensor) -> Tensor:
        return self.task.compact(self.network(input), input)


@dataclass(frozen=True)
class Interface:
    """What a user of an exported file has to know; plain values, which every format carries.

    Attributes:
        output: the output's name: "labels", "probabilities", "output_image" or "raw".
        stride: height and width are multiples of it.
        min_size: height and width are at least this.
        size: (height, width) of a graph of one size, else None.
        values: all of it as JSON values.
    """

    output: str
    stride: int
    min_size: int
    size: tuple[int, int] | None
    values: dict[str, Any]

    def shapes(self) -> list[tuple[int, int, int]]:
        """(N, H, W) of the batches that a file is checked on: the smallest size, wide and high ones, and 1 to 3 images."""
        if self.size is not None:
            return [(n, *self.size) for n in (1, 2, 3)]
        low, step = self.min_size, self.stride
        return [(1, low, low), (2, low + step, low + 2 * step), (3, low + 3 * step, low)]

    def at_least(self, min_size: int) -> "Interface":
        """The same with another smallest height and width."""
        values = self.values | {"min_size": min_size, "input": _input_text(self.stride, min_size, self.size)}
        return replace(self, min_size=min_size, values=values)

    def of_the_network(self, task: Task) -> "Interface":
        """That of the network alone, from what the task feeds to it to the head's raw output."""
        side = -(-max(self.min_size, 8) // self.stride) * self.stride
        height, width = self.size or (side, side)
        channels = served_input(task, torch.zeros(1, 3, height, width, dtype=torch.float32)).shape[1]
        rest = _size_text(self.stride, self.min_size, self.size)
        made = "what `served_input` of the task, built of `options`, makes of RGB images"
        values = self.values | {"input": f"(N, {channels}, H, W) float32, {made}; {rest}", "output": f"raw: {_OUTPUTS['raw']}"}
        return replace(self, output="raw", values=values)


def _input_text(stride: int, min_size: int, size: tuple[int, int] | None) -> str:
    return f"{INPUT}: (N, 3, H, W) float32 RGB in [0, 1], {_size_text(stride, min_size, size)}"


def _size_text(stride: int, min_size: int, size: tuple[int, int] | None) -> str:
    multiples = f"multiples of {stride}, " if stride > 1 else ""
    return f"of {size[0]} x {size[1]} pixels (height x width)" if size else f"height and width {multiples}at least {min_size}"


_OUTPUTS = {
    "labels": "(N, H, W) int64 class indices",
    "probabilities": "(N, classes) float, the probability of each class",
    "output_image": "(N, 3, H, W) float RGB in [0, 1]",
    "raw": "float, the raw output of the task's head, as the network computes it",
}


def backbone_of(network: MaskedNetwork) -> Backbone:
    """The plain backbone inside `network`.

    Raises:
        InputError: it is a network of the user's own class, which no file can describe.
    """
    if not isinstance(network.backbone, Backbone):
        raise InputError(
            f"the network's backbone is a {type(network.backbone).__name__}: expected one of img2img.backbones, which knows its "
            "stride and how to build it again; export your own with network.merge(task) and torch.export"
        )
    return network.backbone


def task_graph(network: MaskedNetwork, name: str, task: Task, *, raw: bool) -> TaskGraph:
    """The task merged into an ordinary module on the CPU, from image to result.

    Raises:
        InputError: the network is of the user's own class, or not of float32.
    """
    backbone_of(network)
    merged = network.merge(name).cpu()
    odd = next((t.dtype for t in merged.state_dict().values() if t.is_floating_point() and t.dtype != torch.float32), None)
    if odd is not None:
        raise InputError(
            f"the network is {str(odd).removeprefix('torch.')}: files are exported in float32 alone; load the bundle anew, or "
            "cast the network back with network.float()"
        )
    return TaskGraph(merged, task, raw=raw, border=backbone_of(network).stride if task.mirrored else 0)


def interface(
    network: MaskedNetwork, name: str, task: Task, graph: TaskGraph, *, size: tuple[int, int] | None = None
) -> Interface:
    """Describe `graph`.

    Args:
        network: holds the task.
        name: the task's name.
        task: the task.
        graph: of that task.
        size: (height, width) of the only size that the graph shall take, None for all that the backbone takes.

    Raises:
        InputError: the backbone does not take images of `size`.
    """
    backbone = backbone_of(network)
    stride, low = backbone.stride, -(-backbone.min_size // backbone.stride) * backbone.stride
    if graph.border and not graph.raw:
        low = max(low, 2 * stride)  # no smaller image has a border
    if size is not None:
        backbone.check(torch.empty(1, 3, *size, dtype=torch.float32, device="meta"))
    elif not _takes(graph, low, low + stride):
        size = (low, low)
    output = "raw" if graph.raw else {"labels": "labels", "scores": "probabilities"}.get(_form(task), "output_image")
    state = network.state(name)
    values: dict[str, Any] = {
        "made_by": f"img2img {__version__}",
        "task": name,
        "kind": task.kind,
        "options": task.options(),
        "method": state.method.inner.name,
        "input": _input_text(stride, low, size),
        "output": f"{output}: {_OUTPUTS[output]}",
        "stride": stride,
        "min_size": low,
        "size": None if size is None else list(size),
        "backbone": backbone.spec,
        "out_channels": task.out_channels,
        "backbone_sha256": network.backbone_sha256,
    }
    if task.has_classes:
        values["classes"] = list(task.options()["classes"])
    values |= {key: state.info[key] for key in ("side", "figures") if key in state.info}
    return Interface(output, stride, low, size, values)


@torch.no_grad()
def _takes(graph: TaskGraph, height: int, width: int) -> bool:
    """Whether the network runs on images of that size; some have an input a pixel, or windows of one size."""
    try:
        graph.network(torch.zeros(1, 3, height, width, dtype=torch.float32))
    except (InputError, RuntimeError, AssertionError, ValueError):
        return False
    return True


def _form(task: Task) -> str:
    """The form that programs want of a result: labels or probabilities where the task has them, else its usual image."""
    return next((form for form in ("labels", "scores") if form in task.forms), task.forms[0])
