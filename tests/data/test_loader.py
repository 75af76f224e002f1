import itertools
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from img2img.data import loader
from img2img.data.arrays import ArrayDataset
from img2img.data.augment import Augment
from img2img.data.base import Batch, ImageDataset, Sample
from img2img.data.loader import LostBatchError, TrainBatches, eval_batches, lost_batches_explained
from img2img.errors import InputError, OutOfMemoryError


class Numbered(ImageDataset):
    """Images of the given sizes, whose every pixel is the image's number."""

    name = "numbered"

    def __init__(self, sizes, *, label=True, broken=None):
        self.sizes, self.label, self.broken = sizes, label, broken

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        if index == self.broken:
            raise InputError("3.png is not an image: expected PNG; remove it")
        h, w = self.sizes[index]
        noise = np.random.default_rng(index).integers(0, 256, (h, w, 2), dtype=np.uint8)
        image = np.concatenate([np.full((h, w, 1), index, np.uint8), noise], -1)
        return Sample(image, image[:, :, 1].copy() if self.label else None, name=str(index))


def stream(images=None, *, batch_size=4, seed=5, workers=0):
    images = images or Numbered([(20, 24)] * 10)
    return TrainBatches(images, Augment(12), batch_size=batch_size, seed=seed, workers=workers)


def content(batch):
    label = None if batch.label is None else batch.label.numpy().tobytes()
    return batch.image.numpy().tobytes(), label, batch.names


def take(batches, n, start=0):
    return [content(b) for b in itertools.islice(batches.iterate(start), n)]


def drawn(batches, steps):
    return [int(name) for step in range(steps) for name in batches.batch(step).names]


def test_a_resumed_stream_gives_the_batches_of_one_that_never_stopped():
    whole = take(stream(), 9)
    assert take(stream(), 4, start=5) == whole[5:]
    assert content(stream().batch(7)) == whole[7]
    assert len(set(whole)) == 9


@pytest.mark.parametrize("workers", [0, 2])
def test_parts_of_batches_are_those_batches_shared_out(workers):
    whole = stream(batch_size=6)
    parts = [itertools.islice(stream(batch_size=6, workers=workers).part(i, 3).iterate(2), 3) for i in range(3)]
    for step, pieces in enumerate(zip(*parts, strict=True), start=2):
        assert all(len(piece) == 2 for piece in pieces)
        assert torch.equal(torch.cat([piece.image for piece in pieces]), whole.batch(step).image)
        assert torch.equal(torch.cat([piece.label for piece in pieces]), whole.batch(step).label)
    with pytest.raises(InputError, match=r"batch_size=6 .*multiple of 4"):
        whole.part(0, 4)


def test_workers_give_the_batches_of_no_workers():
    assert take(stream(workers=2), 6, start=3) == take(stream(), 6, start=3)


def test_a_pickled_stream_as_spawned_workers_get_it_gives_the_same_batches():
    assert content(pickle.loads(pickle.dumps(stream())).batch(2)) == content(stream().batch(2))


def test_every_epoch_draws_each_image_once_in_a_new_order():
    order = drawn(stream(batch_size=4), 15)  # 60 draws, 6 epochs of 10: batches reach over the ends
    epochs = [order[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 6


def test_a_set_smaller_than_the_batch_wraps_around():
    order = drawn(stream(Numbered([(20, 20)] * 3), batch_size=7), 3)
    assert all(sorted(order[i : i + 3]) == [0, 1, 2] for i in range(0, 21, 3))


def test_one_image_drawn_twice_in_a_batch_is_augmented_twice():
    batch = stream(Numbered([(20, 24)]), batch_size=2).batch(0)
    assert not torch.equal(batch.image[0], batch.image[1])


def test_seeds_give_different_streams():
    assert take(stream(seed=1), 3) != take(stream(seed=2), 3)


def test_a_batch_has_the_documented_shapes_and_a_label_that_went_through_the_same_crop():
    batch = TrainBatches(Numbered([(20, 24)] * 4), Augment(12, zoom=(1, 1)), batch_size=3, seed=0).batch(0)
    assert batch.image.shape == (3, 3, 12, 12)
    assert batch.image.dtype == torch.uint8
    assert batch.label.dtype == torch.int64
    assert torch.equal(batch.label, batch.image[:, 1].long())


def test_the_global_random_states_are_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    take(stream(), 2)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_reported_in_one_clear_message(workers):
    with pytest.raises(InputError) as error:
        take(stream(Numbered([(20, 20)] * 4, broken=3), workers=workers), 4)
    assert str(error.value) == "3.png is not an image: expected PNG; remove it"


def test_an_empty_set_is_refused():
    with pytest.raises(InputError, match="numbered is empty"):
        TrainBatches(Numbered([]), Augment(8), batch_size=2, seed=0)
    with pytest.raises(InputError, match="numbered is empty"):
        eval_batches(Numbered([]), batch_size=2)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"seed": -1}, {"workers": -1}], ids=lambda o: next(iter(o)))
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        TrainBatches(Numbered([(8, 8)]), Augment(8), **{"batch_size": 2, "seed": 0, **options})


