"""Random backbones: what is drawn, and that masks find networks in them."""

import copy
from collections.abc import Callable

import pytest
import torch
from mask_zoo import LAYERS
from torch import Tensor, nn

from img2img import InputError, MaskedNetwork
from img2img.masks.methods.supsup import SupSup
from img2img.masks.random_weights import Kind, randomise
from img2img.masks.tensors import all_tensors, hash_tensors

KINDS: list[Kind] = ["signed_constant", "kaiming_normal", "kaiming_uniform"]


def _hash(module: nn.Module) -> str:
    return hash_tensors(all_tensors(module).items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("density", [None, 0.25])
@pytest.mark.parametrize(
    ("build", "fan_in"),
    [
        (lambda: nn.Conv2d(30, 60, 3, bias=False), 30 * 9),
        (lambda: nn.Conv2d(30, 300, 3, groups=5), 6 * 9),
        (lambda: nn.ConvTranspose2d(40, 50, 3), 40 * 9),
        (lambda: nn.ConvTranspose2d(200, 60, 3, groups=4), 50 * 9),
        (lambda: nn.Linear(200, 100), 200),
        (lambda: nn.Embedding(300, 50), 1),
        (lambda: nn.Bilinear(30, 40, 20), 1200),
    ],
)
def test_the_standard_deviation_is_kaimings_by_the_true_fan_in(
    kind: Kind, density: float | None, build: Callable[[], nn.Module], fan_in: int
) -> None:
    weight = randomise(nn.Sequential(build()), kind=kind, seed=1, density=density)[0].weight.detach()
    expected = (2 / fan_in) ** 0.5 * (2 if density else 1)  # 1 / sqrt(0.25) = 2
    assert weight.std().item() == pytest.approx(expected, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=0.04 * expected)
    if kind == "signed_constant":
        low, high = weight.unique().tolist()
        assert (low, high) == (pytest.approx(-expected), pytest.approx(expected))
    elif kind == "kaiming_uniform":
        assert weight.abs().max().item() == pytest.approx(3**0.5 * expected, rel=0.01)
        assert (weight.abs() < 3**0.5 * expected / 2).float().mean().item() == pytest.approx(0.5, abs=0.02)
    else:
        assert (weight.abs() < expected).float().mean().item() == pytest.approx(0.683, abs=0.02)


def test_a_density_keeps_the_variance_of_a_masked_layer() -> None:
    x = torch.randn(2000, 400)
    whole = randomise(nn.Linear(400, 100), seed=0)(x).var().item()
    sparse = randomise(nn.Linear(400, 100), seed=0, density=0.1)
    with torch.no_grad():
        sparse.weight.mul_(torch.rand(100, 400) < 0.1)
    assert sparse(x).var().item() == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", LAYERS)
def test_the_seed_alone_decides(kind: Kind, layers: str) -> None:
    first, _ = LAYERS[layers]()
    second = copy.deepcopy(first)
    for name, p in second.named_parameters():
        if not name.endswith(("token", "position", "gamma")):  # those stay
            p.detach().uniform_(-3, 3)
    assert randomise(first, kind=kind, seed=5) is first
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert _hash(randomise(second, kind=kind, seed=5)) == _hash(first)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is not touched"
    assert _hash(randomise(second, kind=kind, seed=6)) != _hash(first)


def test_memory_format_type_and_gradient_flags_stay_and_the_values_do_not_depend_on_them() -> None:
    plain = randomise(LAYERS["transposed2d"]()[0], seed=3)
    last = LAYERS["transposed2d"]()[0].to(memory_format=torch.channels_last, dtype=torch.float64).requires_grad_(False)
    strides = {name: p.stride() for name, p in last.named_parameters()}
    randomise(last, seed=3)
    assert {name: p.stride() for name, p in last.named_parameters()} == strides
    assert last[0].weight.stride() != plain[0].weight.stride()
    assert not any(p.requires_grad for p in last.parameters())
    assert last[0].weight.dtype == torch.float64
    assert _hash(last) == _hash(plain)


def test_biases_and_normalisation_are_those_of_a_network_that_adds_nothing() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.ConvTranspose2d(8, 4, 3), nn.LayerNorm(6))
    with torch.no_grad():
        for tensor in all_tensors(net).values():
            tensor.copy_(torch.full(tensor.shape, 7.0))
    randomise(net, seed=0)
    values = {name: set(t.flatten().tolist()) for name, t in all_tensors(net).items()}
    for bias in ("0.bias", "3.bias", "1.bias", "2.bias", "4.bias", "1.running_mean", "1.num_batches_tracked"):
        assert values[bias] == {0.0}, bias
    for scale in ("1.weight", "2.weight", "4.weight", "1.running_var"):
        assert values[scale] == {1.0}, scale


