import pytest
import torch
from torch import Tensor, nn

from img2img.errors import InputError
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
