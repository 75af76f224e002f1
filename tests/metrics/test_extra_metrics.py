"""Metrics of torchmetrics beside a task's figures."""

import numpy as np
import pytest
import torch
from torchmetrics import ClasswiseWrapper
from torchmetrics.classification import MulticlassCohenKappa, MulticlassF1Score, MulticlassPrecision

from img2img import InputError
from img2img.data import VOID, Batch
from img2img.metrics.extra_metrics import with_extra_metrics
from img2img.tasks import build_task


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


def test_a_metric_with_a_value_a_class_is_refused() -> None:
    task = build_task({"kind": "segmentation", "classes": ["a", "b", "c"]})
    figures = with_extra_metrics(task.metrics(), F1=MulticlassF1Score(3, average=None))
    example = task.example(Batch(image=torch.zeros(1, 3, 4, 4, dtype=torch.uint8), label=torch.zeros(1, 4, 4, dtype=torch.int64)))
    figures.update(example.target, example)
    with pytest.raises(InputError, match=r"'F1'.*\(3,\).*average=.*ClasswiseWrapper"):
        figures.compute()
