"""Learning without Forgetting: its targets, the temperature by the paper's formula, where gradients go, and the warm-up."""

from typing import Any

import pytest
import torch
from tiny_strategies import LR, begun, changed, context, first, learned, probe, restored, snapshot, train
from torch import Tensor
from torch.nn import functional as F

from img2img import InputError
from img2img.research.strategies import LwF, Sequential
from img2img.research.strategies.lwf import SharedNetwork
from img2img.tasks import build_task
from img2img.training.strategy import Phase


class Recorded(LwF):
    """Keeps the teacher and the answers that it gave."""

    def distillation(self, teacher: SharedNetwork, earlier: list[str], input: Tensor) -> Tensor | None:
        """As LwF's."""
        self.teacher = teacher
        self.asked: list[Tensor] = [*getattr(self, "asked", []), input]
        return super().distillation(teacher, earlier, input)


def _x(seed: int = 1) -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------- targets and losses


@pytest.mark.parametrize("norm", ["shared", "frozen"])
def test_the_targets_are_what_the_network_answered_before_the_new_task(norm: Any) -> None:
    strategy = begun(Recorded(norm=norm))
    first(strategy)
    learned(strategy, "colour")
    recorded = {name: probe(strategy, name) for name in ("classes", "colour")}
    answers: list[bool] = []

    def after(phase: Phase) -> None:
        if phase.extra is not None:
            x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))  # as `probe` has it
            answers.append(all(torch.equal(strategy.teacher.run(x, name), output) for name, output in recorded.items()))

    train(strategy, "more", strategy.learn("more"), after)
    assert answers == [True] * 5
    assert not any(torch.equal(probe(strategy, name), output) for name, output in recorded.items()), "the network itself moved"


def test_softened_probabilities_are_the_papers() -> None:
    # y'_i = y_i^(1/T) / Σ_j y_j^(1/T) of recorded probabilities y (equation 3); L = -Σ y' log ŷ' (equation 2).
    T, task = 2.0, build_task({"kind": "segmentation", "classes": ["a", "b", "c"]})
    raw, target = torch.randn(2, 3, 4, 5, dtype=torch.double), torch.randn(2, 3, 4, 5, dtype=torch.double)

    def softened(raw: Tensor, T: float) -> Tensor:
        y = raw.exp() / raw.exp().sum(1, keepdim=True)
        powers: Tensor = y ** (1 / T)
        return powers / powers.sum(1, keepdim=True)

    for T in (0.5, 1.0, 2.0, 7.0):
        expected = -(softened(target, T) * softened(raw, T).log()).sum(1).mean()
        torch.testing.assert_close(task.distillation(raw, target, temperature=T).double(), expected, rtol=1e-5, atol=0)
    assert task.distillation(target, target, temperature=1.0) < task.distillation(raw, target, temperature=1.0)


def test_softened_probabilities_by_hand() -> None:
    # y = (0.8, 0.2): their square roots are as 2 to 1, so y' = (2/3, 1/3); ŷ = (1/2, 1/2) stays so.
    task = build_task({"kind": "segmentation", "classes": ["a", "b"]})
    target, raw = torch.tensor([0.8, 0.2]).log().view(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    assert task.distillation(raw, target, temperature=2.0).item() == pytest.approx(-torch.tensor(0.5).log().item())
    other = torch.tensor([0.2, 0.8]).log().view(1, 2, 1, 1)
    expected = -(2 / 3 * torch.tensor(1 / 3).log() + 1 / 3 * torch.tensor(2 / 3).log()).item()
    assert task.distillation(other, target, temperature=2.0).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["colourisation", "denoising"])
def test_image_tasks_compare_raw_outputs_by_squared_error(kind: str) -> None:
    task = build_task({"kind": kind})
    raw, target = torch.randn(2, task.out_channels, 4, 4), torch.randn(2, task.out_channels, 4, 4)
    for temperature in (1.0, 5.0):
        torch.testing.assert_close(task.distillation(raw, target, temperature=temperature), (raw - target).square().mean())


@pytest.mark.parametrize("options", [{}, {"strength": 3.0, "temperature": 1.5}])
def test_the_loss_is_the_weighted_sum_over_earlier_tasks(options: dict[str, Any]) -> None:
    strategy = begun(LwF(**options))
    first(strategy)
    learned(strategy, "colour")
    *_, phase = strategy.learn("more")
    assert phase.extra is not None
    old = {name: p.detach().clone() for name, p in strategy.model.state_dict().items()}
    teacher = {name: strategy.model.heads[name](strategy.model.trunk.eval()(_x())).detach() for name in ("classes", "colour")}
    with torch.no_grad():
        for parameter in strategy.model.trunk.parameters():
            parameter.add_(0.1)
        for name in ("classes", "colour"):
            for parameter in strategy.model.heads[name].parameters():
                parameter.sub_(0.1)
    model = strategy.model.eval()
    given = phase.extra(_x(), model(_x()))
    T, weight = options.get("temperature", 2.0), options.get("strength", 1.0)
    now = {name: model.heads[name](model.trunk(_x())) for name in teacher}
    y, answer = (F.softmax(t["classes"], 1) ** (1 / T) for t in (teacher, now))
    y, answer = y / y.sum(1, keepdim=True), answer / answer.sum(1, keepdim=True)
    classes = -(y * answer.log()).sum(1).mean()
    colour = (teacher["colour"] - now["colour"]).square().mean()
    torch.testing.assert_close(given, weight * (classes + colour))
    assert changed(old, strategy.model)


# ---------------------------------------------------------------------- gradients


