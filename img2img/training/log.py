"""A task's training log: rows as CSV, scalars for TensorBoard."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from img2img.files.atomic import write_atomic
from img2img.masks.flips import FlipRow


class TrainingLog:
    """Rows of one training in the run folder: `metrics/<name>.csv`, `metrics/<name>.masks.csv` and `tensorboard/<name>/`.

    Args:
        folder: the run folder.
        name: the training's name.
        writes: False keeps the rows in memory alone, in a process that leaves writing to another.
    """

    def __init__(self, folder: Path, name: str, *, writes: bool = True) -> None:
        self._writes = writes
        self._csv = folder / "metrics" / f"{name}.csv"
        self._masks_csv = folder / "metrics" / f"{name}.masks.csv"
        self._tensorboard = folder / "tensorboard" / name
        self.rows: list[dict[str, Any]] = []
        self.mask_rows: list[dict[str, Any]] = []
        self._writer: Any = None

    def start(self, rows: Sequence[dict[str, Any]], mask_rows: Sequence[dict[str, Any]]) -> None:
        """Begin, or go on after these rows; later events of an interrupted run are hidden."""
        self.rows, self.mask_rows = list(rows), list(mask_rows)
        if not self._writes:
            return
        # tensorboard takes a second to import, and what uses the loop alone does not need it.
        from torch.utils.tensorboard.writer import SummaryWriter

        last = self.rows[-1]["step"] if self.rows else 0
        self._writer = SummaryWriter(str(self._tensorboard), purge_step=last + 1)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row; every value but `step` is a scalar or None."""
        self.rows.append(row)
        for name, value in row.items():
            if name != "step" and value is not None:
                self._add_scalar(name, value, row["step"])

    def add_masks(self, step: int, rows: Sequence[FlipRow]) -> None:
        """Add the densities and flips of a task's masks by layer, and those of all layers as scalars."""
        self.mask_rows += [{"step": step, **asdict(row)} for row in rows]
        weights = sum(row.weights for row in rows)
        if weights:
            self._add_scalar("masks/density", sum(row.density * row.weights for row in rows) / weights, step)
            self._add_scalar("masks/flips", sum(row.flips for row in rows) / weights, step)

    def _add_scalar(self, name: str, value: float, step: int) -> None:
        if self._writer is not None:
            self._writer.add_scalar(name, value, step)

    def write(self) -> None:
        """Bring the CSVs up to date."""
        if not self._writes:
            return
        _write_csv(self._csv, self.rows)
        if self.mask_rows:
            _write_csv(self._masks_csv, self.mask_rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))

    def write(path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)

    write_atomic(path, write)
