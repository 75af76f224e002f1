"""EWC: the Fisher diagonal in closed form and by other means, the penalty by hand, and Avalanche's where it is installed."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_strategies import SIZE, Images, begun, changed, context, first, learned, probe, restored, small_backbone, snapshot
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from img2img import InputError
from img2img.backbones import EncoderDecoder
from img2img.backbones.encoder_decoder import HeadShape
from img2img.data import Parts
from img2img.data.augment import Augment
from img2img.data.base import Sample
from img2img.data.cache import CachedDataset
from img2img.data.loader import TrainBatches
from img2img.research.strategies import EWC
from img2img.tasks.base import Example
from img2img.training.strategy import Context, TaskData


def _fisher_images(context: Context, name: str, count: int) -> list[Example]:
    """The examples that the Fisher information of a task is estimated on."""
    task_data = context.task_data[name]
    options = task_data.options
    given = options.augmentation
    augment = Augment(given.crop, zoom=given.zoom_for(original_pixels=False), flip=given.flip, jitter=given.jitter)
    images = TrainBatches(task_data.parts.train, augment, batch_size=1, seed=context.experiment.seed_of(f"{name} fisher"))
    return [task_data.task.example(images.batch(step)) for step in range(count)]


def _in_turn(strategy: EWC, monkeypatch: pytest.MonkeyPatch, fishers: dict[str, Tensor]) -> None:
    """Give `strategy` the Fisher information of each task: `fishers[task][i]` for parameter i, everywhere in it."""
    keys = list(strategy.protected())

    def fisher(name: str) -> dict[str, Tensor]:
        parameters = strategy.protected()
        return {key: torch.full_like(parameters[key], float(fishers[name][i])).detach() for i, key in enumerate(keys)}

    monkeypatch.setattr(strategy, "fisher", fisher)


def _move(strategy: EWC, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in strategy.protected().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


# ---------------------------------------------------------------------- the Fisher information


class _Flat(Images):
    """Images of one colour each; the label says on which side of the model's answer the truth lies."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.colours, self.sides = rng.integers(1, 255, (12, 3)).astype(np.uint8), rng.integers(0, 2, 12).astype(np.uint8)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Sample:
        size = (SIZE, SIZE)
        return Sample(np.broadcast_to(self.colours[index], (*size, 3)).copy(), np.full(size, self.sides[index], np.uint8))


class _Gaussian:
    """`-log p(y | x)` of `y = w·x + b + ε`, ε of standard deviation `sigma`, up to a constant."""

    out_channels, metric, original_pixels = 1, "nothing", False

    def __init__(self, weight: Tensor, sigma: float) -> None:
        self._weight, self._sigma = weight, sigma

    def example(self, batch: Any) -> Example:
        x = batch.image.float() / 255
        side = 2.0 * batch.label.float().mean((1, 2)) - 1
        return Example(x, x.mean((2, 3)) @ self._weight + self._sigma * side)  # one deviation above or below

    def loss(self, raw: Tensor, example: Example) -> Tensor:
        return 0.5 * ((raw.mean((1, 2, 3)) - example.target) / self._sigma).square().mean()


def _linear() -> EncoderDecoder:
    """`Σ_c w_c x_c`, with an identity for a head."""
    encoder = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False))
    shape, plain = HeadShape(1, 1), {"mean": (0, 0, 0), "std": (1, 1, 1)}
    return EncoderDecoder(encoder, nn.Identity(), shape, out_channels=1, stride=1, min_size=4, spec={}, **plain)


def test_the_fisher_information_of_a_linear_gaussian_model_is_the_closed_form() -> None:
    # F = E[x xᵀ] / σ²: with truths one σ from the answer the empirical information is the true one.
    backbone, sigma = _linear(), 0.3
    weight = backbone.encoder[0].weight.detach().flatten()  # type: ignore[index]
    plain = context(backbone, names=["classes"])
    images = _Flat()
    given = plain.task_data["classes"]
    parts = Parts(*[CachedDataset(images)] * 3)  # type: ignore[arg-type]
    task_data = TaskData(given.config, _Gaussian(weight, sigma), parts, given.options)  # type: ignore[arg-type]
    strategy = begun(EWC(samples=12), replace(plain, task_data={"classes": task_data}))
    strategy.add("classes", nn.Identity())
    fisher = strategy.fisher("classes")["encoder.0.weight"].flatten()
    x = torch.from_numpy(images.colours).float() / 255
    torch.testing.assert_close(fisher, x.square().mean(0) / sigma**2, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["classes", "colour"])
