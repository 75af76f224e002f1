"""Running a task over whole images: prediction, metrics, and the fixed batch that shows whether an output has changed."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from img2img.data.base import Batch, ImageDataset
from img2img.data.loader import eval_batches
from img2img.errors import memory_explained
from img2img.tasks import Task
from img2img.tasks.base import Metrics
from img2img.tasks.check import primary_value

if TYPE_CHECKING:  # torchmetrics' image metrics take a second to import
    from img2img.metrics.perceptual import ImageMetric, PerceptualMetrics

Network = Callable[[Tensor], Tensor]
"""(N, 3, H, W) float in [0, 1], of a size that the backbone takes, to the head's raw output: of the same height and width, or
(N, C) for whole images.
"""


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """How networks of one backbone are run over images.

    Attributes:
        stride: height and width are padded to multiples of it.
        min_size: the smallest height and width that the backbone takes.
        device: where the networks are.
        batch_size: images of one size that run together.
        channels_last: the memory format of images.
        batch_option: what sets `batch_size`, as an error calls it where memory runs out.
        smaller: what else to do then.
        perceptual: metrics beside those of tasks with `Task.compares_images`, which `metrics` gives too; None for none.
    """

    stride: int
    min_size: int
    device: torch.device
    batch_size: int = 8
    channels_last: bool = False
    batch_option: str = "evaluation.batch_size"
    smaller: str = (
        "make the task's images smaller with data.resize. Finished tasks and the last checkpoint are kept; run the same command "
        "again"
    )
    perceptual: "PerceptualMetrics | None" = None

    def memory_explained(self) -> AbstractContextManager[None]:
        """Say what to lower where the block, which runs networks over whole images, does not fit into memory."""
        return memory_explained(
            f"while whole images were measured, up to {self.batch_option}={self.batch_size} at once",
            f"try {self.batch_option}={max(1, self.batch_size // 2)}, or {self.smaller}",
        )

    @torch.no_grad()
    def run(self, network: Network, input: Tensor) -> Tensor:
        """The raw output of `network` for inputs of a size that it takes; memory that runs out is for the caller to explain."""
        return network(self.placed(input))

    def placed(self, input: Tensor) -> Tensor:
        """`input` on the device and in the memory format of the networks."""
        input = input.to(self.device)
        return input.contiguous(memory_format=torch.channels_last) if self.channels_last else input

    def border(self, task: Task, size: tuple[int, int]) -> int:
        """How many pixels of an image of `size` are mirrored at its edges for a task: the stride, see `Task.mirrored`.

        0 of images that are no larger than that.
        """
        return self.stride if task.mirrored and min(size) > self.stride else 0

    def raw(self, network: Network, input: Tensor, *, border: int = 0) -> Tensor:
        """The raw output for images of any size: padded by replication to a size that the backbone takes, and cut back.

        Args:
            network: the network.
            input: (N, C, H, W).
            border: pixels that are mirrored at all edges before that, fewer than H and W.
        """
        height, width = input.shape[-2:]
        seen = F.pad(input, (border,) * 4, mode="reflect") if border else input
        padded = [max(self.min_size, math.ceil(n / self.stride) * self.stride) - n for n in seen.shape[-2:]]
        raw = self.run(network, F.pad(seen, (0, padded[1], 0, padded[0]), mode="replicate") if any(padded) else seen)
        return raw[..., border : border + height, border : border + width] if raw.ndim == 4 else raw

    def predict(self, network: Network, task: Task, input: Tensor) -> Tensor:
        """The prediction for images of any size."""
        border = self.border(task, (input.shape[-2], input.shape[-1]))
        raw = self.raw(lambda seen: task.compact(network(seen), seen), input, border=border)
        return task.prediction(raw, input)

    def metrics(self, network: Network | None, task: Task, images: ImageDataset) -> dict[str, float]:
        """All metrics of `task` over a set of whole images, read once, in order.

        Args:
            network: the trained network, in evaluation mode; None measures the task's baseline.
            task: what is measured.
            images: the set.

        Raises:
            OutOfMemoryError: with what to lower.
        """
        beside = [] if self.perceptual is None or not task.compares_images else self.perceptual.build()
        return self._measured(network, task, images, task.metrics(), beside)

    def primary_metric(self, network: Network | None, task: Task, images: ImageDataset) -> float:
        """The one that chooses the state and decides comparisons.

        Raises:
            InputError: the task's metrics have none of that name.
        """
        return primary_value(task, self._measured(network, task, images, task.primary_metrics(), []))

    def _measured(
        self, network: Network | None, task: Task, images: ImageDataset, metrics: Metrics, of_images: Sequence["ImageMetric"]
    ) -> dict[str, float]:
        with self.memory_explained():
            for batch in eval_batches(images, batch_size=self.batch_size):
                example = task.example(batch.to(self.device))
                found = task.baseline(example) if network is None else self.predict(network, task, example.input)
                metrics.update(found, example)
                if of_images:
                    shown = [task.to_image(values, example.input) for values in (found, example.target)]
                    for metric in of_images:
                        metric.update(*shown)
            return metrics.compute() | {name: value for metric in of_images for name, value in metric.compute().items()}

    def check_input(self, task: Task, images: ImageDataset, count: int) -> Tensor:
        """The task's input of the first `count` images, cut from their top left corners to one size that the backbone takes.

        Outputs are bit-equal only for the same batch size, memory format and thread count, so the batch is fixed.
        """
        samples = [images[i] for i in range(min(count, len(images)))]
        height, width = (max(min(s.image.shape[i] for s in samples) // self.stride * self.stride, self.min_size) for i in (0, 1))
        pieces = []
        for sample in samples:
            piece = task.input(Batch.stack([sample]))[..., :height, :width]
            pieces.append(F.pad(piece, (0, width - piece.shape[-1], 0, height - piece.shape[-2]), mode="replicate"))
        return torch.cat(pieces)


def finite(metrics: dict[str, float]) -> dict[str, Any]:
    """The metrics with None where there is no number (a class that does not occur), as JSON wants it."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
