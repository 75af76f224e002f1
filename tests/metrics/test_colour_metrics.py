import math

import numpy as np
import pytest
import torch
from kornia.color import lab_to_rgb, rgb_to_lab
from skimage.color import deltaE_cie76, deltaE_ciede2000, lab2rgb, rgb2lab
from torch import Tensor

from img2img.errors import InputError
from img2img.metrics.colour import ColourMetrics, LabMetrics, ab_error, ciede2000, colourfulness, delta_e


def colours(seed: int, n: int = 2) -> Tensor:
    return torch.rand(n, 3, 8, 9, generator=torch.Generator().manual_seed(seed))


def skimage_lab(images: Tensor) -> np.ndarray:
    return rgb2lab(images.double().permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-10)])
def test_kornia_and_scikit_image_agree_on_lab(dtype: torch.dtype, tolerance: float) -> None:
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.003, 0.5, 1.0])] * 3).T.reshape(1, 3, 8, 8)
    for images in (colours(0), corners):
        ours = rgb_to_lab(images.to(dtype)).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(ours, skimage_lab(images), atol=tolerance, rtol=0)


def test_kornia_and_scikit_image_agree_on_the_way_back() -> None:
    images = colours(1)
    lab = rgb_to_lab(images.double())
    theirs = lab2rgb(lab.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(lab_to_rgb(lab).permute(0, 2, 3, 1).numpy(), theirs, atol=1e-6)


def test_greys_have_an_ab_below_a_hundredth() -> None:
    greys = torch.linspace(0, 1, 12).reshape(1, 1, 3, 4).expand(1, 3, 3, 4)
    assert rgb_to_lab(greys)[:, 1:].abs().max() < 0.01


def test_ab_error_is_half_the_squared_distance_in_the_ab_plane() -> None:
    target = torch.zeros(1, 2, 2, 2)
    prediction = torch.tensor([6.0, 8.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
    assert ab_error(prediction, target).item() == pytest.approx((6**2 + 8**2) / 2)
    assert delta_e(prediction, target).item() == pytest.approx(10.0)


def test_rgb_images_are_measured_as_scikit_image_does() -> None:
    prediction, target = colours(2, 3), colours(3, 3)
    metric = LabMetrics()
    metric.update(prediction[:1], target[:1])
    metric.update(prediction[1:], target[1:])
    result = metric.compute()
    p, t = skimage_lab(prediction), skimage_lab(target)
    assert result["delta E"] == pytest.approx(deltaE_cie76(t, p).mean(), rel=1e-5)
    assert result["ab error"] == pytest.approx(((p - t)[..., 1:] ** 2).mean(), rel=1e-5)
    assert all(type(value) is float for value in result.values())


def test_rgb_is_measured_in_full_precision_under_autocast() -> None:
    prediction, target = colours(2), colours(3)
    inside, outside = LabMetrics(), LabMetrics()
    outside.update(prediction, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside.update(prediction, target)
    assert inside.compute() == outside.compute()


def test_ab_and_rgb_of_the_same_lightness_agree() -> None:
    target = rgb_to_lab(0.3 + 0.4 * colours(4).double())
    prediction = target.clone()
    prediction[:, 1:] *= 0.5  # towards grey: stays within sRGB
    from_ab, from_rgb = LabMetrics(), LabMetrics()
    from_ab.update(prediction[:, 1:], target[:, 1:])
    from_rgb.update(lab_to_rgb(prediction), lab_to_rgb(target))
    assert from_ab.compute() == pytest.approx(from_rgb.compute(), rel=1e-3)


def test_the_set_is_a_mean_over_images() -> None:
    metric = LabMetrics()
    metric.update(torch.full((1, 2, 4, 4), 3.0), torch.zeros(1, 2, 4, 4))
    metric.update(torch.full((1, 2, 2, 2), 1.0), torch.zeros(1, 2, 2, 2))
    assert metric.compute()["ab error"] == pytest.approx((9 + 1) / 2)
    metric.reset()
    metric.update(torch.full((1, 2, 2, 2), 1.0), torch.zeros(1, 2, 2, 2))
    assert metric.compute()["ab error"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4), "differ in shape"),
        (torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4), "2 or 3"),
        (torch.full((1, 3, 4, 4), 50.0), torch.zeros(1, 3, 4, 4), r"expected \[0, 1\]"),
        (torch.full((1, 2, 4, 4), torch.nan), torch.zeros(1, 2, 4, 4), "NaN"),
    ],
)
def test_what_is_neither_ab_nor_rgb_is_refused(prediction: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LabMetrics().update(prediction, target)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(InputError, match="before any image"):
        LabMetrics().compute()


def plain_colourfulness(image: np.ndarray) -> float:
    """Hasler and Süsstrunk 2003, section 7: M(3) of (H, W, 3) in [0, 255], as printed."""
    r, g, b = image[..., 0], image[..., 1], image[..., 2]
    rg, yb = r - g, 0.5 * (r + g) - b
    sigma = np.sqrt(rg.var() + yb.var())
    mu = np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)
    return float(sigma + 0.3 * mu)