@pytest.mark.parametrize("norm", ["shared", "own", "frozen"])
def test_the_fisher_information_equals_gradients_of_each_sample_by_vmap(norm: Any, name: str) -> None:
    strategy = begun(EWC(samples=5, norm=norm))
    strategy.add(name, strategy.context.head(name))
    model, task = strategy.model.eval(), strategy.context.task_data[name].task
    examples = _fisher_images(strategy.context, name, 5)
    tensors = {f"trunk.{key}": p.detach() for key, p in strategy.protected().items()}

    def loss(tensors: dict[str, Tensor], input: Tensor, target: Tensor) -> Tensor:
        return task.loss(functional_call(model, tensors, (input,)), Example(input, target))

    inputs, targets = torch.stack([e.input for e in examples]), torch.stack([e.target for e in examples])
    each = vmap(grad(loss), in_dims=(None, 0, 0))(tensors, inputs, targets)
    fisher = strategy.fisher(name)
    assert {f"trunk.{key}" for key in fisher} == each.keys()
    assert any(f.max() > 0 for f in fisher.values())
    for key, value in fisher.items():
        torch.testing.assert_close(value, each[f"trunk.{key}"].square().mean(0), rtol=1e-4, atol=1e-9)


def test_the_fisher_information_changes_nothing_and_gathers_no_gradient() -> None:
    strategy = begun(EWC(samples=3))
    strategy.add("classes", strategy.context.head("classes"))
    before = snapshot(strategy.model)
    strategy.fisher("classes")
    assert not changed(before, strategy.model)
    assert all(p.grad is None for p in strategy.model.parameters())


def test_every_parameter_of_the_trunk_is_protected_but_what_is_a_tasks_own() -> None:
    weights = {"encoder.0.weight", "encoder.0.bias", "decoder.0.weight", "decoder.0.bias"}
    norms = {"encoder.1.weight", "encoder.1.bias", "decoder.1.weight", "decoder.1.bias"}
    assert begun(EWC()).protected().keys() == weights | norms
    assert begun(EWC(norm="own")).protected().keys() == weights
    assert begun(EWC(norm="frozen")).protected().keys() == weights


def test_a_parameter_that_the_output_does_not_depend_on_has_no_information() -> None:
    backbone = small_backbone()
    backbone.encoder = _Partly(backbone.encoder)
    strategy = begun(EWC(samples=2), context(backbone))
    first(strategy)
    assert (strategy.importance["encoder.unused.weight"] == 0).all()
    learned(strategy, "colour")


class _Partly(nn.Module):
    """Has a layer that it does not use, as an encoder with its classifier has."""

    def __init__(self, used: nn.Module) -> None:
        super().__init__()
        self.used, self.unused = used, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.used(x)
        return y


# ---------------------------------------------------------------------- the penalty


def test_the_penalty_and_its_gradient_by_hand() -> None:
    strategy = begun(EWC(strength=10, norm="frozen"))
    key, parameter = "decoder.0.bias", strategy.protected()["decoder.0.bias"]
    with torch.no_grad():
        parameter.copy_(torch.tensor([1.0, -2.0]))
    strategy.importance[key] = torch.tensor([0.5, 2.0])
    strategy.centre[key] = torch.tensor([0.0, 1.0])
    penalty = strategy.penalty()
    assert penalty.item() == 10 / 2 * (0.5 * 1 + 2 * 9)
    (gradient,) = torch.autograd.grad(penalty, parameter)
    assert gradient.tolist() == [10 * 0.5 * 1, 10 * 2 * -3]


def test_before_any_task_and_at_the_centre_nothing_is_held_back() -> None:
    strategy = begun(EWC(samples=2))
    _move(strategy, 1)
    assert strategy.penalty().item() == 0
    first(strategy)
    assert strategy.penalty().item() == 0
    gradients = torch.autograd.grad(strategy.penalty(), list(strategy.protected().values()))
    assert all((g == 0).all() for g in gradients)
    _move(strategy, 2)
    assert strategy.penalty().item() > 0


def test_two_tasks_at_once_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = begun(EWC(strength=4, norm="frozen"))
    _in_turn(strategy, monkeypatch, {"classes": torch.tensor([1.0, 0, 0, 0]), "colour": torch.tensor([3.0, 2, 0, 0])})
    one, two, three, _ = strategy.protected()
    for name, value in (("classes", 2.0), ("colour", 6.0)):
        with torch.no_grad():
            for parameter in strategy.protected().values():
                parameter.fill_(value)
        strategy._consolidate(name)
    assert (strategy.importance[one] == 4).all()
    assert (strategy.centre[one] == (1 * 2 + 3 * 6) / 4).all()
    assert (strategy.importance[two] == 2).all()
    assert (strategy.centre[two] == 6).all(), "the first task knows nothing of it"
    assert (strategy.importance[three] == 0).all()
    assert (strategy.centre[three] == 6).all(), "no task needs it: it is where it was last"
    assert all(torch.isfinite(centre).all() for centre in strategy.centre.values())


def test_the_merged_penalty_is_the_sum_of_one_for_each_task_up_to_a_constant() -> None:
    strategy = begun(EWC(strength=7, samples=3))
    terms: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    for i, name in enumerate(("classes", "colour", "more")):
        strategy.add(name, strategy.context.head(name))
        _move(strategy, i)
        terms.append((strategy.fisher(name), {key: p.detach().clone() for key, p in strategy.protected().items()}))
        strategy._consolidate(name)

    def separate() -> Tensor:
        squares = [(f[key] * (p - at[key]).square()).sum() for f, at in terms for key, p in strategy.protected().items()]
        return 7 / 2 * torch.stack(squares).sum()

    differences = []
    for seed in range(10, 14):
        _move(strategy, seed)
        parameters = list(strategy.protected().values())
        merged, summed = strategy.penalty(), separate()
        differences.append((summed - merged).item())
        scale = max(float(g.abs().max()) for g in torch.autograd.grad(summed, parameters, retain_graph=True))
        pairs = zip(torch.autograd.grad(merged, parameters), torch.autograd.grad(summed, parameters), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6 * scale)
    assert differences[0] > 0
    assert differences == pytest.approx([differences[0]] * 4, rel=1e-3)


