"""Batches for training, the same whether or not a run was interrupted, and batches for evaluation."""

import copy
import functools
import itertools
import logging
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from img2img.data.base import Batch, ImageDataset, Sample
from img2img.data.pad_crop import PadCrop
from img2img.errors import InputError, OutOfMemoryError, memory_explained

logger = logging.getLogger("img2img")

AnyBatch = TypeVar("AnyBatch")

PATIENCE = 600
"""Seconds that a batch is waited for: a slow disk may need a minute for one of large images."""
_MUCH = 0.1
"""The share of its time from which a training that waits for images is told how to wait less."""
_LONG = 30
"""Seconds of a training that are worth that remark."""
_LOOK_EVERY = 5
"""Seconds after which it is asked whether the worker processes still live."""


class TrainBatches:
    """An endless stream of augmented batches, in which the batch at step s depends on nothing but (seed, s).

    Every epoch is a permutation of the set: sample k of step s is number p = s * batch_size + k of the stream, so it is entry
    p mod n of the permutation that `numpy.random.default_rng((seed, 0, p // n))` draws for epoch p // n. A batch may
    therefore reach over the end of an epoch, and over several when the set is smaller than the batch.
    Its augmentation is seeded with the first 64 bits of `numpy.random.SeedSequence((seed, 1, s, k))`; that of a set in memory
    (`ImageDataset.arrays`) by `PadCrop`, the whole batch at once, with those of `(seed, 1, s)`.

    Args:
        dataset: the set to draw from.
        augment: `augment(sample, seed) -> Sample`, pure, with results of one size; usually an `Augment`.
        batch_size: samples a batch.
        seed: an integer >= 0.
        workers: processes that prepare batches ahead; 0 prepares each when it is asked for. The batches are the same.

    Raises:
        InputError: the set is empty, or an option is out of range.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        augment: Callable[[Sample, int], Sample],
        *,
        batch_size: int,
        seed: int,
        workers: int = 0,
    ) -> None:
        _check(dataset, batch_size)
        if seed < 0 or workers < 0:
            raise InputError(
                f"seed={seed}, workers={workers}: expected integers of 0 or more; give for instance seed=0, workers=2"
            )
        self._dataset = dataset
        self._augment = augment
        self._batch_size = batch_size
        self._seed = seed
        self._workers = workers
        self._places = range(batch_size)

    def part(self, number: int, count: int) -> Self:
        """The stream of part `number` (from 0) of `count` equal parts of each batch, for processes that share the batches out.

        Raises:
            InputError: the batch cannot be divided so.
        """
        check_shares(self._batch_size, count)
        part, each = copy.copy(self), self._batch_size // count
        part._places = range(number * each, (number + 1) * each)
        return part

    def batch(self, step: int) -> Batch:
        """The batch at `step` >= 0, made in this process."""
        indices = self._indices(step)
        if isinstance(self._augment, PadCrop) and self._arrays is not None:
            images, categories = self._arrays
            here = slice(self._places.start, self._places.stop)  # drawn for the whole batch, which costs little
            image = torch.from_numpy(self._augment.batch(images[indices], self._seed_of(step))[here])
            return Batch(image=image.expand(-1, 3, -1, -1), category=torch.from_numpy(categories[indices[here]]))
        samples = [self._augment(self._dataset[int(indices[k])], self._seed_of(step, k)) for k in self._places]
        return Batch.stack(samples)

    @functools.cached_property
    def _arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        return self._dataset.arrays()

    def _indices(self, step: int) -> NDArray[np.int64]:
        """The entries of the set that make up the batch at `step`."""
        numbers = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        epochs, entries = np.divmod(numbers, len(self._dataset))
        indices = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = _permutation(len(self._dataset), self._seed, int(epoch))[entries[here]]
        return indices

    def _seed_of(self, *place: int) -> int:
        """A seed of the augmentation, of a step or of one sample of it."""
        return int(np.random.SeedSequence((self._seed, 1, *place)).generate_state(1, np.uint64)[0])

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """The batches from `start_step` on, without end; the global random states of torch and numpy are left alone.

        Raises:
            InputError: an image cannot be read, also when a worker process finds it.
            OSError: likewise a file that the system does not give.
            OutOfMemoryError: a batch does not fit into memory.
            LostBatchError: a worker process was killed, or a batch did not come.
        """
        loader = DataLoader(
            _Steps(self),
            batch_size=None,
            sampler=_CountFrom(start_step),
            num_workers=self._workers,
            collate_fn=_unchanged,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_one_thread,
            timeout=_LOOK_EVERY if self._workers else 0,
            # without one of its own the loader would draw from torch's global generator
            generator=torch.Generator(),
        )
        for fields in _arriving(loader) if self._workers else loader:
            if "error" in fields:
                raise fields["error"]
            yield Batch(**fields)


def timed(batches: Iterable[AnyBatch], what: str, *, workers: int) -> Generator[AnyBatch, None, None]:
    """The batches, and when whoever takes them is done, a line in the log with the share of the time that it waited for them.

    Args:
        batches: of one training.
        what: names it in the log.
        workers: processes that load them, for the remark that more would help.
    """
    source, waited, began = iter(batches), 0.0, time.perf_counter()
    try:
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch
    finally:
        _log_waiting(what, waited, time.perf_counter() - began, workers)


def _log_waiting(what: str, waited: float, seconds: float, workers: int) -> None:
    remedy, share = "", waited / max(seconds, waited, 1e-9)
    if share > _MUCH and seconds > _LONG:
        more = "raise train.workers" if workers else "set train.workers to the number of cores, such as 2"
        remedy = f": {more}, or give cache_dir, so that images are decoded once"
    logger.info("%s: waited for images in %.1f %% of %.0f s%s", what, 100 * share, seconds, remedy)


class LostBatchError(ChildProcessError):
    """A batch was lost between the worker processes that load images and the training."""


@contextmanager
def lost_batches_explained() -> Iterator[None]:
    """Say what to do where the block learns that a worker process ended: PyTorch tells it at any moment, wherever the program is.

    Raises:
        LostBatchError: a worker process was killed, or a batch did not come.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(("DataLoader worker (pid", "DataLoader timed out")):
            raise
        raise _lost(error) from error


