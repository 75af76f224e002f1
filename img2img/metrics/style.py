"""The perceptual losses of style transfer (Johnson, Alahi, Fei-Fei 2016), one value an image: training loss and metric; and the
perceptual distance of two images (Zhang et al. 2018).

The perceptual network is any callable (N, 3, H, W) float RGB in [0, 1] -> dict of feature maps (N, C, H, W) by layer name; it
does its own normalisation of colours. All sums run in float32 or better, under autocast too: squared features overflow float16.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from kornia.losses import total_variation as kornia_total_variation
from torch import Tensor

from img2img.errors import InputError
from img2img.metrics.per_image import PerImageMean, at_least_float32, check_images

Features = Mapping[str, Tensor]
PerceptualNetwork = Callable[[Tensor], Features]


@dataclass(frozen=True)
class StyleWeights:
    """What each part of the total style loss weighs, all in one place, for the training loss and the metric alike.

    Attributes:
        style: the weight of each layer whose Gram matrix is compared, by layer name.
        content: the weight of each layer whose features are compared, by layer name.
        variation: the weight of the total variation.
    """

    style: Mapping[str, float]
    content: Mapping[str, float]
    variation: float


def gram(features: Tensor) -> Tensor:
    """Gram matrices (N, C, C) of features (N, C, H, W): G[c, d] = sum over pixels of f[c] f[d] / (C H W); Johnson, eq. 3."""
    _, channels, height, width = features.shape
    with torch.autocast(features.device.type, enabled=False):
        flat = at_least_float32(features).flatten(2)
        return torch.bmm(flat, flat.mT) / (channels * height * width)


def style_grams(network: PerceptualNetwork, style: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
    """The Gram matrices (1, C, C) of a style image (1, 3, H, W) float RGB in [0, 1] at `layers`, without gradient.

    Raises:
        InputError: a layer that the network does not give.
    """
    with torch.no_grad():
        features = network(style)
        return {layer: gram(_layer(features, layer)) for layer in layers}


def style_loss(features: Features, grams: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Style loss of each image, (N,): the weighted sum over layers of ||G - G_style||_F^2 (Johnson 2016, eq. 4).

    The squared Frobenius norm is a sum over the C x C entries, not a mean.

    Args:
        features: the images' features, (N, C, H, W) by layer.
        grams: the style's Gram matrices, (1, C, C), or (N, C, C) for a style an image, by layer.
        weights: by layer; only these layers count.

    Raises:
        InputError: no weights, or a layer without features or without Gram matrix.
    """

    def distance(layer: str) -> Tensor:
        wanted = _layer(grams, layer)
        return (gram(_layer(features, layer)) - wanted).square().sum(dim=(1, 2))

    return _weighted(distance, weights, "style")


def content_loss(features: Features, content: Features, weights: Mapping[str, float]) -> Tensor:
    """Content loss of each image, (N,): the weighted sum over layers of ||f - f_content||^2 / (C H W) (Johnson 2016, eq. 2).

    Args:
        features: the images' features, (N, C, H, W) by layer.
        content: the features of the images before stylising, of the same shapes.
        weights: by layer; only these layers count.

    Raises:
        InputError: no weights, or a layer without features.
    """

    def distance(layer: str) -> Tensor:
        got, wanted = at_least_float32(_layer(features, layer)), at_least_float32(_layer(content, layer))
        return (got - wanted).square().mean(dim=(1, 2, 3))

    return _weighted(distance, weights, "content")


def perceptual_distance(features: Features, target: Features) -> Tensor:
    """How unlike images look, (N,), at least 0: Zhang et al. 2018 (LPIPS), eq. 1 with every weight 1, as a mean over layers.

    The features of a pixel are divided by their norm over the channels; then the squared difference is summed over the channels
    and averaged over the pixels. So layers count alike, whatever the scale of their features.

    Args:
        features: the images' features, (N, C, H, W) by layer.
        target: those of the images that they should look like, of the same layers and shapes.

    Raises:
        InputError: no layer, or a layer of `features` that `target` lacks.
    """

    def distance(layer: str) -> Tensor:
        given, wanted = (_unit_length(at_least_float32(_layer(each, layer))) for each in (features, target))
        return (given - wanted).square().sum(dim=1).mean(dim=(1, 2))

    return _weighted(distance, {layer: 1 / len(features) for layer in features}, "perceptual")


