"""The two calls that train, each with the page of its run: a whole experiment, and one more task for a bundle."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from img2img.reports.page import write_report
from img2img.training import add_task as adding
from img2img.training import run as running
from img2img.training.run import Then
from img2img.training.run_folder import SavedConfig


def run(
    config: Mapping[str, Any], *, composed: SavedConfig | None = None, then: Then | None = None, bars: bool = True
) -> dict[str, Any]:
    """Run an experiment into its folder, see `training.run.run`, and write the page `report.html` there."""
    return running.run(config, composed=composed, then=then, report=write_report, bars=bars)


def add_task(
    bundle: str | os.PathLike[str],
    name: str,
    *,
    task: Mapping[str, Any],
    data: Mapping[str, Any],
    method: str | Mapping[str, Any] = "piggyback",
    train: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Train a task on the frozen backbone of a bundle and add it there, see `training.add_task.add_task`; with a page.

    Example:
        img2img.add_task(
            "runs/demo",
            "night",
            task={"kind": "translation"},
            data={"kind": "paired_folders", "inputs": "day", "targets": "night", "resize": 160},
            train={"steps": 800},
        )
    """
    return adding.add_task(
        bundle, name, task=task, data=data, method=method, train=train, out=out, overrides=overrides, report=write_report
    )
