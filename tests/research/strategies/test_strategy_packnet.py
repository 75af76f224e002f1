"""PackNet: who owns which weight, what moves, and the published algorithm written out in a plain loop."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from killing import killed_again_and_again
from tiny_strategies import LR, begun, changed, context, first, learned, probe, restored, small_backbone, snapshot, train
from torch import Tensor
from torch.nn import functional as F

from img2img import InputError
from img2img.masks.coding import decode, encode
from img2img.research.strategies import CPG, PackNet
from img2img.research.strategies.packnet import FIRST, FREE
from img2img.training.run import run
from img2img.training.strategy import Phase, Strategy

CONV1, CONV2 = "encoder.0.weight", "decoder.0.weight"  # 108 and 72 weights


def _owners(strategy: PackNet) -> dict[str, list[int]]:
    """By weight, how many are free and each task's."""
    size = strategy.owners + 1
    return {name: torch.bincount(owner.flatten().long(), minlength=size).tolist() for name, owner in strategy.owner.items()}


@pytest.fixture
def strategy() -> PackNet:
    return begun(PackNet())


# ---------------------------------------------------------------------- ownership


def test_each_layer_is_shared_out_by_itself_with_exact_counts(strategy: PackNet) -> None:
    first(strategy)
    assert _owners(strategy) == {CONV1: [54, 54], CONV2: [36, 36]}
    learned(strategy, "colour")
    assert _owners(strategy) == {CONV1: [40, 54, 14], CONV2: [27, 36, 9]}  # round(0.75 * 54) = 40, 0.75 * 36 = 27 stay free
    learned(strategy, "more")
    assert _owners(strategy) == {CONV1: [30, 54, 14, 10], CONV2: [20, 36, 9, 7]}  # round(20.25) = 20


def test_pruning_keeps_the_largest_magnitudes_of_each_layer(strategy: PackNet) -> None:
    before = {name: weight.detach().clone() for name, weight in strategy.weights().items()}
    first(strategy)
    for name, owner in strategy.owner.items():
        kept, given_up = before[name][owner == 1].abs(), before[name][owner == FREE].abs()
        assert kept.min() > given_up.max()
    # With one threshold for the whole network the layers would not have the same share, their weights' scales being different.
    assert before[CONV1].std() > before[CONV2].std() * 1.05


def test_retraining_decays_where_it_is_asked_to() -> None:
    for shares in ((), (0.8333,)):
        strategy = begun(PackNet(retrain_decay_at=shares))
        first(strategy)
        (training, retraining) = learned(strategy, "colour")
        assert training.options is None or training.options.schedule.decay_at != (0.8333,)
        assert retraining.options is not None
        assert retraining.options.schedule.decay_at == shares
    with pytest.raises(InputError, match="retrain_decay_at=2"):
        PackNet(retrain_decay_at=[2])


def test_pruning_by_hand() -> None:
    strategy = begun(PackNet(first=0.5, later=0.5))
    strategy.add("classes", strategy.context.head("classes"))
    strategy.order.append("classes")
    weight = strategy.weights()[CONV2]
    with torch.no_grad():
        weight.zero_()
        weight.view(-1)[:6] = torch.tensor([-3.0, 1.0, 2.0, -0.5, 0.25, 4.0])
    strategy.owner[CONV2].fill_(9)
    strategy.owner[CONV2].view(-1)[:6] = FREE
    strategy.prune(0.5)
    assert weight.view(-1)[:6].tolist() == [-3.0, 0.0, 2.0, 0.0, 0.0, 4.0]
    assert strategy.owner[CONV2].view(-1)[:6].tolist() == [1, 0, 1, 0, 0, 1]
    assert (strategy.owner[CONV2].view(-1)[6:] == 9).all(), "what others own is not touched"


def test_ties_leave_exactly_the_asked_share_free(strategy: PackNet) -> None:
    with torch.no_grad():
        for weight in strategy.weights().values():
            weight.copy_(torch.where(weight < 0, -1.0, 1.0))
    first(strategy)
    assert _owners(strategy) == {CONV1: [54, 54], CONV2: [36, 36]}


