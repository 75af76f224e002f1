"""Calls of many threads in batches of mixed tasks: every one gets its own answer, the one that it would get alone."""

import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from web_bundles import image_bundle, photo

import img2img
from img2img import InputError
from img2img.inference import Batching
from img2img.inference.cancellation import Cancellation
from img2img.inference.mixed_batches import MixedBatches, run_by_task

TASKS = ("disks", "colour", "edges")
SIZES = ((60, 44), (44, 60), (33, 65))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_bundle(tmp_path_factory.mktemp("mixed"))


def answers(model: Any, calls: Sequence[tuple[str, Any]]) -> list[Any]:
    """Of all calls at once: the first batch runs when each of them has come to the network."""
    batches, run = model.batches, model.batches._run

    def held(tasks: Sequence[str], inputs: Sequence[torch.Tensor]) -> Iterator[tuple[list[int], list[torch.Tensor]]]:
        while batches.counts.calls + batches.waiting < len(calls):
            time.sleep(0.001)
        yield from run(tasks, inputs)

    batches._run = held
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda call: model.run(call[0], call[1]), calls))


def calls(count: int, *, tasks: Sequence[str] = TASKS, size: int = 3) -> list[tuple[str, Any]]:
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        width, height = SIZES[rng.integers(size)]
        made.append((tasks[rng.integers(len(tasks))], np.asarray(photo(width, height, seed=number))))
    return made


@pytest.mark.parametrize("weights", ["cached", "merged"])
def test_every_call_gets_its_own_answer_bit_for_bit(bundle: Path, weights: Any) -> None:
    model = img2img.load(bundle, device="cpu", weights=weights, batching=Batching(batch_max=6, window=0.05))
    asked, plain = calls(60), img2img.load(bundle, device="cpu")
    for (task, image), answer in zip(asked, answers(model, asked), strict=True):
        assert np.array_equal(answer, plain.run(task, image)), task
    counts = model.batches.counts
    assert sum(size * number for size, number in counts.samples.items()) == counts.calls == 60
    assert 1 < max(counts.samples) <= 6
    assert max(counts.tasks) > 1, "tasks were mixed"


def test_samples_of_one_task_that_share_a_pass_differ_by_rounding_alone(bundle: Path) -> None:
    """A larger batch may take other kernels, which add up in another order: no more than one step of 255, and rarely."""
    model = img2img.load(bundle, device="cpu", batching=Batching(batch_max=8, window=0.05, exact=False))
    asked, plain = calls(40, tasks=("colour", "edges"), size=1), img2img.load(bundle, device="cpu")
    for (task, image), answer in zip(asked, answers(model, asked), strict=True):
        difference = np.abs(answer.astype(int) - plain.run(task, image))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01
    assert any(samples > 2 for samples in model.batches.counts.samples)


def test_equal_batches_give_equal_bits(bundle: Path) -> None:
    """What is shared is the pass and nothing else: a list that runs as one batch is the same as those calls gathered."""
    inputs = [torch.rand(1, 3, 64, 64) for _ in range(5)]
    names = ["edges", "colour", "edges", "edges", "colour"]
    network = img2img.load(bundle, device="cpu").network
    found: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for places, outputs in run_by_task(names, inputs, lambda name: lambda x: network(x, task=name), alone=False):
            found |= dict(zip(places, outputs, strict=True))
        expected = network(torch.cat(inputs), task=names)
    assert all(torch.equal(found[place][0], expected[place]) for place in range(5))


def test_tiles_lists_and_tensors_go_through_batches_too(bundle: Path) -> None:
    model, plain = (img2img.load(bundle, device="cpu", batching=one) for one in (Batching(batch_max=8), None))
    large = np.asarray(photo(300, 200))
    assert np.array_equal(model.run("edges", large, tile=160), plain.run("edges", large, tile=160))
    several = torch.rand(3, 3, 40, 40)
    assert torch.equal(model.run("colour", several), plain.run("colour", several))
    assert len(model.run("colour", [large, large])) == 2


# ---------------------------------------------------------------------- the batches alone