def test_evaluation_gives_whole_images_in_order_and_stacks_neighbours_of_one_size():
    images = Numbered([(8, 9)] * 5 + [(9, 8)] + [(8, 9)])
    batches = list(eval_batches(images, batch_size=2))
    assert [b.names for b in batches] == [("0", "1"), ("2", "3"), ("4",), ("5",), ("6",)]
    assert [tuple(b.image.shape) for b in batches] == [(2, 3, 8, 9), (2, 3, 8, 9), (1, 3, 8, 9), (1, 3, 9, 8), (1, 3, 8, 9)]
    np.testing.assert_array_equal(batches[1].image[1].permute(1, 2, 0).numpy(), images[3].image)
    np.testing.assert_array_equal(batches[1].label[1].numpy(), images[3].label)


@pytest.mark.parametrize("field", ["label", "source", "category"])
def test_a_sample_that_lacks_what_another_of_its_batch_has_is_named(field):
    image = np.zeros((4, 5, 3), np.uint8)
    value = {"label": image[..., 0], "source": image, "category": 1}[field]
    samples = [Sample(image, name="bare"), Sample(image, name="full", **{field: value})]
    for some in (samples, samples[::-1]):
        with pytest.raises(InputError, match=f"the sample 'bare' has no {field}, and 'full' .*complete it"):
            Batch.stack(some)
    assert getattr(Batch.stack(samples[:1]), field) is None
    assert len(getattr(Batch.stack(samples[1:] * 2), field)) == 2


def test_evaluation_leaves_no_category_in_the_place_of_another():
    class Some(Numbered):
        def __getitem__(self, index):
            return Sample(super().__getitem__(index).image, category=None if index == 1 else index, name=str(index))

    found = [
        (b.names, None if b.category is None else b.category.tolist()) for b in eval_batches(Some([(8, 8)] * 4), batch_size=4)
    ]
    assert found == [(("0",), [0]), (("1",), None), (("2", "3"), [2, 3])]


class Unlucky(Numbered):
    """Does something else where image 3 is asked for in a worker process."""

    def __init__(self, happens):
        super().__init__([(20, 24)] * 10)
        self.happens, self.started_in = happens, os.getpid()

    def __getitem__(self, index):
        if index == 3 and os.getpid() != self.started_in:
            self.happens()
        return super().__getitem__(index)


def _raise(error):
    raise error


def test_a_killed_worker_is_one_message():
    killed = stream(Unlucky(lambda: os.kill(os.getpid(), signal.SIGKILL)), workers=1)
    with pytest.raises(LostBatchError, match=r"shared memory.*train\.workers=0"):
        take(killed, 5)


def test_it_is_one_message_too_where_the_program_is_elsewhere():
    with pytest.raises(LostBatchError, match=r"Killed\. .*train\.workers=0"), lost_batches_explained():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    with pytest.raises(RuntimeError, match="another"), lost_batches_explained():
        raise RuntimeError("another")


def test_a_batch_that_does_not_come_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(loader, "PATIENCE", 1)
    monkeypatch.setattr(loader, "_LOOK_EVERY", 1)
    with pytest.raises(LostBatchError, match=r"none came within 1 s"):
        take(stream(Unlucky(lambda: time.sleep(4)), workers=1), 5)