@pytest.mark.parametrize("kind", [PackNet, CPG])
@pytest.mark.parametrize(("mode", "most"), [("random", 255), ("pretrained", 254)])
def test_more_owners_than_eight_bits_number_are_refused_before_any_training(kind: type[PackNet], mode: str, most: int) -> None:
    strategy = kind()
    with_ = context(mode=mode)
    tasks = with_.experiment.tasks

    def check(count: int) -> None:
        many = with_.experiment.model_copy(update={"tasks": tuple(tasks[0] for _ in range(count))})
        strategy.check(many, with_.network)

    check(most)
    with pytest.raises(InputError, match=r"256 owners of weights.*expected 255 at most"):
        check(most + 1)


def test_the_last_number_of_an_owner_is_not_free(strategy: PackNet) -> None:
    strategy.order = [str(i) for i in range(255)]
    strategy.prune(0.5)
    assert (strategy.owner[CONV1] == 255).sum() == 54
    strategy.order.append("one more")
    with pytest.raises(InputError, match="256 owners"):
        strategy.prune(0.5)


@pytest.mark.parametrize("order", [("colour", "more"), ("more", "colour")])
def test_a_random_backbone_is_shared_out_from_the_first_task_on(order: tuple[str, str]) -> None:
    strategy = begun(PackNet())
    before = {name: weight.detach().clone() for name, weight in strategy.weights().items()}
    next(strategy.learn(order[0]))
    assert all(torch.equal(weight, before[name]) for name, weight in strategy.weights().items()), "training starts from it"

    strategy = begun(PackNet())
    learned(strategy, order[0])
    assert _owners(strategy) == {CONV1: [54, 54], CONV2: [36, 36]}, "the first task gives up `first`"
    output = probe(strategy, order[0])
    learned(strategy, order[1])
    assert _owners(strategy) == {CONV1: [40, 54, 14], CONV2: [27, 36, 9]}
    assert torch.equal(probe(strategy, order[0]), output)


# ---------------------------------------------------------------------- a backbone that was trained elsewhere


@pytest.fixture
def given() -> PackNet:
    return begun(PackNet(), context(mode="pretrained"))


def test_a_backbone_trained_elsewhere_keeps_the_largest_half_of_each_layer_and_tasks_share_the_rest(given: PackNet) -> None:
    before = given.context.network.backbone.state_dict()
    assert _owners(given) == {CONV1: [54, 54], CONV2: [36, 36]}
    for key, weight in given.weights().items():
        kept = given.owner[key] == FIRST
        assert before[key][kept].abs().min() > before[key][~kept].abs().max()
        assert torch.equal(weight, before[key] * kept)
    assert given.context.network.hash_backbone() == given.context.network.backbone_sha256, "the frozen one is not pruned"
    learned(given, "colour")
    assert _owners(given) == {CONV1: [40, 54, 14], CONV2: [27, 36, 9]}, "the first task leaves `later` of the free ones"
    learned(given, "more")
    assert _owners(given) == {CONV1: [30, 54, 14, 10], CONV2: [20, 36, 9, 7]}
    for key, weight in given.weights().items():
        kept = given.owner[key] == FIRST
        assert torch.equal(weight[kept], before[key][kept])
        assert not weight[given.owner[key] == FREE].any()


@pytest.mark.parametrize("mode", ["first_task", "random"])
def test_no_other_backbone_keeps_anything(mode: str) -> None:
    strategy = begun(PackNet(), context(mode=mode))
    assert _owners(strategy) == {CONV1: [108], CONV2: [72]}
    assert not changed(snapshot(strategy.context.network.backbone), strategy.model.trunk)


