"""Batches for training, the same whether or not a run was interrupted, and batches for evaluation."""

import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from img2img.data.base import Batch, PictureSet, Sample
from img2img.data.shift import Shift
from img2img.errors import InputError


class TrainBatches:
    """An endless stream of augmented batches, in which the batch at step s depends on nothing but (seed, s).

    Every epoch is a permutation of the set: sample k of step s is number p = s * batch_size + k of the stream, so it is entry
    p mod n of the permutation that `numpy.random.default_rng((seed, 0, p // n))` draws for epoch p // n. A batch may
    therefore reach over the end of an epoch, and over several when the set is smaller than the batch.
    Its augmentation is seeded with the first 64 bits of `numpy.random.SeedSequence((seed, 1, s, k))`; that of a set in memory
    (`PictureSet.arrays`) by `Shift`, the whole batch at once, with those of `(seed, 1, s)`.

    Args:
        pictures: the set to draw from.
        augment: `augment(sample, seed) -> Sample`, pure, with results of one size; usually an `Augment`.
        batch_size: samples a batch.
        seed: an integer >= 0.
        workers: processes that prepare batches ahead; 0 prepares each when it is asked for. The batches are the same.

    Raises:
        InputError: the set is empty, or an option is out of range.
    """

    def __init__(
        self,
        pictures: PictureSet,
        augment: Callable[[Sample, int], Sample],
        *,
        batch_size: int,
        seed: int,
        workers: int = 0,
    ) -> None:
        _check(pictures, batch_size)
        if seed < 0 or workers < 0:
            raise InputError(
                f"seed={seed}, workers={workers}: expected integers of 0 or more; give for instance seed=0, workers=2"
            )
        self._pictures = pictures
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
        if isinstance(self._augment, Shift) and self._arrays is not None:
            images, categories = self._arrays
            here = slice(self._places.start, self._places.stop)  # drawn for the whole batch, which costs little
            image = torch.from_numpy(self._augment.batch(images[indices], self._seed_of(step))[here])
            return Batch(image=image.expand(-1, 3, -1, -1), category=torch.from_numpy(categories[indices[here]]))
        samples = [self._augment(self._pictures[int(indices[k])], self._seed_of(step, k)) for k in self._places]
        return Batch.stack(samples)

    @functools.cached_property
    def _arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        return self._pictures.arrays()

    def _indices(self, step: int) -> NDArray[np.int64]:
        """The entries of the set that make up the batch at `step`."""
        numbers = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        epochs, entries = np.divmod(numbers, len(self._pictures))
        indices = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = _permutation(len(self._pictures), self._seed, int(epoch))[entries[here]]
        return indices

    def _seed_of(self, *place: int) -> int:
        """A seed of the augmentation, of a step or of one sample of it."""
        return int(np.random.SeedSequence((self._seed, 1, *place)).generate_state(1, np.uint64)[0])

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """The batches from `start_step` on, without end; the global random states of torch and numpy are left alone.

        Raises:
            InputError: a picture cannot be read, also when a worker process finds it.
        """
        loader = DataLoader(
            _Steps(self),
            batch_size=None,
            sampler=_CountFrom(start_step),
            num_workers=self._workers,
            collate_fn=_unchanged,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_one_thread,
            # without one of its own the loader would draw from torch's global generator
            generator=torch.Generator(),
        )
        for fields in loader:
            if "error" in fields:
                raise InputError(fields["error"])
            yield Batch(**fields)


class _Steps(Dataset[dict[str, Any]]):
    """Maps a step to the fields of its batch: the loader pins the tensors of a dict, but not those of a `Batch`."""

    def __init__(self, batches: TrainBatches) -> None:
        self._batches = batches

    def __getitem__(self, step: int) -> dict[str, Any]:
        try:
            return dict(vars(self._batches.batch(step)))
        except InputError as error:
            # raised in a worker it would reach the user wrapped into a traceback
            return {"error": str(error)}


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


def eval_batches(pictures: PictureSet, *, batch_size: int) -> Iterator[Batch]:
    """All pictures, whole and in order; neighbours of one size (and with the same fields) share a batch of up to `batch_size`.

    Raises:
        InputError: the set is empty, or `batch_size` is below 1.
    """
    _check(pictures, batch_size)

    def form(sample: Sample) -> tuple[object, ...]:
        return sample.image.shape, sample.label is None, sample.source is None

    return _stacked((pictures[i] for i in range(len(pictures))), form, batch_size)


def _stacked(samples: Iterator[Sample], form: Callable[[Sample], object], batch_size: int) -> Iterator[Batch]:
    for _, alike in itertools.groupby(samples, form):
        while some := list(itertools.islice(alike, batch_size)):
            yield Batch.stack(some)


def check_shares(batch_size: int, count: int) -> None:
    """Raise an `InputError` unless `count` processes can share batches of that size out equally."""
    if batch_size % count:
        raise InputError(
            f"train.batch_size={batch_size} pictures cannot be shared out among {count} processes: give a multiple of {count}; "
            "it is the size of the whole batch"
        )


def _check(pictures: PictureSet, batch_size: int) -> None:
    if len(pictures) == 0:
        raise InputError(f"the set {pictures.name or 'of pictures'} is empty: expected at least one picture; check its folder")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: expected 1 or more; give for instance batch_size=8")
