"""Training several tasks at once against training each of them alone on the same batches."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from img2img import InputError, MaskedNetwork, masks
from img2img.masks import Basis, MaskMethod, basis_of_tasks
from img2img.research.impresslearn.stacked_training import train_stacked
from img2img.training.loop import TrainingDivergedError

TASKS = ["a", "b", "c"]
STEPS = 12


def _plain() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    return masks.randomise(net, kind="kaiming_normal", seed=0)


def _convolutional() -> nn.Module:
    net = nn.Sequential(nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 6, 2), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(6, 4))
    return masks.randomise(net, kind="kaiming_normal", seed=0)


def _network(backbone: nn.Module, method: MaskMethod, *, head: bool = False) -> MaskedNetwork:
    net = MaskedNetwork(backbone, head="4" if head else None)
    net.add_basis("impresslearn", Basis.random(net.layers(), count=5, density=0.4, seed=1))
    for index, task in enumerate(TASKS):
        torch.manual_seed(index)
        net.add_task(task, method, head=nn.Linear(8, 4) if head else None)
    return net


def _batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(3, 10, 12, generator=generator), torch.randint(4, (3, 10), generator=generator)) for _ in range(STEPS)]


def _alone(net: MaskedNetwork, optimiser: Callable[..., torch.optim.Optimizer]) -> Tensor:
    """The reference: a loop a task, through the network's own call; the losses, (STEPS, tasks)."""
    net.train()
    losses = torch.empty(STEPS, len(TASKS))
    for index, task in enumerate(TASKS):
        state = net.state(task)
        opt = optimiser([p for p in state.parameters() if p.requires_grad])
        for step, (x, y) in enumerate(_batches()):
            opt.zero_grad()
            loss = F.cross_entropy(net(x[index], task=task), y[index])
            penalty = state.penalty()
            (loss if penalty is None else loss + penalty).backward()
            opt.step()
            losses[step, index] = loss.detach()
    return losses


METHODS: dict[str, MaskMethod] = {
    "supsup": masks.SupSup(density=0.3),
    "supsup, global": masks.SupSup(density=0.3, allocation="global"),
    "impresslearn": masks.ImpressLearn(basis="impresslearn", penalty_weight=0.1),
    "hybrid": masks.ImpressLearn(basis="impresslearn", hybrid=True),
    "ternary": masks.Piggyback(start="uniform", ternary=True),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("optimiser", [partial(torch.optim.RMSprop, lr=2e-3), partial(torch.optim.Adam, lr=1e-2)])
@pytest.mark.parametrize("kind", ["linear", "head", "convolution and norm"])
def test_tasks_learn_together_what_they_learn_alone(
    method: MaskMethod, optimiser: Callable[..., torch.optim.Optimizer], kind: str
) -> None:
    backbone = _convolutional() if kind == "convolution and norm" else _plain()
    together, alone = (_network(backbone, method, head=kind == "head") for _ in range(2))
    before = {task: together.state(task).binaries() for task in TASKS}
    losses = train_stacked(together, TASKS, _batches(), steps=STEPS, optimiser=optimiser)
    expected = _alone(alone, optimiser)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-4)
    flips = 0
    for task in TASKS:
        for (name, got), (_, want) in zip(
            together.state(task).named_parameters(), alone.state(task).named_parameters(), strict=True
        ):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4, msg=name)
        for name, mask in together.state(task).binaries().items():
            assert mask.equal(alone.state(task).binaries()[name])
            flips += int((mask != before[task][name]).sum())
    assert flips > 0 or method.name == "impresslearn", "a training in which no mask moves compares nothing"
    assert together.hash_backbone() == together.backbone_sha256


def test_the_masks_of_a_basis_are_combined_alike_with_and_without_a_table() -> None:
    method = METHODS["impresslearn"]
    nets = [_network(_plain(), method) for _ in range(3)]
    sizes = [4 * 5 * weight.numel() for weight in nets[0].masked_weights().values()]
    for net, bound in zip(nets, (1 << 30, sizes[0], 0), strict=True):  # for all weights, for the first alone, for none
        train_stacked(net, TASKS, _batches(), steps=STEPS, table_bytes=bound)
    for task in TASKS:
        values = [torch.cat([m.values()["alpha"] for _, m in net.state(task).named_masks()]) for net in nets]
        torch.testing.assert_close(values[1], values[0])
        torch.testing.assert_close(values[2], values[0])
        assert not values[0].allclose(torch.full_like(values[0], 0.2))


def test_trained_tasks_freeze_and_make_a_basis() -> None:
    net = _network(_plain(), METHODS["supsup"])
    net.eval()
    seen: list[int] = []
    batches = ((x[:2], y[:2]) for x, y in _batches())
    train_stacked(net, TASKS[:2], batches, steps=5, progress=lambda step, losses: seen.append(step))
    assert seen == [1, 2, 3, 4, 5]
    assert not net.training, "its mode is restored"
    x = torch.randn(4, 12)
    outputs = net(x, task="b").detach()
    net.freeze_task("b")
    assert net(x, task="b").equal(outputs)
    basis = basis_of_tasks(net, TASKS[:2])
    assert basis.masks("0.weight")[1].equal(net.state("b").binaries()["0.weight"])


def test_what_cannot_be_trained_together_is_refused() -> None:
    net = _network(_plain(), METHODS["supsup"])
    net.add_task("other", masks.SupSup(density=0.5))
    with pytest.raises(InputError, match="differ in their method"):
        train_stacked(net, ["a", "other"], _batches(), steps=1)
    with pytest.raises(InputError, match="each once"):
        train_stacked(net, ["a", "a"], _batches(), steps=1)
    with pytest.raises(InputError, match="for 2 tasks"):
        train_stacked(net, ["a", "b"], _batches(), steps=1)
    with pytest.raises(InputError, match=f"ended after {STEPS} steps of 99"):
        train_stacked(net, TASKS, _batches(), steps=99)
    net.freeze_task("b")
    with pytest.raises(InputError, match="frozen"):
        train_stacked(net, TASKS, _batches(), steps=1)
    tracked = MaskedNetwork(nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4)))
    tracked.add_task("a", METHODS["supsup"])
    with pytest.raises(InputError, match="running statistics"):
        train_stacked(tracked, ["a"], _batches(), steps=1)


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    net = _network(_plain(), METHODS["supsup"])
    broken = [(x.index_fill(0, torch.tensor([1]), float("nan")), y) for x, y in _batches()]
    with pytest.raises(TrainingDivergedError, match="'b'"):
        train_stacked(net, TASKS, broken, steps=3)