def test_a_backbone_that_was_pruned_and_retrained_keeps_what_it_kept() -> None:
    backbone = small_backbone()
    kept = {}
    for key, count in ((CONV1, 54), (CONV2, 36)):
        weight = backbone.get_parameter(key)
        # What survived may be small after retraining: smaller than any weight that was pruned.
        chosen = torch.randperm(weight.numel())[:count]
        kept[key] = torch.zeros(weight.numel(), dtype=torch.bool).index_fill(0, chosen, True).view_as(weight)
        with torch.no_grad():
            weight.mul_(kept[key]).mul_(1e-3)
    strategy = begun(PackNet(), context(backbone, mode="pretrained"))
    assert not changed(snapshot(strategy.context.network.backbone), strategy.model.trunk), "nothing more is pruned"
    assert all(torch.equal(strategy.owner[key] == FIRST, kept[key]) for key in kept)


def test_every_task_runs_with_the_backbones_weights_and_what_it_and_earlier_tasks_own(given: PackNet) -> None:
    outputs = {}
    for name in ("colour", "more"):
        learned(given, name)
        outputs[name] = probe(given, name)
        assert all(torch.equal(probe(given, earlier), output) for earlier, output in outputs.items())
    used = {"colour": (FIRST, FIRST + 1), "more": (FIRST, FIRST + 1, FIRST + 2)}
    for name, owners in used.items():
        for key, owner in given.owner.items():
            assert torch.equal(given.used(name)[key], torch.isin(owner, torch.tensor(owners)))
    assert given.density("colour") == (90 + 14 + 9) / 180
    assert given.density("more") == (90 + 14 + 9 + 10 + 7) / 180
    for number, moved in ((FIRST, {"colour", "more"}), (FIRST + 1, {"colour", "more"}), (FIRST + 2, {"more"})):
        kept = snapshot(given.model)
        with torch.no_grad():
            for key, weight in given.weights().items():
                weight[given.owner[key] == number] += 1.0
        assert {name for name, output in outputs.items() if not torch.equal(probe(given, name), output)} == moved
        given.model.load_state_dict(kept)


def test_the_backbone_counts_among_the_owners(given: PackNet) -> None:
    learned(given, "colour")
    learned(given, "more")
    trunk = 108 + 4 + 72 + 2 + 2 * (4 + 2)
    assert given.relative_parameters() == pytest.approx(1 + (2 * 2 * (4 + 2) + 180 * 2 / 32) / trunk), "3 owners and 0: two bits"
    norm = (4 * 4 + 4 * 2) * 4 + 2 * 8
    for number, name in ((FIRST + 1, "colour"), (FIRST + 2, "more")):
        assert given.number(name) == number
        owned = sum(len(encode(owner == number)) for owner in given.owner.values())
        assert given.own_bytes(name) == (2 * 2 + 2) * 4 + norm + owned
    kept = sum(len(encode(owner == FIRST)) for owner in given.owner.values())
    assert given.shared_bytes() == (108 + 4 + 72 + 2) * 4 + (4 * 4 + 4 * 2) * 4 + 2 * 8 + 2 * 3 * 4 + kept


@pytest.mark.parametrize(("mode", "sequence"), [("first_task", 6), ("pretrained", 5), ("bundle", 5)])
def test_imagenet_and_five_tasks_take_three_bits_a_weight(mode: str, sequence: int) -> None:
    strategy = begun(PackNet(norm="frozen"))
    strategy.backbone_owns = mode != "first_task"
    strategy.order = [str(i) for i in range(sequence)]
    trunk = 108 + 4 + 72 + 2 + 2 * (4 + 2)
    assert strategy.relative_parameters() == pytest.approx(1 + 180 * 3 / (32 * trunk))


def test_tasks_on_a_given_backbone_are_restored(given: PackNet) -> None:
    learned(given, "colour")
    again = restored(PackNet, given, ["colour"])
    assert torch.equal(probe(again, "colour"), probe(given, "colour"))
    for one in (given, again):
        torch.manual_seed(3)
        learned(one, "more")
    assert not changed(snapshot(given.model), again.model)
    assert all(torch.equal(again.owner[key], owner) for key, owner in given.owner.items())
    assert torch.equal(probe(again, "more"), probe(given, "more"))


