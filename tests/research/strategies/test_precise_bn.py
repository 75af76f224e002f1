"""What the loop does beside plain steps: precise statistics, the head that is trained alone at first, averages of the weights."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import killed_at
from lightning_fabric import Fabric
from tiny_strategies import begun, changed, context, first, small_backbone, snapshot, transformer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from img2img import InputError
from img2img.bundle import HEAD
from img2img.masks import MaskedNetwork, Mixed, Piggyback, SparseSigns
from img2img.research.strategies import EWC, FineTune, HeadOnly, Joint, LwF, PackNet, Scratch, Sequential
from img2img.training.average import WeightAverage, decay_at
from img2img.training.config import AverageOptions, OptimiserOptions, TrainOptions
from img2img.training.config.read import merged
from img2img.training.log import Callback, TrainingLog
from img2img.training.loop import fit
from img2img.training.mask_strategy import FlipLog, groups_of
from img2img.training.optimiser import all_of, build_optimisers, start_momentum
from img2img.training.precise_bn import precise_bn
from img2img.training.strategy import Phase, TaskData
from img2img.validation import checked


def _inputs(count: int, channels: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(4, channels, 5, 5, generator=generator) * (i + 1) for i in range(count)]


def test_the_statistics_are_those_of_the_later_passes() -> None:
    # With momentum 1 a running statistic is the last batch's, so that the mean can be taken over the batches themselves.
    norm = nn.BatchNorm2d(3, momentum=1.0)
    inputs = _inputs(8)
    precise_bn(norm, norm, iter(inputs), 8)
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in inputs[2:]]).mean(0))
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs[2:]])
    torch.testing.assert_close(norm.running_var, variances.mean(0))


def test_with_a_momentum_the_running_averages_are_averaged() -> None:
    norm = nn.BatchNorm2d(3, momentum=0.1)
    inputs, mean, means = _inputs(6), torch.zeros(3), []
    for x in inputs:
        mean = 0.9 * mean + 0.1 * x.mean((0, 2, 3))
        means.append(mean)
    precise_bn(norm, norm, iter(inputs), 6)
    torch.testing.assert_close(norm.running_mean, torch.stack(means[1:]).mean(0))


@pytest.mark.parametrize("passes", [1, 2, 3, 5])
def test_any_number_of_passes_will_do(passes: int) -> None:
    norm = nn.BatchNorm2d(3)
    precise_bn(norm, norm, iter(_inputs(9)), passes)
    assert norm.num_batches_tracked == passes
    assert changed(snapshot(nn.BatchNorm2d(3)), norm) >= {"running_mean", "running_var"}


def test_no_passes_and_frozen_statistics_change_nothing() -> None:
    norm = nn.BatchNorm2d(3)
    before = snapshot(norm)
    precise_bn(norm, norm, iter(_inputs(3)), 0)
    assert not changed(before, norm)
    calls = []

    def run(x: Tensor) -> Tensor:
        calls.append(x)
        norm.eval()
        return norm(x)  # type: ignore[no-any-return]

    precise_bn(norm, run, iter(_inputs(9)), 9)
    assert not changed(before, norm)
    assert len(calls) == 1, "the rest of the passes would change nothing either"


def test_a_task_settles_its_own_statistics_and_never_the_backbones() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    network = MaskedNetwork(plain, head="2")
    network.add_task("a", Piggyback(), head=nn.Conv2d(4, 2, 1))
    network.add_task("b", Piggyback(), head=nn.Conv2d(4, 2, 1))
    module, other = network.task_module("a"), snapshot(network.state("b"))
    before = snapshot(module.state)
    precise_bn(module, module, iter(_inputs(5)), 5)
    moved = changed(before, module.state)
    assert len(moved) == 3
    assert all("running" in name or "num_batches" in name for name in moved), moved
    assert not changed(other, network.state("b"))
    assert network.hash_backbone() == network.backbone_sha256


# ---------------------------------------------------------------------- the head that is trained alone at first


def _fit(strategy: Any, name: str, folder: Path, **options: Any) -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
    """Each training of a task through the real loop: its module, and how that was before."""
    task_data = strategy.context.task_data[name]
    for i, phase in enumerate(strategy.learn(name)):
        before = snapshot(phase.module)
        _train(phase, task_data, folder, f"{name}{i}", **options)
        yield phase.module, before


def _train(phase: Phase, task_data: TaskData, folder: Path, what: str, **options: Any) -> None:
    trainable = {n for n, p in phase.module.named_parameters() if p.requires_grad}
    with TrainingLog(folder, what) as log:
        fit(
            phase.module,
            phase.objective or task_data.task,
            phase.batches or task_data.batches(1),
            lambda: 0.0,
            _options(options),
            fabric=Fabric(accelerator="cpu", devices=1),
            log=log,
            checkpoint=folder / f"{what}.pt",
            fingerprint="",
            extra=phase.extra,
            head=phase.head,
            groups=phase.groups,
            callbacks=phase.callbacks,
        )
    assert {n for n, p in phase.module.named_parameters() if p.requires_grad} == trainable, "all learns again in the end"


def _options(given: dict[str, Any]) -> TrainOptions:
    small: dict[str, Any] = {"batch_size": 2, "augmentation": {"crop": 8}, "schedule": {"warmup": 0, "head_first": 0.0}}
    return checked(TrainOptions, merged(small | {"validation": {"precise_bn_batches": 0}}, given), what="train")


def _weights(names: set[str], module: nn.Module) -> set[str]:
    return names & {name for name, _ in module.named_parameters()}


@pytest.mark.slow_after(8)
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("kind", [FineTune, Sequential, EWC, PackNet])
@pytest.mark.parametrize("optimiser", ["adam", "sgd", "rmsprop"])
def test_at_first_the_head_alone_learns_and_then_all(kind: Any, optimiser: str, later: bool, tmp_path: Path) -> None:
    strategy = begun(kind(), context(steps=5))
    first(strategy)
    # All validations are alike, so that the state is that of the first one: at step 2, when the head alone had learned, or at 4.
    options = {
        "steps": 4,
        "schedule": {"head_first": 0.7},
        "validation": {"every": 4 if later else 2},
        "optimiser": {"name": optimiser},
    }
    module, before = next(_fit(strategy, "colour", tmp_path, **options))
    moved = _weights(changed(before, module), module)
    assert any("head" in name for name in moved)
    assert any("head" not in name for name in moved) == later, moved


def test_a_weight_that_waited_starts_without_momentum() -> None:
    """SGD's second step of a weight and third of another, as without the fused kernel, which takes no such group."""
    ours, plain = (nn.ParameterList([torch.ones(3), torch.ones(2)]) for _ in range(2))
    options = OptimiserOptions(name="sgd", lr=0.1)
    (optimiser,) = build_optimisers(all_of(ours)(options), options)
    reference = torch.optim.SGD(plain, lr=0.1, momentum=0.9)
    for step in range(3):
        for parameters in (ours, plain):
            parameters[0].grad = torch.full((3,), 1.0 + step)
            parameters[1].grad = torch.full((2,), 2.0 + step) if step else None
        if step == 1:
            start_momentum([optimiser])
        optimiser.step()
        reference.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize("stopped", [1, 2, 3])