def test_attention_biases_become_zero_and_tokens_positions_and_gammas_stay() -> None:
    net, _ = LAYERS["attention"]()
    nn.init.ones_(net.attention.in_proj_bias)
    before = {name: t.clone() for name, t in all_tensors(net).items()}
    randomise(net, seed=0)
    after = all_tensors(net)
    assert not after["attention.in_proj_bias"].any()
    assert not after["attention.out_proj.bias"].any()
    assert all(torch.equal(after[name], before[name]) for name in ("token", "position", "gamma"))
    assert after["attention.in_proj_weight"].abs().unique().tolist() == pytest.approx([0.5])  # sqrt(2 / 8)


def test_a_tied_weight_is_drawn_once_and_stays_tied() -> None:
    net, _ = LAYERS["tied"]()
    randomise(net, seed=0)
    assert net.output.weight is net.embedding.weight


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "xavier"}, "'signed_constant', 'kaiming_normal'"),
        ({"density": 0.0}, "above 0 and up to 1"),
        ({"density": 2.0}, "above 0 and up to 1"),
        ({"seed": 1.5}, "expected a whole number"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        randomise(nn.Linear(2, 2), **{"seed": 0, **options})  # type: ignore[arg-type]


def test_a_network_without_weights_is_refused() -> None:
    with pytest.raises(InputError, match="without any weight"):
        randomise(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), seed=0)


CLASSES, PIXELS = 10, 64


def _patterns(generator: torch.Generator, pixels: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy 8 x 8 patterns with their pixels shuffled: the same classes in every task, seen through another shuffle."""
    labels = torch.randint(CLASSES, (512,), generator=generator)
    images = prototypes[labels] + 0.5 * torch.randn(512, PIXELS, generator=generator)
    return images[:, pixels], labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("allocation", ["layer", "global", "erdos_renyi"])
def test_masks_alone_learn_tasks_in_a_random_network_and_the_wrong_mask_knows_nothing(kind: Kind, allocation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(CLASSES, PIXELS, generator=generator)
    backbone = nn.Sequential(nn.Linear(PIXELS, 256), nn.ReLU(), nn.Linear(256, CLASSES))
    net = MaskedNetwork(randomise(backbone, kind=kind, seed=0, density=0.3))
    shuffles = {task: torch.randperm(PIXELS, generator=generator) for task in ("first", "second")}

    def accuracy(task: str, data: str) -> float:
        images, labels = _patterns(generator, shuffles[data], prototypes)
        with torch.no_grad():
            return (net.eval()(images, task=task).argmax(1) == labels).float().mean().item()

    untrained = {}
    for task, pixels in shuffles.items():
        net.add_task(task, SupSup(density=0.3, allocation=allocation))  # type: ignore[arg-type]
        untrained[task] = accuracy(task, task)
        module = net.task_module(task).train()
        optimiser = torch.optim.Adam(module.parameters(), 1e-2)
        for _ in range(60):
            images, labels = _patterns(generator, pixels, prototypes)
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(images), labels).backward()
            optimiser.step()
        net.freeze_task(task)
    chance = 1 / CLASSES
    for task, other in (("first", "second"), ("second", "first")):
        assert accuracy(task, task) > 0.9
        assert untrained[task] < 3 * chance
        assert accuracy(other, task) < 3 * chance
    assert net.hash_backbone() == net.backbone_sha256