def test_what_was_learned_when_the_first_task_had_the_whole_backbone_is_not_taken() -> None:
    old = begun(PackNet(), context())
    learned(old, "colour")
    new = begun(PackNet(), replace(old.context, experiment=context(mode="pretrained").experiment))
    with pytest.raises(InputError, match=r"encoder\.0\.weight with other weights"):
        new.restore({"colour": {}}, old.shared_tensors())


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("name", ["packnet", "cpg"])
@pytest.mark.parametrize("mode", ["pretrained", "bundle"])
def test_a_run_on_a_backbone_of_another_run(config: Callable[..., Any], tmp_path: Path, name: str, mode: str) -> None:
    run(config(out=str(tmp_path / "base"), sequence=["disks"]))
    folder = tmp_path / "base" / "bundle"
    shape = {} if mode == "bundle" else config()["backbone"]
    backbone = shape | {"mode": mode, "weights": str(folder if mode == "bundle" else folder / "backbone.safetensors")}
    options = config(method={"name": name}, backbone=backbone, sequence=["colour", "edges"])
    whole = run(options | {"out": str(tmp_path / "whole")})
    assert whole["forgetting"]["max_abs_output_change"] == 0
    trained = safetensors.torch.load_file(folder / "backbone.safetensors")
    shared = safetensors.torch.load_file(tmp_path / "whole" / "strategy" / "shared after 2.safetensors")
    for key, owner in {k.removeprefix("owner."): o for k, o in shared.items() if k.startswith("owner.")}.items():
        kept = owner == FIRST
        assert int(kept.sum()) == kept.numel() - round(kept.numel() / 2)
        assert torch.equal(shared[f"model.trunk.{key}"][kept], trained[key][kept])
        assert not shared[f"model.trunk.{key}"][owner == FREE].any()
        assert {int(number) for number in owner.unique()} <= {FREE, FIRST, FIRST + 1, FIRST + 2}
    if name == "packnet":
        assert [task["density"] for task in whole["tasks"]] == pytest.approx([0.625, 0.71875], abs=2e-3)
    killed_again_and_again(lambda: run(options), 5, 8)  # steps 5 and 12: of the first and second task's 8
    ends = [{p.name: p.read_bytes() for p in (tmp_path / out / "strategy").iterdir()} for out in ("whole", "run")]
    assert ends[0] == ends[1]


# ---------------------------------------------------------------------- what moves


@pytest.mark.parametrize("norm", ["own", "frozen"])
def test_outputs_and_weights_of_earlier_tasks_stay_bit_equal(norm: Any) -> None:
    strategy = begun(PackNet(norm=norm))
    outputs, kept = {}, {}
    for name in ("classes", "colour", "more"):
        (first if name == "classes" else learned)(strategy, name)
        number = len(strategy.order)
        outputs[name] = probe(strategy, name)
        kept[number] = {key: weight[strategy.owner[key] == number].clone() for key, weight in strategy.weights().items()}
        for owner, tensors in kept.items():
            for key, weight in strategy.weights().items():
                assert torch.equal(weight[strategy.owner[key] == owner], tensors[key])
        for earlier, output in outputs.items():
            assert torch.equal(probe(strategy, earlier), output)


def test_earlier_tasks_do_not_read_later_tasks_weights_and_later_ones_read_all(strategy: PackNet) -> None:
    first(strategy)
    learned(strategy, "colour")
    learned(strategy, "more")
    outputs = {name: probe(strategy, name) for name in strategy.order}
    with torch.no_grad():
        for key, weight in strategy.weights().items():
            weight[strategy.owner[key] == 2] += 1.0
    assert torch.equal(probe(strategy, "classes"), outputs["classes"])
    assert not torch.equal(probe(strategy, "colour"), outputs["colour"])
    assert not torch.equal(probe(strategy, "more"), outputs["more"]), "a later task runs with earlier tasks' weights, too"


