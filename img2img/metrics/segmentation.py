"""Mean intersection over union from one confusion matrix over a whole set, and boundary F1.

The counts are torchmetrics' `MulticlassConfusionMatrix`. The values made from them are our own, in float64: torchmetrics'
`MulticlassJaccardIndex` and `MulticlassAccuracy` divide in float32, and give a class that never occurs an IoU of 0 where it has
none (NaN here), so that `ClasswiseWrapper` around them would report other values.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from img2img.data.base import VOID
from img2img.errors import InputError

TOLERANCE = 0.0075
"""How far a boundary pixel may be from its match, as a fraction of the image's diagonal: that of Csurka et al."""


class BoundaryF1(Metric):
    """Boundary F1 (BF score), a fraction in [0, 1]; higher is better.

    The F1 of each class in each image is `boundary_f1`. A class has the mean over the images in which the prediction or the
    target has a boundary of it, and the metric is the mean over the classes that have one in some image, so that each class
    counts alike, as in mIoU. (A mean over images of the mean over each image's classes is another number.)

    Args:
        classes: how many there are.
        tolerance: a fraction of the diagonal of each image as it is measured, above 0.
    """

    full_state_update = False
    sums: Tensor
    images: Tensor

    def __init__(self, classes: int, *, tolerance: float = TOLERANCE) -> None:
        super().__init__(sync_on_compute=False)
        self.classes, self.tolerance = classes, tolerance
        self.add_state("sums", torch.zeros(classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Measure a batch of labels: both (N, H, W) integers in 0..C-1, or `VOID` in the target."""
        for predicted, true in zip(prediction, target, strict=True):
            scores = boundary_f1(predicted, true, self.classes, tolerance=self.tolerance).to(self.sums.device)
            self.sums += scores.nan_to_num()
            self.images += ~scores.isnan()

    def compute(self) -> float:
        """The mean; NaN where no image had any boundary."""
        measured = self.images > 0
        return float((self.sums[measured] / self.images[measured]).mean())


def boundary_f1(prediction: Tensor, target: Tensor, classes: int, *, tolerance: float = TOLERANCE) -> Tensor:
    """The F1 of the boundaries of each class in one image (Csurka, Larlus and Perronnin, BMVC 2013).

    With the boundary pixels B_p and B_t of a class in prediction and target, and θ = `tolerance` times the image's diagonal:
    precision = share of B_p with `d(z, B_t) < θ`, recall = share of B_t with `d(z, B_p) < θ`, F1 = 2 P R / (P + R), d being the
    Euclidean distance in pixels. With the usual tolerance θ is 0.68 pixels of a 64 px square, where only equal pixels match, and
    1.2 of a 96 x 128 image.

    A boundary pixel is one of the class with a neighbour, of four, that is of another class. The edge of the image is no
    boundary, as in DAVIS's and scikit-image's boundaries. Void pixels of the target are in no class and no neighbour, in the
    prediction too: what is predicted there, and where void begins, is neither right nor wrong.

    Args:
        prediction: (H, W) integer labels in 0..C-1.
        target: (H, W) integer labels in 0..C-1, or `VOID`.
        classes: C.
        tolerance: see above.

    Returns:
        (C,) float64. 0 for a class with a boundary in one of the two alone; NaN for one with a boundary in neither.
    """
    counted = target != VOID
    scores = torch.full((classes,), math.nan, dtype=torch.float64, device=target.device)
    found = [torch.bincount(map_[counted], minlength=classes) for map_ in (prediction, target)]
    labels = (found[0] + found[1]).nonzero().flatten()
    square = tolerance**2 * (target.shape[0] ** 2 + target.shape[1] ** 2)
    predicted, true = (_boundaries(map_, labels, counted) for map_ in (prediction, target))
    precision = _share(predicted, _within(true, square))
    recall = _share(true, _within(predicted, square))
    f1 = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(torch.float64).tiny)
    bounded = (predicted | true).flatten(1).any(1)
    scores[labels[bounded]] = f1[bounded]
    return scores


def _boundaries(map_: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
    """The boundary pixels of each of the labels: (K, H, W) bool."""
    inside = (map_.byte() == labels.byte()[:, None, None]) & counted  # both fit: void is 255
    outside = ~inside & counted
    beside = torch.zeros_like(inside)
    beside[:, 1:] |= outside[:, :-1]
    beside[:, :-1] |= outside[:, 1:]
    beside[:, :, 1:] |= outside[:, :, :-1]
    beside[:, :, :-1] |= outside[:, :, 1:]
    return inside & beside


def _within(points: Tensor, square: float) -> Tensor:
    """Where a point (K, H, W) bool is nearer than the root of `square` pixels: a dilation by a disk."""
    reach = min(math.isqrt(math.ceil(square) - 1), max(points.shape[1:]) - 1)
    offsets = np.arange(-reach, reach + 1) ** 2
    disk = (offsets[:, None] + offsets < square).astype(np.uint8)
    near = [cv2.dilate(map_, disk, borderType=cv2.BORDER_CONSTANT, borderValue=0) for map_ in points.cpu().byte().numpy()]
    return torch.from_numpy(np.stack(near)).bool().to(points.device) if near else points


def _share(points: Tensor, near: Tensor) -> Tensor:
    """The share of the points of each class that are `near`, (K,) float64; 0 of none."""
    return (points & near).flatten(1).sum(1).double() / points.flatten(1).sum(1).clamp(min=1)


class SegmentationMetrics(Metric):
    """mIoU, pixel accuracy, boundary F1 and the IoU of each class, as fractions in [0, 1]; higher is better.

    IoU of a class = true positives / (true positives + false positives + false negatives), all pixels of the set counted in
    ONE confusion matrix (a mean of per-image IoUs is another metric). Pixels whose target is `VOID` (255) count nowhere.

    Args:
        classes: the names of the classes 0..C-1, C >= 2, each once.
        boundary: whether boundary F1 is measured.

    Raises:
        InputError: fewer than two classes, or a name twice.
    """

    full_state_update = False

    def __init__(self, classes: Sequence[str], *, boundary: bool = True) -> None:
        super().__init__(sync_on_compute=False)
        self.classes = tuple(classes)
        if not 2 <= len(self.classes) <= VOID or len(set(self.classes)) < len(self.classes):
            raise InputError(
                f"got the classes {list(self.classes)}: expected 2 to {VOID} names, each once; "
                "name the background as a class of its own, and rename doubles"
            )
        # Labels are checked by `update`, with messages of their own.
        self.confusion = MulticlassConfusionMatrix(
            len(self.classes), ignore_index=VOID, validate_args=False, sync_on_compute=False
        )
        self.boundary = BoundaryF1(len(self.classes)) if boundary else None

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            prediction: (N, C, H, W) float logits (the largest wins), or (N, H, W) integer labels in 0..C-1.
            target: (N, H, W) integer labels in 0..C-1, or `VOID`.

        Raises:
            InputError: another shape or type, a NaN among the logits, or a label out of range (void is not in this check).
        """
        size = len(self.classes)
        if target.ndim != 3 or target.is_floating_point():
            raise InputError(
                f"the target is {tuple(target.shape)} {target.dtype}: expected (N, H, W) integer labels; "
                "take the class index of each pixel"
            )
        if prediction.is_floating_point():
            expected = (len(target), size, *target.shape[1:])
            if tuple(prediction.shape) != expected:
                raise InputError(
                    f"the logits have the shape {tuple(prediction.shape)}: expected {expected}, a channel a class and "
                    "the target's size; check the head's channels and resize the logits"
                )
            if bool(torch.isnan(prediction).any()):
                raise InputError("the logits hold NaN: expected numbers; training diverged, lower the learning rate")
            prediction = prediction.argmax(dim=1)
        elif prediction.shape != target.shape:
            raise InputError(
                f"the predicted labels have the shape {tuple(prediction.shape)}: expected the target's, "
                f"{tuple(target.shape)}; give (N, H, W) labels or float logits (N, C, H, W)"
            )
        counted = target != VOID
        _check_labels("target", target[counted], size)
        _check_labels("prediction", prediction[counted], size)
        self.confusion.to(target.device).update(prediction[counted], target[counted])
        if self.boundary is not None:
            self.boundary.to(target.device).update(prediction, target)

    def reset(self) -> None:
        """Forget what was counted."""
        super().reset()
        self.confusion.reset()
        if self.boundary is not None:
            self.boundary.reset()

    def compute(self) -> dict[str, float]:
        """The metrics since the last `reset`: "mIoU", "pixel accuracy", "boundary F1", and "IoU <class>" for every class.

        mIoU is the mean over the classes that occur in the target or in the prediction; a class that occurs in neither
        has no IoU: its value is NaN (write it to JSON as null). A class that is predicted but never in the target counts,
        with an IoU of 0. Boundary F1 is NaN where no image has a boundary between classes, see `BoundaryF1`.

        Raises:
            InputError: no pixel has been counted: no update, or all void.
        """
        matrix = self.confusion.confmat.cpu().double()
        total = matrix.sum().item()
        if total == 0:
            raise InputError(
                f"{type(self).__name__} was asked for a result before any pixel with a class: expected one at least; "
                f"is the set empty, or every label void ({VOID})?"
            )
        hits = matrix.diagonal()
        union = matrix.sum(dim=0) + matrix.sum(dim=1) - hits
        iou = [hit / seen if seen else math.nan for hit, seen in zip(hits.tolist(), union.tolist(), strict=True)]
        occurring = [value for value in iou if not math.isnan(value)]
        return {
            "mIoU": sum(occurring) / len(occurring),
            "pixel accuracy": hits.sum().item() / total,
            **({} if self.boundary is None else {"boundary F1": self.boundary.compute()}),
            **{f"IoU {name}": value for name, value in zip(self.classes, iou, strict=True)},
        }


def majority_class(counts: Sequence[int] | Tensor) -> int:
    """The class with the most pixels, the lowest such index: what the baseline predicts everywhere.

    Args:
        counts: C pixel counts by class index, void left out, of the training split.

    Raises:
        InputError: not a list of counts, or no pixel at all.
    """
    values = torch.as_tensor(counts)
    if values.ndim != 1 or len(values) == 0 or int(values.max()) <= 0 or int(values.min()) < 0:
        raise InputError(
            f"got the pixel counts {values.tolist()}: expected one count >= 0 a class, not all 0; count the training labels"
        )
    return values.tolist().index(int(values.max()))


def _check_labels(name: str, labels: Tensor, classes: int) -> None:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.numel():
        found = torch.unique(wrong).tolist()
        shown = ", ".join(str(v) for v in found[:10]) + (", ..." if len(found) > 10 else "")
        raise InputError(
            f"the {name} has {wrong.numel()} pixels with the labels {shown}: expected 0..{classes - 1}, or {VOID} for void in "
            "a target; correct the number of classes or map these labels"
        )
