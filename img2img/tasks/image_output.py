"""What tasks have in common whose prediction is an image."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from img2img import metrics as measures
from img2img.backbones.perceptual import NETWORKS, PerceptualNetwork, feature_network
from img2img.data.base import ImageDataset
from img2img.errors import InputError
from img2img.tasks.adversary import Adversary, GanOptions
from img2img.tasks.base import Example, Metrics, Task, combine
from img2img.validation import Options, checked


class ImageLossOptions(Options):
    """The weights of the terms of an image loss; images are in [0, 1]."""

    l1: float = Field(default=1.0, ge=0)
    """Of the mean absolute error."""
    mse: float = Field(default=0.0, ge=0)
    """Of the mean squared error."""
    perceptual: float = Field(default=0.0, ge=0)
    """Of the distance of deep features, see `metrics.style.perceptual_distance`."""
    network: Mapping[str, Any] | None = None
    """`name`, `weights`, and optionally `preprocessing` and `layers`, of the perceptual network, see `feature_network`."""
    gan: GanOptions | None = None
    """A discriminator that is trained against the task's network, see `GanOptions`; null for none."""


class PerceptualTerm:
    """How unlike images look to a perceptual network, which is read when it is first asked for, so that inference needs none.

    Args:
        network: its options, see `feature_network`.
        what: what needs it, for messages, such as "loss.perceptual of the edges task".

    Raises:
        InputError: there are no options.
    """

    def __init__(self, network: Mapping[str, Any] | None, *, what: str) -> None:
        if network is None:
            raise InputError(f"{what} needs a perceptual network: give loss.network={{name, weights}}, as of style tasks")
        self._options, self._what = network, what

    @cached_property
    def network(self) -> PerceptualNetwork:
        """The network, with the layers of `NETWORKS` where the options name none."""
        name = self._options.get("name")
        layers = NETWORKS[name].perceptual if name in NETWORKS else None
        return feature_network(self._options, layers=layers, what=self._what)

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The distance of images (N, 3, H, W) in [0, 1], a scalar, a mean over images; `target` gets no gradient."""
        network = self.network.to(prediction.device)
        with torch.no_grad():
            wanted = network(target)
        return measures.perceptual_distance(network(prediction), wanted).mean()


class ImageLoss:
    """A loss of images against true ones: L1, MSE and a perceptual term by weight; the adversarial term comes from `adversary`.

    Args:
        given: the options, see `ImageLossOptions`.
        kind: of the task, for messages.

    Attributes:
        options: checked.

    Raises:
        InputError: an option is unknown or out of range, nothing has a weight, or a perceptual term has no network.
    """

    def __init__(self, given: Mapping[str, Any], *, kind: str) -> None:
        self.options = checked(ImageLossOptions, given, what=f"the loss of the {kind} task")
        if not (self.options.l1 or self.options.mse or self.options.perceptual):
            raise InputError(f"the loss of the {kind} task has no weight: expected l1, mse or perceptual above 0; give one")
        what = f"loss.perceptual of the {kind} task"
        self._perceptual = PerceptualTerm(self.options.network, what=what) if self.options.perceptual else None

    def load(self) -> None:
        """Read what training needs now, so that a missing file is found before any training."""
        if self._perceptual is not None:
            _ = self._perceptual.network

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of images (N, 3, H, W) in [0, 1], a scalar, a mean over images."""
        terms = []
        if self.options.l1:
            terms.append(self.options.l1 * F.l1_loss(prediction, target))
        if self.options.mse:
            terms.append(self.options.mse * F.mse_loss(prediction, target))
        if self._perceptual is not None:
            terms.append(self.options.perceptual * self._perceptual(prediction, target))
        return torch.stack(terms).sum()


class ImageOutput(Task):
    """RGB out. The primary metric is MSE (0..255).

    Args:
        loss: another loss than the task's own, of training alone, see `ImageLossOptions`; None: the task's own.
    """

    metric: str = "MSE"
    higher_is_better: bool = False
    compares_images: ClassVar[bool] = True
    _given_loss: ImageLoss | None = None

    def __init__(self, *, loss: Mapping[str, Any] | None = None) -> None:
        if loss is not None:
            self._given_loss = ImageLoss(loss, kind=self.kind)
            gan = self._given_loss.options.gan
            self.smallest_crop = 1 if gan is None else gan.smallest_crop

    def fit(self, images: ImageDataset) -> None:
        """Read the perceptual network of the loss, if it has one."""
        if self._given_loss is not None:
            self._given_loss.load()

    def loss(self, raw: Tensor, example: Example) -> Tensor:
        """The loss that was given, or the task's own."""
        prediction = self.prediction(raw, example.input)
        return (self.own_loss if self._given_loss is None else self._given_loss)(prediction, example.target)

    def own_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean absolute plus twice the mean squared error, in [0, 1] units: the first keeps colours, the second is measured."""
        return F.l1_loss(prediction, target) + 2 * F.mse_loss(prediction, target)

    def adversary(self) -> Adversary | None:
        """A fresh discriminator of the images, where the loss asks for one."""
        gan = None if self._given_loss is None else self._given_loss.options.gan
        return None if gan is None else Adversary(gan, self._images)

    def _images(self, raw: Tensor, example: Example) -> tuple[Tensor, Tensor]:
        """The network's images and the true ones."""
        return self.prediction(raw, example.input), example.target

    def metrics(self) -> Metrics:
        """SSIM, MSE and PSNR; CIEDE2000 and the colourfulness ratio."""
        return combine(images=measures.ImageQualityMetrics(), colour=measures.ColourMetrics())

    def primary_metrics(self) -> Metrics:
        """MSE."""
        if self.metric != ImageOutput.metric:  # a subclass's own
            return self.metrics()
        return combine(images=measures.ImageQualityMetrics(("MSE",)))

    def to_image(self, prediction: Tensor, input: Tensor) -> Tensor:
        """The prediction itself."""
        return prediction


def mixed(raw: Tensor, input: Tensor) -> Tensor:
    """RGB in [0, 1]: a mix of the input and of an image that the network paints, by a share that it chooses for each pixel.

    Most decoders draw at half resolution: what stays as it is keeps its full detail so, and where the input is to be smoothed
    the network need not paint what has to go.

    Args:
        raw: (N, 4, H, W), the painted image and the share.
        input: (N, 3, H, W) in [0, 1].
    """
    painted, share = torch.sigmoid(raw.float()).split([3, 1], 1)
    return share * input + (1 - share) * painted


def filtered(raw: Tensor, input: Tensor, side: int) -> Tensor:
    """RGB in [0, 1]: each pixel the mean of its neighbours in the input, by weights of its own.

    Args:
        raw: (N, side², H, W), whose softmax over channels are the weights, row by row.
        input: (N, 3, H, W) in [0, 1]; beyond its edges the outermost pixels are repeated.
        side: of the square of neighbours, odd.
    """
    height, width = input.shape[-2:]
    weights = torch.softmax(raw.float(), 1)
    around = F.pad(input, [side // 2] * 4, mode="replicate")
    found = torch.zeros_like(input)
    for i in range(side * side):
        top, left = divmod(i, side)
        found = torch.addcmul(found, weights[:, i : i + 1], around[..., top : top + height, left : left + width])
    return found
