"""How alike images look to a network: LPIPS, DISTS and KID, over a perceptual network whose weights are a local file.

The learned weights of LPIPS and DISTS come with torchmetrics. Its own metrics download the network under them, so the formulas
are written out here over `backbones.perceptual`; the tests compare them with torchmetrics' on the same weights. KID is
torchmetrics' `poly_mmd` over every image, where its own metric draws subsets at random.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
import torchmetrics
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional import image as torchmetrics_image
from torchmetrics.functional.image.dists import L2pooling
from torchmetrics.image.kid import poly_mmd

from img2img.backbones.perceptual import NETWORKS, PerceptualNetwork, perceptual_network
from img2img.backbones.pretrained import read_tensors
from img2img.errors import InputError
from img2img.metrics.per_image import PerImageMean, check_images
from img2img.validation import call_with

MIN_SIDE = 32
"""Pixels of the shorter side at least: below that the deepest layers see nothing."""

KID_IMAGES = 1000
"""Images of a set that KID compares at once, as its authors do; larger sets are dealt out evenly and the values averaged."""

_LPIPS = {
    "vgg16": ("vgg", ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")),
    "squeezenet1_1": ("squeeze", ("relu1", "fire3", "fire5", "fire6", "fire7", "fire8", "fire9")),
}
"""By network: torchmetrics' name of its LPIPS weights, and the layers that they are for."""

_NETWORKS = {"lpips": tuple(_LPIPS), "dists": ("vgg16",), "kid": tuple(NETWORKS)}
"""By metric: the networks that it can be computed over."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""Of two batches (N, 3, H, W) float RGB in [0, 1] the distance of each pair, (N,)."""


class ImageMetric(Protocol):
    """A metric of two sets of images."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Measure a batch of images, both (N, 3, H, W) float RGB in [0, 1]."""

    def compute(self) -> dict[str, float]:
        """The values by name."""


class PerceptualMetrics:
    """The perceptual metrics that an experiment asks for, each named after its network: "LPIPS (vgg16)".

    Args:
        names: some of "lpips", "dists" and "kid".
        network: the options `name`, `weights` and, for weights that want another than the usual one, `preprocessing` of
            `backbones.perceptual.perceptual_network`; None where no metric is asked for.

    Raises:
        InputError: an unknown name; no network or no weights; a network that a metric cannot be computed over.
    """

    def __init__(self, names: Sequence[str], network: Mapping[str, Any] | None) -> None:
        self.names, self._options = tuple(dict.fromkeys(names)), dict(network or {})
        unknown = [name for name in self.names if name not in _NETWORKS]
        if unknown:
            raise InputError(f"got the perceptual metric {unknown[0]!r}: expected some of {', '.join(_NETWORKS)}")
        if self.names and self._options.get("weights") is None:
            got = "no network is given" if network is None else "the network's weights are null, random ones"
            raise InputError(
                f"the metrics {', '.join(self.names)} compare images by the features of a trained network, and {got}: give its "
                "name and a local file of its weights, evaluation.perceptual={name: vgg16, weights: FILE} in a config or "
                "--perceptual vgg16=FILE on the command line"
            )
        for name in self.names:
            if self._options.get("name") not in _NETWORKS[name]:
                raise InputError(
                    f"the metric {name!r} got network {self._options.get('name')!r}: expected {' or '.join(_NETWORKS[name])}, "
                    "which it has learned weights for; give one of them with a file of its weights, or leave the metric out"
                )

    def build(self) -> list[ImageMetric]:
        """Fresh metrics, all over one network.

        Raises:
            InputError: the network's weights are not there or do not fit.
        """
        features = LastFeatures(self.network)
        made: dict[str, Callable[[], ImageMetric]] = {
            "lpips": lambda: PerceptualDistance(f"LPIPS ({self.label})", lpips(features, self._options["name"])),
            "dists": lambda: PerceptualDistance(f"DISTS ({self.label})", dists(self.network)),
            "kid": lambda: KernelDistance(f"KID ({self.label})", features),
        }
        return [made[name]() for name in self.names]

    @cached_property
    def network(self) -> PerceptualNetwork:
        """With all of its layers."""
        options = {**self._options, "layers": NETWORKS[self._options["name"]].layers}
        with torch.random.fork_rng(devices=[]):  # layers are drawn before they are loaded: what is measured changes no training
            network: PerceptualNetwork = call_with(perceptual_network, options, what="the network of perceptual metrics")
        return network

    @property
    def label(self) -> str:
        """The network's name, with the preprocessing of weights that are not the usual ones."""
        name, preprocessing = self._options["name"], self._options.get("preprocessing")
        return name if preprocessing in (None, NETWORKS[name].preprocessing) else f"{name}, {preprocessing}"


