"""What every dataset format gives: samples of 8-bit pictures, and batches of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

VOID = 255
"""The label of a pixel that counts nowhere: not in the loss, not in a metric, not in the range check."""

PARTS = ("train", "val", "test")
"""The parts of a dataset: to train on, to choose the model by, to report on."""


@dataclass(frozen=True)
class Sample:
    """One decoded item of a dataset.

    Attributes:
        image: (H, W, 3) uint8 RGB in [0, 255]: the picture; of an A|B pair, B.
        label: (H, W) uint8 class indices with `VOID` = 255, or None.
        source: (H, W, 3) uint8 RGB: A of an A|B pair, or None.
        name: what reports and error messages call it, usually the file's name.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None = None
    source: NDArray[np.uint8] | None = None
    name: str = ""


class PictureSet(ABC):
    """A dataset of pictures, read by index and never changed: `len(set)`, `set[i] -> Sample`.

    Attributes:
        classes: class names by index when samples carry labels, else an empty tuple.
        name: a short name for messages and reports.
    """

    classes: tuple[str, ...] = ()
    name: str = ""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True)
class Batch:
    """Samples of one size, stacked.

    Attributes:
        image: (N, 3, H, W) uint8 in [0, 255].
        label: (N, H, W) int64 with `VOID`, or None.
        source: (N, 3, H, W) uint8 in [0, 255], or None.
        names: N names.
    """

    image: torch.Tensor
    label: torch.Tensor | None = None
    source: torch.Tensor | None = None
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device | str) -> Self:
        """The same batch on `device`."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device, non_blocking=True) for k, v in moved.items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)

    @classmethod
    def stack(cls, samples: list[Sample]) -> Self:
        """Stack samples of one size into a batch; the `collate_fn` of the loaders."""

        def pictures(arrays: list[NDArray[np.uint8]]) -> torch.Tensor:
            return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()

        labels = [s.label for s in samples if s.label is not None]
        sources = [s.source for s in samples if s.source is not None]
        return cls(
            image=pictures([s.image for s in samples]),
            label=torch.from_numpy(np.stack(labels)).long() if labels else None,
            source=pictures(sources) if sources else None,
            names=tuple(s.name for s in samples),
        )
