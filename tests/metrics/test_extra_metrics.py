"""Metrics of torchmetrics beside a task's figures, and the perceptual ones, whose weights are a local file."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics import ClasswiseWrapper
from torchmetrics.classification import MulticlassCohenKappa, MulticlassF1Score, MulticlassPrecision
from torchmetrics.functional.image import dists as their_dists
from torchmetrics.functional.image import lpips as their_lpips
from torchmetrics.image.kid import KernelInceptionDistance

from img2img import InputError
from img2img.backbones.perceptual import PerceptualNetwork
from img2img.data import VOID, Batch
from img2img.metrics import perceptual
from img2img.metrics.extra_metrics import with_extra_metrics
from img2img.metrics.image_quality import ImageQualityMetrics
from img2img.metrics.perceptual import PerceptualMetrics
from img2img.tasks import Example, build_task
from img2img.tasks.base import combine


def test_a_value_stands_beside_the_figures_and_is_that_of_the_whole_set() -> None:
    task = build_task({"kind": "segmentation", "classes": ["a", "b", "c"]})
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, (4, 8, 8))
    prediction = np.where(rng.random(target.shape) < 0.6, target, rng.integers(0, 3, target.shape))
    target[:, 0] = VOID
    figures = with_extra_metrics(task.metrics(), kappa=MulticlassCohenKappa(num_classes=3, ignore_index=VOID))
    for part in (slice(0, 1), slice(1, 4)):
        image = torch.zeros(len(target[part]), 3, 8, 8, dtype=torch.uint8)
        example = task.example(Batch(image=image, label=torch.from_numpy(target[part])))
        figures.update(torch.from_numpy(prediction[part]), example)
    counted = target != VOID
    table = np.zeros((3, 3))
    np.add.at(table, (target[counted], prediction[counted]), 1 / counted.sum())
    chance = float(table.sum(0) @ table.sum(1))
    found = figures.compute()
    assert found["kappa"] == pytest.approx((np.trace(table) - chance) / (1 - chance), abs=1e-5)
    assert found["pixel accuracy"] == pytest.approx(np.trace(table))
    assert all(isinstance(value, float) for value in found.values())


def test_values_a_class_are_named_by_torchmetrics_and_keep_the_order_of_the_keywords() -> None:
    task = build_task({"kind": "segmentation", "classes": ["a", "b"]})
    f1 = ClasswiseWrapper(MulticlassF1Score(2, average=None), labels=["a", "b"], prefix="F1 ")
    metrics = with_extra_metrics(task.metrics(), precision=MulticlassPrecision(2), F1=f1)
    labels = torch.tensor([[[0, 0, 1, 1]]])
    example = task.example(Batch(image=torch.zeros(1, 3, 1, 4, dtype=torch.uint8), label=labels))
    metrics.update(torch.tensor([[[0, 1, 1, 1]]]), example)
    found = metrics.compute()
    assert list(found)[-3:] == ["precision", "F1 a", "F1 b"]
    assert found["precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert (found["F1 a"], found["F1 b"]) == pytest.approx((2 / 3, 4 / 5))


def test_metrics_that_are_equal_after_the_first_batch_are_updated_apart() -> None:
    task = build_task({"kind": "segmentation", "classes": ["a", "b", "c"]})
    with_void, without = MulticlassCohenKappa(3), MulticlassCohenKappa(3, ignore_index=2)
    metrics = with_extra_metrics(task.metrics(), all=with_void, two=without)
    for target in ([0, 1, 0, 1], [0, 2, 2, 1]):
        label = torch.tensor([[target]])
        example = task.example(Batch(image=torch.zeros(1, 3, 1, 4, dtype=torch.uint8), label=label))
        metrics.update(torch.tensor([[[0, 1, 0, 1]]]), example)
    found = metrics.compute()
    assert found["two"] == pytest.approx(1)
    assert found["all"] < 0.9


def test_a_metric_of_a_name_that_the_task_has_is_refused() -> None:
    task = build_task({"kind": "segmentation", "classes": ["a", "b"]})
    metrics = with_extra_metrics(task.metrics(), mIoU=MulticlassPrecision(2))
    label = torch.zeros(1, 4, 4, dtype=torch.int64)
    metrics.update(label, task.example(Batch(image=torch.zeros(1, 3, 4, 4, dtype=torch.uint8), label=label)))
    with pytest.raises(InputError, match="two metrics of the task are called 'mIoU': expected a name of its own for each"):
        metrics.compute()
    twice = combine(first=ImageQualityMetrics(), second=ImageQualityMetrics(("MSE",)))
    images = torch.rand(1, 3, 16, 16)
    twice.update(images, Example(images, images))
    with pytest.raises(InputError, match="are called 'MSE'"):
        twice.compute()


def test_a_metric_with_a_value_a_class_is_refused() -> None:
    task = build_task({"kind": "segmentation", "classes": ["a", "b", "c"]})
    figures = with_extra_metrics(task.metrics(), F1=MulticlassF1Score(3, average=None))
    example = task.example(Batch(image=torch.zeros(1, 3, 4, 4, dtype=torch.uint8), label=torch.zeros(1, 4, 4, dtype=torch.int64)))
    figures.update(example.target, example)
    with pytest.raises(InputError, match=r"'F1'.*\(3,\).*average=.*ClasswiseWrapper"):
        figures.compute()


Features = Callable[[str], tuple[torch.nn.Module, Path]]


@pytest.fixture
def features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Features:
    """By name of a network of torchvision's, its layers with random weights and a file of them; none is ever downloaded."""

    def make(name: str) -> tuple[torch.nn.Module, Path]:
        torch.manual_seed(1)
        squeezenet = torchvision.models.squeezenet1_1
        layers = (
            torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"]) if name == "vgg16" else squeezenet().features
        )
        for layer in layers.modules():
            if isinstance(layer, torch.nn.Conv2d):  # so that every layer has features that differ between images
                torch.nn.init.kaiming_normal_(layer.weight)
                torch.nn.init.normal_(layer.bias, std=0.1)
        path = tmp_path / f"{name}.safetensors"
        save_file({f"features.{key}": value for key, value in layers.state_dict().items()}, path)
        holder = torch.nn.Module()
        holder.features = layers.eval()
        monkeypatch.setattr("torchmetrics.functional.image.lpips._get_tv_model_features", lambda net, pretrained: layers)
        monkeypatch.setattr(their_dists, "vgg16", lambda weights: holder)
        return layers, path

    return make


