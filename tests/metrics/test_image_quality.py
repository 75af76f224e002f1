"""Metrics of images against foreign references: quality and style."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from img2img.errors import InputError
from img2img.metrics.image_quality import ImageQualityMetrics, light_matched_mse, mse, psnr, ssim
from img2img.metrics.style import (
    StyleMetrics,
    StyleWeights,
    content_loss,
    gram,
    perceptual_distance,
    style_grams,
    style_loss,
    style_terms,
    total_variation,
)


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


@pytest.mark.parametrize("level", [0.1, 0.7, 250 / 255, 1.0])
def test_ssim_of_flat_and_nearly_flat_images(level: float) -> None:
    flat = torch.full((1, 3, 32, 32), level, dtype=torch.float32)
    assert ssim(flat, flat.clone()).item() == 1
    nearly = (flat + 1e-3 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert ssim(nearly, flat).item() == pytest.approx(skimage_ssim(nearly[0].double(), flat[0].double()), abs=1e-6)


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


class TwoLayers(nn.Module):
    """A perceptual network small enough to follow: one convolution, and its halved, rectified output."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.convolution(x)
        return {"first": first, "second": torch.relu(first[:, :, ::2, ::2])}


@pytest.fixture
def network() -> TwoLayers:
    torch.manual_seed(0)
    return TwoLayers().eval()


WEIGHTS = StyleWeights(style={"first": 2.0, "second": 3.0}, content={"second": 0.5}, variation=0.1)


def plain_gram(features: Tensor) -> Tensor:
    c, h, w = features.shape
    result = torch.zeros(c, c)
    for i in range(c):
        for j in range(c):
            for y in range(h):
                for x in range(w):
                    result[i, j] += features[i, y, x] * features[j, y, x] / (c * h * w)
    return result


def plain_style_loss(features: dict[str, Tensor], grams: dict[str, Tensor], n: int) -> float:
    return sum(
        weight * sum(((plain_gram(features[layer][n]) - grams[layer][0]) ** 2).flatten().tolist())
        for layer, weight in WEIGHTS.style.items()
    )


def plain_content_loss(features: dict[str, Tensor], content: dict[str, Tensor], n: int) -> float:
    difference = (features["second"][n] - content["second"][n]).flatten().tolist()
    return 0.5 * sum(d * d for d in difference) / len(difference)


def plain_variation(image: Tensor) -> float:
    c, h, w = image.shape
    p = image.tolist()
    down = [abs(p[k][y + 1][x] - p[k][y][x]) for k in range(c) for y in range(h - 1) for x in range(w)]
    right = [abs(p[k][y][x + 1] - p[k][y][x]) for k in range(c) for y in range(h) for x in range(w - 1)]
    return sum(down) / len(down) + sum(right) / len(right)


def images(seed: int, n: int = 2) -> Tensor:
    return torch.rand(n, 3, 6, 8, generator=torch.Generator().manual_seed(seed))


def test_gram_of_a_hand_computed_case() -> None:
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])  # C = 2, H = 1, W = 2
    expected = torch.tensor([[[5.0, 1.0], [1.0, 10.0]]]) / 4
    torch.testing.assert_close(gram(features), expected)


def test_gram_of_each_image_is_that_of_a_plain_loop() -> None:
    features = torch.randn(3, 4, 3, 5)
    expected = torch.stack([plain_gram(f) for f in features])
    torch.testing.assert_close(gram(features), expected)


