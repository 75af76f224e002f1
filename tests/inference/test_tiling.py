"""Large images in tiles: what does not look beyond a pixel is the same as whole, what does is nearly so."""

import pytest
import torch
from torch import Tensor, nn

from img2img.inference.evaluator import Evaluator
from img2img.inference.tiling import run_any_size


def _evaluator(stride: int = 8, min_size: int = 16) -> Evaluator:
    return Evaluator(stride=stride, min_size=min_size, device=torch.device("cpu"))


@pytest.mark.parametrize("size", [(100, 130), (37, 300), (8, 201), (64, 64), (65, 64)])
@pytest.mark.parametrize(("stride", "tile", "overlap"), [(8, 64, 16), (1, 40, 9), (16, 50, 20)])
def test_a_pointwise_network_gives_the_same(size: tuple[int, int], stride: int, tile: int, overlap: int) -> None:
    seen: list[tuple[int, ...]] = []
    layer = nn.Conv2d(3, 5, 1)

    def network(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        assert all(n % stride == 0 and n >= 16 for n in x.shape[-2:])
        y: Tensor = layer(x)
        return y

    input = torch.rand(2, 3, *size)
    raw = run_any_size(network, input, _evaluator(stride), tile=tile, overlap=overlap)
    assert raw.shape == (2, 5, *size)
    assert torch.allclose(raw, layer(input), atol=1e-5)
    largest = max(16, -(-tile // stride) * stride)
    assert all(max(shape[-2:]) <= largest for shape in seen)
    assert len(seen) > 1 or max(size) <= largest


@pytest.mark.parametrize(("size", "most"), [((1600, 1200), 1.25), ((1100, 1100), 1.4), ((1030, 200), 1.4), ((3000, 4000), 1.35)])
def test_little_is_seen_twice(size: tuple[int, int], most: float) -> None:
    seen: list[int] = []

    def network(x: Tensor) -> Tensor:
        seen.append(x.shape[-1] * x.shape[-2])
        return x[:, :1]

    run_any_size(network, torch.zeros(1, 3, *size), _evaluator(32, 32), tile=1024, overlap=128)
    assert sum(seen) <= most * size[0] * size[1]
    assert max(seen) <= 1024**2


def test_a_blurring_network_has_no_seams() -> None:
    blur = nn.Conv2d(3, 1, 9, padding=4, padding_mode="replicate", bias=False)
    nn.init.constant_(blur.weight, 1 / 243)
    input = torch.rand(1, 3, 96, 200)
    whole = run_any_size(blur, input, _evaluator(), tile=None, overlap=32)
    tiled = run_any_size(blur, input, _evaluator(), tile=64, overlap=32)
    cut = run_any_size(blur, input, _evaluator(), tile=64, overlap=0)
    assert (tiled - whole).abs().max() < 0.4 * (cut - whole).abs().max(), "the overlap hides most of what a tile cannot see"
    steps = (tiled - whole).diff(dim=-1).abs().max()
    assert steps < 0.25 * (cut - whole).diff(dim=-1).abs().max(), "and its edge is no line"


def test_small_pictures_run_whole() -> None:
    seen: list[tuple[int, ...]] = []

    def network(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x

    run_any_size(network, torch.rand(1, 3, 50, 60), _evaluator(), tile=64, overlap=16)
    assert seen == [(1, 3, 56, 64)]
