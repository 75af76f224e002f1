"""Joint training: whose batch comes when, what decides, and that no task can be added afterwards."""

import itertools
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from tiny_learners import begun, changed, context, first, learned, probe, restored, snapshot, train

from img2img import InputError
from img2img.run import run
from img2img.training.learners import Joint, Phase
from img2img.training.learners.joint import JointBatches, TaskBatch

NAMES = ("classes", "colour", "more")


@pytest.fixture
def learner() -> Joint:
    return begun(Joint())


def _phase(learner: Joint) -> Phase:
    return next(learner.adopt("classes", learner.context.head("classes")))


def _batches(learner: Joint, start: int, count: int) -> list[TaskBatch]:
    batches = _phase(learner).batches
    assert isinstance(batches, JointBatches)
    return list(itertools.islice(batches.iterate(start), count))


def _same(a: Any, b: Any) -> bool:
    """Whether two batches are equal, field by field."""
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(b)]
    return all(torch.equal(x, y) if isinstance(y, torch.Tensor) else x == y for x, y in pairs)


# ---------------------------------------------------------------------- the stream of batches


def test_the_tasks_take_turns_and_each_has_the_batches_of_its_own_training(learner: Joint) -> None:
    given = _batches(learner, 0, 11)
    assert [batch.task for batch in given] == [*NAMES, *NAMES, *NAMES, "classes", "colour"]
    for i, name in enumerate(NAMES):
        alone = learner.context.ready[name].batches(learner.context.experiment.seed_of(name))
        for step, batch in enumerate(given[i::3]):
            assert _same(batch, alone.batch(step))


@pytest.mark.parametrize("start", range(8))
def test_the_stream_goes_on_from_any_step(learner: Joint, start: int) -> None:
    whole, rest = _batches(learner, 0, 14), _batches(learner, start, 6)
    assert all(_same(a, b) for a, b in zip(rest, whole[start:], strict=False))


def test_a_batch_keeps_its_task_when_it_is_moved(learner: Joint) -> None:
    (batch,) = _batches(learner, 1, 1)
    moved = batch.to("cpu")
    assert isinstance(moved, TaskBatch)
    assert moved.task == "colour"
    assert torch.equal(moved.image, batch.image)


# ---------------------------------------------------------------------- the training


def test_one_training_of_the_sum_of_all_steps_serves_all_tasks(learner: Joint) -> None:
    assert [phase.options.steps for phase in first(learner) if phase.options] == [3 * 6]
    output = probe(learner, "colour")
    assert learned(learner, "colour") == []
    assert learned(learner, "more") == []
    assert torch.equal(probe(learner, "colour"), output)


def test_rates_are_the_experiments_and_what_comes_by_steps_scales_with_the_tasks() -> None:
    plain = context(val_every=5, norm_batches=7)
    slow = replace(plain.ready["classes"], options=replace(plain.ready["classes"].options, lr=1e-9, val_every=2))
    learner = begun(Joint(), replace(plain, ready={**plain.ready, "classes": slow}))
    options = _phase(learner).options
    assert options is not None
    assert (options.lr, options.val_every, options.norm_batches) == (plain.experiment.train["lr"], 15, 21)


def test_the_taken_head_is_placed_with_the_rest() -> None:
    placed: list[torch.nn.Module] = []
    learner = begun(Joint(), replace(context(), place=placed.append))
    head = learner.context.head("classes")
    placed.clear()
    next(learner.adopt("classes", head))
    assert any(head in module.modules() for module in placed)


def test_each_step_trains_the_trunk_and_the_head_of_its_task_alone(learner: Joint) -> None:
    touched: list[set[str]] = []

    def after(phase: Phase) -> None:
        names = {n for n, p in learner.model.named_parameters() if p.grad is not None and p.grad.any()}
        touched.append({n.split(".")[1] if n.startswith(("heads", "norms")) else "trunk" for n in names})

    train(learner, "classes", learner.adopt("classes", learner.context.head("classes")), after)
    assert touched == [{"trunk", name} for name in NAMES] * 6


def test_the_loss_is_the_batchs_tasks() -> None:
    learner = begun(Joint())
    phase = _phase(learner)
    assert phase.objective is not None
    for batch in _batches(learner, 0, 3):
        example = phase.objective.example(batch)
        task = learner.context.ready[batch.task].task
        raw = phase.module(example.input)
        assert raw.shape[1] == task.out_channels
        assert torch.equal(phase.objective.loss(raw, example), task.loss(raw, task.example(batch)))


def test_the_first_task_keeps_the_head_that_was_trained_with_the_backbone(learner: Joint) -> None:
    head = learner.context.head("classes")
    before = snapshot(head)
    next(learner.adopt("classes", head))
    assert not changed(before, learner.model.heads["classes"])
    assert len({id(learner.model.heads[name]) for name in NAMES}) == 3


# ---------------------------------------------------------------------- what decides


def test_the_mean_skill_by_hand(learner: Joint, monkeypatch: pytest.MonkeyPatch) -> None:
    # A score: (0.7 - 0.2) / (1 - 0.2) = 0.625. An error: (100 - 40) / 100 = 0.6. A score below doing nothing: -0.25.
    values = {"classes": (0.7, 0.2), "colour": (40.0, 100.0), "more": (0.0, 0.2)}
    ready = learner.context.ready
    of = {id(ready[name].task): name for name in NAMES}

    def figures(self: Any, network: Any, task: Any, pictures: Any) -> dict[str, float]:
        assert pictures is ready[of[id(task)]].parts.val
        return {task.metric: values[of[id(task)]][network is None], "another": 9.0}

    phase = _phase(learner)
    monkeypatch.setattr(type(learner.context.evaluator), "figures", figures)
    assert phase.validate is not None
    assert phase.validate() == pytest.approx((0.625 + 0.6 - 0.25) / 3)
    assert phase.objective is not None
    assert phase.objective.higher_is_better
    # As in the training of one task: a figure that is no number must not be left out of what chooses the state.
    values["colour"] = (float("nan"), 100.0)
    assert phase.validate() != phase.validate()


def test_validation_leaves_the_training_as_it_was() -> None:
    learner = begun(Joint(), context(names=["classes", "more"]))
    phase = _phase(learner)
    before = snapshot(learner.model)
    assert phase.validate is not None
    assert phase.validate() <= 1
    assert not changed(before, learner.model)


# ---------------------------------------------------------------------- what is stored


def test_a_restored_learner_gives_the_same_outputs_and_trains_no_more(learner: Joint) -> None:
    first(learner)
    again = restored(Joint, learner, ["classes"])
    assert all(torch.equal(probe(again, name), probe(learner, name)) for name in NAMES)
    assert learned(again, "colour") == []


@pytest.mark.parametrize("names", [(*NAMES, "other"), NAMES[:2]])
def test_another_sequence_than_the_trained_one_is_refused(
    learner: Joint, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiny_learners

    first(learner)
    monkeypatch.setitem(tiny_learners.TASKS, "other", {"kind": "colourisation"})
    other = begun(Joint(), context(names=names))
    with pytest.raises(InputError, match="joint training adds no task"):
        other.restore({"classes": {}}, learner.shared_tensors())


def test_a_sequence_that_grew_is_refused_by_a_run(config: Callable[..., Any]) -> None:
    run(config(method={"name": "joint"}, sequence=["disks", "colour"]))
    with pytest.raises(InputError, match="learned 'disks' under another configuration"):
        run(config(method={"name": "joint"}, sequence=["disks", "colour", "edges"]))
