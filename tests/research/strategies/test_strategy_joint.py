"""Joint training: whose batch comes when, what decides, and that no task can be added afterwards."""

import itertools
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from tiny_strategies import begun, changed, context, first, learned, probe, restored, snapshot, train

from img2img import InputError
from img2img.research.strategies import Joint
from img2img.research.strategies.joint import JointBatches, TaskBatch
from img2img.training.run import run
from img2img.training.strategy import Phase

NAMES = ("classes", "colour", "more")


@pytest.fixture
def strategy() -> Joint:
    return begun(Joint())


def _phase(strategy: Joint) -> Phase:
    return next(strategy.adopt("classes", strategy.context.head("classes")))


def _batches(strategy: Joint, start: int, count: int) -> list[TaskBatch]:
    batches = _phase(strategy).batches
    assert isinstance(batches, JointBatches)
    return list(itertools.islice(batches.iterate(start), count))


def _same(a: Any, b: Any) -> bool:
    """Whether two batches are equal, field by field."""
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(b)]
    return all(torch.equal(x, y) if isinstance(y, torch.Tensor) else x == y for x, y in pairs)


# ---------------------------------------------------------------------- the stream of batches


def test_the_tasks_take_turns_and_each_has_the_batches_of_its_own_training(strategy: Joint) -> None:
    given = _batches(strategy, 0, 11)
    assert [batch.task for batch in given] == [*NAMES, *NAMES, *NAMES, "classes", "colour"]
    for i, name in enumerate(NAMES):
        alone = strategy.context.task_data[name].batches(strategy.context.experiment.seed_of(name))
        for step, batch in enumerate(given[i::3]):
            assert _same(batch, alone.batch(step))


@pytest.mark.parametrize("start", range(8))
def test_the_stream_goes_on_from_any_step(strategy: Joint, start: int) -> None:
    whole, rest = _batches(strategy, 0, 14), _batches(strategy, start, 6)
    assert all(_same(a, b) for a, b in zip(rest, whole[start:], strict=False))


def test_a_batch_keeps_its_task_when_it_is_moved(strategy: Joint) -> None:
    (batch,) = _batches(strategy, 1, 1)
    moved = batch.to("cpu")
    assert isinstance(moved, TaskBatch)
    assert moved.task == "colour"
    assert torch.equal(moved.image, batch.image)


# ---------------------------------------------------------------------- the training


def test_one_training_of_the_sum_of_all_steps_serves_all_tasks(strategy: Joint) -> None:
    assert [phase.options.steps for phase in first(strategy) if phase.options] == [3 * 6]
    output = probe(strategy, "colour")
    assert learned(strategy, "colour") == []
    assert learned(strategy, "more") == []
    assert torch.equal(probe(strategy, "colour"), output)


def test_rates_are_the_experiments_and_what_comes_by_steps_scales_with_the_tasks() -> None:
    plain = context(validation={"every": 5, "precise_bn_batches": 7})
    options = plain.task_data["classes"].options.changed(optimiser={"lr": 1e-9}, validation={"every": 2})
    slow = replace(plain.task_data["classes"], options=options)
    strategy = begun(Joint(), replace(plain, task_data={**plain.task_data, "classes": slow}))
    joint = _phase(strategy).options
    assert joint is not None
    assert joint.optimiser.lr == plain.experiment.train.optimiser.lr != 1e-9
    assert (joint.validation.every, joint.validation.precise_bn_batches) == (15, 21)


def test_the_taken_head_is_placed_with_the_rest() -> None:
    placed: list[torch.nn.Module] = []
    strategy = begun(Joint(), replace(context(), place=placed.append))
    head = strategy.context.head("classes")
    placed.clear()
    next(strategy.adopt("classes", head))
    assert any(head in module.modules() for module in placed)


def test_each_step_trains_the_trunk_and_the_head_of_its_task_alone(strategy: Joint) -> None:
    touched: list[set[str]] = []

    def after(phase: Phase) -> None:
        names = {n for n, p in strategy.model.named_parameters() if p.grad is not None and p.grad.any()}
        touched.append({n.split(".")[1] if n.startswith(("heads", "norms")) else "trunk" for n in names})

    train(strategy, "classes", strategy.adopt("classes", strategy.context.head("classes")), after)
    assert touched == [{"trunk", name} for name in NAMES] * 6