class LastFeatures:
    """A network's features of images; those of the last two batches are kept, for the next metric that is given the same tensors.

    Args:
        network: with all of its layers.
    """

    def __init__(self, network: PerceptualNetwork) -> None:
        self.layers = network.layers
        self._network = network
        self._known: list[tuple[Tensor, int, Mapping[str, Tensor]]] = []

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        """By layer, of images (N, 3, H, W) float RGB in [0, 1]."""
        for given, version, found in self._known:
            if given is images and version == images._version:
                return found
        found = self._network.to(images.device)(images)
        if not images.is_inference():  # they have no version, by which a change would show
            self._known = [*self._known[-1:], (images, images._version, found)]
        return found


class PerceptualDistance(PerImageMean):
    """The mean over images of a distance that a network measures; lower is better, 0 is the same image.

    Args:
        name: of the metric.
        distance: of two batches of images.
    """

    def __init__(self, name: str, distance: Distance) -> None:
        super().__init__((name,))
        self._distance = distance

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Measure a batch of images, both (N, 3, H, W) float RGB in [0, 1], H and W at least `MIN_SIDE`.

        Raises:
            InputError: another shape, type or range, or too small an image.
        """
        _check(prediction, target, self.names[0])
        with torch.no_grad(), torch.autocast(target.device.type, enabled=False):
            self.add({self.names[0]: self._distance(prediction.float(), target.float())})


class KernelDistance(Metric):
    """KID (Bińkowski et al. 2018) of two sets of images; lower is better, about 0 where the sets look alike.

    The unbiased estimate of the squared MMD with the kernel (x · y / d + 1)³ between the features of the predictions and those of
    the targets: the network's deepest layer, averaged over the pixels. It compares sets, not pairs: an image that looks like
    a photograph, though not like this one, costs little. Small sets make it noisy, and it may be slightly below 0. Of one
    image it has no value (NaN). Values over different networks cannot be compared, so a name should say which one it was.

    Args:
        name: of the metric.
        features: of a network, whose deepest layer is taken.
    """

    full_state_update = False
    predicted: list[Tensor]
    wanted: list[Tensor]

    def __init__(self, name: str, features: LastFeatures) -> None:
        super().__init__(sync_on_compute=False)
        self.name = name
        self._features = features
        self.add_state("predicted", [], dist_reduce_fx="cat")
        self.add_state("wanted", [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Take the features of a batch of images, both (N, 3, H, W) float RGB in [0, 1], H and W at least `MIN_SIDE`.

        Raises:
            InputError: another shape, type or range, or too small an image.
        """
        _check(prediction, target, self.name)
        for images, found in ((prediction, self.predicted), (target, self.wanted)):
            with torch.no_grad(), torch.autocast(target.device.type, enabled=False):
                features = self._features(images.float())[self._features.layers[-1]]
                found.append(features.mean((2, 3)).double().cpu())

    def compute(self) -> dict[str, float]:
        """The distance since the last `reset`.

        Raises:
            InputError: no image has been seen.
        """
        if not self.predicted:
            raise InputError(
                f"{self.name} was asked for a result before any image: expected one update at least; is the set empty?"
            )
        predicted, wanted = torch.cat(list(self.predicted)), torch.cat(list(self.wanted))
        if len(wanted) == 1:
            return {self.name: math.nan}
        parts = math.ceil(len(wanted) / KID_IMAGES)
        return {self.name: sum(poly_mmd(wanted[k::parts], predicted[k::parts]).item() for k in range(parts)) / parts}