def test_weights_without_information_are_free_and_others_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = context(steps=12)
    held, free = begun(EWC(strength=1e6, norm="frozen"), plain), begun(EWC(strength=0, norm="frozen"), plain)
    for strategy in (held, free):
        _in_turn(strategy, monkeypatch, {"classes": torch.tensor([1.0, 1, 0, 0]), "colour": torch.zeros(4)})
        first(strategy)
    start = snapshot(held.model)
    for strategy in (held, free):
        torch.manual_seed(2)
        learned(strategy, "colour")

    def moved(strategy: EWC) -> list[float]:
        return [(p - start[f"trunk.{key}"]).abs().max().item() for key, p in strategy.protected().items()]

    # Adam's first step, which no penalty has a gradient for, moves everything; then what is held is pulled back.
    assert max(moved(held)[:2]) < 0.5 * min(moved(free)[:2])
    assert min(moved(held)[2:]) > 0.5 * min(moved(free)[2:])


def test_no_strength_is_sequential_training() -> None:
    from img2img.research.strategies import Sequential

    plain = context()
    strategies = [begun(EWC(strength=0, samples=2), plain), begun(Sequential(), plain)]
    for strategy in strategies:
        torch.manual_seed(1)
        first(strategy)
        learned(strategy, "colour")
    assert not changed(snapshot(strategies[0].model), strategies[1].model)


def test_a_restored_learner_holds_the_same_back_and_learns_on_alike() -> None:
    strategy = begun(EWC(samples=3, strength=5))
    first(strategy)
    learned(strategy, "colour")
    again = restored(EWC, strategy, ["classes", "colour"], samples=3, strength=5)
    assert torch.equal(probe(again, "classes"), probe(strategy, "classes"))
    for one in (strategy, again):
        torch.manual_seed(3)
        learned(one, "more")
    assert not changed(snapshot(strategy.model), again.model)
    for kept, expected in ((again.importance, strategy.importance), (again.centre, strategy.centre)):
        assert all(torch.equal(kept[key], value) for key, value in expected.items())


@pytest.mark.parametrize("options", [{"strength": -1.0}, {"samples": 0}, {"norm": "none"}])
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        EWC(**options)


# ---------------------------------------------------------------------- Avalanche


@pytest.mark.filterwarnings("ignore")
def test_information_and_penalty_of_two_tasks_equal_avalanches() -> None:
    # avalanche-lib 0.6.0, mode "separate": λ Σ_tasks Σ F (θ - θ*)², without the half, so its λ is half of this one.
    plugins = pytest.importorskip("avalanche.training.plugins")
    strategy = begun(EWC(strength=6, samples=4))
    plugin = plugins.EWCPlugin(3.0, mode="separate")
    model = strategy.model
    clock = SimpleNamespace(train_exp_counter=0)

    def penalty_of(model: nn.Module) -> Tensor:
        strategy = SimpleNamespace(clock=clock, model=model, device="cpu", loss=torch.zeros(()))
        plugin.before_backward(strategy)
        loss: Tensor = strategy.loss
        return loss

    for i, name in enumerate(("classes", "more")):
        strategy.add(name, strategy.context.head(name))
        _move(strategy, i)
        strategy._consolidate(name)
        task = strategy.context.task_data[name].task
        data = [(e.input[0], e.target[0], 0) for e in _fisher_images(strategy.context, name, 4)]

        def criterion(raw: Tensor, target: Tensor, task: Any = task) -> Any:
            return task.loss(raw, Example(raw, target))

        adapter = _TrunkOf(model, name)
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        information = plugin.compute_importances(adapter, criterion, optimiser, data, "cpu", 1)
        fisher = strategy.fisher(name)
        assert {key.removeprefix("trunk.") for key in information} == fisher.keys()
        for key, value in fisher.items():
            torch.testing.assert_close(value, information[f"trunk.{key}"].data, rtol=1e-4, atol=1e-9)
        plugin.update_importances(information, i)
        from avalanche.training.utils import copy_params_dict

        plugin.saved_params[i] = copy_params_dict(adapter)
        clock.train_exp_counter = i + 1

        _move(strategy, 10 + i)
        parameters = list(strategy.protected().values())
        ours, theirs = strategy.penalty(), penalty_of(adapter)
        assert theirs.item() > 0
        if i == 0:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
        pairs = zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True)
        for mine, its in pairs:
            torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-5 * float(its.abs().max()))


class _TrunkOf(nn.Module):
    """The network as one task's, whose shared parameters alone are seen by Avalanche."""

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        self.trunk = model.trunk
        self._run = lambda x: model.heads[name](model.trunk(x))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._run(x)
        return y
