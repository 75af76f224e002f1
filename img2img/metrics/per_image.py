"""A mean over images, and the input checks that the image metrics share."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from img2img.errors import InputError

RANGE_TOLERANCE = 1e-3
"""How far outside [0, 1] an image may lie: a quarter of a grey level, which interpolation may add and no eye sees."""


class PerImageMean(Metric):
    """Means over images of some metrics, each image counting once whatever its size.

    Subclasses call `add` in `update(...)`. The sums are float64: a long set loses no digits. (torchmetrics' `MeanMetric` holds
    one value in float32, and leaves NaN out of the mean.)

    Args:
        names: the metrics' names, in the order of the result.
    """

    full_state_update = False
    sums: Tensor
    images: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(sync_on_compute=False)
        self.names = tuple(names)
        self.add_state("sums", torch.zeros(len(names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add one value an image, (N,), of every name."""
        values = torch.stack([metrics[name] for name in self.names]).to(self.sums.device).double()
        self.sums += values.sum(dim=1)
        self.images += values.shape[1]

    def compute(self) -> dict[str, float]:
        """The mean of each metric over all images since the last `reset`.

        Raises:
            InputError: no image has been seen.
        """
        count = int(self.images)
        if count == 0:
            raise InputError(
                f"{type(self).__name__} was asked for a result before any image: expected one update at least; is the set empty?"
            )
        return {name: value / count for name, value in zip(self.names, self.sums.tolist(), strict=True)}


def check_pair(prediction: Tensor, target: Tensor, *, channels: tuple[int, ...]) -> None:
    """Refuse what is not two finite float tensors of one shape (N, C, H, W) with N, H, W >= 1 and C in `channels`.

    Raises:
        InputError: another shape, type, or a NaN or infinite value.
    """
    wanted = " or ".join(str(c) for c in channels)
    for name, x in (("prediction", prediction), ("target", target)):
        if x.ndim != 4 or x.shape[1] not in channels or x.numel() == 0:
            raise InputError(f"the {name} has the shape {tuple(x.shape)}: expected (N, {wanted}, H, W), not empty")
        if not x.is_floating_point():
            raise InputError(f"the {name} is {x.dtype}: expected floats; convert it (8-bit images: divide by 255)")
        if not bool(torch.isfinite(x).all()):
            raise InputError(
                f"the {name} holds NaN or infinite values: expected finite numbers; "
                "check the data, and if training diverged lower the learning rate"
            )
    if prediction.shape != target.shape:
        raise InputError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape: "
            "expected one shape; resize or crop them alike"
        )


def check_images(prediction: Tensor, target: Tensor) -> None:
    """Refuse what is not two float RGB images (N, 3, H, W) in [0, 1] of one shape.

    Raises:
        InputError: as `check_pair`, or a value outside [0, 1].
    """
    check_pair(prediction, target, channels=(3,))
    for name, x in (("prediction", prediction), ("target", target)):
        low, high = (v.item() for v in torch.aminmax(x))
        if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
            raise InputError(
                f"the {name} has values from {low:.4g} to {high:.4g}: expected [0, 1]; clamp it, or divide 8-bit values by 255"
            )


def at_least_float32(x: Tensor) -> Tensor:
    """`x` as float32 if it is of half precision, else unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def precise(x: Tensor) -> Tensor:
    """`x` in a type whose products and convolutions round no coarser than float32. Call it where autocast is disabled.

    On CUDA that is float64, since convolutions there may run in TF32, whose 10-bit mantissa would drown the small variances in
    SSIM. On a CPU float64 convolutions are sixteen times as slow as float32, which is exact enough there.
    """
    return x.double() if x.device.type == "cuda" else at_least_float32(x)
