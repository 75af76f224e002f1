"""What commands say of a bundle's tasks beside their results: the measured metric, the baseline, a legend."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from img2img import formatting
from img2img.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The primary metric of a task on its test set.

    Attributes:
        metric: its name.
        higher_is_better: its direction.
        value: None where the file has none.
        baseline: of the baseline, where the bundle lies in the folder of its run; else None.
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


def baselines(bundle: Path) -> dict[str, float | None]:
    """The baselines' values by task from the results of the run that a bundle lies in; empty where it lies in none."""
    from img2img.training.results import read_results

    if bundle.name != "bundle" or not (bundle.parent / "results.json").is_file():
        return {}
    try:
        return {task.name: task.baseline for task in read_results(bundle.parent).tasks}
    except InputError:  # damaged, or of another version: no reason to say nothing of the bundle
        return {}


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
