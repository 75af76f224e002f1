"""Instance statistics in place of batch statistics: each image is normalised by its own mean and variance, always.

Ulyanov, Vedaldi and Lempitsky, "Improved texture networks" (CVPR 2017): networks that paint in a style do it better so, since the
contrast of the photo is removed. The parameters of the layers stay as they are; their running statistics are neither read nor
written, and training and evaluation are the same.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from img2img.errors import InputError

_AFTER = ("drop", "act")
"""What timm's subclasses of batch normalisation have inside and run after it, in this order."""


def use_instance_statistics(module: nn.Module) -> None:
    """Let every batch normalisation in `module`, a copy of the caller's own, normalise by each image's own statistics.

    Args:
        module: changed in place; its tensors and their names stay.

    Raises:
        InputError: as `check_batch_norm`.
    """
    for layer in check_batch_norm(module):
        layer.forward = partial(_by_instance, layer)  # type: ignore[method-assign]


def check_batch_norm(module: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations of a network that can use instance statistics.

    Raises:
        InputError: there are none, or one is of a class that does more than is known here.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    if not layers:
        raise InputError(
            "norm='instance' with a backbone that has no batch normalisation: expected one whose layers use batch statistics; "
            "leave norm=instance out, since other normalisation does not depend on the batch anyway"
        )
    for layer in layers:
        inside = {name for name, _ in layer.named_children()}
        if type(layer).forward is not _BatchNorm.forward and not (inside and inside <= set(_AFTER)):
            raise InputError(
                f"norm='instance' with a layer of the class {type(layer).__name__}: expected PyTorch's batch normalisation or "
                "timm's; choose norm='own'"
            )
    return layers


def is_by_instance(module: nn.Module) -> bool:
    """Whether `use_instance_statistics` was called on a network."""
    return any(isinstance(layer, _BatchNorm) and "forward" in vars(layer) for layer in module.modules())


def _by_instance(layer: Any, x: Tensor) -> Tensor:
    """The layer's output by the statistics of each image and channel over its pixels.

    Raises:
        InputError: the input has no pixels, (N, C).
    """
    if x.ndim < 3:
        raise InputError(
            f"norm='instance' got features of shape {tuple(x.shape)}: expected pixels to normalise over; use norm='own'"
        )
    if not layer.training and x.shape[2:].numel() == 1:  # a single value is its own mean; PyTorch refuses it, as in training
        y = torch.zeros_like(x) + (0 if layer.bias is None else layer.bias.to(x.dtype).view(1, -1, *[1] * (x.ndim - 2)))
    else:
        y = F.instance_norm(x, weight=layer.weight, bias=layer.bias, eps=layer.eps)
    for name in _AFTER:
        if (after := getattr(layer, name, None)) is not None:
            y = after(y)
    return y
