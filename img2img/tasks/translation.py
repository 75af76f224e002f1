"""Translation: one image in, another of the same scene out, learned from pairs: sharpening, retouching, maps, day to night."""

from typing import ClassVar

from torch import Tensor

from img2img.data.base import Batch
from img2img.tasks.base import TASKS, Example, need, unit
from img2img.tasks.image_output import ImageOutput, mixed


@TASKS.register("translation")
class Translation(ImageOutput):
    """A pair's A in, its B out, in RGB. Its option `loss` is `ImageOutput`'s."""

    baseline_name: ClassVar[str] = "copy of the input"
    in_parts: ClassVar[bool] = True
    out_channels = 4

    def input(self, batch: Batch) -> Tensor:
        """A; a user's own image, which comes without a B, is one."""
        return unit(batch.image if batch.source is None else batch.source)

    def target(self, batch: Batch) -> Tensor:
        """B, (N, 3, H, W) in [0, 1].

        Raises:
            InputError: the data has no pairs.
        """
        need(batch.source, "an image to start from", self.kind)
        return unit(batch.image)

    def prediction(self, raw: Tensor, input: Tensor) -> Tensor:
        """RGB in [0, 1], see `mixed`."""
        return mixed(raw, input)

    def baseline(self, example: Example) -> Tensor:
        """The input as it is."""
        return example.input
