"""Edge colouring: edges in, the photo out, as in edges2handbags."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from img2img import metrics as measures
from img2img.backbones.hed import HED, load_hed
from img2img.data.base import Batch, ImageDataset
from img2img.errors import InputError
from img2img.tasks.base import TASKS, Example, Metrics, combine, mean_colour, unit
from img2img.tasks.image_output import ImageOutput

Drawing = Literal["pair", "canny", "sobel", "hed"]

WHOLE = 1 << 20
"""Pixels of an image whose Canny edges kornia draws as a whole; it needs some 250 bytes for each."""

_CANNY_REACH = 4
"""How far a pixel's strength there depends on others: 2 of the blur, 1 of the gradient, 1 of its neighbours along it."""


@TASKS.register("edges")
class EdgeColouring(ImageOutput):
    """Dark edges on white in, RGB out.

    Args:
        drawing: where the edges come from: "pair" takes side A of A|B pairs, "canny" and "sobel" let kornia draw them from
            the photo itself. Canny's are thin, closed and of one strength; Sobel's keep how strong each edge is. "hed" lets a
            network draw them in training, which leaves texture out and is nearest to what a hand draws; put to use, the task
            takes a drawing as it is, as with "pair", and no such network.
        weights: with "hed" the file of that network, see `backbones.hed`; needed for training and measuring alone.
        loss: as of `ImageOutput`.
    """

    baseline_name: ClassVar[str] = "mean colour"
    in_parts: ClassVar[bool] = True
    out_channels = 6

    def __init__(self, *, drawing: Drawing = "pair", weights: str | None = None, loss: Mapping[str, Any] | None = None) -> None:
        super().__init__(loss=loss)
        if drawing not in ("pair", "canny", "sobel", "hed"):
            raise InputError(f"edges drawing={drawing!r}: expected 'pair', 'canny', 'sobel' or 'hed'")
        if weights is not None and drawing != "hed":
            raise InputError(f"edges weights={weights!r} with drawing={drawing!r}: only 'hed' reads a file; leave weights out")
        self.drawing = drawing
        self.reach = {"pair": 0, "sobel": 1, "canny": None, "hed": 0}[drawing]
        self._weights = weights
        self.mean = torch.full((3,), 0.5, dtype=torch.float32)

    @cached_property
    def _detector(self) -> HED:
        if self._weights is None:
            raise InputError(
                "an edges task with drawing='hed' needs the network that draws to train with: give weights=FILE in its config, "
                "see img2img.backbones.hed"
            )
        return load_hed(self._weights)

    def fit(self, images: ImageDataset) -> None:
        """Find the mean colour of the training set, and read the network that draws, if one does."""
        super().fit(images)
        if self.drawing == "hed":
            _ = self._detector
        self.mean = mean_colour(images)

    def input(self, batch: Batch) -> Tensor:
        """Edges, black on white, in three channels. A pair's side A where there is one; a drawing is taken as it is.

        At inference a user's own line drawing comes as `image` without a source: with "pair" it is the input itself.
        """
        if self.drawing == "pair":
            return unit(batch.image if batch.source is None else batch.source)
        if self.drawing == "hed":
            strength = self._detector.to(batch.image.device)(batch.image)
        elif self.drawing == "canny":
            strength = canny_edges(batch.image)
        else:
            from kornia.filters import sobel

            strength = sobel(unit(batch.image), eps=1e-12).mean(1, keepdim=True).mul(4).clamp(0, 1)
        return (1 - strength).expand(-1, 3, -1, -1)

    def served_input(self, batch: Batch) -> Tensor:
        """With "hed" the image as it is, a drawing; else as in training."""
        return unit(batch.image) if self.drawing == "hed" else self.input(batch)

    def target(self, batch: Batch) -> Tensor:
        """The photo, (N, 3, H, W) in [0, 1]."""
        if self.drawing == "pair" and batch.source is None:
            raise InputError("an edges task with drawing='pair' needs A|B pairs: use a pairs data config, or drawing='canny'")
        return unit(batch.image)

    def metrics(self) -> Metrics:
        """Those of images, and light-matched MSE: edges do not tell how bright the photo was."""
        return combine(
            images=measures.ImageQualityMetrics(), light=measures.LightMatchedMetrics(), colour=measures.ColourMetrics()
        )

    def prediction(self, raw: Tensor, input: Tensor) -> Tensor:
        """RGB in [0, 1]: `sigmoid(colour + gain * ink)`, three channels of the raw output each; ink is 1 - input.

        Most decoders draw at half resolution; the gain brings the drawing's own fine lines into the image, darker or
        lighter as the network chooses.
        """
        colour, gain = raw.float().chunk(2, 1)
        return torch.sigmoid(colour + gain * (1 - input))

    def baseline(self, example: Example) -> Tensor:
        """The training set's mean colour everywhere."""
        return self.mean.to(example.input.device).view(1, 3, 1, 1).expand_as(example.target).contiguous()

    def options(self) -> dict[str, str]:
        """The kind and how edges are drawn."""
        return {"kind": self.kind, "drawing": self.drawing}


# ---------------------------------------------------------------------- Canny's edges of images of any size


def canny_edges(images: Tensor) -> Tensor:
    """kornia's `canny` with its own thresholds: (N, 3, H, W) in [0, 255] to (N, 1, H, W), 1 on edges and 0 elsewhere.

    Of large images the strengths are found strip by strip, and weak pixels that hang together with strong ones afterwards, over
    the whole image as before.
    """
    from kornia.filters import canny

    if torch.compiler.is_exporting() or images.shape[-2] * images.shape[-1] <= WHOLE:
        edges: Tensor = canny(unit(images))[1]
        return edges
    return torch.stack([_canny_of_large(image) for image in images])


def _canny_of_large(image: Tensor) -> Tensor:
    """(3, H, W) to (1, H, W)."""
    from kornia.filters import canny
    from skimage.measure import label

    height, width = image.shape[-2:]
    strength = torch.empty(height, width, dtype=torch.uint8)  # 0, 1 for weak, 2 for strong
    # Strips along the shorter side, so that the few rows seen twice weigh little.
    turned = width > height
    long, rows = max(height, width), max(1, WHOLE // min(height, width))
    for first in range(0, long, rows):
        last = min(long, first + rows)
        low, high = max(0, first - _CANNY_REACH), min(long, last + _CANNY_REACH)
        seen = image[..., low:high] if turned else image[..., low:high, :]
        found = canny(unit(seen)[None], hysteresis=False)[1][0, 0].mul(2).byte()
        part = strength.T if turned else strength
        part[first:last] = (found.T if turned else found)[first - low : last - low]
    values = strength.numpy()
    groups = label(values > 0, connectivity=2)  # any of 8 neighbours, as kornia's hysteresis goes
    kept = torch.zeros(int(groups.max()) + 1, dtype=torch.bool).numpy()
    kept[groups[values == 2]] = True
    kept[0] = False
    return torch.from_numpy(kept[groups])[None].to(image.device, torch.float32)