def _unit_length(features: Tensor) -> Tensor:
    # The square root has no gradient at 0, which all channels of a pixel may have after a ReLU.
    return features / (features.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()


def total_variation(images: Tensor) -> Tensor:
    """Anisotropic total variation of each image, (N,), from images (N, C, H, W) with H, W >= 2.

    Mean absolute difference of vertical neighbours plus that of horizontal neighbours, each over its own pairs and all channels:
    in the image's units a pixel, the same at any resolution and number of channels.
    """
    return kornia_total_variation(at_least_float32(images), reduction="mean").mean(dim=1)


def style_terms(
    images: Tensor, features: Features, content: Features, grams: Mapping[str, Tensor], weights: StyleWeights
) -> dict[str, Tensor]:
    """All the losses of each image, each (N,): train on the mean of "total style loss", show the rest.

    Args:
        images: (N, 3, H, W) the stylised images.
        features: the perceptual network's features of `images`.
        content: its features of the images before stylising.
        grams: the style's Gram matrices, see `style_grams`.
        weights: what each part weighs.

    Returns:
        "style loss" and "content loss", their layers' weights in, "total variation" unweighted, and
        "total style loss" = style loss + content loss + weights.variation * total variation.

    Raises:
        InputError: as `style_loss` and `content_loss`.
    """
    style = style_loss(features, grams, weights.style)
    kept = content_loss(features, content, weights.content)
    variation = total_variation(images)
    return {
        "style loss": style,
        "content loss": kept,
        "total variation": variation,
        "total style loss": style + kept + weights.variation * variation,
    }


class StyleMetrics(PerImageMean):
    """The losses of `style_terms` as means over images; lower is better. "total style loss" is the primary metric.

    The values depend on the network, the style image, the resolution and the weights: compare only within one configuration.
    The baseline is the unstylised input, whose content loss is 0.

    Args:
        network: the perceptual network, in evaluation mode. It is called without gradient.
        grams: the style's Gram matrices, see `style_grams`.
        weights: what each part weighs; those of the training loss.
    """

    def __init__(self, network: PerceptualNetwork, grams: Mapping[str, Tensor], weights: StyleWeights) -> None:
        super().__init__(("style loss", "content loss", "total variation", "total style loss"))
        # In a tuple, since an nn.Module as an attribute would become part of this metric's own state and be moved with it.
        self._network = (network,)
        self.grams = dict(grams)
        self.weights = weights

    def update(self, prediction: Tensor, content: Tensor) -> None:
        """Measure a batch.

        Args:
            prediction: (N, 3, H, W) float RGB in [0, 1], the stylised images.
            content: (N, 3, H, W) float RGB in [0, 1], the images before stylising.

        Raises:
            InputError: another shape, type or range, or a layer that the network does not give.
        """
        check_images(prediction, content)
        (network,) = self._network
        grams = {layer: matrix.to(prediction.device) for layer, matrix in self.grams.items()}
        with torch.no_grad():
            self.add(style_terms(prediction, network(prediction), network(content), grams, self.weights))


def _layer(values: Mapping[str, Tensor], layer: str) -> Tensor:
    if layer not in values:
        raise InputError(f"got the layer {layer!r}: expected one of {', '.join(values)}; correct the layer's name in the weights")
    return values[layer]


def _weighted(distance: Callable[[str], Tensor], weights: Mapping[str, float], part: str) -> Tensor:
    if not weights:
        raise InputError(f"got no {part} layer: expected one weight at least; name a layer of the perceptual network")
    terms = [weight * distance(layer) for layer, weight in weights.items()]
    return torch.stack(terms).sum(dim=0)
