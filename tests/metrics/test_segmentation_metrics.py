import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

from img2img.data.base import VOID
from img2img.errors import InputError
from img2img.metrics.segmentation import SegmentationMetrics, majority_class


def plain_iou(prediction: np.ndarray, target: np.ndarray, label: int) -> float:
    counted = target != VOID
    both = ((prediction == label) & (target == label) & counted).sum()
    either = (((prediction == label) | (target == label)) & counted).sum()
    return both / either if either else math.nan


def test_hand_computed_case() -> None:
    metric = SegmentationMetrics(("sky", "road", "car"))
    metric.update(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 1, 1, VOID]]]))
    result = metric.compute()
    assert result["IoU sky"] == pytest.approx(1 / 2)
    assert result["IoU road"] == pytest.approx(1 / 2)
    assert math.isnan(result["IoU car"])
    assert result["mIoU"] == pytest.approx(1 / 2)
    assert result["pixel accuracy"] == pytest.approx(2 / 3)
    assert all(type(value) is float for value in result.values())


def test_agrees_with_plain_counting_over_the_whole_set_and_not_with_a_mean_over_images() -> None:
    rng = np.random.default_rng(0)
    classes = ("a", "b", "c", "d", "never")
    target = rng.integers(0, 4, (6, 9, 7))
    target[:2] = 0  # uneven images: only one matrix over the set gives the right figure
    prediction = np.where(rng.random(target.shape) < 0.6, target, rng.integers(0, 4, target.shape))
    target[rng.random(target.shape) < 0.1] = VOID

    metric = SegmentationMetrics(classes)
    for i in (slice(0, 1), slice(1, 4), slice(4, 6)):
        metric.update(torch.from_numpy(prediction[i]), torch.from_numpy(target[i]))
    result = metric.compute()

    expected = [plain_iou(prediction, target, c) for c in range(5)]
    assert [result[f"IoU {name}"] for name in classes] == pytest.approx(expected, nan_ok=True)
    assert result["mIoU"] == pytest.approx(np.nanmean(expected))
    accuracy = (prediction == target)[target != VOID].mean()
    assert result["pixel accuracy"] == pytest.approx(accuracy)
    per_image = np.nanmean([[plain_iou(p, t, c) for c in range(4)] for p, t in zip(prediction, target, strict=True)])
    assert result["mIoU"] != pytest.approx(per_image, abs=1e-3)


@pytest.mark.parametrize("void", [0.0, 0.2, 0.95])
@pytest.mark.parametrize("size", [2, 3, 11])
def test_counts_are_those_of_torchmetrics_and_values_agree_within_float32(size: int, void: float) -> None:
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(4, size, 7, 9, generator=generator)
    target = torch.randint(0, max(1, size - 1), (4, 7, 9), generator=generator)  # the last class is predicted alone
    logits[:, -2] = -9.0 if size > 2 else logits[:, -2]
    target[target == size - 2] = 0  # and this one is nowhere
    target[torch.rand(target.shape, generator=generator) < void] = VOID
    theirs = [
        MulticlassConfusionMatrix(size, ignore_index=VOID),
        MulticlassJaccardIndex(size, ignore_index=VOID),
        MulticlassJaccardIndex(size, average=None, ignore_index=VOID),
        MulticlassAccuracy(size, average="micro", ignore_index=VOID),
    ]
    ours = SegmentationMetrics([str(i) for i in range(size)])
    for i in range(4):
        for metric in (ours, *theirs):
            metric.update(logits[i : i + 1], target[i : i + 1])
    result = ours.compute()
    counts, mean, each, accuracy = (metric.compute() for metric in theirs)
    assert torch.equal(ours.confusion.compute(), counts)
    assert result["mIoU"] == pytest.approx(mean.item(), abs=1e-6)
    assert result["pixel accuracy"] == pytest.approx(accuracy.item(), abs=1e-6)
    for i, value in enumerate(each.tolist()):
        ours_alone = result[f"IoU {i}"]
        assert ours_alone == pytest.approx(value, abs=1e-6) or (math.isnan(ours_alone) and value == 0)
    assert math.isnan(result[f"IoU {size - 2}"]) == (size > 2)


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    metric = SegmentationMetrics(("a", "b"))
    metric.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]))
    assert metric.compute()["mIoU"] == pytest.approx((1 / 2 + 0) / 2)


def test_what_is_predicted_on_void_pixels_does_not_count() -> None:
    metric = SegmentationMetrics(("a", "b"))
    metric.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, VOID]]]))
    result = metric.compute()
    assert result["mIoU"] == 1.0
    assert math.isnan(result["IoU b"])


def test_logits_count_as_their_largest_channel() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(3, 4, 5, 6), torch.randint(0, 4, (3, 5, 6))
    from_logits, from_labels = SegmentationMetrics("abcd"), SegmentationMetrics("abcd")
    from_logits.update(logits, target)
    from_labels.update(logits.argmax(1), target.to(torch.uint8))
    assert from_logits.compute() == from_labels.compute()


def test_reset_forgets_what_was_counted() -> None:
    metric = SegmentationMetrics("ab")
    metric.update(torch.tensor([[[0, 1]]]), torch.tensor([[[1, 0]]]))
    assert metric.compute()["mIoU"] == 0.0
    metric.reset()
    metric.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 1]]]))
    assert metric.compute()["mIoU"] == 1.0


def test_labels_out_of_range_are_refused_by_value_and_void_is_not() -> None:
    metric = SegmentationMetrics("abc")
    with pytest.raises(InputError, match=r"target.* 3 pixels.*-1, 7: .*0\.\.2"):
        metric.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.tensor([[[7, VOID], [-1, 7]]]))
    with pytest.raises(InputError, match=r"prediction.* 1 pixels.*labels 3"):
        metric.update(torch.tensor([[[3, 1]]]), torch.tensor([[[0, 0]]]))
    with pytest.raises(InputError, match="before any pixel"):
        metric.compute()  # nothing of the refused batches was counted


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long), "logits have the shape"),
        (torch.zeros(1, 2, 2, 2), torch.zeros(1, 4, 4, dtype=torch.long), "logits have the shape"),
        (torch.zeros(1, 2, 2, dtype=torch.long), torch.zeros(1, 4, 4, dtype=torch.long), "predicted labels"),
        (torch.full((1, 2, 4, 4), math.nan), torch.zeros(1, 4, 4, dtype=torch.long), "NaN"),
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4), "integer labels"),
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.long), "integer labels"),
    ],
)
def test_what_does_not_fit_is_refused(prediction: torch.Tensor, target: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SegmentationMetrics("ab").update(prediction, target)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(InputError, match="before any pixel"):
        SegmentationMetrics("ab").compute()
    metric = SegmentationMetrics("ab")
    metric.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.full((1, 2, 2), VOID))
    with pytest.raises(InputError, match="every label void"):
        metric.compute()


@pytest.mark.parametrize("classes", [(), ("one",), ("a", "b", "a")])
def test_classes_must_be_two_or_more_and_distinct(classes: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="classes"):
        SegmentationMetrics(classes)


def test_majority_class_is_the_largest_count_and_the_first_of_equals() -> None:
    assert majority_class([3, 9, 1]) == 1
    assert majority_class(torch.tensor([2, 5, 5])) == 1


@pytest.mark.parametrize("counts", [[], [0, 0], [3, -1], [[1, 2]]])
def test_majority_class_refuses_what_are_no_counts(counts: list[int]) -> None:
    with pytest.raises(InputError, match="pixel counts"):
        majority_class(counts)
