"""CPG: which weights a task picks and owns, what moves when, and the published algorithm written out in a plain loop."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tiny_strategies import LR, begun, changed, context, first, learned, probe, restored, small_backbone, snapshot, train
from torch import Tensor, nn
from torch.nn import functional as F

from img2img import InputError
from img2img.masks.coding import decode, encode
from img2img.research.strategies import CPG, PackNet
from img2img.research.strategies.packnet import FIRST, FREE
from img2img.training.config import OptimiserOptions
from img2img.training.strategy import Phase, Strategy

CONV1, CONV2 = "encoder.0.weight", "decoder.0.weight"  # 108 and 72 weights


def _owners(strategy: CPG) -> dict[str, list[int]]:
    """By weight, how many are free and each task's."""
    size = strategy.owners + 1
    return {name: torch.bincount(owner.flatten().long(), minlength=size).tolist() for name, owner in strategy.owner.items()}


def _mask(strategy: CPG, name: str, key: str) -> Tensor:
    mask = strategy.picks[name][key].binary()
    assert mask is not None
    return mask


def _scores(phase: Phase) -> list[Tensor]:
    """The scores of a task in training, a tensor a weight."""
    return list(phase.module.masks.parameters())  # type: ignore[union-attr]


@pytest.fixture
def strategy() -> CPG:
    return begun(CPG(), context(steps=24))


# ---------------------------------------------------------------------- ownership


def test_the_shares_are_packnets_whatever_the_number_of_prunings() -> None:
    for prunings in (1, 3, 4, 7):
        strategy = begun(CPG(prunings=prunings))
        first(strategy)
        assert _owners(strategy) == {CONV1: [54, 54], CONV2: [36, 36]}
        learned(strategy, "colour")
        assert _owners(strategy) == {CONV1: [40, 54, 14], CONV2: [27, 36, 9]}  # round(0.75 * 54) = 40, 0.75 * 36 = 27 stay free
        learned(strategy, "more")
        assert _owners(strategy) == {CONV1: [30, 54, 14, 10], CONV2: [20, 36, 9, 7]}  # round(20.25) = 20


def test_pruning_sets_more_weights_free_from_one_phase_to_the_next_and_none_comes_back(strategy: CPG) -> None:
    seen: list[tuple[str, list[int], Tensor]] = []

    def after(phase: Phase) -> None:
        seen.append((phase.suffix, _owners(strategy)[CONV1], strategy.owner[CONV1] == FREE))

    train(strategy, "classes", strategy.adopt("classes", strategy.context.head("classes")), after)
    # A third of 24 steps in four; 1/8, 2/8, 3/8 and 4/8 of 108 weights: 13.5, 27, 40.5 and 54, halves to the even number.
    free = {".prune1": 14, ".prune2": 27, ".prune3": 40, ".retrain": 54}
    assert [(suffix, owners) for suffix, owners, _ in seen] == [(s, [n, 108 - n]) for s, n in free.items() for _ in range(2)]
    assert all((before <= after).all() for (*_, before), (*_, after) in itertools.pairwise(seen))
    assert all((weight[strategy.owner[key] == FREE] == 0).all() for key, weight in strategy.weights().items())


def test_a_pruning_takes_the_smallest_weights_as_they_are_by_then() -> None:
    strategy = begun(CPG())
    strategy.add("classes", strategy.context.head("classes"))
    strategy.order.append("classes")
    weight = strategy.weights()[CONV2].detach()
    strategy.owner[CONV2].fill_(9)
    strategy.owner[CONV2].view(-1)[:6] = FREE
    weight.view(-1)[:6] = torch.tensor([-3.0, 1.0, 2.0, -0.5, 0.25, 4.0])
    strategy.prune(2 / 6)
    assert weight.view(-1)[:6].tolist() == [-3.0, 1.0, 2.0, 0.0, 0.0, 4.0]
    weight.view(-1)[0] = 0.125  # training made the largest the smallest
    strategy.prune(3 / 6)
    assert weight.view(-1)[:6].tolist() == [0.0, 1.0, 2.0, 0.0, 0.0, 4.0]
    assert strategy.owner[CONV2].view(-1)[:6].tolist() == [0, 1, 1, 0, 0, 1]
    assert (strategy.owner[CONV2].view(-1)[6:] == 9).all(), "what others own is not touched"