def lpips(features: LastFeatures, name: str) -> Distance:
    """LPIPS 0.1 (Zhang et al. 2018, eq. 1) over a network.

    Features are scaled to length 1 at each pixel; their squared differences are weighted by the learned weight of each channel,
    averaged over the pixels and added up over the layers. The learned weights were found over torchvision's networks.

    Args:
        features: of a network with all of its layers.
        name: "vgg16" or "squeezenet1_1".

    Raises:
        InputError: the installed torchmetrics lacks the learned weights.
    """
    file, layers = _LPIPS[name]
    weights = [tensor.flatten() for _, tensor in sorted(_learned(f"lpips_models/{file}.pth").items())]

    def distance(prediction: Tensor, target: Tensor) -> Tensor:
        found, wanted = (features(x) for x in (prediction, target))
        squared = [(_unit_length(found[layer]) - _unit_length(wanted[layer])).square().mean((2, 3)) for layer in layers]
        return torch.stack([x @ weight.to(x) for x, weight in zip(squared, weights, strict=True)]).sum(0)

    return distance


def dists(network: PerceptualNetwork) -> Distance:
    """DISTS (Ding et al. 2020, eq. 7) over VGG-16.

    The images themselves and five layers are compared by the mean (texture) and the covariance (structure) of each channel over
    the whole image, with learned weights. In the place of the network's max pooling, squares are pooled.

    Args:
        network: VGG-16, with all of its layers.

    Raises:
        InputError: the installed torchmetrics lacks the learned weights.
    """
    learned = _learned("dists_models/weights.pt")
    alpha, beta = (learned[key].flatten() / (learned["alpha"].sum() + learned["beta"].sum()) for key in ("alpha", "beta"))
    stages = [nn.Sequential(*(layer for layer in part if not isinstance(layer, nn.MaxPool2d))) for part in _parts(network)]

    def maps(images: Tensor) -> list[Tensor]:
        found = [images, stages[0](network.to(images.device).preprocessed(images))]
        for stage in stages[1:]:
            pooled = L2pooling(channels=found[-1].shape[1]).to(images.device)(found[-1])
            found.append(stage(pooled))
        return found

    def distance(prediction: Tensor, target: Tensor) -> Tensor:
        textures, structures = [], []
        for x, y in zip(maps(prediction), maps(target), strict=True):
            mean_x, mean_y = x.mean((2, 3)), y.mean((2, 3))
            variances = x.var((2, 3), correction=0) + y.var((2, 3), correction=0)
            # Centred, as the variances are: the difference of two means is -0.06 where equal images are flat.
            covariance = ((x - mean_x[..., None, None]) * (y - mean_y[..., None, None])).mean((2, 3))
            textures.append((2 * mean_x * mean_y + 1e-6) / (mean_x**2 + mean_y**2 + 1e-6))
            structures.append((2 * covariance + 1e-6) / (variances + 1e-6))
        alike = torch.cat(textures, 1) @ alpha.to(target) + torch.cat(structures, 1) @ beta.to(target)
        return 1 - alike

    return distance


def _parts(network: PerceptualNetwork) -> list[nn.Sequential]:
    return [part for part in network.parts.values() if isinstance(part, nn.Sequential)]


def _unit_length(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True) + 1e-8).sqrt()


def _learned(name: str) -> dict[str, Tensor]:
    """What torchmetrics has in a file beside its image metrics."""
    path = Path(torchmetrics_image.__file__).parent / name
    if not path.is_file():
        raise InputError(
            f"the installed torchmetrics {torchmetrics.__version__} has no {name}: expected the learned weights of LPIPS "
            "and DISTS there; install torchmetrics>=1.7,<2 again"
        )
    return {key: tensor.detach() for key, tensor in read_tensors(path).items()}


def _check(prediction: Tensor, target: Tensor, metric: str) -> None:
    check_images(prediction, target)
    height, width = target.shape[-2:]
    if min(height, width) < MIN_SIDE:
        raise InputError(
            f"got an image of {height} x {width} pixels: {metric} expects {MIN_SIDE} x {MIN_SIDE} at least; make them larger"
        )