def _arriving(loader: DataLoader[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What a loader's worker processes make; they are looked after now and then, and a batch is waited for `PATIENCE` seconds."""
    try:
        batches, waited = iter(loader), 0
        while True:
            try:
                fields = next(batches)
            except RuntimeError as error:
                waited += _LOOK_EVERY
                if not str(error).startswith("DataLoader timed out") or waited >= PATIENCE:
                    raise
            else:
                waited = 0
                yield fields
    except (RuntimeError, OSError) as error:  # OSError: a process or its queues cannot be made, or a batch not be fetched
        if str(error).startswith("Caught "):
            raise  # by what makes the batches
        raise _lost(error) from error


def _lost(error: Exception) -> LostBatchError:
    timed_out = str(error).startswith("DataLoader timed out")
    why = f"none came within {PATIENCE} s" if timed_out else (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
    return LostBatchError(
        f"a batch from the worker processes that load images was lost: {why}. Either the machine ran out of memory and ended "
        f"one, or shared memory is full ({_shared_memory()}), through which batches pass: lower train.workers, give it more "
        "(docker run --shm-size=2g), or set train.workers=0 to load in the training process. Finished tasks and the last "
        "checkpoint are kept; run the same command again"
    )


def _shared_memory() -> str:
    try:
        space = shutil.disk_usage("/dev/shm")
    except OSError:
        return "there is no /dev/shm"
    return f"/dev/shm has {space.free / 1e6:,.1f} MB free of {space.total / 1e6:,.1f} MB"


class _Steps(Dataset[dict[str, Any]]):
    """Maps a step to the fields of its batch: the loader pins the tensors of a dict, but not those of a `Batch`."""

    def __init__(self, batches: TrainBatches) -> None:
        self._batches = batches

    def __getitem__(self, step: int) -> dict[str, Any]:
        # An error that is raised in a worker would reach the user wrapped into a traceback.
        try:
            with memory_explained("while a batch was made", _smaller(self._batches)):
                fields = dict(vars(self._batches.batch(step)))
        except InputError as error:
            return {"error": InputError(str(error))}
        except OutOfMemoryError as error:
            return {"error": error.with_traceback(None)}
        except OSError as error:
            return {"error": OSError(str(error))}
        if get_worker_info() is not None:
            # Left to the queue's thread, a batch that finds no room would vanish there, and be waited for without end.
            try:
                for value in fields.values():
                    if isinstance(value, torch.Tensor):
                        value.share_memory_()
            except (RuntimeError, OSError) as error:
                return {"error": _lost(error)}
        return fields


def _smaller(batches: TrainBatches) -> str:
    workers = f", or train.workers={batches._workers // 2}" if batches._workers else ""
    return (
        f"lower train.batch_size (now {batches._batch_size}) or train.augmentation.crop, make the images smaller once "
        "with data.resize"
        f"{workers}. Finished tasks and the last checkpoint are kept; run the same command again"
    )


class _CountFrom(Sampler[int]):
    def __init__(self, start: int) -> None:
        self._start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._start)


def _unchanged(fields: Any) -> Any:
    return fields


def _one_thread(worker: int) -> None:
    # OpenCV's thread pool does not survive a fork
    import cv2

    cv2.setNumThreads(0)


@functools.lru_cache(maxsize=8)
def _permutation(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, 0, epoch)).permutation(length)


def eval_batches(dataset: ImageDataset, *, batch_size: int) -> Iterator[Batch]:
    """All images, whole and in order; neighbours of one size (and with the same fields) share a batch of up to `batch_size`.

    Raises:
        InputError: the set is empty, or `batch_size` is below 1.
    """
    _check(dataset, batch_size)

    def form(sample: Sample) -> tuple[object, ...]:
        return sample.image.shape, sample.label is None, sample.source is None, sample.category is None

    return _stacked((dataset[i] for i in range(len(dataset))), form, batch_size)


def _stacked(samples: Iterator[Sample], form: Callable[[Sample], object], batch_size: int) -> Iterator[Batch]:
    for _, alike in itertools.groupby(samples, form):
        while some := list(itertools.islice(alike, batch_size)):
            yield Batch.stack(some)


def check_shares(batch_size: int, count: int) -> None:
    """Raise an `InputError` unless `count` processes can share batches of that size out equally."""
    if batch_size % count:
        raise InputError(
            f"train.batch_size={batch_size} images cannot be shared out among {count} processes: give a multiple of {count}; "
            "it is the size of the whole batch"
        )


def _check(dataset: ImageDataset, batch_size: int) -> None:
    if len(dataset) == 0:
        raise InputError(f"the set {dataset.name or 'of images'} is empty: expected at least one image; check its folder")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: expected 1 or more; give for instance batch_size=8")