def test_training_pruning_and_retraining_share_out_the_tasks_steps_and_rates() -> None:
    strategy = begun(CPG(prunings=3), context(steps=30, optimiser={"mask_lr": 5e-4}))
    first(strategy)
    phases = strategy.learn("colour")
    given = [(p.suffix, p.options.steps, p.options.optimiser.lr, p.options.optimiser.mask_lr) for p in phases if p.options]
    slow = (LR / 10, pytest.approx(5e-5))
    assert given == [("", 20, LR, 5e-4), (".prune1", 3, *slow), (".prune2", 3, *slow), (".retrain", 4, *slow)]


def test_a_backbone_that_no_task_trained_is_the_first_tasks_to_train() -> None:
    strategy = begun(CPG())
    phases = learned(strategy, "colour")
    assert [p.suffix for p in phases] == ["", ".prune1", ".prune2", ".prune3", ".retrain"]
    assert not _scores(phases[0]), "there is nothing to pick from"
    assert _owners(strategy) == {CONV1: [54, 54], CONV2: [36, 36]}, "it gives up `first`"
    output = probe(strategy, "colour")
    learned(strategy, "more")
    assert torch.equal(probe(strategy, "colour"), output)


def test_a_backbone_trained_elsewhere_is_the_first_owner_and_every_task_picks_from_it() -> None:
    strategy = begun(CPG(), context(steps=24, mode="pretrained"))
    before = strategy.context.network.backbone.state_dict()
    assert _owners(strategy) == {CONV1: [54, 54], CONV2: [36, 36]}
    phases = learned(strategy, "colour")
    assert [p.suffix for p in phases] == ["", ".prune1", ".prune2", ".prune3", ".retrain"]
    assert _owners(strategy) == {CONV1: [40, 54, 14], CONV2: [27, 36, 9]}, "it leaves `later` of the free weights"
    output = probe(strategy, "colour")
    learned(strategy, "more")
    assert _owners(strategy) == {CONV1: [30, 54, 14, 10], CONV2: [20, 36, 9, 7]}
    assert torch.equal(probe(strategy, "colour"), output)
    for number, name in ((FIRST + 1, "colour"), (FIRST + 2, "more")):
        for key, owner in strategy.owner.items():
            mask, earlier = _mask(strategy, name, key), (owner != FREE) & (owner < number)
            assert mask[~earlier].all()
            assert 0 < int((mask & (owner == FIRST)).sum()) < int((owner == FIRST).sum()), "some of the backbone's are picked"
            assert torch.equal(strategy.used(name)[key], (owner == number) | (earlier & mask))
    for key, weight in strategy.weights().items():
        kept = strategy.owner[key] == FIRST
        assert before[key][kept].abs().min() > before[key][~kept].abs().max()
        assert torch.equal(weight[kept], before[key][kept])
        assert not weight[strategy.owner[key] == FREE].any()


def test_tasks_on_a_given_backbone_are_counted_and_restored() -> None:
    strategy = begun(CPG(), context(steps=24, mode="pretrained"))
    learned(strategy, "colour")
    trunk = 108 + 4 + 72 + 2 + 2 * (4 + 2)
    assert strategy.relative_parameters() == pytest.approx(1 + (2 * (4 + 2) + 180 * (2 + 1) / 32) / trunk), "2 owners, 1 picks"
    again = restored(CPG, strategy, ["colour"])
    assert torch.equal(probe(again, "colour"), probe(strategy, "colour"))
    assert again.own_bytes("colour") == strategy.own_bytes("colour")
    for one in (strategy, again):
        torch.manual_seed(3)
        learned(one, "more")
    assert not changed(snapshot(strategy.model), again.model)
    for name in ("colour", "more"):
        assert torch.equal(probe(again, name), probe(strategy, name))
        assert all(torch.equal(_mask(again, name, key), _mask(strategy, name, key)) for key in strategy.owner)