def images(seed: int, n: int = 3) -> Tensor:
    coarse = torch.rand(n, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (40, 48), mode="bilinear").clamp(0, 1)


def measured(names: list[str], network: dict[str, Any], prediction: Tensor, target: Tensor) -> dict[str, float]:
    """The metrics of a set that comes in two batches."""
    found: dict[str, float] = {}
    for metric in PerceptualMetrics(names, network).build():
        for part in (slice(0, 1), slice(1, None)):
            metric.update(prediction[part], target[part])
        found |= metric.compute()
    return found


@pytest.mark.parametrize(("name", "theirs"), [("vgg16", "vgg"), ("squeezenet1_1", "squeeze")])
def test_lpips_is_torchmetrics_own_on_the_same_weights(features: Features, name: str, theirs: Any) -> None:
    _, path = features(name)
    prediction, target = images(0), images(1)
    found = measured(["lpips"], {"name": name, "weights": str(path)}, prediction, target)
    with torch.no_grad():
        reference = their_lpips._LPIPS(net=theirs, pnet_rand=True)(prediction, target, normalize=True).flatten()
    assert reference.std() > 1e-3, "so that a mean of batches would differ"
    assert found == {f"LPIPS ({name})": pytest.approx(reference.mean().item(), abs=1e-5)}
    assert measured(["lpips"], {"name": name, "weights": str(path)}, target, target)[f"LPIPS ({name})"] == 0


