"""Top-1 and top-5 accuracy of a classification, and each class's own, over a whole set.

Not torchmetrics' `MulticlassAccuracy`: it ranks by `topk`, whose order of equal scores is undefined (see `ranks`), divides in
float32, and gives a class without an image an accuracy of 0 where it has none (NaN here).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from img2img.errors import InputError


class AccuracyMetrics(Metric):
    """Top-1, top-5 and the accuracy of each class, as fractions in [0, 1]; higher is better.

    Top-k = images whose class is among the k highest scores / all images. The accuracy of a class is the top-1 of its
    images alone, its recall. Top-5 is left out where there are no more than five classes, since it would be 1.

    Args:
        classes: the names of the classes 0..C-1, C >= 2, each once.

    Raises:
        InputError: fewer than two classes, or a name twice.
    """

    full_state_update = False
    hits: Tensor
    images: Tensor

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(sync_on_compute=False)
        self.classes = tuple(classes)
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise InputError(f"got the classes {list(self.classes)}: expected two names or more, each once; rename doubles")
        size = len(self.classes)
        self._k = (1, 5) if size > 5 else (1,)
        self.add_state("hits", torch.zeros(len(self._k), size, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            prediction: (N, C) float, a score a class: logits, probabilities or frequencies.
            target: (N,) int64 class indices in 0..C-1.

        Raises:
            InputError: another shape or type, a NaN among the scores, or a class index out of range.
        """
        size = len(self.classes)
        if target.ndim != 1 or target.dtype != torch.int64:
            raise InputError(
                f"the target is {tuple(target.shape)} {target.dtype}: expected (N,) int64; give one class index an image"
            )
        if prediction.shape != (len(target), size) or not prediction.is_floating_point():
            raise InputError(
                f"the prediction is {tuple(prediction.shape)} {prediction.dtype}: expected ({len(target)}, {size}) floats, "
                "a score for each target and class; check the head's channels"
            )
        if bool(torch.isnan(prediction).any()):
            raise InputError("the scores hold NaN: expected numbers; training diverged, lower the learning rate")
        wrong = target[(target < 0) | (target >= size)]
        if wrong.numel():
            raise InputError(
                f"the target has {wrong.numel()} images of the classes {torch.unique(wrong).tolist()[:10]}: expected "
                f"0..{size - 1}; correct the number of classes or map these labels"
            )
        place = ranks(prediction, target)
        found = [torch.bincount(target[place < k], minlength=size) for k in self._k]
        self.hits += torch.stack(found).to(self.hits.device)
        self.images += torch.bincount(target, minlength=size).to(self.images.device)

    def compute(self) -> dict[str, float]:
        """The metrics since the last `reset`: "top-1", with more than five classes "top-5", and "accuracy of <class>".

        A class without an image has no accuracy: its value is NaN (write it to JSON as null).

        Raises:
            InputError: no image has been counted.
        """
        images, total = self.images.tolist(), int(self.images.sum())
        if total == 0:
            raise InputError(
                f"{type(self).__name__} was asked for a result before any image: expected one update at least; is the set empty?"
            )
        counted = zip(self.classes, self.hits[0].tolist(), images, strict=True)
        return {
            **{f"top-{k}": int(hits.sum()) / total for k, hits in zip(self._k, self.hits, strict=True)},
            **{f"accuracy of {name}": hit / seen if seen else math.nan for name, hit, seen in counted},
        }


def ranks(scores: Tensor, target: Tensor) -> Tensor:
    """How many classes come before the target's: 0 for the highest score.

    Of equal scores the lower class index comes first, on every device: `topk` promises no order, and frequencies, the scores of
    a baseline, are often equal.

    Args:
        scores: (N, C) float, no NaN.
        target: (N,) int64 class indices in 0..C-1.

    Returns:
        (N,) int64 in 0..C-1.
    """
    column = target.unsqueeze(1)
    own = scores.gather(1, column)
    lower = torch.arange(scores.shape[1], device=scores.device) < column
    return ((scores > own) | ((scores == own) & lower)).sum(1)
