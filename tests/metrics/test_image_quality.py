import math

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from img2img.errors import InputError
from img2img.metrics.image_quality import ImageQualityMetrics, light_matched_mse, mse, psnr, ssim


def pair(height: int, width: int, *, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A smooth image with a flat corner and edges, and a noisy copy: (1, 3, H, W) float in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    target = torch.stack([x, y * x, 0.5 + 0.4 * torch.sin(9 * (x + 2 * y))])[None]
    target[..., : height // 3, : width // 3] = 0.9
    prediction = (target + noise * torch.randn(target.shape, generator=generator)).clamp(0, 1)
    prediction[..., : height // 6, :] = target[..., : height // 6, :]
    return prediction, target


def as_array(image: Tensor) -> np.ndarray:
    return image.double().permute(1, 2, 0).numpy()


def skimage_ssim(prediction: Tensor, target: Tensor) -> float:
    return structural_similarity(
        as_array(prediction),
        as_array(target),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=-1,
    )


@pytest.mark.parametrize("size", [(11, 11), (11, 40), (37, 24)])
@pytest.mark.parametrize("noise", [0.02, 0.4])
def test_ssim_is_that_of_scikit_image_borders_included(size: tuple[int, int], noise: float) -> None:
    prediction, target = pair(*size, noise=noise)
    expected = skimage_ssim(prediction[0], target[0])
    assert ssim(prediction.double(), target.double()).item() == pytest.approx(expected, abs=1e-10)
    assert ssim(prediction, target).item() == pytest.approx(expected, abs=1e-5)


def test_torchmetrics_own_mean_counts_the_borders_which_is_why_they_are_cut() -> None:
    prediction, target = pair(37, 24, noise=0.4)
    padded = structural_similarity_index_measure(prediction, target, data_range=1.0)
    assert isinstance(padded, Tensor)
    assert padded.item() != pytest.approx(skimage_ssim(prediction[0], target[0]), abs=1e-3)


def test_ssim_keeps_its_precision_under_autocast() -> None:
    prediction, target = pair(32, 32, noise=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ssim(prediction, target), ssim(prediction.clone(), target))
        assert ssim(prediction, target).item() == pytest.approx(skimage_ssim(prediction[0], target[0]), abs=1e-5)


def test_mse_is_on_the_scale_of_8_bit_images() -> None:
    black, grey = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 10 / 255)
    assert mse(black, grey).item() == pytest.approx(100.0)
    prediction, target = pair(20, 30, noise=0.1)
    expected = mean_squared_error(255 * as_array(prediction[0]), 255 * as_array(target[0]))
    assert mse(prediction, target).item() == pytest.approx(expected, rel=1e-5)


def test_psnr_is_that_of_scikit_image() -> None:
    prediction, target = pair(20, 30, noise=0.1)
    expected = peak_signal_noise_ratio(as_array(target[0]), as_array(prediction[0]), data_range=1)
    assert psnr(prediction, target).item() == pytest.approx(expected, abs=1e-4)


def test_identical_images_have_a_psnr_of_100_and_an_ssim_of_1() -> None:
    _, target = pair(20, 30, noise=0.1)
    metric = ImageQualityMetrics()
    metric.update(target, target.clone())
    result = metric.compute()
    assert result["PSNR"] == 100.0
    assert result["SSIM"] == pytest.approx(1.0, abs=1e-6)
    assert result["MSE"] == 0.0


def test_one_grey_level_in_one_value_is_below_the_ceiling_of_psnr() -> None:
    target = torch.zeros(1, 3, 96, 96)
    prediction = target.clone()
    prediction[0, 0, 0, 0] = 1 / 255
    assert 90 < psnr(prediction, target).item() < 100


def test_the_set_is_a_mean_over_images_of_mixed_sizes() -> None:
    small, large = pair(16, 12, noise=0.3, seed=1), pair(40, 50, noise=0.05, seed=2)
    twin = pair(16, 12, noise=0.1, seed=3)
    metric = ImageQualityMetrics()
    metric.update(*large)
    metric.update(torch.cat([small[0], twin[0]]), torch.cat([small[1], twin[1]]))
    result = metric.compute()
    images = (small, large, twin)
    expected = np.mean([skimage_ssim(p[0], t[0]) for p, t in images])
    assert result["SSIM"] == pytest.approx(expected, abs=1e-5)
    decibels = [peak_signal_noise_ratio(as_array(t[0]), as_array(p[0]), data_range=1) for p, t in images]
    assert result["PSNR"] == pytest.approx(np.mean(decibels), abs=1e-4)
    errors = [mean_squared_error(255 * as_array(p[0]), 255 * as_array(t[0])) for p, t in images]
    assert result["MSE"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert all(type(value) is float for value in result.values())


def test_reset_forgets_what_was_measured() -> None:
    metric = ImageQualityMetrics()
    metric.update(*pair(16, 16, noise=0.3))
    metric.reset()
    prediction, target = pair(16, 16, noise=0.05)
    metric.update(prediction, target)
    assert metric.compute()["MSE"] == pytest.approx(mse(prediction, target).item())


def test_half_precision_predictions_are_measured_in_float32() -> None:
    prediction, target = pair(16, 16, noise=0.05)
    metric = ImageQualityMetrics()
    metric.update(prediction.bfloat16(), target)
    exact = skimage_ssim(prediction.bfloat16().float()[0], target[0])
    assert metric.compute()["SSIM"] == pytest.approx(exact, abs=1e-5)


def test_images_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(InputError, match="10 x 64 pixels: SSIM expects 11 x 11"):
        ImageQualityMetrics().update(torch.zeros(1, 3, 10, 64), torch.zeros(1, 3, 10, 64))


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (torch.zeros(1, 3, 12, 12), torch.zeros(1, 3, 12, 13), "differ in shape"),
        (torch.zeros(1, 1, 12, 12), torch.zeros(1, 1, 12, 12), "shape"),
        (torch.zeros(3, 12, 12), torch.zeros(3, 12, 12), "shape"),
        (torch.zeros(0, 3, 12, 12), torch.zeros(0, 3, 12, 12), "not empty"),
        (torch.zeros(1, 3, 12, 12), torch.zeros(1, 3, 12, 12, dtype=torch.uint8), "divide by 255"),
        (torch.full((1, 3, 12, 12), 200.0), torch.zeros(1, 3, 12, 12), r"expected \[0, 1\]"),
        (torch.full((1, 3, 12, 12), -0.2), torch.zeros(1, 3, 12, 12), r"expected \[0, 1\]"),
        (torch.full((1, 3, 12, 12), math.nan), torch.zeros(1, 3, 12, 12), "prediction holds NaN"),
        (torch.zeros(1, 3, 12, 12), torch.full((1, 3, 12, 12), math.inf), "target holds NaN or infinite"),
    ],
)
def test_what_are_no_images_is_refused(prediction: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageQualityMetrics().update(prediction, target)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(InputError, match="before any image"):
        ImageQualityMetrics().compute()


def test_light_matched_mse_is_the_residual_of_a_least_squares_fit() -> None:
    pairs = [pair(16, 12, noise=0.3, seed=1), pair(16, 12, noise=0.1, seed=2)]
    expected = []
    for prediction, target in pairs:
        given, wanted = 255 * as_array(prediction[0]).ravel(), 255 * as_array(target[0]).ravel()
        columns = np.stack([given, np.ones_like(given)], 1)
        (gain, offset), *_ = np.linalg.lstsq(columns, wanted, rcond=None)
        assert gain > 0
        expected.append(mean_squared_error(gain * given + offset, wanted))
    found = light_matched_mse(torch.cat([p for p, _ in pairs]), torch.cat([t for _, t in pairs]))
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_light_matched_mse_forgives_a_guess_of_the_light_and_nothing_else() -> None:
    _, target = pair(16, 12, noise=0.1, seed=4)
    darker = 0.4 * target + 0.1
    assert light_matched_mse(darker, target).item() == pytest.approx(0, abs=1e-6)
    variance = (255 * as_array(target[0])).var()
    assert light_matched_mse(torch.full_like(target, 0.3), target).item() == pytest.approx(variance, rel=1e-5)
    assert light_matched_mse(1 - target, target).item() == pytest.approx(variance, rel=1e-5), "a negative gain is none"