def test_dists_is_torchmetrics_own_on_the_same_weights(features: Features) -> None:
    _, path = features("vgg16")
    prediction, target = images(2), images(3)
    found = measured(["dists"], {"name": "vgg16", "weights": str(path)}, prediction, target)
    reference = their_dists.deep_image_structure_and_texture_similarity(prediction, target)
    assert reference.std() > 1e-3
    assert found == {"DISTS (vgg16)": pytest.approx(reference.mean().item(), abs=1e-5)}
    # Identical images of which the roots are rounded alike.
    assert measured(["dists"], {"name": "vgg16", "weights": str(path)}, target, target)["DISTS (vgg16)"] < 1e-5
    for level in (0.1, 0.9):
        flat = torch.full_like(target, level)
        found = measured(["dists"], {"name": "vgg16", "weights": str(path)}, flat, flat)["DISTS (vgg16)"]
        assert found == pytest.approx(0, abs=1e-5), "an image is like itself"


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_kid_is_torchmetrics_own_over_all_images_and_large_sets_are_dealt_out(
    features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers, path = features("squeezenet1_1")
    network = {"name": "squeezenet1_1", "weights": str(path), "preprocessing": "caffe"}
    prediction, target = images(4, 7), images(5, 7)
    state = torch.get_rng_state()
    found = measured(["kid"], network, prediction, target)
    assert torch.equal(torch.get_rng_state(), state), "a metric must not change what is drawn after it"

    class Pooled(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            bgr = 255 * x.flip(1) - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
            pooled: Tensor = layers(bgr).mean((2, 3)).double()
            return pooled

    def reference(index: slice, count: int) -> float:
        kid = KernelInceptionDistance(feature=Pooled(), subsets=1, subset_size=count)
        with torch.no_grad():
            kid.update(target[index], real=True)
            kid.update(prediction[index], real=False)
            return kid.compute()[0].item()

    assert list(found) == ["KID (squeezenet1_1, caffe)"]
    assert found["KID (squeezenet1_1, caffe)"] == pytest.approx(reference(slice(None), 7), rel=1e-4)
    monkeypatch.setattr(perceptual, "KID_IMAGES", 4)
    halves = (reference(slice(0, None, 2), 4) + reference(slice(1, None, 2), 3)) / 2
    assert measured(["kid"], network, prediction, target)["KID (squeezenet1_1, caffe)"] == pytest.approx(halves, rel=1e-4)
    (alone,) = PerceptualMetrics(["kid"], network).build()
    alone.update(prediction[:1], target[:1])
    assert math.isnan(alone.compute()["KID (squeezenet1_1, caffe)"])


def test_metrics_of_one_network_share_its_features(features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image goes through it once, and what was changed since is looked at again."""
    _, path = features("squeezenet1_1")
    network = {"name": "squeezenet1_1", "weights": str(path)}
    calls, forward = [], PerceptualNetwork.forward

    def counted(self: PerceptualNetwork, batch: Tensor) -> Any:
        calls.append(len(batch))
        return forward(self, batch)

    monkeypatch.setattr(PerceptualNetwork, "forward", counted)
    prediction, target = images(0), images(1)
    together = PerceptualMetrics(["lpips", "kid"], network).build()
    for metric in together:
        metric.update(prediction, target)
    assert calls == [3, 3]
    alone = [PerceptualMetrics([name], network).build()[0] for name in ("lpips", "kid")]
    for metric in alone:
        metric.update(prediction, target)
    assert [metric.compute() for metric in together] == [metric.compute() for metric in alone]
    calls.clear()
    prediction.mul_(0.5)
    together[0].update(prediction, target)
    assert calls == [3], "the target's are known still"


@pytest.mark.parametrize(
    ("names", "network", "message"),
    [
        (["lpip"], {"name": "vgg16", "weights": "w"}, "'lpip'.*lpips, dists, kid"),
        (["kid"], None, "no network is given.*weights: FILE"),
        (["kid"], {"name": "vgg16", "weights": None}, "weights are null.*weights: FILE"),
        (
            ["kid", "lpips"],
            {"name": "efficientnet_lite0", "weights": "w"},
            "'lpips'.*'efficientnet_lite0'.*vgg16 or squeezenet1_1",
        ),
        (["dists"], {"name": "squeezenet1_1", "weights": "w"}, "'dists' got network 'squeezenet1_1': expected vgg16"),
    ],
)
def test_what_a_perceptual_metric_lacks_is_refused_with_the_remedy(names: list[str], network: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PerceptualMetrics(names, network)


def test_images_that_are_too_small_and_files_that_are_missing_are_named(
    features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = features("squeezenet1_1")
    (metric,) = PerceptualMetrics(["lpips"], {"name": "squeezenet1_1", "weights": str(path)}).build()
    with pytest.raises(InputError, match=r"24 x 64.*32 x 32"):
        metric.update(torch.zeros(1, 3, 24, 64), torch.zeros(1, 3, 24, 64))
    with pytest.raises(InputError, match=r"no file at .*gone"):
        PerceptualMetrics(["kid"], {"name": "squeezenet1_1", "weights": str(path) + ".gone"}).build()
    monkeypatch.setattr(perceptual.torchmetrics_image, "__file__", str(path))
    with pytest.raises(InputError, match=r"squeeze.pth.*install torchmetrics"):
        PerceptualMetrics(["lpips"], {"name": "squeezenet1_1", "weights": str(path)}).build()
