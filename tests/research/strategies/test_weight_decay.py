"""Weight decay in the methods that share one network's weights out: it reaches what the newest task trains, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from killing import killed_again_and_again
from tiny_strategies import LR, begun, changed, context, first, learned, probe, snapshot, train
from torch import Tensor

from img2img.research.strategies import CPG, PackNet
from img2img.research.strategies.packnet import FREE
from img2img.training.run import run
from img2img.training.strategy import Phase

METHODS: list[Callable[[], PackNet]] = [PackNet, lambda: CPG(prunings=2)]
OPTIMISERS = ["sgd", "adam", "adamw", "rmsprop"]
each_method = pytest.mark.parametrize("make", METHODS, ids=["packnet", "cpg"])
each_optimiser = pytest.mark.parametrize("optimiser", OPTIMISERS)


@each_method
@each_optimiser
@pytest.mark.parametrize("decay", [5e-4, 0.5])
def test_earlier_tasks_stay_bit_equal_and_free_weights_zero_at_every_step(
    make: Callable[[], PackNet], optimiser: str, decay: float
) -> None:
    strategy = begun(make(), context(steps=9, optimiser={"name": optimiser, "weight_decay": decay}))
    outputs: dict[str, Tensor] = {}
    moved: set[str] = set()

    for name in ("classes", "colour", "more"):
        before = snapshot(strategy.model)

        def after(phase: Phase, before: dict[str, Tensor] = before) -> None:
            number = len(strategy.order)
            for key, weight in strategy.weights().items():
                earlier = (strategy.owner[key] != FREE) & (strategy.owner[key] < number)
                assert torch.equal(weight[earlier], before[f"trunk.{key}"][earlier])
                if phase.suffix:
                    assert not weight[strategy.owner[key] == FREE].any(), "what was pruned is not trained"
                if not torch.equal(weight, before[f"trunk.{key}"]):
                    moved.add(key)
            for earlier_task, output in outputs.items():
                assert torch.equal(probe(strategy, earlier_task), output)
            phase.module.train()

        head = strategy.context.head(name)
        train(strategy, name, strategy.adopt(name, head) if name == "classes" else strategy.learn(name), after)
        outputs[name] = probe(strategy, name)
        assert moved == set(strategy.weights())
        assert all(torch.equal(probe(strategy, earlier), output) for earlier, output in outputs.items())


@each_method
@each_optimiser
def test_the_first_step_of_a_phase_by_hand(make: Callable[[], PackNet], optimiser: str) -> None:
    decay = 0.3
    strategy = begun(make(), context(steps=9, optimiser={"name": optimiser, "weight_decay": decay, "momentum": 0.9}))
    first(strategy)
    learned(strategy, "colour")
    seen = []
    for phase in strategy.learn("more"):
        assert phase.options is not None
        rate, count = phase.options.optimiser.lr, 0
        assert rate == pytest.approx(LR / 10 if phase.suffix else LR)
        trainable = {key: owner == (3 if phase.suffix else FREE) for key, owner in strategy.owner.items()}
        before = {key: weight.detach().clone() for key, weight in strategy.weights().items()}

        def after(
            phase: Phase,
            before: dict[str, Tensor] = before,
            trainable: dict[str, Tensor] = trainable,
            rate: float = rate,
        ) -> None:
            nonlocal count
            count += 1
            if count > 1:
                return
            for key, weight in strategy.weights().items():
                old, chosen = before[key][trainable[key]], trainable[key]
                assert weight.grad is not None
                plain = weight.grad[chosen]
                gradient = plain + decay * old
                step = {
                    "sgd": gradient,
                    "adam": gradient / (gradient.abs() + 1e-8),
                    "adamw": plain / (plain.abs() + 1e-8) + decay * old,
                    "rmsprop": gradient / (gradient.abs() / 10 + 1e-8),  # the mean square starts at 0 and takes in a hundredth
                }[optimiser]
                torch.testing.assert_close(weight[chosen].detach(), old - rate * step, rtol=1e-4, atol=1e-7)
                assert torch.equal(weight[~chosen], before[key][~chosen])

        train(strategy, "more", iter([phase]), after)
        seen.append(phase.suffix)
    assert len(seen) == (3 if isinstance(strategy, CPG) else 2)


@each_method
def test_without_decay_nothing_is_put_back(make: Callable[[], PackNet]) -> None:
    for decay in (0.0, 1e-3):
        strategy = begun(make(), context(steps=9, optimiser={"weight_decay": decay}))
        phases = [*first(strategy), *learned(strategy, "colour")]
        assert [not phase.callbacks for phase in phases] == [decay == 0] * len(phases)


@each_method
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_putting_back_keeps_the_memory_format_and_what_is_trained(
    make: Callable[[], PackNet], memory_format: torch.memory_format
) -> None:
    strategy = begun(make(), context(steps=9, optimiser={"weight_decay": 0.1}))
    first(strategy)
    strategy.model.to(memory_format=memory_format)
    phase = next(strategy.learn("colour"))
    with torch.no_grad():
        for weight in strategy.weights().values():
            weight.add_(1.0)
    shifted = snapshot(strategy.model)
    (holding,) = phase.callbacks
    holding.after_step()
    assert changed(shifted, strategy.model) == {f"trunk.{key}" for key in strategy.weights()}
    for key, weight in strategy.weights().items():
        free = strategy.owner[key] == FREE
        assert weight.is_contiguous(memory_format=memory_format)
        assert (weight[free] == 1).all()
        torch.testing.assert_close(weight[~free] + 1, shifted[f"trunk.{key}"][~free])


def test_scores_that_decay_decide_nothing_where_a_task_trains_the_weights_itself() -> None:
    decays = {"name": "adam", "mask_lr": LR, "weight_decay": 1e-12, "mask_weight_decay": 1.0}
    strategy = begun(CPG(prunings=2), context(steps=9, optimiser=decays))
    first(strategy)
    learned(strategy, "colour")
    earlier = strategy._earlier("colour")
    assert any((~mask & ~earlier[key]).any() for key, mask in strategy._masks("colour").items()), "or this would show nothing"
    before = probe(strategy, "colour")
    learned(strategy, "more")
    assert torch.equal(probe(strategy, "colour"), before)
    again = begun(CPG(prunings=2), context(steps=9))
    again.restore({name: strategy.own_tensors(name) for name in strategy.order}, strategy.shared_tensors())
    assert torch.equal(probe(again, "colour"), before)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("name", "optimiser", "mode"),
    [("packnet", "sgd", "first_task"), ("packnet", "adam", "random"), ("cpg", "adam", "first_task"), ("cpg", "sgd", "random")],
)
def test_a_run_forgets_nothing(config: Callable[..., Any], tmp_path: Path, name: str, optimiser: str, mode: str) -> None:
    plain = config()
    options = plain["train"] | {"optimiser": {**plain["train"]["optimiser"], "weight_decay": 5e-4, "name": optimiser}}
    results = run(config(method={"name": name}, train=options, backbone=plain["backbone"] | {"mode": mode}))
    assert results["forgetting"]["max_abs_output_change"] == 0
    shared = safetensors.torch.load_file(tmp_path / "run" / "strategy" / "shared after 3.safetensors")
    owners = {key.removeprefix("owner."): owner for key, owner in shared.items() if key.startswith("owner.")}
    assert owners
    for key, owner in owners.items():
        assert not shared[f"model.trunk.{key}"][owner == FREE].any()


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("name", ["packnet", "cpg"])
def test_a_killed_run_ends_bit_equal(config: Callable[..., Any], tmp_path: Path, name: str) -> None:
    # A checkpoint at every second step, so that most kills go on from the middle of a training.
    plain = config()["train"]
    options = plain | {"checkpoint_every": 2, "optimiser": {**plain["optimiser"], "weight_decay": 5e-4}}
    run(config(method={"name": name}, train=options, out=str(tmp_path / "whole")))
    # With PackNet in the first task's retraining, the second's training and retraining, and the third's.
    killed_again_and_again(lambda: run(config(method={"name": name}, train=options)), 10, 6, 5, 10)
    learned = [{path.name: path.read_bytes() for path in (tmp_path / out / "strategy").iterdir()} for out in ("whole", "run")]
    assert learned[0] == learned[1]
