"""AuC and its balanced form against a literal transcription of Zhang et al. 2016, and by hand."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.spatial import cKDTree
from skimage.color import rgb2lab
from torch import Tensor

from img2img.errors import InputError
from img2img.metrics.colour_accuracy import ColourAccuracy
from img2img.metrics.colour_classes import gamut_bins


def _photographs(count: int, seed: int) -> Tensor:
    """Images that are mostly grey, with a saturated corner each; ab, (N, 2, 12, 10)."""
    rng = np.random.default_rng(seed)
    images = rng.random((count, 12, 10, 1)) * np.ones(3) + rng.normal(0, 0.03, (count, 12, 10, 3))
    images[:, :4, :4] = rng.random((count, 4, 4, 3))
    return torch.from_numpy(rgb2lab(images.clip(0, 1))[..., 1:]).permute(0, 3, 1, 2)


def _literally(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """Sweep the thresholds; weigh each pixel by the inverse of its class's frequency, smoothed over the classes in gamut."""
    p, t = (x.permute(0, 2, 3, 1).reshape(-1, 2).numpy() for x in (prediction, target))
    centres = 10.0 * gamut_bins(10).numpy()
    classes = cKDTree(centres).query(t)[1]
    frequency = np.zeros(len(centres))
    for q in range(len(centres)):
        around = np.exp(-((centres - centres[q]) ** 2).sum(1) / (2 * 5.0**2))
        frequency[q] = (around * np.bincount(classes, minlength=len(centres))).sum()
    weights: NDArray[np.float64] = (frequency.sum() / frequency)[classes]
    distance = np.linalg.norm(p - t, axis=1)
    thresholds = np.linspace(0, 150, 30_001)
    found = {"AuC": np.ones_like(weights), "balanced AuC": weights}
    shares = {name: [w[distance <= threshold].sum() / w.sum() for threshold in thresholds] for name, w in found.items()}
    return {name: float(trapezoid(share, thresholds) / 150) for name, share in shares.items()}


def _measured(*pairs: tuple[Tensor, Tensor]) -> dict[str, float]:
    metric = ColourAccuracy()
    for prediction, target in pairs:
        metric.update(prediction, target)
    return metric.compute()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_the_paper_s_sweep_of_thresholds(dtype: torch.dtype) -> None:
    target = _photographs(3, seed=0)
    prediction = target + 25 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1)).to(target)
    found = _measured((prediction[:1].to(dtype), target[:1].to(dtype)), (prediction[1:].to(dtype), target[1:].to(dtype)))
    assert found == pytest.approx(_literally(prediction, target), abs=1e-4)
    assert found["balanced AuC"] != pytest.approx(found["AuC"], abs=1e-3)


def test_the_area_of_one_distance_is_what_is_left_of_150() -> None:
    target = torch.zeros(1, 2, 2, 2)
    prediction = torch.tensor([18.0, 24.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
    assert _measured((prediction, target)) == pytest.approx({"AuC": 0.8, "balanced AuC": 0.8})
    far = torch.full((1, 2, 2, 2), 500.0)
    assert _measured((far, target)) == pytest.approx({"AuC": 0.0, "balanced AuC": 0.0})
    assert _measured((target, target)) == pytest.approx({"AuC": 1.0, "balanced AuC": 1.0})


def test_grey_wins_where_all_pixels_count_alike_and_loses_where_all_colours_do() -> None:
    """One pixel in ten is red. One prediction finds it, and has a tint on all others; the other is grey."""
    target = torch.zeros(1, 2, 10, 10)
    target[:, :, 0] = torch.tensor([60.0, 40.0])[:, None]
    bold = target.clone()
    bold[:, :, 1:] = 12.0
    grey = _measured((torch.zeros_like(target), target))
    colourful = _measured((bold, target))
    assert grey["AuC"] > colourful["AuC"]
    assert grey["balanced AuC"] < colourful["balanced AuC"]


def test_each_class_has_the_same_weight_where_none_is_near_another() -> None:
    """Smoothing moves little to classes so far away: the balanced value is close to the mean of those of the classes."""
    target = torch.zeros(1, 2, 100, 1)
    target[0, :, 90:] = torch.tensor([60.0, 60.0])[:, None, None]
    prediction = target.clone()
    prediction[0, 0, 90:] -= 75  # half of the area in the rare class
    assert _measured((prediction, target))["balanced AuC"] == pytest.approx((1 + 0.5) / 2, abs=0.01)
    assert _measured((prediction, target))["AuC"] == pytest.approx(0.95)


def test_colours_beyond_srgb_are_in_the_nearest_class() -> None:
    target = torch.tensor([200.0, -300.0]).reshape(1, 2, 1, 1).repeat(1, 1, 2, 2)
    metric = ColourAccuracy()
    metric.update(target, target)
    assert int(metric.pixels.sum()) == 4
    assert metric.compute() == pytest.approx({"AuC": 1.0, "balanced AuC": 1.0})


def test_frequencies_are_of_all_batches_together() -> None:
    """And the order of the batches does not matter."""
    target = _photographs(4, seed=3)
    prediction = target + 10
    parts = [(prediction[i : i + 1], target[i : i + 1]) for i in range(4)]
    assert _measured(*parts) == pytest.approx(_measured((prediction, target)))
    assert _measured(*parts[::-1]) == pytest.approx(_measured((prediction, target)))


def test_images_and_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="2, H, W"):
        ColourAccuracy().update(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4))
    with pytest.raises(InputError, match="NaN"):
        ColourAccuracy().update(torch.full((1, 2, 4, 4), torch.nan), torch.rand(1, 2, 4, 4))
    with pytest.raises(InputError, match="before any image"):
        ColourAccuracy().compute()
