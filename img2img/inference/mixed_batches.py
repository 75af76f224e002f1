"""Calls of many threads, each for one task, gathered into batches of mixed tasks.

A thread that needs a network's output leaves its input here and waits. Whoever runs the batches takes inputs of one size, the
oldest first, and runs them task after task, so that a task's weights are computed once for all that wait for it. Inputs that come
while a batch runs are the next one. A batch that is not full waits for calls that have been announced and have no input yet, and
for no longer than a window.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from img2img import validation
from img2img.errors import InputError
from img2img.inference.cancellation import Cancellation, check_here, woken_by_cancel
from img2img.inference.evaluator import Network
from img2img.validation.arguments import shown

IDLE_SECONDS = 10.0
"""After so long without an input the threads that run batches end; the next input starts them again."""

Run = Callable[[Sequence[str], Sequence[Tensor]], Iterator[tuple[list[int], list[Tensor]]]]
"""From the tasks and inputs of a batch to the places of those that are done and their outputs, as they are done."""


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How calls are gathered.

    Attributes:
        batch_max: samples of a batch; None: 8, or 1 on a CPU, where batches of mixed tasks save no time. With 1 calls are not
            gathered.
        window: seconds that a batch waits for calls that have begun and have not come to the network yet.
        exact: run every call alone in its forward pass, so that its result has the same bits as that of a call that meets no
            others. Without it samples of one task share a pass, and kernels for larger batches add up in another order. None: on
            a CPU, where larger batches are faster for images of some 64 pixels only.

    Raises:
        InputError: one of them is out of range.
    """

    batch_max: int | None = None
    window: float = 0.005
    exact: bool | None = None

    def __post_init__(self) -> None:
        validation.whole_number("batch_max", self.batch_max)
        number = isinstance(self.window, int | float) and not isinstance(self.window, bool)
        if not number or not 0 <= self.window <= 10:
            raise InputError(f"batching window={shown(self.window)}: expected seconds from 0 to 10, such as 0.005")
        if self.exact is not None:
            validation.flag("exact", self.exact)


def checked_batching(batching: Any) -> Batching | None:
    """`batching`, or an `InputError` where it is something else."""
    if batching is None or isinstance(batching, Batching):
        return batching
    raise InputError(f"batching={shown(batching)}: expected a Batching, such as Batching(batch_max=8), or None")