def test_a_training_by_sgd_goes_on_from_before_and_after_the_heads_part(stopped: int, tmp_path: Path) -> None:
    options = {
        "steps": 4,
        "checkpoint_every": 1,
        "schedule": {"head_first": 0.5},
        "validation": {"every": 4},
        "optimiser": {"name": "sgd"},
    }
    ends, with_ = [], context(steps=5)
    for killed in (False, True):
        torch.manual_seed(0)
        phase = next(begun(FineTune(), with_).learn("colour"))
        folder = tmp_path / str(killed)
        if killed:
            with killed_at(stopped + 1, torch.optim.SGD):
                _train(phase, with_.task_data["colour"], folder, "colour", **options)
            phase.module.requires_grad_(True)
        _train(phase, with_.task_data["colour"], folder, "colour", **options)
        ends.append(snapshot(phase.module))
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


@pytest.mark.parametrize("later", [False, True])
def test_scores_and_norm_state_of_a_masked_task_wait_too(later: bool, tmp_path: Path) -> None:
    task_data = context().task_data["colour"]
    network = MaskedNetwork(small_backbone(), head=HEAD)
    network.add_task("colour", Piggyback(), head=small_backbone().make_head(2))
    module = network.task_module("colour")
    before = snapshot(module.state)
    phase = Phase(module=module, head=module.state.head, groups=groups_of(module), callbacks=[FlipLog(module.state)])
    options = {"steps": 4, "validation": {"every": 4 if later else 2}, "schedule": {"head_first": 0.7}}
    _train(phase, task_data, tmp_path, "colour", **options)
    moved = _weights(changed(before, module.state), module.state)
    assert any("masks" in name for name in moved) == later
    assert any("norm" in name for name in moved) == later
    assert any("head" in name for name in moved)