# ---------------------------------------------------------------------- picking


def test_a_mask_picks_among_the_weights_of_earlier_tasks_alone(strategy: CPG) -> None:
    first(strategy)
    assert strategy.picks["classes"] == {}
    learned(strategy, "colour")
    learned(strategy, "more")
    for number, name in ((2, "colour"), (3, "more")):
        for key, owner in strategy.owner.items():
            mask, earlier = _mask(strategy, name, key), (owner != FREE) & (owner < number)
            assert mask[~earlier].all()
            assert 0 < int(mask[earlier].sum()) < int(earlier.sum()), "some are picked, some not"
            assert torch.equal(strategy.used(name)[key], (owner == number) | (earlier & mask))
    used = strategy.used("more")
    assert strategy.density("more") == sum(int(u.sum()) for u in used.values()) / 180


def test_a_task_runs_with_what_it_owns_and_picked_and_with_nothing_else(strategy: CPG) -> None:
    first(strategy)
    learned(strategy, "colour")
    for newest in (True, False):
        if not newest:
            learned(strategy, "more")
        output = probe(strategy, "colour")
        for key, weight in strategy.weights().items():
            used, kept = strategy.used("colour")[key], weight.detach().clone()
            with torch.no_grad():
                weight[~used] += 1.0
            # What is free counts for the newest task, which may be in training: it is 0 whenever another task runs.
            with torch.no_grad():
                weight[strategy.owner[key] == FREE] = 0.0
            assert torch.equal(probe(strategy, "colour"), output)
            with torch.no_grad():
                weight[used] += 1.0
            assert not torch.equal(probe(strategy, "colour"), output)
            with torch.no_grad():
                weight.copy_(kept)


def test_every_earlier_weight_is_picked_at_the_start_so_that_it_starts_as_packnet_does() -> None:
    outputs, with_ = [], context()
    for strategy in (CPG(prunings=1), PackNet()):
        torch.manual_seed(5)
        first(begun(strategy, with_))
        outputs.append(next(strategy.learn("colour")).module.eval()(torch.rand(2, 3, 8, 8)))
    assert torch.equal(*outputs)


# ---------------------------------------------------------------------- what moves


