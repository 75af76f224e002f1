"""Mean intersection over union from one confusion matrix over a whole set.

The counts are torchmetrics' `MulticlassConfusionMatrix`. The values made from them are our own, in float64: torchmetrics'
`MulticlassJaccardIndex` and `MulticlassAccuracy` divide in float32, and give a class that never occurs an IoU of 0 where it has
none (NaN here), so that `ClasswiseWrapper` around them would report other values.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from img2img.data.base import VOID
from img2img.errors import InputError


class SegmentationMetrics(Metric):
    """mIoU, pixel accuracy and the IoU of each class, as fractions in [0, 1]; higher is better.

    IoU of a class = true positives / (true positives + false positives + false negatives), all pixels of the set counted in
    ONE confusion matrix (a mean of per-image IoUs is another metric). Pixels whose target is `VOID` (255) count nowhere.

    Args:
        classes: the names of the classes 0..C-1, C >= 2, each once.

    Raises:
        InputError: fewer than two classes, or a name twice.
    """

    full_state_update = False

    def __init__(self, classes: Sequence[str]) -> None:
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
        prediction, target = prediction[counted], target[counted]
        _check_labels("target", target, size)
        _check_labels("prediction", prediction, size)
        self.confusion.to(target.device).update(prediction, target)

    def reset(self) -> None:
        """Forget what was counted."""
        super().reset()
        self.confusion.reset()

    def compute(self) -> dict[str, float]:
        """The metrics since the last `reset`: "mIoU", "pixel accuracy", and "IoU <class>" for every class.

        mIoU is the mean over the classes that occur in the target or in the prediction; a class that occurs in neither
        has no IoU: its value is NaN (write it to JSON as null). A class that is predicted but never in the target counts,
        with an IoU of 0.

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