def test_an_earlier_task_is_as_it_was_in_the_middle_of_a_later_ones_training(strategy: PackNet) -> None:
    first(strategy)
    output = probe(strategy, "classes")
    steps = []

    def after(phase: Phase) -> None:
        steps.append(torch.equal(probe(strategy, "classes"), output))
        phase.module.train()

    train(strategy, "colour", strategy.learn("colour"), after)
    assert steps == [True] * 6


def test_gradients_are_zero_exactly_where_a_phase_does_not_train(strategy: PackNet) -> None:
    def gradients() -> dict[str, Tensor]:
        return {key: weight.grad != 0 for key, weight in strategy.weights().items() if weight.grad is not None}

    seen: list[tuple[str, dict[str, Tensor]]] = []
    first(strategy)
    train(strategy, "colour", strategy.learn("colour"), lambda phase: seen.append((phase.suffix, gradients())))
    assert [suffix for suffix, _ in seen] == [""] * 4 + [".retrain"] * 2
    for suffix, moving in seen:
        for key, owner in strategy.owner.items():
            # Seen after the end: free at the start of the task is what is free or the second task's now.
            allowed = owner == 2 if suffix else (owner == 2) | (owner == FREE)
            assert not (moving[key] & ~allowed).any()
            assert moving[key].any()


def test_adam_moves_no_weight_that_is_not_trained(strategy: PackNet) -> None:
    first(strategy)
    phases = strategy.learn("colour")
    training = next(phases)
    before, fixed = snapshot(strategy.model), {key: owner != FREE for key, owner in strategy.owner.items()}
    train(strategy, "colour", iter([training]))
    for key, weight in strategy.weights().items():
        assert torch.equal(weight[fixed[key]], before[f"trunk.{key}"][fixed[key]])
        assert (weight[~fixed[key]] != 0).float().mean() > 0.5, "free weights leave zero"
    retraining = next(phases)
    before, own = snapshot(strategy.model), {key: owner == 2 for key, owner in strategy.owner.items()}
    train(strategy, "colour", iter([retraining]))
    for key, weight in strategy.weights().items():
        assert torch.equal(weight[~own[key]], before[f"trunk.{key}"][~own[key]])
        assert not torch.equal(weight[own[key]], before[f"trunk.{key}"][own[key]])
        assert (weight[strategy.owner[key] == FREE] == 0).all()


def test_biases_stay_the_first_tasks(strategy: PackNet) -> None:
    biases = {name: p.detach().clone() for name, p in strategy.model.trunk.named_parameters() if name.endswith("0.bias")}
    assert len(biases) == 2
    first(strategy)
    learned(strategy, "colour")
    assert all(torch.equal(strategy.model.trunk.get_parameter(name), bias) for name, bias in biases.items())


def test_own_normalisation_starts_from_the_backbones_and_moves_for_the_task_alone(strategy: PackNet) -> None:
    start = {name: t.detach().clone() for name, t in strategy.model.trunk.state_dict().items() if ".1." in name}
    first(strategy)
    of_first = {name: t.detach().clone() for name, t in strategy.model.own("classes").items()}
    next(strategy.learn("colour"))
    assert all(torch.equal(t, start[name]) for name, t in strategy.model.own("colour").items())
    strategy = begun(PackNet(), strategy.context)
    first(strategy)
    learned(strategy, "colour")
    assert all(torch.equal(t, start[name]) for name, t in strategy.model.trunk.state_dict().items() if ".1." in name)
    assert of_first.keys() == start.keys()
    assert not any(torch.equal(t, start[name]) for name, t in strategy.model.own("colour").items())


@pytest.mark.parametrize("steps", [1, 2, 6, 10, 15, 25])
@pytest.mark.parametrize("retrain", [0.25, 1 / 3, 0.5])
def test_training_and_retraining_share_out_the_tasks_steps(steps: int, retrain: float) -> None:
    strategy = begun(PackNet(retrain=retrain), context(steps=steps))
    first(strategy)
    given = [phase.options.steps for phase in strategy.learn("colour") if phase.options]
    assert sum(given) == max(steps, 2)  # one each at least


# ---------------------------------------------------------------------- the published algorithm


