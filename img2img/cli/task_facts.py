"""What commands say of a bundle's tasks beside their results: the measured metric, the baseline, a legend."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from img2img import formatting


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The primary metric of a task on its test set.

    Attributes:
        metric: its name.
        higher_is_better: its direction.
        value: None where the file has none.
        baseline: of the baseline; None where the file has none.
        baseline_name: what the baseline is called.
    """

    metric: str
    higher_is_better: bool
    value: float | None
    baseline: float | None
    baseline_name: str

    @property
    def named(self) -> str:
        """The metric with an arrow to the better values."""
        return f"{self.metric} {'↑' if self.higher_is_better else '↓'}"

    def __str__(self) -> str:
        compared = "" if self.baseline is None else f" ({self.baseline_name} {formatting.number(self.baseline)})"
        return f"{self.named} {formatting.number(self.value)}{compared}"


def measured(task: Any, figures: Mapping[str, float | None], baseline: float | None) -> Measured:
    """What is known of the primary metric of a `Task`.

    Args:
        task: the task.
        figures: the test set's metrics by name.
        baseline: the baseline's value.
    """
    return Measured(
        metric=task.metric, higher_is_better=task.higher_is_better, value=figures.get(task.metric), baseline=baseline,
        baseline_name=task.baseline_name,
    )  # fmt: skip


def legend(kind: str, classes: tuple[str, ...]) -> dict[str, str]:
    """The colours of a segmentation's classes as "#rrggbb", by class; empty for other kinds."""
    from img2img.tasks.segmentation import palette

    if kind != "segmentation":
        return {}
    colours = palette(len(classes)).mul(255).round().int().tolist()
    return {name: "#{:02x}{:02x}{:02x}".format(*colour) for name, colour in zip(classes, colours, strict=False)}
