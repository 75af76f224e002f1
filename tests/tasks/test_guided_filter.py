"""Colours filtered under the lead of the lightness, against the paper's equations and kornia."""

from typing import Any

import numpy as np
import pytest
import torch
from kornia.filters import guided_blur
from torch import Tensor
from torch.nn import functional as F

from img2img import InputError
from img2img.data.base import Batch
from img2img.inference.evaluator import Evaluator
from img2img.tasks import build_task
from img2img.tasks.guided_filter import GuidedFilterOptions, guided, guided_coefficients


def given(height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    guide = F.interpolate(torch.rand(2, 1, 5, 7, generator=generator), (height, width), mode="bilinear")
    return guide, 40 * torch.randn(2, 2, height, width, generator=generator)


def literally(guide: Tensor, values: Tensor, radius: int, epsilon: float) -> Tensor:
    """Equations 5, 6 and 8, window by window, of one image and one channel."""
    I, p = guide.double().numpy(), values.double().numpy()  # noqa: E741
    height, width = I.shape
    sums, counts = np.zeros((2, height, width)), np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            w = (slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + radius + 1))
            a = ((I[w] * p[w]).mean() - I[w].mean() * p[w].mean()) / (I[w].var() + epsilon)
            b = p[w].mean() - a * I[w].mean()
            sums[:, w[0], w[1]] += np.array([a, b])[:, None, None]
            counts[w] += 1
    a, b = sums / counts
    return torch.from_numpy(a * I + b)


@pytest.mark.parametrize(("size", "window"), [((9, 12), 5), ((6, 4), 9), ((1, 7), 3)])
def test_it_is_the_papers_equations_at_the_edges_too(size: tuple[int, int], window: int) -> None:
    guide, values = given(*size)
    options = GuidedFilterOptions(window=window, epsilon=0.02)
    found = guided(guided_coefficients(guide, values, options), guide)
    for n in range(2):
        for c in range(2):
            expected = literally(guide[n, 0], values[n, c], window // 2, 0.02)
            torch.testing.assert_close(found[n, c].double(), expected, rtol=1e-3, atol=1e-3)


def test_it_is_kornias_away_from_the_edges() -> None:
    guide, values = given(60, 50)
    options = GuidedFilterOptions(window=9, epsilon=0.01)
    found = guided(guided_coefficients(guide, values, options), guide)
    expected = guided_blur(guide, values, 9, 0.01)
    torch.testing.assert_close(found[..., 8:-8, 8:-8], expected[..., 8:-8, 8:-8], rtol=1e-3, atol=1e-3)


def colouring(**options: Any) -> Any:
    return build_task({"kind": "colourisation", "guided_filter": {"window": 9, "epsilon": 0.001}, **options})


@pytest.mark.parametrize("options", [{}, {"bins": {"grid": 40}}])
def test_colours_of_a_large_image_end_where_its_lightness_does(options: Any) -> None:
    task, plain = colouring(**options), build_task({"kind": "colourisation", **options})
    image = torch.full((1, 3, 64, 128), 60.0)
    image[..., 72:] = 200  # not where the small image has a boundary between pixels
    input = task.input(Batch(image=image))
    small = F.interpolate(input, (8, 16), mode="bilinear", antialias=True)
    raw = torch.zeros(1, task.out_channels, 8, 16)
    raw[:, 1] = torch.linspace(-2, 2, 16)
    raw[..., 9:] = raw[..., 9:].flip(1)

    def enlarged(t: Any) -> Tensor:
        compact = t.compact(raw, small)
        assert compact.shape == (1, t.compact_channels, 8, 16)
        found: Tensor = t.prediction(F.interpolate(compact, (64, 128), mode="bilinear"), input)
        return found[0, :, 32]

    def step(ab: Tensor) -> float:
        """The share of the change over 24 columns that falls between two neighbours."""
        return float((ab[:, 72] - ab[:, 71]).norm() / (ab[:, 84] - ab[:, 60]).norm())

    assert step(enlarged(plain)) < 0.2
    assert step(enlarged(task)) > 0.8
    flat = task.prediction(raw, small)
    assert torch.equal(flat, task.prediction(task.compact(raw, small), small))
    assert flat.shape == (1, 2, 8, 16)
    assert flat.abs().max() <= 110


def test_measured_is_what_is_run_on_images_that_are_padded_too() -> None:
    """Where an image is padded for the network, windows at its edge reach into the padding in both."""
    task = colouring()
    evaluator = Evaluator(stride=32, min_size=32, device=torch.device("cpu"))
    input = torch.rand(1, 3, 45, 70, generator=torch.Generator().manual_seed(0))

    def network(x: Tensor) -> Tensor:
        return 3 * x[:, 1:] - 1

    run = evaluator.raw(lambda x: task.compact(network(x), x), input)
    assert torch.equal(evaluator.predict(network, task, input), task.prediction(run, input))


def test_the_filter_is_stored_with_the_task() -> None:
    options = colouring().options()
    assert options == {"kind": "colourisation", "guided_filter": {"window": 9, "epsilon": 0.001}}
    assert build_task(options).compact_channels == 4


@pytest.mark.parametrize(
    ("options", "named"), [({"window": 8}, "odd number"), ({"epsilon": 0.0}, "epsilon"), ({"radius": 3}, "radius")]
)
def test_options_that_are_none_are_refused(options: Any, named: str) -> None:
    with pytest.raises(InputError, match=named) as refused:
        build_task({"kind": "colourisation", "guided_filter": options})
    assert "guided_filter of the colourisation task" in str(refused.value)
