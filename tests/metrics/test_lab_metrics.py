import numpy as np
import pytest
import torch
from kornia.color import lab_to_rgb, rgb_to_lab
from skimage.color import deltaE_cie76, lab2rgb, rgb2lab
from torch import Tensor

from img2img.errors import InputError
from img2img.metrics.lab import LabMetrics, ab_error, delta_e


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