def test_ciede2000_is_that_of_scikit_image_over_the_whole_of_lab() -> None:
    generator = torch.Generator().manual_seed(5)
    # Saturated colours, almost grey ones, greys, and hues on both sides of the angle 0.
    spread = torch.tensor([110.0, 1.0, 0.0, 30.0]).repeat_interleave(500)
    pair = []
    for _ in range(2):
        lab = torch.rand(3, 2000, generator=generator, dtype=torch.float64) * 2 - 1
        lab = torch.cat([50 + 50 * lab[:1], spread * lab[1:]])
        pair.append(lab.reshape(1, 3, 20, 100))
    theirs = deltaE_ciede2000(*(x[0].permute(1, 2, 0).numpy() for x in pair))
    pixels = [x.permute(0, 2, 3, 1).reshape(-1, 3, 1, 1) for x in pair]  # an image a pixel
    np.testing.assert_allclose(ciede2000(*pixels).numpy(), theirs.ravel(), atol=1e-4)
    assert ciede2000(pair[0], pair[0]).item() == 0
    # Of the pairs that Sharma, Wu and Dalal print: 1 to 3, 4 to 6, 16 and 34.
    printed = [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0000),
        ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ]
    for one, other, value in printed:
        got = ciede2000(*(torch.tensor(x, dtype=torch.float64).reshape(1, 3, 1, 1) for x in (one, other)))
        assert got.item() == pytest.approx(value, abs=1e-4)
    with pytest.raises(InputError, match=r"\(1, 2, 4, 4\).*lightness"):
        ciede2000(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4))


def test_colourfulness_is_the_paper_s_and_the_ratio_is_one_of_means_over_a_set() -> None:
    prediction, target = 0.5 + 0.3 * (colours(6, 3) - 0.5), colours(7, 3)
    as_arrays = [255 * x.double().permute(0, 2, 3, 1).numpy() for x in (prediction, target)]
    ours = [colourfulness(x.double()).tolist() for x in (prediction, target)]
    theirs = [[plain_colourfulness(image) for image in images] for images in as_arrays]
    assert ours == [pytest.approx(values, abs=1e-9) for values in theirs]
    metric = ColourMetrics()
    metric.update(prediction[:1], target[:1])
    metric.update(prediction[1:], target[1:])
    found = metric.compute()
    assert found["colourfulness ratio"] == pytest.approx(np.mean(theirs[0]) / np.mean(theirs[1]), abs=1e-6)
    assert found["CIEDE2000"] == pytest.approx(deltaE_ciede2000(skimage_lab(target), skimage_lab(prediction)).mean(), abs=1e-4)
    assert found["colourfulness ratio"] < 0.5
    assert all(type(value) is float for value in found.values())


def test_a_grey_copy_has_no_colourfulness_and_a_grey_truth_no_ratio() -> None:
    target = colours(8)
    metric = ColourMetrics()
    metric.update(target.mean(1, keepdim=True).expand_as(target), target)
    assert metric.compute()["colourfulness ratio"] == pytest.approx(0, abs=1e-6)
    metric.reset()
    metric.update(target, torch.full_like(target, 0.5))
    assert math.isnan(metric.compute()["colourfulness ratio"])
