"""Task inference: scores against literal transcriptions, and tasks found in toy sequences."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from mask_zoo import METHODS, WithHead, head
from torch import Tensor, nn
from torch.distributions import Categorical, Normal, kl_divergence

from img2img import MaskedNetwork, masks
from img2img.errors import InputError
from img2img.masks import entropy_gradient, task_inference
from img2img.masks.entropy_gradient import entropy
from img2img.masks.methods.supsup import SupSup
from img2img.masks.random_weights import randomise
from img2img.masks.task_inference import InferredTask, by_basis, by_entropy, by_gradient, by_norm_statistics
from img2img.masks.task_state import NormMode
from img2img.masks.tensors import all_tensors, hash_tensors

INFER: dict[str, Callable[..., InferredTask]] = {
    "entropy": by_entropy,
    "gradient": by_gradient,
    "halving": partial(by_gradient, halving=True),
    "norm": by_norm_statistics,
}


def _network(count: int = 4, *, classes: int = 3, norm: NormMode = "own") -> MaskedNetwork:
    """Tasks whose masks, normalisation parameters, statistics and heads all differ; two are frozen, the others in training."""
    net = MaskedNetwork(WithHead(), head="head")
    for i in range(count):
        state = net.add_task(f"t{i}", masks.Piggyback(start="uniform"), head=head(classes), norm=norm)
        for name, tensor in state.norm_tensors().items():
            if tensor.is_floating_point():
                tensor.data = torch.rand_like(tensor) + (0.5 if "var" in name or "weight" in name else -0.5)
        if i < 2:
            net.freeze_task(f"t{i}")
    return net


def _images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 8, 8)


# ---------------------------------------------------------------------- entropy


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 6, 5), (1, 7, 2, 2, 2)])
def test_entropy_is_that_of_the_categorical_distribution_over_its_maximum(shape: tuple[int, ...]) -> None:
    logits = 3 * torch.randn(shape)
    expected = Categorical(logits=logits.movedim(1, -1)).entropy().mean() / torch.tensor(shape[1]).log()
    assert entropy(logits, "t") == pytest.approx(expected.item(), rel=1e-5)


def test_entropy_is_between_zero_and_one_whatever_the_number_of_classes() -> None:
    for classes in (2, 10, 1000):
        assert entropy(torch.zeros(3, classes), "t").item() == pytest.approx(1)
        assert entropy(1e4 * torch.eye(classes), "t").item() == pytest.approx(0)


def test_the_task_with_the_lowest_entropy_comes_first() -> None:
    net, x = _network(), _images()
    net.eval()
    expected = {}
    with torch.no_grad():
        for task in net.tasks():
            logits = net(x, task=task).movedim(1, -1)
            expected[task] = (Categorical(logits=logits).entropy().mean() / torch.tensor(3.0).log()).item()
    found = by_entropy(net, x)
    assert list(found.scores) == sorted(expected, key=lambda t: expected[t])
    assert found.task == min(expected, key=lambda t: expected[t])
    assert found.scores == pytest.approx(expected, rel=1e-5)
    assert set(by_entropy(net, x, tasks=["t2", "t0"]).scores) == {"t0", "t2"}


# ---------------------------------------------------------------------- gradient


def _explicit(net: MaskedNetwork, x: Tensor, alpha: Tensor) -> Tensor:
    """The entropy of `WithHead` with every tensor superposed by `alpha`, written out layer by layer."""
    states = [net.state(task) for task in net.tasks()]
    weights = net.masked_weights()

    def mix(tensors: list[Tensor]) -> Tensor:
        return sum(a * t.detach() for a, t in zip(alpha, tensors, strict=True))

    for conv, norm in ((0, 1), (3, 4)):
        weight = weights[f"body.{conv}.weight"] * mix([s.binaries()[f"body.{conv}.weight"].to(x) for s in states])
        x = F.conv2d(x, weight, net.backbone.body[conv].bias, padding=1)
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, var, gamma, beta = (mix([s.norm_tensors()[f"body.{norm}.{p}"] for s in states])[:, None, None] for p in parts)
        x = torch.relu((x - mean) / torch.sqrt(var + 1e-5) * gamma + beta)
    out = F.conv2d(x, mix([s.head.weight for s in states]), mix([s.head.bias for s in states]))
    p = out.softmax(1)
    return -(p * p.log()).sum(1).mean() / torch.tensor(out.shape[1]).log()


def test_the_gradient_by_each_coefficient_is_that_of_explicitly_superposed_networks() -> None:
    net, x = _network().double(), _images().double()
    alpha = torch.full((4,), 0.25, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(_explicit(net, x, alpha), alpha)
    found = by_gradient(net, x)
    assert [found.scores[task] for task in net.tasks()] == pytest.approx(expected.tolist(), rel=1e-4)  # entropy is float32
    assert found.task == net.tasks()[int(expected.argmin())]
    assert list(found.scores.values()) == sorted(found.scores.values())


def test_halving_keeps_the_better_half_until_one_is_left() -> None:
    net, x = _network(5), _images()
    first = by_gradient(net, x).scores
    second = by_gradient(net, x, tasks=list(first)[:3]).scores
    last = by_gradient(net, x, tasks=list(second)[:2]).scores
    alone = by_gradient(net, x, tasks=list(last)[:1]).scores
    found = by_gradient(net, x, halving=True)
    expected = first | second | last | alone
    assert list(found.scores) == [*alone, *list(last)[1:], *list(second)[2:], *list(first)[3:]]
    assert found.scores == pytest.approx(expected, abs=1e-6)
    assert found.task == next(iter(alone))
    assert by_gradient(net, x, halving=True, tasks=["t3"]).task == "t3"


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_of_every_method_is_the_finite_difference(method: str) -> None:
    net, x = MaskedNetwork(WithHead(), head="head").double(), _images().double()
    net.add_basis("random", masks.Basis.random(net.layers(), count=3, density=0.4, seed=0))
    for task in "ab":
        net.add_task(task, METHODS[method](), head=head(3).double())
    net.eval()
    scores = by_gradient(net, x).scores
    with torch.no_grad():
        own = {t: entropy_gradient._task_tensors(net, net.state(t), t) for t in "ab"}

        def mixed_entropy(alpha: float) -> float:
            mixed = {n: alpha * t + 0.5 * own["b"][n] for n, t in own["a"].items()}
            features = net.run_with({n: t for n, t in mixed.items() if not n.startswith("head.")}, (x,), {})
            logits = F.conv2d(features, mixed["head.weight"], mixed["head.bias"])
            return Categorical(logits=logits.movedim(1, -1)).entropy().mean().item() / torch.tensor(3.0).double().log().item()

        expected = (mixed_entropy(0.5 + 1e-5) - mixed_entropy(0.5 - 1e-5)) / 2e-5
    assert scores["a"] == pytest.approx(expected, rel=1e-3, abs=1e-5)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(3),
    "batch without affine": lambda: nn.BatchNorm2d(3, affine=False),
    "batch without statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "instance": lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
    "instance without statistics": lambda: nn.InstanceNorm2d(3),
    "group": lambda: nn.GroupNorm(1, 3),
}


@pytest.mark.parametrize("norm", NORMS)
def test_normalisation_that_is_differentiable_by_its_statistics_gives_the_same(norm: str) -> None:
    module, x = NORMS[norm](), _images()
    for _ in range(3):
        module(torch.randn(4, 3, 8, 8) * 2 + 1)
    module.eval()
    with torch.no_grad():
        for p in module.parameters():
            p.uniform_(0.5, 1.5)
        expected = module(x)
        with entropy_gradient._ByRunningStatistics():
            found = module(x)
    assert torch.allclose(found, expected, atol=1e-5)


def test_running_statistics_are_superposed_and_not_the_last_tasks() -> None:
    net = MaskedNetwork(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)))
    for task in "ab":
        net.add_task(task, masks.Identity())
    net.state("b").norm_tensors()["1.running_mean"].add_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    x = _images()
    scores = by_gradient(net, x).scores
    assert scores["a"] != scores["b"], "they differ in nothing else"
    assert by_gradient(net, x, tasks=["b", "a"]).scores == pytest.approx(scores, abs=1e-6)


# ---------------------------------------------------------------------- normalisation statistics


def test_statistics_are_compared_by_the_divergence_of_normal_distributions_in_the_first_half_of_the_layers() -> None:
    convolutions = [nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)]
    layers = [x for conv in convolutions for x in (conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())]
    net, images = MaskedNetwork(nn.Sequential(*layers)), _images()
    net.add_task("t0", masks.Piggyback(start="uniform"))
    net.train()(images * 2 + 1, task="t0")
    own, weights, x = net.state("t0").norm_tensors(), net.masked_weights(), images
    ones, divergences = net.state("t0").binaries(), []
    for conv in (0, 3):  # of 0, 3, 6, 9
        x = F.conv2d(x, weights[f"{conv}.weight"] * ones[f"{conv}.weight"], net.backbone[conv].bias)
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        task_mean, task_var, gamma, beta = (own[f"{conv + 1}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        batch, task = Normal(mean, (var + 1e-5).sqrt()), Normal(task_mean, (task_var + 1e-5).sqrt())
        divergences.append(kl_divergence(batch, task).mean().item())
        x = torch.relu(F.batch_norm(x, task_mean, task_var, gamma, beta))
    expected = (divergences[0] * divergences[1]) ** 0.5
    assert by_norm_statistics(net, images).scores["t0"] == pytest.approx(expected, rel=1e-4)


def test_instance_normalisation_is_compared_with_the_average_over_samples() -> None:
    norm, x = nn.InstanceNorm2d(3, track_running_stats=True, momentum=1.0), _images()
    norm(x)
    assert task_inference._divergence(norm, x).item() == pytest.approx(0, abs=1e-6)
    norm(torch.randn(4, 3, 8, 8) * 3)
    batch = Normal(x.mean((2, 3)).mean(0), (x.var((2, 3)).mean(0) + norm.eps).sqrt())
    expected = kl_divergence(batch, Normal(norm.running_mean, (norm.running_var + norm.eps).sqrt())).mean()
    assert task_inference._divergence(norm, x).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_divergence_is_zero_on_the_batch_itself_and_the_same_in_other_units() -> None:
    norm, x, other = nn.BatchNorm1d(6, momentum=1.0), torch.randn(50, 6), torch.randn(40, 6) * 2 + 1
    norm(x)
    assert task_inference._divergence(norm, x).item() == pytest.approx(0, abs=1e-6)
    before = task_inference._divergence(norm, other).item()
    assert before > 0.1
    norm(100 * x - 30)
    assert task_inference._divergence(norm, 100 * other - 30).item() == pytest.approx(before, rel=1e-3)
    assert task_inference._divergence(norm, other[:1]).isfinite(), "one sample has no variance"


def test_a_network_or_a_task_without_statistics_of_its_own_is_refused() -> None:
    plain = MaskedNetwork(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)))
    plain.add_task("t", masks.Piggyback())
    with pytest.raises(InputError, match="keeps no running statistics"):
        by_norm_statistics(plain, _images())
    with pytest.raises(InputError, match=r"'t0'.*statistics.*norm='frozen'"):
        by_norm_statistics(_network(norm="frozen"), _images())


# ---------------------------------------------------------------------- what all have in common


def test_the_nearest_task_is_one_that_has_statistics() -> None:
    net = _network(2)
    net.add_task("adapter", masks.Piggyback(start="uniform"), head=head(), norm="frozen")
    assert net.nearest_task(_images()) in ("t0", "t1")
    with pytest.raises(InputError, match="no running statistics of its own"):
        _network(2, norm="frozen").nearest_task(_images())


@pytest.mark.parametrize("infer", INFER)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("inference_mode", [True, False])
def test_the_network_is_as_it_was(infer: str, training: bool, inference_mode: bool) -> None:
    net, x = _network(), _images()
    net.train(training)
    net.backbone.body[1].eval()
    flags = [m.training for m in net.modules()]
    tensors = hash_tensors(all_tensors(net).items())
    versions = [t._version for t in all_tensors(net).values()]
    with torch.inference_mode(inference_mode):
        found = INFER[infer](net, x.clone())
    assert hash_tensors(all_tensors(net).items()) == tensors
    assert [t._version for t in all_tensors(net).values()] == versions
    assert [m.training for m in net.modules()] == flags
    assert all(p.grad is None for p in net.parameters())
    assert net.hash_backbone() == net.backbone_sha256
    assert not any(m._forward_pre_hooks for m in net.modules())
    if training:
        assert net.cache_counts()["bytes"] == 0
    assert found == INFER[infer](net, x), "nothing is learned from being asked"
    net.train()
    net(x, task="t3").sum().backward()
    assert net.state("t3").head.weight.grad is not None


@pytest.mark.parametrize("infer", INFER)
def test_the_network_is_as_it_was_after_an_error_too(infer: str) -> None:
    net = _network()
    flags = [m.training for m in net.modules()]
    with pytest.raises(RuntimeError):
        INFER[infer](net, torch.randn(4, 5, 8, 8))
    assert [m.training for m in net.modules()] == flags
    assert net.hash_backbone() == net.backbone_sha256
    assert not any(m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("infer", INFER)
def test_tasks_are_checked(infer: str) -> None:
    net, x = _network(), _images()
    with pytest.raises(InputError, match="no task 'x'"):
        INFER[infer](net, x, tasks=["t0", "x"])
    with pytest.raises(InputError, match="expected a sequence of names"):
        INFER[infer](net, x, tasks="t0")
    with pytest.raises(InputError, match="no tasks to choose from"):
        INFER[infer](net, x, tasks=[])
    with pytest.raises(InputError, match="the score of task 't0' is nan"):
        INFER[infer](net, x * torch.nan, tasks=["t0"])


@pytest.mark.parametrize("infer", ["entropy", "gradient"])
def test_outputs_without_classes_are_refused(infer: str) -> None:
    with pytest.raises(InputError, match=r"\(4, 1, 8, 8\).*two classes"):
        INFER[infer](_network(classes=1), _images())


@pytest.mark.parametrize(
    "other", [nn.Conv2d(8, 4, 1), nn.Conv2d(8, 3, 1, stride=2), nn.Conv2d(8, 3, 1, bias=False), nn.Identity()]
)
def test_heads_that_differ_cannot_be_superposed(other: nn.Module) -> None:
    net = _network(2)
    net.add_task("other", masks.Piggyback(), head=other)
    with pytest.raises(InputError, match="the heads of 't0' and 'other' differ"):
        by_gradient(net, _images())
    assert by_gradient(net, _images(), tasks=["t0", "t1"]).task in ("t0", "t1")
    assert by_norm_statistics(net, _images()).task in net.tasks()


def test_a_compiled_network_is_looked_into_all_the_same() -> None:
    net, x = _network(), _images()
    expected = by_norm_statistics(net, x), by_gradient(net, x)
    net._inner = lambda *_: pytest.fail("a compiled graph may not run the hooks")
    assert (by_norm_statistics(net, x), by_gradient(net, x)) == expected


def test_accuracy_counts_by_task() -> None:
    answers = iter(["a", "a", "b", "b", "c"])

    def infer(x: Tensor) -> InferredTask:
        task = next(answers)
        return InferredTask(task, {task: 0.0})

    found = task_inference.accuracy(infer, {"a": [torch.zeros(1)] * 3, "b": iter([torch.zeros(1)] * 2)})
    assert found.accuracy == 3 / 5
    assert [(r.task, r.batches, r.right, r.accuracy) for r in found.rows] == [("a", 3, 2, 2 / 3), ("b", 2, 1, 0.5)]
    assert found.confusion == {"a": {"a": 2, "b": 1, "c": 0}, "b": {"a": 0, "b": 1, "c": 1}}
    for nothing in ({}, {"a": []}):
        with pytest.raises(InputError, match="no batches"):
            task_inference.accuracy(infer, nothing)


# ---------------------------------------------------------------------- end to end


def _settle(
    net: MaskedNetwork, task: str, batches: Iterator[tuple[Tensor, Tensor]], loss: Callable, *, lr: float, steps: int
) -> None:
    """Train with a learning rate that falls to nothing, so that running statistics are those of the network at the end."""
    net.train()
    optimiser = torch.optim.Adam(net.state(task).parameters(), lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0, steps)
    for _ in range(steps):
        x, y = next(batches)
        optimiser.zero_grad()
        loss(net(x, task=task), y).backward()
        optimiser.step()
        schedule.step()
    net.freeze_task(task)


def test_image_tasks_are_found_by_their_normalisation_statistics() -> None:
    """Smooth images, the same with noise, and grey ones; each task flips the channels. Chance is a third."""
    generator = torch.Generator().manual_seed(0)

    def draw(kind: str, n: int = 8) -> Tensor:
        x = F.interpolate(torch.rand(n, 3, 4, 4, generator=generator), size=16, mode="bilinear")
        if kind == "noisy":
            x = x + 0.2 * torch.randn(n, 3, 16, 16, generator=generator)
        if kind == "grey":
            x = x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        return 4 * (x - 0.5)

    layers: list[nn.Module] = []
    for channels in (3, 16):
        layers += [nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    net = MaskedNetwork(nn.Sequential(*layers, nn.Conv2d(16, 3, 1)))
    kinds = ("smooth", "noisy", "grey")
    for kind in kinds:
        net.add_task(kind, masks.Piggyback(start="uniform"))
        batches = ((x, x.flip(1).tanh()) for x in iter(lambda k=kind: draw(k), None))
        _settle(net, kind, batches, F.mse_loss, lr=3e-4, steps=50)
    found = task_inference.accuracy(partial(by_norm_statistics, net), {k: [draw(k) for _ in range(10)] for k in kinds})
    assert found.accuracy >= 0.9, found.confusion
    assert net.nearest_task(draw("grey")) == "grey"


@pytest.fixture(scope="module", params=["piggyback", "supsup"])
def permuted(request: pytest.FixtureRequest) -> tuple[MaskedNetwork, Callable[[int, int], tuple[Tensor, Tensor]]]:
    """Five tasks, the same eight classes with their inputs permuted, in a random network with a shared random output layer.

    As SupSup's, it has more outputs than classes, without which the one-shot gradient finds far fewer of the tasks.
    """
    torch.manual_seed(0)
    centres, orders = 1.5 * torch.randn(8, 24), [torch.randperm(24) for _ in range(5)]

    def draw(task: int, n: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(8, (n,))
        return (centres[y] + 0.5 * torch.randn(n, 24))[:, orders[task]], y

    layers = [part for size in (24, 128) for part in (nn.Linear(size, 128, bias=False), nn.ReLU())]
    net = MaskedNetwork(randomise(nn.Sequential(*layers, nn.Linear(128, 32, bias=False)), seed=0))
    for task in range(5):
        piggyback = request.param == "piggyback"
        net.add_task(str(task), masks.Piggyback(start="uniform") if piggyback else SupSup(density=0.3))
        batches = iter(lambda t=task: draw(t, 64), None)
        _settle(net, str(task), batches, F.cross_entropy, lr=1e-3 if piggyback else 1e-2, steps=60)
    return net, draw


@pytest.mark.parametrize(("infer", "at_least"), [("entropy", 0.9), ("gradient", 0.85), ("halving", 0.9)])
def test_classification_tasks_are_found_by_entropy_and_its_gradient(
    permuted: tuple[MaskedNetwork, Callable[[int, int], tuple[Tensor, Tensor]]], infer: str, at_least: float
) -> None:
    """Chance is a fifth."""
    net, draw = permuted
    batches = {str(t): [draw(t, 16)[0] for _ in range(8)] for t in range(5)}
    found = task_inference.accuracy(partial(INFER[infer], net), batches)
    assert found.accuracy >= at_least, found.confusion


def test_a_member_of_a_basis_is_found_from_labels(
    permuted: tuple[MaskedNetwork, Callable[[int, int], tuple[Tensor, Tensor]]],
) -> None:
    net, draw = permuted
    net.add_basis("all", masks.basis_of_tasks(net, net.tasks()))
    before, flags = hash_tensors(all_tensors(net).items()), [m.training for m in net.modules()]
    try:
        found = [by_basis(net, "all", F.cross_entropy, [draw(t, 64)], steps=30) for t in range(5)]
        with pytest.raises(InputError, match="ended after 1 of 3 steps"):
            by_basis(net, "all", F.cross_entropy, iter([draw(0, 64)]), steps=3)
        with pytest.raises(InputError, match="at least one training step"):
            by_basis(net, "all", F.cross_entropy, [draw(0, 64)], steps=0)
        assert net.tasks() == tuple("01234")
        assert hash_tensors(all_tensors(net).items()) == before
        assert [m.training for m in net.modules()] == flags
    finally:
        net.delete_basis("all")
    assert sum(f.task == str(t) for t, f in enumerate(found)) >= 4, [f.scores for f in found]
    assert all(list(f.scores.values()) == sorted(f.scores.values(), reverse=True) for f in found)
