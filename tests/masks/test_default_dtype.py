"""`torch.set_default_dtype(torch.float64)`, which programs around this one may use, changes nothing."""

import copy
from collections.abc import Iterator

import pytest
import torch
from mask_zoo import METHODS, evaluate, train
from torch import nn

from img2img import MaskedNetwork, masks
from img2img.masks.methods.piggyback import below


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def default(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


BACKBONE = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FOUND: dict[str, list[torch.Tensor]] = {}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_stores_the_same_whatever_the_default_type(method: str, default: torch.dtype) -> None:
    net = MaskedNetwork(copy.deepcopy(BACKBONE))
    net.add_basis("random", masks.Basis.random(net.layers(), count=3, density=0.4, seed=0))
    torch.manual_seed(0)
    net.add_task("a", METHODS[method]())
    net.add_task("b", METHODS[method]())
    train(net, "a", X)
    assert all(p.dtype == torch.float32 for p in net.parameters())
    outputs = [evaluate(net, "a", X)]
    net.freeze_task("a")
    net.state("b").start_from(net.state("a"))
    outputs += [evaluate(net, "a", X), evaluate(net, "b", X), net.merge("a")(X)]
    expected = FOUND.setdefault(method, outputs)
    assert all(output.dtype == torch.float32 for output in outputs)
    assert all(torch.equal(output, other) for output, other in zip(outputs, expected, strict=True))


def test_random_backbones_and_thresholds_are_the_same(default: torch.dtype) -> None:
    assert below(5e-3) == torch.nextafter(torch.tensor(5e-3, dtype=torch.float32), torch.tensor(0.0, dtype=torch.float32)).item()
    for kind in ("signed_constant", "kaiming_normal", "kaiming_uniform"):
        random = masks.randomise(copy.deepcopy(BACKBONE), kind=kind, seed=0)  # type: ignore[arg-type]
        other = FOUND.setdefault(kind, [p.detach().clone() for p in random.parameters()])
        assert all(torch.equal(p, q) for p, q in zip(random.parameters(), other, strict=True))