def test_where_the_head_is_not_what_is_fresh_nothing_waits() -> None:
    scratch = begun(Scratch(), context(transformer(), steps=2))
    assert next(scratch.learn("colour")).head is None
    packnet, lwf = begun(PackNet(), context(steps=6)), begun(LwF(), context(steps=6))
    for strategy in (packnet, lwf):
        first(strategy)
    assert [phase.head is None for phase in packnet.learn("colour")] == [False, True], "not again before retraining"
    assert [phase.head is None for phase in lwf.learn("colour")] == [True, True], "the paper's own warm-up step"
    joint = begun(Joint(), context(steps=2))
    assert next(joint.learn("classes")).head is joint.model.heads
    assert next(begun(HeadOnly(), context(steps=2)).learn("colour")).head is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": {"head_first": 1.0}}, "less than 1"),
        ({"validation": {"precise_bn_batches": -1}}, "0 or more"),
        ({"average": {"decay": 1.0}}, "less than 1"),
        ({"average": {"decay": 0.9, "of": "scores"}}, "real_valued"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked(TrainOptions, {"steps": 3, **options}, what="train")


# ---------------------------------------------------------------------- averages of the weights


class Recorded(Callback):
    """torch's own average of a module, and the raw values after each step."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        def update(averages: Any, values: Any, count: Tensor) -> None:
            get_ema_multi_avg_fn(min(decay, (1 + int(count)) / (10 + int(count))))(averages, values, count)

        self._module = module
        self.averaged = AveragedModel(module, multi_avg_fn=update, use_buffers=True)
        self.raw: list[dict[str, Tensor]] = []

    def after_step(self) -> None:
        self.averaged.update_parameters(self._module)
        self.raw.append(snapshot(self._module))

    def expected(self) -> dict[str, Tensor]:
        """The averages, by the names of the module."""
        return dict(self.averaged.module.state_dict())


AVERAGED: dict[str, Any] = {"steps": 6, "average": {"decay": 0.4}, "validation": {"every": 6}}


@pytest.mark.parametrize("kind", [FineTune, Sequential, EWC, PackNet, LwF, HeadOnly, Joint, Scratch])
def test_every_strategy_keeps_what_torchs_averaged_model_has(kind: Any, tmp_path: Path) -> None:
    with_ = context(transformer() if kind is Scratch else None, steps=6, average={"decay": 0.4})
    strategy = begun(kind(), with_)
    first(strategy)
    for i, phase in enumerate(strategy.learn("colour")):
        if hasattr(phase.module, "features"):
            phase.module.features = torch.empty(0)  # those with a history cannot be copied
        recorded = Recorded(phase.module, 0.4)
        recording = replace(phase, callbacks=[*phase.callbacks, recorded])
        steps = 6 if phase.options is None else phase.options.steps
        _train(recording, with_.task_data["colour"], tmp_path, f"colour{i}", **AVERAGED | {"steps": steps})
        kept, last = snapshot(phase.module), recorded.raw[-1]
        floats = {name for name, tensor in kept.items() if tensor.is_floating_point()}
        assert all(torch.equal(kept[name], recorded.expected()[name]) for name in floats)
        assert steps == 1 or {name for name in floats if not torch.equal(kept[name], last[name])}, "no average of several steps"


def _masked(method: Any, tmp_path: Path, what: str = "colour", **options: Any) -> tuple[nn.Module, Recorded]:
    """A masked task after its training, and what happened in it."""
    torch.manual_seed(0)
    network = MaskedNetwork(small_backbone(), head=HEAD)
    network.add_task("colour", method, head=small_backbone().make_head(2))
    module = network.task_module("colour")
    recorded = Recorded(module.state, options["average"]["decay"])
    phase = Phase(
        module=module,
        head=module.state.head,
        groups=groups_of(module),
        callbacks=[recorded, FlipLog(module.state)],
    )
    _train(phase, context().task_data["colour"], tmp_path, what, **options)
    return module.state, recorded


@pytest.mark.parametrize("of", ["real_valued", "all"])
@pytest.mark.parametrize("method", [Piggyback(), SparseSigns(), Mixed(method=Piggyback(), trainable_copies=("encoder.*",))])
def test_scores_are_averaged_where_all_is(method: Any, of: str, tmp_path: Path) -> None:
    state, recorded = _masked(method, tmp_path, **AVERAGED | {"average": {"decay": 0.4, "of": of}})
    kept, expected, last = snapshot(state), recorded.expected(), recorded.raw[-1]
    for name, tensor in kept.items():
        if tensor.is_floating_point():
            raw = name.endswith(".score") and of == "real_valued"
            assert torch.equal(tensor, (last if raw else expected)[name]), name
    moved = {name.rpartition(".")[2] for name in kept if not torch.equal(expected[name], last[name])}
    assert moved >= {"score", "weight", "running_mean"} or moved >= {"score"}, "the test would see nothing"


def test_the_training_goes_on_with_the_raw_weights(tmp_path: Path) -> None:
    every = AVERAGED | {"validation": {"every": 2, "precise_bn_batches": 3}}
    _, with_ = _masked(Piggyback(), tmp_path, "with", **every)
    _, without = _masked(Piggyback(), tmp_path, "without", **every | {"average": {"decay": 0.0}})
    for ours, theirs in zip(with_.raw, without.raw, strict=True):
        trained = [name for name in ours if not name.split("/")[-1].startswith(("running", "num"))]
        assert len(trained) > 5
        assert all(torch.equal(ours[name], theirs[name]) for name in trained)


def test_the_statistics_are_those_of_the_averaged_weights(tmp_path: Path) -> None:
    """With momentum 1 they are the mean over the last batches of what the kept weights make of them."""
    task_data = context().task_data["colour"]
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=1.0), nn.Conv2d(4, 2, 1))
    options = AVERAGED | {"validation": {"every": 3, "keep": "last", "precise_bn_batches": 4}}
    raw = Recorded(module, 0.4)
    _train(Phase(module=module, callbacks=[raw]), task_data, tmp_path, "colour", **options)
    batches = [batch for _, batch in zip(range(4), task_data.batches(1).iterate(6), strict=False)][1:]
    inputs = [task_data.task.example(batch).input for batch in batches]

    def mean(convolution: dict[str, Tensor]) -> Tensor:
        outputs = [nn.functional.conv2d(x, convolution["0.weight"], convolution["0.bias"]) for x in inputs]
        return torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)

    torch.testing.assert_close(module[1].running_mean, mean(snapshot(module)))
    assert not torch.allclose(module[1].running_mean, mean(raw.raw[-1]), atol=1e-4), "those of the raw weights look alike"


@pytest.mark.parametrize("stopped", [1, 4])
def test_a_killed_training_ends_with_the_same_averages(stopped: int, tmp_path: Path) -> None:
    options = AVERAGED | {"checkpoint_every": 1, "average": {"decay": 0.4, "of": "all"}, "validation": {"every": 2}}
    whole, _ = _masked(SparseSigns(), tmp_path, "whole", **options)
    with killed_at(stopped + 1):
        _masked(SparseSigns(), tmp_path, "killed", **options)
    resumed, again = _masked(SparseSigns(), tmp_path, "killed", **options)
    assert len(again.raw) < 6
    assert not changed(snapshot(whole), resumed)


def test_the_first_steps_do_not_dominate_a_short_training() -> None:
    assert [decay_at(n, 0.5) for n in (1, 2, 8, 100)] == [2 / 11, 3 / 12, 0.5, 0.5]
    value = nn.Parameter(torch.zeros(1))
    average = WeightAverage(nn.ParameterList([value]), [value], AverageOptions(decay=0.999))
    for step in range(20):
        value.data.fill_(float(step))
        average.after_step()
    with average.applied():
        assert value.item() > 15, "0.999 alone would be below 0.2"
    assert value.item() == 19


def test_what_averages_nothing_has_the_fingerprint_of_before() -> None:
    off, on = TrainOptions(), TrainOptions(average=AverageOptions(decay=0.9))
    before = {name: value for name, value in off.model_dump().items() if name != "average"}
    for group, later in (
        ("optimiser", {"mask": "adam", "nesterov": False, "mask_weight_decay": 0.0, "encoder_lr": None}),
        ("augmentation", {"cutout": 0, "rotate": False}),
    ):
        for name, value in later.items():  # options that came later, too
            assert before[group].pop(name) == value
    assert off.plain() == before
    assert TrainOptions(optimiser=OptimiserOptions(mask="sgd")).plain()["optimiser"]["mask"] == "sgd"
    assert on.plain()["average"] == {"decay": 0.9, "of": "real_valued"}
