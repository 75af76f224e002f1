import math

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from skimage.segmentation import find_boundaries
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

from img2img.data.base import VOID
from img2img.errors import InputError
from img2img.metrics.segmentation import BoundaryF1, SegmentationMetrics, boundary_f1, majority_class


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


# ---------------------------------------------------------------------- boundaries


def plain_boundary(labels: np.ndarray, label: int, counted: np.ndarray) -> np.ndarray:
    """Pixel by pixel: one of the class with a counted neighbour of another class."""
    if counted.all():
        return find_boundaries(labels == label, connectivity=1, mode="inner")  # type: ignore[no-any-return]
    found = np.zeros(labels.shape, bool)
    for y, x in zip(*np.nonzero((labels == label) & counted), strict=True):
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < labels.shape[0] and 0 <= u < labels.shape[1] and counted[v, u] and labels[v, u] != label:
                found[y, x] = True
    return found


def plain_f1(prediction: np.ndarray, target: np.ndarray, label: int, tolerance: float) -> float:
    """The published algorithm by SciPy's distance transforms."""
    counted = target != VOID
    ours, theirs = (plain_boundary(labels, label, counted) for labels in (prediction, target))
    if not ours.any() and not theirs.any():
        return math.nan
    if not ours.any() or not theirs.any():
        return 0.0
    theta = tolerance * math.hypot(*target.shape)
    precision = (distance_transform_edt(~theirs)[ours] < theta).mean()
    recall = (distance_transform_edt(~ours)[theirs] < theta).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def blocks(rng: np.random.Generator, shape: tuple[int, int], size: int, classes: int) -> np.ndarray:
    """Labels in blocks, so that there are boundaries apart from each other."""
    few = rng.integers(0, classes, (-(-shape[0] // size), -(-shape[1] // size)))
    return few.repeat(size, 0).repeat(size, 1)[: shape[0], : shape[1]]


@pytest.mark.parametrize("void", [0.0, 0.15])
@pytest.mark.parametrize(("shape", "tolerance"), [((31, 45), 0.0075), ((31, 45), 0.05), ((64, 3), 0.08), ((1, 40), 0.2)])
def test_boundary_f1_is_that_of_distance_transforms(shape: tuple[int, int], tolerance: float, void: float) -> None:
    rng = np.random.default_rng(1)
    metric, scores = BoundaryF1(5, tolerance=tolerance), []
    for _ in range(3):
        target = blocks(rng, shape, 9, 4)
        prediction = np.where(blocks(rng, shape, 5, 3) > 0, target, np.roll(target, (2, 3), (0, 1)))
        target[rng.random(shape) < void] = VOID
        expected = [plain_f1(prediction, target, c, tolerance) for c in range(5)]
        ours, theirs = torch.from_numpy(prediction), torch.from_numpy(target)
        assert boundary_f1(ours, theirs, 5, tolerance=tolerance).tolist() == pytest.approx(expected, abs=1e-9, nan_ok=True)
        metric.update(ours[None], theirs[None])
        scores.append(expected)
    assert any(0 < value < 1 for row in scores for value in row) or shape[0] == 1
    assert math.isnan(scores[0][4]), "a class in neither has no boundary to find"
    of_classes = [np.mean(known) for column in zip(*scores, strict=True) if (known := [v for v in column if not math.isnan(v)])]
    assert metric.compute() == pytest.approx(np.mean(of_classes), abs=1e-9)


def test_the_tolerance_decides_which_boundary_is_found() -> None:
    target = torch.zeros(60, 80, dtype=torch.int64)  # of a diagonal of 100
    target[:, 40:] = 1
    moved = target.roll(2, 1)
    moved[:, :2] = 0
    found = [boundary_f1(moved, target, 2, tolerance=t).tolist() for t in (0.0075, 0.02, 0.021)]
    assert found == [[0, 0], [0, 0], [1, 1]], "the distance of 2 must be below the bound"
    assert boundary_f1(target, target, 2).tolist() == [1, 1]


def test_absent_classes_and_void_count_as_documented() -> None:
    target = torch.zeros(8, 8, dtype=torch.int64)
    target[:, 4:] = 1
    alone = torch.zeros_like(target)
    assert boundary_f1(alone, target, 3).tolist() == pytest.approx([0, 0, math.nan], nan_ok=True), "boundaries of one side alone"
    assert boundary_f1(alone, alone, 3).isnan().all(), "a class without a boundary, such as one that fills the image"
    assert math.isnan(_boundary(alone, alone))
    hidden = target.clone()
    hidden[:, 3:6] = VOID
    assert boundary_f1(target, hidden, 3).isnan().all(), "the boundary lies in void"
    inside = target.clone()
    inside[2:4, 4] = 2
    assert torch.equal(boundary_f1(inside, hidden, 3).isnan(), boundary_f1(target, hidden, 3).isnan())
    assert (hidden == VOID).any(), "the caller's target is not changed"


def _boundary(prediction: torch.Tensor, target: torch.Tensor) -> float:
    metric = SegmentationMetrics(("a", "b", "c"))
    metric.update(prediction[None], target[None])
    return metric.compute()["boundary F1"]


def test_boundary_f1_stands_beside_miou_and_starts_anew() -> None:
    target = torch.zeros(8, 8, dtype=torch.int64)
    target[:, 4:] = 1
    assert _boundary(target, target) == 1
    metric = SegmentationMetrics(("a", "b", "c"))
    metric.update(torch.zeros_like(target)[None], target[None])
    assert list(metric.compute())[:3] == ["mIoU", "pixel accuracy", "boundary F1"]
    assert metric.compute()["boundary F1"] == 0
    metric.reset()
    metric.update(target[None], target[None])
    assert metric.compute()["boundary F1"] == 1
