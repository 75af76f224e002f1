"""Metrics of torchmetrics, or of one's own, in addition to those that a task has."""

from typing import Generic, Protocol, TypeVar

from torch import Tensor
from torchmetrics import Metric, MetricCollection

from img2img.errors import InputError
from img2img.metrics.names import joined


class HasTarget(Protocol):
    """What a task's metrics are updated with; extra metrics use its target alone."""

    @property
    def target(self) -> Tensor:
        """What the prediction is compared with."""


Example = TypeVar("Example", bound=HasTarget)
Example_contra = TypeVar("Example_contra", bound=HasTarget, contravariant=True)


class ExampleMetrics(Protocol[Example_contra]):
    """The metrics of a task, see `tasks.Metrics`."""

    def update(self, prediction: Tensor, example: Example_contra) -> None:
        """Measure a batch."""

    def compute(self) -> dict[str, float]:
        """The metrics by name."""


class _WithExtraMetrics(Generic[Example]):
    def __init__(self, metrics: ExampleMetrics[Example], extra: MetricCollection) -> None:
        self.metrics = metrics
        self.extra = extra

    def update(self, prediction: Tensor, example: Example) -> None:
        self.metrics.update(prediction, example)
        self.extra.to(prediction.device).update(prediction, example.target)

    def compute(self) -> dict[str, float]:
        return joined([self.metrics.compute(), {name: _number(name, value) for name, value in self.extra.compute().items()}])


def with_extra_metrics(metrics: ExampleMetrics[Example], **extra: Metric) -> ExampleMetrics[Example]:
    """A task's metrics, and the values of torchmetrics metrics under the names of their keywords.

    A metric that gives one value for each class is wrapped in `torchmetrics.ClasswiseWrapper`, whose `labels` and `prefix` name
    the values.

    Args:
        metrics: what `metrics()` of a kind of task gives.
        extra: metrics whose `update` takes the task's prediction and target, and whose `compute` gives one number, or a mapping
            of names to numbers, which is added as it is.

    Raises:
        InputError: at `compute`, another value than one number, or a name that the task's metrics have already.
    """
    # Without groups: of two metrics whose states are equal after the first batch a group updates only one from then on.
    collection = MetricCollection({}, compute_groups=False)
    for name, metric in extra.items():  # one by one: a mapping would be sorted by name
        collection.add_metrics({name: metric})
    return _WithExtraMetrics(metrics, collection)


def _number(name: str, value: object) -> float:
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InputError(
            f"the metric {name!r} computed {got}: expected one number; give it an average, such as average='macro', or wrap it "
            "in torchmetrics.ClasswiseWrapper, which names the value of each class"
        )
    return value.item()