class Doubling:
    """Runs batches in which an input is doubled, and notes what came together."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, tasks: Sequence[str], inputs: Sequence[torch.Tensor]) -> Iterator[tuple[list[int], list[torch.Tensor]]]:
        self.batches.append(list(tasks))
        for place, (task, input) in enumerate(zip(tasks, inputs, strict=True)):
            while not self.go.wait(0.01):
                torch.nn.Identity()(input)  # where a batch is cancelled
            if task == "bad":
                raise InputError("this one is bad")
            yield [place], [2 * input]


def test_a_call_that_meets_no_others_does_not_wait() -> None:
    batches = MixedBatches(Doubling(), 8, window=10)
    began = time.monotonic()
    with batches.announced():
        assert torch.equal(batches("a", torch.ones(1, 2)), torch.full((1, 2), 2.0))
    assert time.monotonic() - began < 5


def test_a_batch_waits_for_announced_calls_within_its_window() -> None:
    run = Doubling()
    batches = MixedBatches(run, 8, window=10)
    with ThreadPoolExecutor(1) as pool:
        with batches.announced():
            other = pool.submit(batches, "b", torch.zeros(1, 2))
            while not batches.waiting:
                time.sleep(0.01)
            batches("a", torch.ones(1, 2))
        other.result(10)
        assert run.batches == [["b", "a"]]
        short = MixedBatches(run, 8, window=0.01)
        with short.announced():  # and comes with nothing
            pool.submit(short, "b", torch.zeros(1, 2)).result(10)


def test_batches_are_of_one_size_oldest_first_and_no_larger_than_asked() -> None:
    run = Doubling()
    batches = MixedBatches(run, 2, window=0)
    run.go.clear()
    with ThreadPoolExecutor(6) as pool:
        asked = []
        for number, (task, side) in enumerate((("first", 1), ("a", 2), ("b", 2), ("c", 3), ("a", 2))):
            asked.append(pool.submit(batches, task, torch.ones(1, side)))
            while batches.waiting != max(0, number) or not run.batches:
                time.sleep(0.001)
        run.go.set()
        assert [one.result(10).shape[1] for one in asked] == [1, 2, 2, 3, 2]
    assert run.batches == [["first"], ["a", "a"], ["b"], ["c"]], "those of the oldest one's task come with it"


def test_what_fails_fails_alone() -> None:
    run = Doubling()
    batches = MixedBatches(run, 8, window=10)
    with ThreadPoolExecutor(3) as pool, batches.announced():
        asked = []
        for number, task in enumerate(("a", "bad", "c")):
            asked.append(pool.submit(batches, task, torch.ones(1, 2)))
            while batches.waiting != number + 1:
                time.sleep(0.001)
        batches("d", torch.ones(1, 2))
        assert torch.equal(asked[0].result(10), asked[2].result(10))
        with pytest.raises(InputError, match="this one is bad"):
            asked[1].result(10)
    assert run.batches[0] == ["a", "bad", "c", "d"]


def test_who_is_cancelled_waits_no_more_and_a_batch_for_nobody_ends() -> None:
    run = Doubling()
    batches = MixedBatches(run, 8, window=0)
    run.go.clear()
    stop = Cancellation()

    def cancelled() -> None:
        with stop.watching(), pytest.raises(RuntimeError, match="gone"):
            batches("a", torch.ones(1, 2))

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(cancelled)
        while not run.batches:
            time.sleep(0.001)
        stop.cancel(RuntimeError("gone"))
        asked.result(10)
        # The layer of the batch that nobody waits for is never done, and yet the next batch runs.
        other = pool.submit(batches, "b", torch.ones(1, 2))
        while len(run.batches) < 2:
            time.sleep(0.001)
        run.go.set()
        assert other.result(10) is not None


def test_on_a_cpu_calls_are_gathered_only_where_a_batch_is_asked_for(bundle: Path) -> None:
    assert img2img.load(bundle, device="cpu", batching=Batching()).batches is None
    assert img2img.load(bundle, device="cpu", batching=Batching(batch_max=2)).batches is not None


def test_batches_and_models_with_them_can_be_pickled(bundle: Path) -> None:
    model = img2img.load(bundle, device="cpu", batching=Batching(batch_max=8))
    image = np.asarray(photo())
    expected = model.run("edges", image)
    assert np.array_equal(pickle.loads(pickle.dumps(model)).run("edges", image), expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_max": 0}, "batch_max=0"),
        ({"window": -1}, "window=-1"),
        ({"window": 60}, "0.005"),
        ({"window": "a"}, "window='a'.*0.005"),
        ({"window": None}, "window=None.*0.005"),
        ({"window": float("nan")}, "window=nan.*0.005"),
        ({"exact": "no"}, "exact='no'.*True or False"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Batching(**options)