def run_by_task(
    tasks: Sequence[str], inputs: Sequence[Tensor], network: Callable[[str], Network], *, alone: bool
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """The outputs of a batch of mixed tasks, task after task as `MaskedNetwork` runs one, each as soon as it is there.

    Args:
        tasks: the task of each input.
        inputs: (N, ...) each, alike but for N.
        network: of a task.
        alone: run each input by itself, and not those of one task together.

    Yields:
        Places in the batch, and the outputs there.
    """
    for name in dict.fromkeys(tasks):
        found = network(name)
        places = [place for place, task in enumerate(tasks) if task == name]
        if alone:
            yield from (([place], [found(inputs[place])]) for place in places)
        else:
            together = found(torch.cat([inputs[place] for place in places]))
            yield places, list(together.split([len(inputs[place]) for place in places]))


@dataclass(eq=False)
class _Call:
    task: str
    input: Tensor
    since: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    output: Tensor | None = None
    error: BaseException | None = None
    given_up: bool = False

    @property
    def kind(self) -> Any:
        """What the inputs of one batch have in common."""
        return self.input.shape[1:], self.input.dtype, self.input.device


@dataclass
class BatchCounts:
    """What has been run.

    Attributes:
        samples: how many batches had how many samples.
        tasks: how many had how many different tasks.
        wait_seconds: from when an input came until its batch began, all together.
        calls: how many inputs came.
    """

    samples: dict[int, int] = field(default_factory=dict)
    tasks: dict[int, int] = field(default_factory=dict)
    wait_seconds: float = 0.0
    calls: int = 0


class MixedBatches:
    """Runs inputs of many threads in batches. Pickled, it leaves behind what waits.

    Args:
        run: runs a batch.
        most: samples of a batch.
        window: as of `Batching`.
        workers: batches that run at once.

    Attributes:
        counts: what has been run.
    """

    def __init__(self, run: Run, most: int, *, window: float, workers: int = 1) -> None:
        self._run, self._most, self._window, self._workers = run, most, window, workers
        self._calls: list[_Call] = []
        self._changed = threading.Condition()
        self._threads = 0
        self._announced = 0
        self._here = threading.local()
        self.counts = BatchCounts()

    def __getstate__(self) -> dict[str, Any]:
        return {"run": self._run, "most": self._most, "window": self._window, "workers": self._workers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def waiting(self) -> int:
        """Inputs that wait for their batch."""
        return len(self._calls)

    @contextmanager
    def announced(self) -> Iterator[None]:
        """Within the block this thread will come with an input; batches that are not full wait for it, within their window."""
        outermost = not getattr(self._here, "inside", False)
        if outermost:
            self._here.inside = True
            self._announce(1)
        try:
            yield
        finally:
            if outermost:
                self._here.inside = False
                self._announce(0)

    def _announce(self, now: int) -> None:
        """This thread will come with `now` inputs, 0 or 1."""
        with self._changed:
            self._announced += now - getattr(self._here, "counted", 0)
            self._here.counted = now
            self._changed.notify_all()

    def __call__(self, task: str, input: Tensor) -> Tensor:
        """The output of a task's network for (N, ...) `input`, once it has been run with others.

        Raises:
            Exception: what the run of this input raised; the others of its batch have their outputs.
        """
        call = _Call(task, input)
        with self._changed:
            self._calls.append(call)
            if self._threads < self._workers:
                self._threads += 1
                threading.Thread(target=self._serve, name="img2img batches", daemon=True).start()
        self._announce(0)
        try:
            # No polling: of many threads that wait long it would take more time than their networks.
            with woken_by_cancel(call.done.set):
                call.done.wait()
            check_here()
        except BaseException:
            call.given_up = True
            raise
        if call.error is not None:
            raise call.error
        assert call.output is not None
        return call.output

    # ------------------------------------------------------------------ the threads that run batches

    def _serve(self) -> None:
        while (batch := self._next()) is not None:
            self._run_batch(batch)
            del batch  # or its tensors would be kept while this waits

    def _next(self) -> list[_Call] | None:
        """The next batch, once it is full or waits for no more; None where none has come for long."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._calls, IDLE_SECONDS):
                self._threads -= 1
                return None
            until = self._calls[0].since + self._window
            while self._announced and (left := until - time.monotonic()) > 0 and self._calls and not self._is_full():
                self._changed.wait(left)
            batch = self._taken()
            now = time.monotonic()
            for call in batch:
                self.counts.calls += 1
                self.counts.wait_seconds += now - call.since
            return batch

    def _is_full(self) -> bool:
        kind = self._calls[0].kind
        return sum(len(call.input) for call in self._calls if call.kind == kind) >= self._most

    def _taken(self) -> list[_Call]:
        """The oldest call, and others of its size: those of its task, then the next oldest; no more than this worker's share."""
        self._calls = [call for call in self._calls if not call.given_up]
        if not self._calls:
            return []
        first = self._calls[0]
        alike = sorted((c for c in self._calls if c.kind == first.kind), key=lambda c: c.task != first.task)
        most = min(self._most, -(-sum(len(c.input) for c in alike) // self._workers))
        batch: list[_Call] = []
        for call in alike:
            if batch and sum(len(c.input) for c in batch) + len(call.input) > most:
                break
            batch.append(call)
        taken = {id(call) for call in batch}
        self._calls = [call for call in self._calls if id(call) not in taken]
        return batch

    def _run_batch(self, batch: list[_Call]) -> None:
        if not batch:
            return
        self._count(batch)
        error = self._failure(batch)
        if error is None:
            return
        if len(batch) == 1:
            batch[0].error = error
            batch[0].done.set()
            return
        # One of them is the cause, or all together do not fit into memory: the others shall not suffer from it.
        error.__traceback__ = None  # it holds on to the tensors of the layer that failed
        for call in batch:
            if not (call.done.is_set() or call.given_up):
                self._run_batch([call])

    def _failure(self, batch: list[_Call]) -> BaseException | None:
        """Run a batch, and give to each call its output; what went wrong before the last had it, or None."""
        try:
            with _AllGone(batch).watching():
                for places, outputs in self._run([call.task for call in batch], [call.input for call in batch]):
                    for place, output in zip(places, outputs, strict=True):
                        batch[place].output = output
                        batch[place].done.set()
        except BaseException as error:
            return error
        return None

    def _count(self, batch: list[_Call]) -> None:
        with self._changed:
            tables = (self.counts.samples, sum(len(c.input) for c in batch)), (self.counts.tasks, len({c.task for c in batch}))
            for table, value in tables:
                table[value] = table.get(value, 0) + 1


class _AllGone(Cancellation):
    """Ends a batch once nobody waits for any of its outputs."""

    def __init__(self, batch: list[_Call]) -> None:
        super().__init__()
        self._batch = batch

    def check(self) -> None:
        if all(call.given_up or call.done.is_set() for call in self._batch):
            raise RuntimeError("nobody waits for this batch any more")
