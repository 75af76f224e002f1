"""What a kind of task or a dataset of one's own gets wrong is said before it is trained, on two samples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from img2img import InputError
from img2img.api import run
from img2img.data import DATA, ImageDataset, Sample
from img2img.metrics.image_quality import ImageQualityMetrics
from img2img.tasks import TASKS, Example, Metrics, check_task
from img2img.tasks.base import combine, unit
from img2img.tasks.denoising import Denoising

Make = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("registries")


class Noise(ImageDataset):
    """Eight random images, all with what is given."""

    name = "noise"

    def __init__(self, **parts: Any) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        image = np.random.default_rng(index).integers(0, 256, (24, 40 + index, 3)).astype(np.uint8)
        given: dict[str, Any] = {"image": image, "name": str(index), **self._parts}
        return Sample(**given)


class _TensorMetric:
    def update(self, prediction: torch.Tensor, target: torch.Tensor) -> None:
        self.value = (prediction - target).square().mean()

    def compute(self) -> dict[str, Any]:
        return {"MSE": self.value}


def _derived(**members: Any) -> Denoising:
    """A task of a kind that differs from denoising in what is given."""
    made = type("Mine", (Denoising,), members)
    return TASKS.register("mine")(made)()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "input of 0..255": (
        {"input": lambda self, batch: batch.image.float()},
        r"input of the mine task \(Mine\).* from 0 to 255.*unit",
    ),
    "input of 8 bits": (
        {"input": lambda self, batch: batch.image},
        r"input of.*uint8.*expected \(2, 3, 24, 40\) float in \[0, 1\]",
    ),
    "input when used": ({"served_input": lambda self, batch: batch.image.float()}, "served_input of.*in \\[0, 1\\]"),
    "one channel against three": (
        {"prediction": lambda self, raw, input: input[:, :1]},
        r"prediction of.*\(2, 1, 24, 40\).*target \(2, 3, 24, 40\).*silently",
    ),
    "a baseline of one channel": ({"baseline": lambda self, example: example.input[:, :1]}, "baseline of.*silently"),
    "a loss an image": (
        {"loss": lambda self, raw, example: raw.mean((1, 2, 3))},
        r"loss of.*gave \(2,\).*expected a scalar.*\.mean\(\)",
    ),
    "a loss without a gradient": ({"loss": lambda self, raw, example: raw.detach().mean()}, "loss of.*no gradient.*detach"),
    "a metric that is a tensor": (
        {"metrics": lambda self: combine(m=_TensorMetric())},
        r"computed \(\) torch.float32 as 'MSE'.*item",
    ),
    "an image of one channel": ({"to_image": lambda self, prediction, input: prediction[:, :1]}, "to_image.*expand"),
    "an image of 0..255": (
        {"to_image": lambda self, prediction, input: prediction * 255},
        r"to_image.*expected images in \[0, 1\]",
    ),
    "no kind": ({"options": lambda self: {"sigma": self.sigma}}, 'options of.*add "kind": self.kind'),
    "options that are no text": (
        {"options": lambda self: {"kind": self.kind, "sigma": torch.tensor(25.0)}},
        "options of.*cannot hold.*plain values",
    ),
    "other options": ({"options": lambda self: {"kind": self.kind, "sigma": 3.0 + self.sigma}}, "expected the same"),
    "no channels": ({"out_channels": property(lambda self: 0, lambda self, value: None)}, "out_channels=0: expected 1 or more"),
    "a metric that is not computed": (
        {"metric": "mse", "higher_is_better": False},
        "'mse', and its metrics compute .*MSE.*: expected one of these; did you mean 'MSE'",
    ),
    "a metric of no validation": (
        {"primary_metrics": lambda self: combine(m=ImageQualityMetrics(("SSIM",)))},
        "'MSE', and its metrics compute SSIM",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_kind_of_task_gets_wrong_is_named(name: str) -> None:
    members, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        check_task(_derived(**members), Noise())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"image": np.zeros((8, 8, 3))}, r"image of the sample '0' of the dataset 'noise' has the form .* float64.*uint8"),
        ({"image": np.zeros((8, 8), np.uint8)}, r"form \(8, 8\) uint8: expected \(height, width, 3\).*repeat a grey image"),
        ({"image": torch.zeros(3, 8, 8)}, "has a Tensor as its image: expected a NumPy array"),
        ({"image": np.zeros((3, 8, 8), np.uint8)}, r"form \(3, 8, 8\)"),
        ({"label": np.zeros((24, 40), np.int64)}, "label of .*int64.*number the classes"),
        ({"label": np.zeros((8, 8), np.uint8)}, r"a label of \(8, 8\) pixels .*expected one size"),
        ({"category": 1.5}, "category 1.5: expected the index"),
    ],
)
def test_what_a_dataset_gets_wrong_is_named(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_task(Denoising(), Noise(**parts))


def test_a_dataset_that_gives_something_else() -> None:
    class Arrays(Noise):
        def __getitem__(self, index: int) -> Any:
            return np.zeros((8, 8, 3), np.uint8)

    with pytest.raises(InputError, match="'noise' gave a ndarray: expected a Sample"):
        check_task(Denoising(), Arrays())


def test_a_check_draws_no_random_number_of_the_training() -> None:
    task = _derived(input=lambda self, batch: (unit(batch.image) + torch.rand(1) / 10).clamp(0, 1))
    torch.manual_seed(3)
    check_task(task, Noise())
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)


@pytest.fixture
def one_task(config: Make) -> dict[str, Any]:
    made = config(sequence=["colour"])
    made["tasks"]["colour"]["task"] = {"kind": "mine"}
    return made


def test_a_run_checks_a_kind_before_it_writes_anything(one_task: dict[str, Any], tmp_path: Path) -> None:
    _derived(metric="ssim", higher_is_better=True)
    with pytest.raises(InputError, match="did you mean 'SSIM'"):
        run(one_task)
    assert not (tmp_path / "run" / "metrics").exists()


def test_a_run_checks_data_of_ones_own_under_a_kind_of_img2imgs(config: Make) -> None:
    @DATA.register("floats")
    class Floats(Noise):
        def __init__(self) -> None:
            super().__init__(image=np.zeros((32, 32, 3)))

    made = config(sequence=["colour"])
    made["tasks"]["colour"]["data"] = {"kind": "floats"}
    with pytest.raises(InputError, match=r"float64: expected .*uint8"):
        run(made)


def test_a_primary_metric_without_a_ceiling_has_no_skill(one_task: dict[str, Any]) -> None:
    _derived(metric="PSNR", higher_is_better=True)
    results = run(one_task)
    assert results["tasks"][0]["primary_metric"] == "PSNR"
    assert results["tasks"][0]["value"] > 1
    assert results["transfer"]["average_skill"] is None


def test_a_primary_metric_that_is_not_measured_is_named_at_a_validation(one_task: dict[str, Any], tmp_path: Path) -> None:
    """As where `metrics` depends on the data."""
    from img2img.tasks.check import primary_value

    with pytest.raises(InputError, match="metrics compute none"):
        primary_value(_derived(), {})


def test_a_metric_is_set_with_its_direction() -> None:
    with pytest.raises(InputError, match="task class Mine sets metric = 'SSIM' and no higher_is_better"):
        _derived(metric="SSIM")
    assert _derived(metric="MSE").metric == "MSE", "the one that it has anyway"

    class Deeper(Denoising):
        metric = "SSIM"
        higher_is_better = True

    class Deepest(Deeper):
        def metrics(self) -> Metrics:
            return super().metrics()

        def baseline(self, example: Example) -> torch.Tensor:
            return example.target

    assert Deepest.higher_is_better


@pytest.mark.parametrize(("crop", "sides"), [(30, "28 or 32"), (3, "8")])
def test_a_crop_that_the_backbone_does_not_take_is_refused_with_those_that_it_takes(
    config: Make, tmp_path: Path, crop: int, sides: str
) -> None:
    made = config(sequence=["colour"])
    made["train"]["augmentation"] = made["train"].get("augmentation", {}) | {"crop": crop}
    said = rf"tasks\.colour has train\.augmentation\.crop={crop}: the backbone takes multiples.*give {sides}"
    with pytest.raises(InputError, match=said):
        run(made)
    assert not (tmp_path / "run" / "metrics").exists()