def test_the_distillation_reaches_trunk_and_old_heads_but_neither_teacher_nor_new_head() -> None:
    strategy = begun(Recorded())
    first(strategy)
    *_, phase = strategy.learn("colour")
    assert phase.extra is not None
    with torch.no_grad():
        for parameter in strategy.model.trunk.parameters():
            parameter.add_(0.1)
    strategy.model.train()
    extra = phase.extra(_x(), strategy.model(_x()))
    assert extra is not None
    extra.backward()
    moved = {name for name, p in strategy.model.named_parameters() if p.grad is not None and (p.grad != 0).any()}
    assert {"trunk.encoder.0.weight", "trunk.decoder.0.weight", "heads.classes.weight", "heads.classes.bias"} <= moved
    assert not any(name.startswith("heads.colour") for name in moved)
    assert all(p.grad is None and not p.requires_grad for p in strategy.teacher.parameters())
    trained = {id(p) for p in strategy.model.parameters()}
    assert not trained & {id(p) for p in strategy.teacher.parameters()}


def test_the_teacher_never_changes_and_stays_in_evaluation_mode() -> None:
    strategy = begun(Recorded())
    first(strategy)
    kept: list[dict[str, Tensor]] = []
    modes: list[bool] = []

    def after(phase: Phase) -> None:
        if phase.extra is not None:
            kept.append(snapshot(strategy.teacher))
            modes.append(any(module.training for module in strategy.teacher.modules()))

    train(strategy, "colour", strategy.learn("colour"), after)
    assert len(kept) == 5
    assert not any(changed(kept[0], strategy.teacher) for _ in kept)
    assert all(torch.equal(k[name], t) for k in kept for name, t in kept[0].items())
    assert not any(modes)


def test_distillation_holds_the_old_answers() -> None:
    drifts = []
    for strength in (0.0, 30.0):
        torch.manual_seed(4)
        strategy = begun(LwF(strength=strength, norm="frozen"), context(steps=40))
        first(strategy)
        before = probe(strategy, "classes").softmax(1)
        learned(strategy, "colour")
        drifts.append((probe(strategy, "classes").softmax(1) - before).abs().mean().item())
    assert drifts[1] < 0.5 * drifts[0]


# ---------------------------------------------------------------------- phases


@pytest.mark.parametrize("norm", ["shared", "frozen"])
def test_the_warm_up_trains_the_new_head_alone(norm: Any) -> None:
    strategy = begun(LwF(warmup=0.5, norm=norm))
    first(strategy)
    phases = strategy.learn("colour")
    warmup = next(phases)
    before = snapshot(strategy.model)
    train(strategy, "colour", iter([warmup]))
    # Running statistics would move the shared features as much as weights do.
    assert changed(before, strategy.model) == {"heads.colour.weight", "heads.colour.bias"}
    assert warmup.extra is None
    both = next(phases)
    before = snapshot(strategy.model)
    train(strategy, "colour", iter([both]))
    moved = changed(before, strategy.model)
    assert {"trunk.encoder.0.weight", "heads.classes.weight", "heads.colour.weight"} <= moved
    assert ("trunk.encoder.1.running_mean" in moved) == (norm == "shared")


def test_without_a_warm_up_there_is_one_phase_of_all_steps() -> None:
    strategy = begun(LwF(warmup=0.0))
    first(strategy)
    assert [phase.options.steps for phase in strategy.learn("colour") if phase.options] == [6]


@pytest.mark.parametrize("steps", [2, 5, 6, 15, 25, 105])
def test_the_phases_share_out_the_tasks_steps(steps: int) -> None:
    strategy = begun(LwF(), context(steps=steps))
    first(strategy)
    assert sum(phase.options.steps for phase in strategy.learn("colour") if phase.options) == steps


def test_strength_zero_is_sequential_fine_tuning_with_the_same_phases() -> None:
    plain = context(steps=10)
    strategy, twin = begun(LwF(strength=0.0, warmup=0.2), plain), begun(Sequential(), plain)
    for one in (strategy, twin):
        torch.manual_seed(1)
        first(one)
    torch.manual_seed(2)
    learned(strategy, "colour")
    torch.manual_seed(2)
    twin.add("colour", plain.head("colour"))
    task_data, batches = plain.task_data["colour"], plain.task_data["colour"].batches(plain.experiment.seed_of("colour"))
    # Written out: two steps of the head on the features as they are, then eight of the trunk and the head.
    for steps, modules in ((2, [twin.model.heads["colour"]]), (8, [twin.model.trunk, twin.model.heads["colour"]])):
        twin.model.eval()
        for module in modules:
            module.train()
        optimiser = torch.optim.Adam([p for module in modules for p in module.parameters()], LR, fused=True)
        for step in range(steps):
            example = task_data.task.example(batches.batch(step))
            loss = task_data.task.loss(twin.model.heads["colour"](twin.model.trunk(example.input)), example)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert not changed(snapshot(strategy.model), twin.model)


def test_on_a_backbone_that_no_task_trained_the_first_task_has_nothing_to_keep() -> None:
    strategy = begun(LwF())
    phases = train(strategy, "colour", strategy.learn("colour"))
    assert phases[-1].extra is not None
    assert phases[-1].extra(_x(), strategy.model(_x())) is None


def test_a_restored_learner_learns_on_alike() -> None:
    strategy = begun(LwF())
    first(strategy)
    learned(strategy, "colour")
    again = restored(LwF, strategy, ["classes", "colour"])
    assert torch.equal(probe(again, "classes"), probe(strategy, "classes"))
    for one in (strategy, again):
        torch.manual_seed(3)
        learned(one, "more")
    assert not changed(snapshot(strategy.model), again.model)


@pytest.mark.parametrize("options", [{"norm": "own"}, {"strength": -1.0}, {"temperature": 0.0}, {"warmup": 1.0}])
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        LwF(**options)