def test_the_loss_is_the_batchs_tasks() -> None:
    strategy = begun(Joint())
    phase = _phase(strategy)
    assert phase.objective is not None
    for batch in _batches(strategy, 0, 3):
        example = phase.objective.example(batch)
        task = strategy.context.task_data[batch.task].task
        raw = phase.module(example.input)
        assert raw.shape[1] == task.out_channels
        assert torch.equal(phase.objective.loss(raw, example), task.loss(raw, task.example(batch)))


def test_the_first_task_keeps_the_head_that_was_trained_with_the_backbone(strategy: Joint) -> None:
    head = strategy.context.head("classes")
    before = snapshot(head)
    next(strategy.adopt("classes", head))
    assert not changed(before, strategy.model.heads["classes"])
    assert len({id(strategy.model.heads[name]) for name in NAMES}) == 3


# ---------------------------------------------------------------------- what decides


def test_the_mean_skill_by_hand(strategy: Joint, monkeypatch: pytest.MonkeyPatch) -> None:
    # A score: (0.7 - 0.2) / (1 - 0.2) = 0.625. An error: (100 - 40) / 100 = 0.6. A score below the baseline: -0.25.
    values = {"classes": (0.7, 0.2), "colour": (40.0, 100.0), "more": (0.0, 0.2)}
    task_data = strategy.context.task_data
    of = {id(task_data[name].task): name for name in NAMES}

    def primary_metric(self: Any, network: Any, task: Any, images: Any) -> float:
        assert images is task_data[of[id(task)]].parts.val
        return values[of[id(task)]][network is None]

    phase = _phase(strategy)
    monkeypatch.setattr(type(strategy.context.evaluator), "primary_metric", primary_metric)
    assert phase.validate is not None
    assert phase.validate() == pytest.approx((0.625 + 0.6 - 0.25) / 3)
    assert phase.objective is not None
    assert phase.objective.higher_is_better
    # As in the training of one task: a figure that is no number must not be left out of what chooses the state.
    values["colour"] = (float("nan"), 100.0)
    assert phase.validate() != phase.validate()
    values |= {"classes": (25.0, 20.0), "colour": (40.0, 100.0)}
    assert phase.validate() == pytest.approx((0.6 - 0.25) / 2), "a score without a ceiling, such as PSNR, has no skill"


def test_validation_leaves_the_training_as_it_was() -> None:
    strategy = begun(Joint(), context(names=["classes", "more"]))
    phase = _phase(strategy)
    before = snapshot(strategy.model)
    assert phase.validate is not None
    assert phase.validate() <= 1
    assert not changed(before, strategy.model)


# ---------------------------------------------------------------------- what is stored


def test_a_restored_learner_gives_the_same_outputs_and_trains_no_more(strategy: Joint) -> None:
    first(strategy)
    again = restored(Joint, strategy, ["classes"])
    assert all(torch.equal(probe(again, name), probe(strategy, name)) for name in NAMES)
    assert learned(again, "colour") == []


@pytest.mark.parametrize("names", [(*NAMES, "other"), NAMES[:2]])
def test_another_sequence_than_the_trained_one_is_refused(
    strategy: Joint, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiny_strategies

    first(strategy)
    monkeypatch.setitem(tiny_strategies.TASKS, "other", {"kind": "colourisation"})
    other = begun(Joint(), context(names=names))
    with pytest.raises(InputError, match="joint training adds no task"):
        other.restore({"classes": {}}, strategy.shared_tensors())


def test_a_sequence_that_grew_is_refused_by_a_run(config: Callable[..., Any]) -> None:
    run(config(method={"name": "joint"}, sequence=["disks", "colour"]))
    with pytest.raises(InputError, match="'disks' under another config"):
        run(config(method={"name": "joint"}, sequence=["disks", "colour", "edges"]))