def test_gram_does_not_overflow_in_half_precision_nor_round_under_autocast() -> None:
    features = torch.full((1, 2, 64, 64), 100.0, dtype=torch.float16)  # the sum of squares is 4e7, float16 ends at 65504
    torch.testing.assert_close(gram(features), torch.full((1, 2, 2), 100.0**2 / 2))
    noise = torch.randn(1, 4, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gram(noise)
    assert torch.equal(inside, gram(noise))


def test_losses_of_each_image_are_those_of_plain_loops(network: TwoLayers) -> None:
    with torch.no_grad():
        stylised, original = images(1), images(2)
        features, content = network(stylised), network(original)
        grams = style_grams(network, images(3, 1), WEIGHTS.style)
        terms = style_terms(stylised, features, content, grams, WEIGHTS)
    for n in range(2):
        style = plain_style_loss(features, grams, n)
        kept = plain_content_loss(features, content, n)
        variation = plain_variation(stylised[n])
        assert terms["style loss"][n].item() == pytest.approx(style, rel=1e-4)
        assert terms["content loss"][n].item() == pytest.approx(kept, rel=1e-4)
        assert terms["total variation"][n].item() == pytest.approx(variation, rel=1e-5)
        assert terms["total style loss"][n].item() == pytest.approx(style + kept + 0.1 * variation, rel=1e-4)


def test_style_of_the_style_image_and_content_of_the_content_image_cost_nothing(network: TwoLayers) -> None:
    with torch.no_grad():
        image = images(4, 1)
        features = network(image)
        grams = style_grams(network, image, WEIGHTS.style)
        assert style_loss(features, grams, WEIGHTS.style).item() == 0.0
        assert content_loss(features, features, WEIGHTS.content).item() == 0.0


def test_a_style_a_image_is_compared_image_by_image(network: TwoLayers) -> None:
    with torch.no_grad():
        styles = images(5, 2)
        grams = style_grams(network, styles, ["first"])
        same = style_loss(network(styles), grams, {"first": 1.0})
        swapped = style_loss(network(styles.flip(0)), grams, {"first": 1.0})
    torch.testing.assert_close(same, torch.zeros(2))
    assert (swapped > 1e-6).all()


def test_total_variation_of_hand_computed_cases() -> None:
    flat = torch.full((1, 3, 5, 4), 0.7)
    stripes = torch.zeros(1, 3, 4, 6)
    stripes[..., ::2] = 1.0  # every horizontal neighbour differs by 1, no vertical one
    assert total_variation(flat).item() == 0.0
    assert total_variation(stripes).item() == pytest.approx(1.0)
    assert total_variation(torch.cat([stripes, 0.5 * stripes])).tolist() == pytest.approx([1.0, 0.5])


def test_gradients_reach_the_image_through_every_term(network: TwoLayers) -> None:
    grams = style_grams(network, images(6, 1), WEIGHTS.style)
    content = {layer: f.detach() for layer, f in network(images(7)).items()}
    for term in ("style loss", "content loss", "total variation", "total style loss"):
        x = images(8).requires_grad_()
        style_terms(x, network(x), content, grams, WEIGHTS)[term].mean().backward()
        assert x.grad is not None
        assert x.grad.abs().sum() > 0, term


def test_the_gradient_of_the_style_loss_is_the_numerical_one(network: TwoLayers) -> None:
    net = network.double()
    grams = style_grams(net, images(6, 1).double(), WEIGHTS.style)
    x = images(9, 1).double()[..., :4, :4].requires_grad_()
    assert torch.autograd.gradcheck(lambda p: style_loss(net(p), grams, {"first": 1.0}), (x,))


def test_the_metric_is_the_mean_over_images_of_the_training_loss(network: TwoLayers) -> None:
    stylised, original = images(1, 3), images(2, 3)
    grams = style_grams(network, images(3, 1), WEIGHTS.style)
    metric = StyleMetrics(network, grams, WEIGHTS)
    metric.update(stylised[:1], original[:1])
    metric.update(stylised[1:], original[1:])
    result = metric.compute()
    with torch.no_grad():
        terms = style_terms(stylised, network(stylised), network(original), grams, WEIGHTS)
    assert set(result) == set(terms)
    assert result == pytest.approx({name: values.mean().item() for name, values in terms.items()}, rel=1e-5)
    assert all(type(value) is float for value in result.values())
    metric.reset()
    metric.update(stylised[:1], original[:1])
    expected = terms["total style loss"][0].item()
    assert metric.compute()["total style loss"] == pytest.approx(expected, rel=1e-5)


def test_the_unstylised_input_pays_for_style_and_not_for_content(network: TwoLayers) -> None:
    metric = StyleMetrics(network, style_grams(network, images(3, 1), WEIGHTS.style), WEIGHTS)
    metric.update(images(2), images(2))
    result = metric.compute()
    assert result["content loss"] == 0.0
    assert result["style loss"] > 0


def test_the_metric_leaves_the_perceptual_network_alone(network: TwoLayers) -> None:
    metric = StyleMetrics(network, style_grams(network, images(3, 1), WEIGHTS.style), WEIGHTS)
    metric.update(images(1), images(2))
    metric.train()
    assert not network.training
    assert not list(metric.parameters())
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_what_does_not_fit_is_refused(network: TwoLayers) -> None:
    grams = style_grams(network, images(3, 1), WEIGHTS.style)
    features = network(images(1))
    with pytest.raises(InputError, match="'conv9': expected one of first, second"):
        style_grams(network, images(3, 1), ["conv9"])
    with pytest.raises(InputError, match="'conv9'"):
        style_loss(features, grams, {"conv9": 1.0})
    with pytest.raises(InputError, match="'conv9'"):
        content_loss(features, features, {"first": 1.0, "conv9": 1.0})
    with pytest.raises(InputError, match="no content layer"):
        content_loss(features, features, {})
    metric = StyleMetrics(network, grams, WEIGHTS)
    with pytest.raises(InputError, match=r"expected \[0, 1\]"):
        metric.update(255 * images(1), images(2))
    with pytest.raises(InputError, match="before any image"):
        metric.compute()


def test_perceptual_distance_is_lpips_with_every_weight_one() -> None:
    generator = torch.Generator().manual_seed(3)
    given, wanted = (
        {"fine": torch.rand(2, 5, 6, 4, generator=generator), "coarse": torch.rand(2, 7, 3, 2, generator=generator)}
        for _ in range(2)
    )
    for features in (given, wanted):
        features["fine"][0, :, 2, 1] = 0  # as after a ReLU that let nothing pass
    expected = []
    for n in range(2):
        layers = []
        for layer in given:
            a, b = (each[layer][n].double().numpy() for each in (given, wanted))
            _, height, width = a.shape
            pixels = []
            for y in range(height):
                for x in range(width):
                    u, v = (f[:, y, x] / max(float((f[:, y, x] ** 2).sum()) ** 0.5, 1e-5) for f in (a, b))
                    pixels.append(float(((u - v) ** 2).sum()))
            layers.append(sum(pixels) / len(pixels))
        expected.append(sum(layers) / 2)
    assert perceptual_distance(given, wanted).tolist() == pytest.approx(expected, rel=1e-5)
    scaled = {layer: 3 * features for layer, features in given.items()}
    assert perceptual_distance(scaled, wanted).tolist() == pytest.approx(expected, rel=1e-5)
    assert perceptual_distance(given, given).tolist() == [0, 0]


def test_perceptual_distance_has_a_gradient_where_no_channel_responds() -> None:
    features = torch.zeros(1, 3, 2, 2, requires_grad=True)
    perceptual_distance({"layer": features}, {"layer": torch.ones(1, 3, 2, 2)}).sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