@dataclass
class _Published:
    """PackNet as its section 3 describes it, for two convolutions without normalisation.

    Every weight has an entry in a mask: the number of the task that keeps it, 0 if it was pruned.
    1. Gradients of weights that another task keeps are set to zero, and those of biases.
    2. After training, the weights of the current task in a layer are sorted by magnitude; the lowest share is set to zero.
    3. The surviving weights of the current task alone are trained again, at a tenth of the rate (Piggyback, section 4).
    A task is run with the weights of the tasks up to it.
    """

    weights: list[Tensor]
    biases: list[Tensor]

    def __post_init__(self) -> None:
        self.masks = [torch.ones_like(w, dtype=torch.long) for w in self.weights]  # all the first task's before its pruning
        self.heads: list[tuple[Tensor, Tensor]] = []

    def forward(self, weights: list[Tensor], x: Tensor, head: tuple[Tensor, Tensor]) -> Tensor:
        x = (x - MEAN) / STD
        for weight, bias in zip(weights, self.biases, strict=True):
            x = F.relu(F.conv2d(x, weight, bias, padding=1))
        return F.conv2d(x, *head)

    def take_free(self, task: int) -> None:
        for mask in self.masks:
            mask[mask == 0] = task

    def train(self, task: int, steps: int, strategy: Strategy, name: str, rate: float = LR) -> None:
        task_data, head = strategy.context.task_data[name], self.heads[task - 1]
        trained = [t.detach().requires_grad_() for t in (*self.weights, *head)]
        optimiser = torch.optim.Adam(trained, rate, fused=True)
        batches = task_data.batches(strategy.context.experiment.seed_of(name))
        for step in range(steps):
            example = task_data.task.example(batches.batch(step))
            *weights, head_weight, head_bias = trained
            loss = task_data.task.loss(self.forward(weights, example.input, (head_weight, head_bias)), example)
            optimiser.zero_grad()
            loss.backward()
            for weight, mask in zip(weights, self.masks, strict=True):
                assert weight.grad is not None
                weight.grad[mask != task] = 0
            optimiser.step()
            with torch.no_grad():
                for weight, mask in zip(weights, self.masks, strict=True):
                    weight[mask == 0] = 0
        *self.weights, head_weight, head_bias = [t.detach() for t in trained]
        self.heads[task - 1] = (head_weight, head_bias)

    def prune(self, task: int, share: float) -> None:
        for weight, mask in zip(self.weights, self.masks, strict=True):
            magnitudes = weight[mask == task].abs()
            threshold = magnitudes.sort().values[round(share * len(magnitudes)) - 1]
            pruned = (mask == task) & (weight.abs() <= threshold)
            mask[pruned] = 0
            weight[pruned] = 0

    def run(self, task: int, x: Tensor) -> Tensor:
        used = [w * ((m >= 1) & (m <= task)) for w, m in zip(self.weights, self.masks, strict=True)]
        return self.forward(used, x, self.heads[task - 1])


MEAN = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)


