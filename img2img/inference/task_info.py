"""What a model says of its tasks."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """What a model says of one of its tasks.

    Attributes:
        name: its name.
        kind: "segmentation", "colourisation" and so on.
        forms: what `run` can give, the usual one first.
        classes: of segmentation and classification, else empty.
        method: the mask method's name; "identity" runs on the bare backbone.
        primary_metric: the metric that chooses between states and decides comparisons.
        metrics: the values that were measured on the test set when the task was learned.
        density: the fraction of ones in its masks; None where it has none.
        bytes: of its file; None where the model has none.
        side: the shorter side in pixels of the images that it was measured on; None where the file does not say. Of a task
            whose images were made squares, both sides.
        white: the value that was white in the 16-bit images that it learned from; None for 65535, or where none was given.
    """

    name: str
    kind: str
    forms: tuple[str, ...]
    classes: tuple[str, ...]
    method: str
    primary_metric: str
    metrics: Mapping[str, float | None]
    density: float | None
    bytes: int | None
    side: int | None
    white: int | None = None
