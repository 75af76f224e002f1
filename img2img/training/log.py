"""What a training tells: its log, with rows as CSV and scalars for TensorBoard; and callbacks, told by the loop."""

import csv
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from img2img.errors import InputError
from img2img.files.atomic import write_atomic

WRITE_EVERY = 2.0
"""Seconds after which a new row is written, so that a training can be watched; checkpoints write all rows."""


class TrainingLog:
    """Rows of one training in the run folder: `metrics/<name>.csv`, `metrics/<name>.<table>.csv` and `tensorboard/<name>/`.

    Args:
        folder: the run folder.
        name: the training's name.
        writes: False keeps the rows in memory alone, in a process that leaves writing to another.
    """

    def __init__(self, folder: Path, name: str, *, writes: bool = True) -> None:
        self._writes = writes
        self._folder = folder / "metrics"
        self._name = name
        self._tensorboard = folder / "tensorboard" / name
        self.rows: list[dict[str, Any]] = []
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self._writer: Any = None
        self._written = -math.inf

    def start(self, rows: Sequence[dict[str, Any]], tables: Mapping[str, Sequence[dict[str, Any]]]) -> None:
        """Begin, or go on after these rows; later events of an interrupted run are hidden."""
        self.rows, self.tables = list(rows), {name: list(of_table) for name, of_table in tables.items()}
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
                self.add_scalar(name, value, row["step"])
        if time.monotonic() - self._written > WRITE_EVERY:
            self.write()

    def add_rows(self, table: str, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows to a table beside the log's own."""
        self.tables.setdefault(table, []).extend(rows)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Add a value for TensorBoard alone."""
        if self._writer is not None:
            self._writer.add_scalar(name, value, step)

    def write(self) -> None:
        """Bring the CSVs up to date."""
        self._written = time.monotonic()
        if not self._writes:
            return
        _write_csv(self._folder / f"{self._name}.csv", self.rows)
        for table, rows in self.tables.items():
            if rows:
                _write_csv(self._folder / f"{self._name}.{table}.csv", rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()


class Callback:
    """What a strategy does in the middle of a training, told of steps and validations; subclasses override what they need."""

    def after_step(self) -> None:
        """After each step of the optimisers: to set right what they may not change."""

    def after_validation(self, step: int, log: TrainingLog) -> None:
        """After each validation, to add to the log."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint, from which `load_state` goes on."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Refuse callbacks whose states a checkpoint could not tell apart: it keeps them by the names of their classes.

    Raises:
        InputError: two of one class.
    """
    names = [type(callback).__name__ for callback in callbacks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"got several callbacks of the class {', '.join(twice)}: expected one of each; derive a class for the second"
        )


def load_states(callbacks: Sequence[Callback], states: Mapping[str, dict[str, Any]], checkpoint: Path) -> None:
    """Let callbacks go on from their states in a checkpoint, which are told by the names of their classes.

    One whose state is empty, such as a preview, may be new or be left out.

    Raises:
        InputError: the state of one is missing.
    """
    for callback in callbacks:
        name = type(callback).__name__
        if name in states:
            callback.load_state(states[name])
        elif callback.state():
            raise InputError(
                f"the checkpoint {checkpoint} has no state of {name}: expected it, as this training has one; delete the "
                "checkpoint, and the task starts again; finished tasks are kept"
            )


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))

    def write(path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)

    write_atomic(path, write)