@pytest.mark.parametrize("mode", ["first_task", "pretrained"])
def test_a_sequence_equals_the_published_algorithm_written_out(mode: str) -> None:
    backbone = small_backbone(norm=False)
    strategy = begun(PackNet(), context(backbone, steps=12, mode=mode))
    convolutions = (backbone.encoder[0], backbone.decoder[0])  # type: ignore[index]
    reference = _Published([c.weight.detach().clone() for c in convolutions], [c.bias.detach().clone() for c in convolutions])

    def same_head(name: str) -> None:
        head = strategy.model.heads[name]
        reference.heads.append((head.weight.detach().clone(), head.bias.detach().clone()))  # type: ignore[operator]

    reference.prune(1, 0.5)
    if mode == "pretrained":  # the backbone's own head, which is nowhere here
        reference.heads.append((torch.empty(0), torch.empty(0)))
    else:
        phases = strategy.adopt("classes", strategy.context.head("classes"))
        phase = next(phases)
        same_head("classes")
        train(strategy, "classes", iter([phase]))
        assert next(phases, None) is None
        reference.train(1, 4, strategy, "classes", LR / 10)

    for task, name in ((2, "colour"), (3, "more")):
        phases = strategy.learn(name)
        phase = next(phases)
        same_head(name)
        train(strategy, name, iter([phase]))
        train(strategy, name, phases)
        reference.take_free(task)
        reference.train(task, 8, strategy, name)
        reference.prune(task, 0.75)
        reference.train(task, 4, strategy, name, LR / 10)

    for (key, weight), mask, expected in zip(strategy.weights().items(), reference.masks, reference.weights, strict=True):
        assert torch.equal(strategy.owner[key].long(), mask)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-6)
    x = torch.rand(2, 3, 8, 8)
    for name in strategy.order:
        task = {"classes": 1, "colour": 2, "more": 3}[name]
        torch.testing.assert_close(strategy.network(name)(x), reference.run(task, x), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- what is stored


def test_own_bytes_are_head_normalisation_and_coded_ownership(strategy: PackNet) -> None:
    first(strategy)
    learned(strategy, "colour")
    for number, (name, head) in enumerate({"classes": 2 * 3 + 3, "colour": 2 * 2 + 2}.items(), 1):
        norm = (4 * 4 + 4 * 2) * 4 + 2 * 8  # weight, bias, mean, variance of 4 and 2 channels; a 64-bit counter each
        blobs = {key: encode(owner == number) for key, owner in strategy.owner.items()}
        assert strategy.own_bytes(name) == head * 4 + norm + sum(len(blob) for blob in blobs.values())
        for key, blob in blobs.items():
            assert torch.equal(decode(blob, torch.bool, strategy.owner[key].shape), strategy.owner[key] == number)
    assert strategy.shared_bytes() == (108 + 4 + 72 + 2) * 4 + (4 * 4 + 4 * 2) * 4 + 2 * 8 + 2 * 3 * 4  # and mean and deviation


def test_density_is_the_share_of_weights_that_a_task_uses(strategy: PackNet) -> None:
    first(strategy)
    learned(strategy, "colour")
    assert strategy.density("classes") == 90 / 180
    assert strategy.density("colour") == (90 + 14 + 9) / 180


@pytest.mark.parametrize("norm", ["own", "frozen"])
def test_a_restored_learner_gives_the_same_outputs_and_learns_on_alike(norm: Any) -> None:
    strategy = begun(PackNet(norm=norm))
    first(strategy)
    learned(strategy, "colour")
    again = restored(PackNet, strategy, ["classes", "colour"], norm=norm)
    for name in ("classes", "colour"):
        assert torch.equal(probe(again, name), probe(strategy, name))
        assert again.own_bytes(name) == strategy.own_bytes(name)
    for one in (strategy, again):
        torch.manual_seed(3)
        learned(one, "more")
    assert not changed(snapshot(strategy.model), again.model)
    assert all(torch.equal(again.owner[key], owner) for key, owner in strategy.owner.items())


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("order", [("disks", "colour", "edges"), ("disks", "edges", "colour")])
def test_both_orders_of_tasks_through_a_config(config: Callable[..., Any], tmp_path: Path, order: tuple[str, ...]) -> None:
    results = run(config(method={"name": "packnet"}, sequence=list(order)))
    assert results["forgetting"]["max_abs_output_change"] == 0
    densities = [task["density"] for task in results["tasks"]]
    assert densities == pytest.approx([0.5, 0.625, 0.71875], abs=2e-3)  # 1/2, 1/4 of a half, 1/4 of three eighths
    shared = safetensors.torch.load_file(tmp_path / "run" / "strategy" / "shared after 3.safetensors")
    owners = {name.removeprefix("owner."): owner for name, owner in shared.items() if name.startswith("owner.")}
    assert owners
    assert all((shared[f"model.trunk.{name}"][owner == FREE] == 0).all() for name, owner in owners.items())


@pytest.mark.parametrize("options", [{"norm": "shared"}, {"first": 1.0}, {"later": -0.1}, {"retrain": 1.0}])
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        PackNet(**options)
