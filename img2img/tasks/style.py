"""Style transfer: a photo in, the same scene painted like one style image out (Johnson et al., ECCV 2016)."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from img2img import metrics as measures
from img2img.backbones.perceptual import NETWORKS, PerceptualNetwork, feature_network
from img2img.data.base import Batch, ImageDataset
from img2img.data.datasets.sample_photos import style_image
from img2img.data.images.decode import read_image
from img2img.errors import InputError
from img2img.tasks.base import TASKS, Example, Metrics, Task, unit

SAMPLE = "sample:"
"""`picture: sample:NAME` is an image that scikit-image ships, see `data.datasets.sample_photos.style_image`."""


@TASKS.register("style")
class Style(Task):
    """Perceptual content + Gram style + total variation against one style image. The primary metric is the total style loss.

    The perceptual network is read when the first loss or metric is asked for, so inference needs neither it nor the image.
    Each layer counts relative to the style image itself: a style layer by its squared Gram norm, a content layer by its mean
    squared feature. So the weights mean the same for every perceptual network.

    Args:
        image: the style image's file; None only for inference.
        size: the style image's shorter side in pixels after resizing, which sets the scale of its strokes.
        network: `name`, `weights`, and optionally `preprocessing`, of `backbones.perceptual.perceptual_network`.
        style_layers: of that network, whose Gram matrices are compared; None: those of `NETWORKS`.
        content_layers: of that network, whose features are compared; None: likewise. A deeper one lets the style change more.
        style: weight of the style loss, a mean over layers.
        content: weight of the content loss, a mean over layers.
        variation: weight of the total variation.
    """

    metric: str = "total style loss"
    higher_is_better: bool = False
    baseline_name: ClassVar[str] = "unstylised input"
    in_parts: ClassVar[bool] = True
    mirrored: ClassVar[bool] = True
    out_channels = 3

    def __init__(
        self,
        *,
        picture: str | None = None,
        size: int = 256,
        network: Mapping[str, Any] | None = None,
        style_layers: Sequence[str] | None = None,
        content_layers: Sequence[str] | None = None,
        style: float = 10.0,
        content: float = 3.5,
        variation: float = 0.1,
    ) -> None:
        self._image_path, self._size, self._network_options = picture, size, network
        self._weights = {"style": style, "content": content, "variation": variation}
        for option, layers in (("style_layers", style_layers), ("content_layers", content_layers)):
            if layers is not None and not layers:
                raise InputError(f"a style task got {option}=[]: expected a layer at least; leave it out for the usual ones")
        self._style_layers, self._content_layers = style_layers, content_layers

    @cached_property
    def style_image(self) -> Tensor:
        """The style image, (1, 3, H, W) in [0, 1], its shorter side resized to `size`."""
        if self._image_path is None:
            raise InputError("a style task needs a style image to train on: give picture=PATH in the task's config")
        name = self._image_path.removeprefix(SAMPLE)
        path = style_image(name) if self._image_path.startswith(SAMPLE) else self._image_path
        picture = unit(torch.from_numpy(read_image(path)).permute(2, 0, 1)[None])
        scale = self._size / min(picture.shape[-2:])
        return torch.nn.functional.interpolate(picture, scale_factor=scale, mode="bilinear", antialias=True).clamp(0, 1)

    @cached_property
    def _perceptual(self) -> PerceptualNetwork:
        layers = None
        if self._style_layers is not None or self._content_layers is not None:
            layers = [name for names in self._layers() for name in names]
        return feature_network(self._network_options, layers=layers, what="a style task")

    def _layers(self) -> tuple[Sequence[str], Sequence[str]]:
        """The layers of the style and of the content."""
        defaults = NETWORKS.get((self._network_options or {}).get("name", ""))
        style, content = ((), ()) if defaults is None else (defaults.style, defaults.content)
        return (
            style if self._style_layers is None else self._style_layers,
            content if self._content_layers is None else self._content_layers,
        )

    @cached_property
    def _targets(self) -> tuple[dict[str, Tensor], "measures.StyleWeights"]:
        """The style's Gram matrices and each layer's weight."""
        network = self._perceptual
        style, content = self._layers()
        with torch.no_grad():
            features = network(self.style_image)
        grams = {layer: measures.gram(features[layer]) for layer in style}
        return grams, measures.StyleWeights(
            style={k: self._weights["style"] / (len(grams) * g.square().sum().item()) for k, g in grams.items()},
            content={k: self._weights["content"] / (len(content) * features[k].square().mean().item()) for k in content},
            variation=self._weights["variation"],
        )

    def _on(self, device: torch.device) -> tuple[PerceptualNetwork, dict[str, Tensor], "measures.StyleWeights"]:
        grams, weights = self._targets
        return self._perceptual.to(device), {k: g.to(device) for k, g in grams.items()}, weights

    def fit(self, images: ImageDataset) -> None:
        """See the style image and the network's weights now, so that a missing one is found before any training."""
        _ = self._targets

    def input(self, batch: Batch) -> Tensor:
        """The photo."""
        return unit(batch.image)

    def target(self, batch: Batch) -> Tensor:
        """The photo again: it is the content to keep."""
        return unit(batch.image)

    def prediction(self, raw: Tensor, input: Tensor) -> Tensor:
        """RGB in [0, 1]."""
        return torch.sigmoid(raw.float())

    def loss(self, raw: Tensor, example: Example) -> Tensor:
        """Mean total style loss of the batch."""
        network, grams, weights = self._on(raw.device)
        prediction = self.prediction(raw, example.input)
        with torch.no_grad():
            content = network(example.target)
        return measures.style_terms(prediction, network(prediction), content, grams, weights)["total style loss"].mean()

    def metrics(self) -> Metrics:
        """Style, content and total style loss; SSIM to the photo beside them."""
        return _StyleFigures(self)

    def baseline(self, example: Example) -> Tensor:
        """The photo as it is."""
        return example.target

    def to_image(self, prediction: Tensor, input: Tensor) -> Tensor:
        """The prediction itself."""
        return prediction

    def reference(self, example: Example) -> Tensor:
        """The style image, cut to the shape of the images from its middle and resized."""
        height, width = example.input.shape[-2:]
        style = self.style_image.to(example.input.device)
        scale = min(style.shape[2] / height, style.shape[3] / width)
        h, w = int(height * scale), int(width * scale)
        top, left = (style.shape[2] - h) // 2, (style.shape[3] - w) // 2
        cut = style[..., top : top + h, left : left + w]
        shown = torch.nn.functional.interpolate(cut, (height, width), mode="bilinear", antialias=True).clamp(0, 1)
        return shown.expand(len(example.input), -1, -1, -1)


class _StyleFigures(Metrics):
    def __init__(self, task: Style) -> None:
        self._task = task
        self._style: measures.StyleMetrics | None = None
        self._images = measures.ImageQualityMetrics()

    def update(self, prediction: Tensor, example: Example) -> None:
        network, grams, weights = self._task._on(prediction.device)
        if self._style is None:
            self._style = measures.StyleMetrics(network, grams, weights)
        self._style.update(prediction, example.target)
        self._images.update(prediction, example.target)

    def compute(self) -> dict[str, float]:
        if self._style is None:
            raise InputError("no image was measured: the set is empty")
        return self._style.compute() | {"SSIM": self._images.compute()["SSIM"]}
