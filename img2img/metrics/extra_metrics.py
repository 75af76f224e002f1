"""Metrics of torchmetrics, or of one's own, beside those that a task has."""

from typing import TYPE_CHECKING

from torch import Tensor
from torchmetrics import Metric

from img2img.errors import InputError

if TYPE_CHECKING:
    from img2img.tasks.base import Example, Metrics


class _Beside:
    def __init__(self, figures: "Metrics", values: dict[str, Metric]) -> None:
        self.figures = figures
        self.values = values

    def update(self, prediction: Tensor, example: "Example") -> None:
        self.figures.update(prediction, example)
        for metric in self.values.values():
            metric.to(prediction.device).update(prediction, example.target)

    def compute(self) -> dict[str, float]:
        return self.figures.compute() | {name: _number(name, metric) for name, metric in self.values.items()}


def with_extra_metrics(figures: "Metrics", **values: Metric) -> "Metrics":
    """The figures of a task, and the values of torchmetrics metrics under the names of their keywords.

    Args:
        figures: what `metrics()` of a kind of task gives.
        values: metrics whose `update` takes the task's prediction and target, and whose `compute` gives one number.

    Raises:
        InputError: at `compute`, another value than one number.
    """
    return _Beside(figures, values)


def _number(name: str, metric: Metric) -> float:
    value = metric.compute()
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InputError(f"the metric {name!r} computed {got}: expected one number; give it an average, such as average='macro'")
    return value.item()