@pytest.mark.parametrize("norm", ["own", "frozen"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_outputs_of_earlier_tasks_stay_bit_equal_at_every_step(norm: Any, memory_format: torch.memory_format) -> None:
    def place(module: nn.Module) -> None:
        module.to(memory_format=memory_format)

    strategy = begun(CPG(norm=norm), replace(context(steps=9), place=place))
    outputs: dict[str, Tensor] = {}

    def after(phase: Phase) -> None:
        for earlier, output in outputs.items():
            assert torch.equal(probe(strategy, earlier), output)
        phase.module.train()

    for name in ("classes", "colour", "more"):
        head = strategy.context.head(name)
        train(strategy, name, strategy.adopt(name, head) if name == "classes" else strategy.learn(name), after)
        outputs[name] = probe(strategy, name)
        assert all(torch.equal(probe(strategy, earlier), output) for earlier, output in outputs.items())


def test_weights_and_scores_move_exactly_where_and_when_they_should(strategy: CPG) -> None:
    first(strategy)
    phases = strategy.learn("colour")
    earlier = {key: owner == 1 for key, owner in strategy.owner.items()}
    suffixes = []
    for phase in phases:
        suffixes.append(phase.suffix)
        pruning = phase.suffix.startswith(".prune")
        before, scores = snapshot(phase.module), [s.detach().clone() for s in _scores(phase)]
        train(strategy, "colour", iter([phase]))
        for (key, weight), old, score in zip(strategy.weights().items(), scores, _scores(phase), strict=True):
            trained = strategy.owner[key] == (2 if phase.suffix else FREE)
            moved = weight != before[f"model.trunk.{key}"]
            assert not moved[~trained].any()
            assert moved[trained].float().mean() > 0.5
            assert torch.equal(score[~earlier[key]], torch.full_like(score, 1e-2)[~earlier[key]]), "start values, exactly"
            share = (score != old)[earlier[key]].float().mean()
            assert share == 0 if pruning else share > 0.5
    assert suffixes == ["", ".prune1", ".prune2", ".prune3", ".retrain"]
    assert all(mask.frozen for mask in strategy.picks["colour"].values())


def test_biases_and_the_trunks_own_normalisation_stay_and_each_tasks_moves(strategy: CPG) -> None:
    first(strategy)
    before = snapshot(strategy.model.trunk)
    start = {key: t.detach().clone() for key, t in strategy.model.own("classes").items()}
    learned(strategy, "colour")
    assert changed(before, strategy.model.trunk) == {CONV1, CONV2}
    assert not any(torch.equal(t, before[key]) for key, t in strategy.model.own("colour").items())
    assert all(torch.equal(t, start[key]) for key, t in strategy.model.own("classes").items())


ROLES = ("scores", "norm", "head", "weights")


def _roles(phase: Phase) -> dict[str, list[nn.Parameter]]:
    assert phase.groups is not None
    return {r: list(group.parameters) for r, group in zip(ROLES, phase.groups(OptimiserOptions()), strict=True)}


def test_roles_name_everything_that_is_trained_once(strategy: CPG) -> None:
    first(strategy)
    for phase in strategy.learn("colour"):
        module, roles = phase.module, _roles(phase)
        assert [p.shape for p in roles["scores"]] == ([] if ".prune" in phase.suffix else [(4, 3, 3, 3), (2, 4, 3, 3)])
        assert {id(p) for p in roles["weights"]} == {id(w) for w in strategy.weights().values()}
        assert {id(p) for p in roles["head"]} == {id(p) for p in strategy.model.heads["colour"].parameters()}
        assert [p.shape for p in roles["norm"]] == [(4,), (4,), (2,), (2,)]
        named = [id(p) for parameters in roles.values() for p in parameters]
        assert len(named) == len(set(named))
        assert set(named) == {id(p) for p in module.parameters() if p.requires_grad}


def test_retraining_scales_every_rate() -> None:
    rates = {"optimiser": {"lr": 1e-2, "mask_lr": 3.5e-4, "norm_lr": 1e-3, "head_lr": 2e-2}}
    strategy = begun(CPG(retrain_lr=0.1), context(steps=24, **rates))
    first(strategy)
    for phase in strategy.learn("colour"):
        options, factor = phase.options, 0.1 if phase.suffix else 1.0
        assert options is not None
        scaled = {rate: factor * value for rate, value in rates["optimiser"].items()}
        assert {rate: getattr(options.optimiser, rate) for rate in scaled} == scaled
        assert phase.groups is not None
        groups = zip(ROLES, phase.groups(options.optimiser), strict=True)
        used = {role: group.lr for role, group in groups if group.parameters}
        expected = {"scores": 3.5e-4, "norm": 1e-3, "head": 2e-2, "weights": 1e-2}
        if phase.suffix.startswith(".prune"):
            del expected["scores"]
        assert used == {role: pytest.approx(factor * rate) for role, rate in expected.items()}


def test_a_second_task_is_learned() -> None:
    strategy = begun(CPG(), context(steps=100))
    first(strategy)
    task_data = strategy.context.task_data["more"]
    example = task_data.task.example(task_data.batches(0, batch_size=7).batch(0))

    def loss(raw: Tensor) -> float:
        return task_data.task.loss(raw, example).item()

    phases = strategy.learn("more")
    phase = next(phases)
    with torch.no_grad():
        before = loss(phase.module.eval()(example.input))
    train(strategy, "more", iter([phase]))
    train(strategy, "more", phases)
    assert loss(strategy.network("more")(example.input)) < 0.8 * before


# ---------------------------------------------------------------------- the published algorithm


@dataclass
class _Published:
    """CPG as `utils/prune.py`, `models/layers.py` and the scripts of experiment 1 do it, for two convolutions.

    An entry in a mask says which task keeps a weight, 0 that it was pruned. Before a task trains, the pruned weights become its
    own. Gradients of weights that another task keeps are set to zero, those of scores where the entry is 0 or not below
    the task's number, and all of scores while pruning. A pruning ranks the task's own and pruned weights together.
    """

    weights: list[Tensor]
    biases: list[Tensor]

    def __post_init__(self) -> None:
        self.masks = [torch.ones_like(w, dtype=torch.long) for w in self.weights]
        self.scores: list[list[Tensor]] = [[]]
        self.heads: list[tuple[Tensor, Tensor]] = []

    def forward(self, weights: list[Tensor], x: Tensor, head: tuple[Tensor, Tensor]) -> Tensor:
        x = (x - MEAN) / STD
        for weight, bias in zip(weights, self.biases, strict=True):
            x = F.relu(F.conv2d(x, weight, bias, padding=1))
        return F.conv2d(x, *head)

    def begin(self, task: int) -> None:
        for mask in self.masks:
            mask[mask == 0] = task
        self.scores.append([torch.full_like(w, 0.01) for w in self.weights])

    def train(self, task: int, steps: int, strategy: Strategy, name: str, *, rate: float = LR, pruning: bool = False) -> None:
        task_data = strategy.context.task_data[name]
        weights = [w.detach().requires_grad_() for w in self.weights]
        scores = [s.detach().requires_grad_() for s in self.scores[task - 1]]
        head = [t.detach().requires_grad_() for t in self.heads[task - 1]]
        optimiser = torch.optim.Adam([*weights, *scores, *head], rate, fused=True)
        batches = task_data.batches(strategy.context.experiment.seed_of(name))
        for step in range(steps):
            example = task_data.task.example(batches.batch(step))
            binary = [(s > 0.005).float() + (s - s.detach()) for s in scores] if scores else [torch.ones(())] * 2
            effective = [b * w for b, w in zip(binary, weights, strict=True)]
            loss = task_data.task.loss(self.forward(effective, example.input, (head[0], head[1])), example)
            optimiser.zero_grad()
            loss.backward()
            for i, mask in enumerate(self.masks):
                weights[i].grad[mask != task] = 0  # type: ignore[index]
                if scores:
                    scores[i].grad[(mask == 0) | (mask >= task) | pruning] = 0  # type: ignore[index]
            optimiser.step()
        self.weights, self.scores[task - 1] = [w.detach() for w in weights], [s.detach() for s in scores]
        self.heads[task - 1] = (head[0].detach(), head[1].detach())

    def prune(self, task: int, share: float) -> None:
        for weight, mask in zip(self.weights, self.masks, strict=True):
            sizes = weight[(mask == task) | (mask == 0)].abs()
            cutoff = sizes.kthvalue(round(share * len(sizes))).values
            mask[(weight.abs() <= cutoff) & (mask == task)] = 0
            weight[mask == 0] = 0

    def run(self, task: int, x: Tensor) -> Tensor:
        used = [w * ((m >= 1) & (m <= task)) for w, m in zip(self.weights, self.masks, strict=True)]
        if task > 1:
            used = [w * (s > 0.005) for w, s in zip(used, self.scores[task - 1], strict=True)]
        return self.forward(used, x, self.heads[task - 1])


MEAN = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)


@pytest.mark.parametrize("mode", ["first_task", "pretrained"])
def test_a_sequence_equals_the_published_algorithm_written_out(mode: str) -> None:
    backbone = small_backbone(norm=False)
    convolutions = (backbone.encoder[0], backbone.decoder[0])  # type: ignore[index]
    for convolution in convolutions:
        nn.init.ones_(convolution.bias)  # units that are never active would leave weights of equal size, where the codes differ
    strategy = begun(CPG(prunings=3), context(backbone, steps=18, mode=mode))
    reference = _Published([c.weight.detach().clone() for c in convolutions], [c.bias.detach().clone() for c in convolutions])
    for task, (name, share) in enumerate((("classes", 0.5), ("colour", 0.75), ("more", 0.75)), 1):
        if task == 1 and mode == "pretrained":  # the backbone's own head is nowhere here
            reference.prune(1, share)
            reference.heads.append((torch.empty(0), torch.empty(0)))
            continue
        phases = strategy.adopt(name, strategy.context.head(name)) if task == 1 else strategy.learn(name)
        phase = next(phases)
        head = strategy.model.heads[name]
        reference.heads.append((head.weight.detach().clone(), head.bias.detach().clone()))  # type: ignore[operator]
        train(strategy, name, iter([phase]))
        train(strategy, name, phases)
        if task > 1:
            reference.begin(task)
            reference.train(task, 12, strategy, name)
        for k in (1, 2, 3):
            reference.prune(task, share * k / 3)
            reference.train(task, 2, strategy, name, rate=LR / 10, pruning=k < 3)
    for (key, weight), mask, expected in zip(strategy.weights().items(), reference.masks, reference.weights, strict=True):
        assert torch.equal(strategy.owner[key].long(), mask)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-6)
    for task, name in ((2, "colour"), (3, "more")):
        for key, scores in zip(strategy.weights(), reference.scores[task - 1], strict=True):
            assert torch.equal(_mask(strategy, name, key), scores > 0.005)
    x = torch.rand(2, 3, 8, 8)
    for name in strategy.order:
        task = {"classes": 1, "colour": 2, "more": 3}[name]
        torch.testing.assert_close(strategy.network(name)(x), reference.run(task, x), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- what is stored


def test_own_bytes_are_head_normalisation_coded_ownership_and_coded_picks(strategy: CPG) -> None:
    first(strategy)
    learned(strategy, "colour")
    learned(strategy, "more")
    norm = (4 * 4 + 4 * 2) * 4 + 2 * 8  # weight, bias, mean, variance of 4 and 2 channels; a 64-bit counter each
    for number, (name, head) in enumerate({"classes": 2 * 3 + 3, "colour": 2 * 2 + 2, "more": 2 * 2 + 2}.items(), 1):
        owned = sum(len(encode(owner == number)) for owner in strategy.owner.values())
        picked = 0
        for key, blob in strategy.own_tensors(name).items():
            earlier = (strategy.owner[key] != FREE) & (strategy.owner[key] < number)
            assert torch.equal(decode(blob, torch.bool, (int(earlier.sum()),)), _mask(strategy, name, key)[earlier])
            picked += len(blob)
        assert (picked > 0) == (number > 1)
        assert strategy.own_bytes(name) == head * 4 + norm + owned + picked
    assert strategy.shared_bytes() == (108 + 4 + 72 + 2) * 4 + (4 * 4 + 4 * 2) * 4 + 2 * 8 + 2 * 3 * 4  # and mean and deviation


@pytest.mark.parametrize("norm", ["own", "frozen"])
def test_a_restored_learner_gives_the_same_outputs_and_learns_on_alike(norm: Any) -> None:
    strategy = begun(CPG(norm=norm), context(steps=12))
    first(strategy)
    learned(strategy, "colour")
    again = restored(CPG, strategy, ["classes", "colour"], norm=norm)
    for name in ("classes", "colour"):
        assert torch.equal(probe(again, name), probe(strategy, name))
        assert again.own_bytes(name) == strategy.own_bytes(name)
    for one in (strategy, again):
        torch.manual_seed(3)
        learned(one, "more")
    assert not changed(snapshot(strategy.model), again.model)
    for key, owner in strategy.owner.items():
        assert torch.equal(again.owner[key], owner)
        for name in ("colour", "more"):
            assert torch.equal(_mask(again, name, key), _mask(strategy, name, key))
    for name in ("classes", "colour", "more"):
        assert torch.equal(probe(again, name), probe(strategy, name))


@pytest.mark.parametrize("options", [{"norm": "shared"}, {"later": 1.0}, {"prunings": 0}, {"init": 5e-3}])
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        CPG(**options)