def test_a_slow_batch_is_waited_for(monkeypatch):
    monkeypatch.setattr(loader, "_LOOK_EVERY", 1)
    assert take(stream(Unlucky(lambda: time.sleep(1.5)), workers=1), 3) == take(stream(), 3)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (PermissionError(13, "Permission denied", "3.png"), OSError, r"^\[Errno 13\].*'3.png'$"),
        (MemoryError(), OutOfMemoryError, r"train\.batch_size \(now 4.*workers=1"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfMemoryError, "train.batch_size"),
        (KeyError("a mistake of the set's own"), KeyError, "Traceback"),
    ],
)
def test_what_happens_in_a_worker_is_told_as_it_would_be_without(error, kind, said):
    with pytest.raises(kind, match=said):
        take(stream(Unlucky(lambda: _raise(error)), workers=2), 5)


IN_A_SMALL_SHM = """
import test_loader
try:
    images = test_loader.Numbered([(200, 200)] * 4)
    batches = test_loader.TrainBatches(images, test_loader.Augment(200), batch_size=4, seed=0, workers=1)
    test_loader.take(batches, 3)
except test_loader.LostBatchError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("unshare"), reason="needs namespaces of Linux")
def test_a_small_shared_memory_is_one_message(tmp_path):
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("may not mount")
    (tmp_path / "script.py").write_text(IN_A_SMALL_SHM)
    command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$0" "$1"', sys.executable, str(tmp_path / "script.py")]
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(loader.__file__).parents[2])])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": path})
    assert "No space left on device" in done.stdout, done.stderr
    assert "/dev/shm has 0.0 MB free" in done.stdout
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------- more of the same

GREY = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)


def dark(images: np.ndarray) -> np.ndarray:
    return images // 2


def test_grey_images_get_three_channels_one_at_a_time() -> None:
    dataset = ArrayDataset(GREY, np.array([1, 0]), rows=np.array([3, 1]), classes=["a", "b"], name="made", change=dark)
    images, categories = dataset.arrays()
    np.testing.assert_array_equal(images, GREY[[3, 1]] // 2)
    assert categories.tolist() == [1, 0]
    assert len(dataset) == 2
    for sample, image, category, name in zip(dataset, images, (1, 0), ("made/00003", "made/00001"), strict=True):
        assert sample.image.shape == (2, 3, 3)
        for channel in range(3):
            np.testing.assert_array_equal(sample.image[..., channel], image)
        assert (sample.category, sample.name) == (category, name)


def test_colours_stay_and_the_arrays_are_the_callers_own() -> None:
    colour = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    dataset = ArrayDataset(colour, np.array([0, 1]), classes=["a", "b"], name="made")
    np.testing.assert_array_equal(dataset[1].image, colour[1])
    images, categories = dataset.arrays()
    images[:] = 0
    categories[:] = 0
    assert colour.max() == 23
    assert dataset[1].category == 1


@pytest.mark.parametrize(
    ("images", "categories", "rows", "message"),
    [
        (GREY.astype(np.float32), [0] * 4, None, r"\(4, 2, 3\) float32: expected"),
        (GREY[0], [0] * 2, None, r"\(2, 3\) uint8: expected"),
        (np.zeros((4, 2, 2, 4), np.uint8), [0] * 4, None, r"\(4, 2, 2, 4\)"),
        (GREY, [0] * 3, None, "4 images and 3 categories"),
        (GREY, [0, 1, 2, 0], None, r"categories from 0 to 2: expected 0\.\.1"),
        (GREY, [0, -1], [0, 1], r"categories from -1 to 0"),
        (GREY, [0, 0], [1, 4], r"rows from 1 to 4: expected 0\.\.3"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(images, categories, rows, message) -> None:
    with pytest.raises(InputError, match=message):
        ArrayDataset(images, np.array(categories), rows=rows and np.array(rows), classes=["a", "b"], name="made")


@pytest.mark.parametrize(("slow", "share"), [("batches", "9"), ("training", "0")])
def test_the_share_of_the_time_that_a_training_waits_is_logged(slow, share, caplog, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loader.time, "perf_counter", lambda: clock[0])

    def batches():
        for number in range(1, 100):
            clock[0] += 9 if slow == "batches" else 0
            yield number

    caplog.set_level("INFO", logger="img2img")
    stream = loader.timed(batches(), "colour", workers=0)
    for number, expected in zip(stream, range(1, 11), strict=False):
        assert number == expected
        clock[0] += 1 if slow == "batches" else 10
    stream.close()
    assert f"colour: waited for images in {share}" in caplog.text
    assert ("train.workers" in caplog.text and "cache_dir" in caplog.text) == (slow == "batches")
    assert [*loader.timed(iter([1, 2]), "x", workers=1)] == [1, 2]
