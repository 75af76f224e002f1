"""Random backbones: weights that are never trained, for masks to find networks in (SupSup, ImpressLearn)."""

import math
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.masks.layers import assign_roles, describe_layers, is_normalisation, is_weight
from img2img.validation import one_of

Kind = Literal["signed_constant", "kaiming_normal", "kaiming_uniform"]
Module = TypeVar("Module", bound=nn.Module)

_BIASES = ("bias", "in_proj_bias", "bias_k", "bias_v")
_NORM_VALUES = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}


@torch.no_grad()
def randomise(module: Module, *, kind: Kind = "signed_constant", seed: int, density: float | None = None) -> Module:
    """Fill `module` with random weights, in place, and return it. Do so before a `MaskedNetwork` is made of it.

    Every weight that is masked by default (`layers.is_weight`) is drawn with mean 0 and standard deviation
    `σ = sqrt(2 / fan_in)`, Kaiming's for ReLU:

    - "signed_constant": `+σ` or `-σ`, each half of the time (Ramanujan et al. 2020, "Signed Kaiming Constant"; the
      backbones of SupSup);
    - "kaiming_normal": `N(0, σ²)`;
    - "kaiming_uniform": `U(-sqrt(3) σ, sqrt(3) σ)`.

    `fan_in` counts what one output sums over, of grouped and transposed convolutions too; an embedding's is 1.

    The layers' biases become 0, normalisations 1 and 0, and their running statistics those of a new one. Other parameters
    (class tokens, position embeddings, layer scales) stay as they are.

    Args:
        module: any network; its dtype, device and memory format stay.
        kind: the distribution.
        seed: the same seed gives the same values on any device and in any memory format, whatever the global generator.
        density: when given, σ is divided by `sqrt(density)`, so that a layer of which masks keep that fraction passes on
            the variance that the whole layer would ("Scaled Kaiming" of Ramanujan et al. 2020).

    Raises:
        InputError: an option is not allowed, or `module` has no such weight.
    """
    one_of("randomise kind", kind, ("signed_constant", "kaiming_normal", "kaiming_uniform"))
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise InputError(f"randomise seed={seed!r}: expected a whole number; the network's values follow from it")
    if density is not None and not 0 < density <= 1:
        raise InputError(f"randomise density={density}: expected a fraction above 0 and up to 1, or None for no scaling")
    roles = assign_roles(module, is_weight, is_normalisation)
    if not roles.masked:
        raise InputError(
            f"randomise got a {type(module).__name__} without any weight that is masked by default: "
            "expected convolutions, linear, bilinear, embedding or attention layers; pass the network that has them"
        )
    generator = torch.Generator().manual_seed(seed)
    for layer in describe_layers(module, roles.masked, is_normalisation).values():
        deviation = math.sqrt(2 / layer.fan_in / (1.0 if density is None else density))
        layer.weight.copy_(_draw(layer.weight.shape, kind, generator).mul_(deviation))
    for name in roles.fixed_parameters:
        if name.rpartition(".")[2] in _BIASES:
            module.get_parameter(name).zero_()
    for name in roles.norm_parameters:
        _reset(name, module.get_parameter(name))
    for name in roles.norm_buffers:
        _reset(name, module.get_buffer(name))
    return module


def _draw(shape: torch.Size, kind: Kind, generator: torch.Generator) -> Tensor:
    """Values of mean 0 and standard deviation 1, contiguous, on the CPU."""
    if kind == "kaiming_normal":
        return torch.randn(shape, generator=generator, dtype=torch.float32)
    if kind == "kaiming_uniform":
        return torch.rand(shape, generator=generator, dtype=torch.float32).mul_(2).sub_(1).mul_(math.sqrt(3))
    return torch.randint(2, shape, generator=generator, dtype=torch.float32).mul_(2).sub_(1)


def _reset(name: str, tensor: Tensor) -> None:
    value = _NORM_VALUES.get(name.rpartition(".")[2])
    if value is not None:
        tensor.fill_(value)
