"""A task's training log: rows as CSV, scalars for TensorBoard."""

import csv
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from img2img.files import write_atomic


class TrainingLog:
    """Rows of one training, `metrics/<name>.csv` and `tensorboard/<name>/` in the run folder.

    Args:
        folder: the run folder.
        name: the training's name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._csv = folder / "metrics" / f"{name}.csv"
        self._tensorboard = folder / "tensorboard" / name
        self.rows: list[dict[str, Any]] = []
        self._writer: Any = None

    def start(self, rows: Sequence[dict[str, Any]]) -> None:
        """Begin, or go on after `rows`; later events of an interrupted run are hidden."""
        # tensorboard takes a second to import, and what uses the loop alone does not need it.
        from torch.utils.tensorboard.writer import SummaryWriter

        self.rows = list(rows)
        last = self.rows[-1]["step"] if self.rows else 0
        self._writer = SummaryWriter(str(self._tensorboard), purge_step=last + 1)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row; every value but `step` is a scalar or None."""
        self.rows.append(row)
        for name, value in row.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, row["step"])

    def write(self) -> None:
        """Bring the CSV up to date."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))

        def write(path: Path) -> None:
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows(self.rows)

        write_atomic(self._csv, write)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()
