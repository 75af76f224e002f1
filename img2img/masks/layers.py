"""Which tensors of a backbone are masked, which are normalisation state, and the hash that binds tasks to a backbone."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Select = Callable[[str, nn.Module, nn.Parameter], bool]
"""`select(parameter name, owning module, parameter) -> is it masked?`"""
IsNorm = Callable[[str, nn.Module], bool]
"""`is_norm(module name, module) -> is its state a task's own?`"""

_MASKABLE = (_ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention)
_WEIGHTS = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
# Subclasses count, so timm's BatchNormAct2d, GroupNorm1 and LayerNorm2d do; _NormBase is BatchNorm's and InstanceNorm's.
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def is_weight(name: str, module: nn.Module, parameter: nn.Parameter) -> bool:
    """The default selection: weights of convolutions (transposed too), linear, bilinear, embedding and attention layers.

    Biases, class tokens, position embeddings and layer-scale gammas stay frozen.
    """
    return isinstance(module, _MASKABLE) and name.rpartition(".")[2] in _WEIGHTS


def is_normalisation(name: str, module: nn.Module) -> bool:
    """The default predicate: batch, instance, group, layer and RMS normalisation and their subclasses."""
    return isinstance(module, _NORMS)


@dataclass(frozen=True)
class Roles:
    """The role of every tensor of a backbone, by name: each is in exactly one of the five."""

    masked: tuple[str, ...]
    norm_parameters: tuple[str, ...]
    norm_buffers: tuple[str, ...]
    fixed_parameters: tuple[str, ...]
    fixed_buffers: tuple[str, ...]


def assign_roles(backbone: nn.Module, select: Select, is_norm: IsNorm) -> Roles:
    """Sort the tensors of `backbone` by role. A tied tensor appears once, under its first name."""
    masked: list[str] = []
    norm_parameters: list[str] = []
    norm_buffers: list[str] = []
    fixed_parameters: list[str] = []
    fixed_buffers: list[str] = []
    seen: set[int] = set()

    def first(tensor: Tensor) -> bool:
        new = id(tensor) not in seen
        seen.add(id(tensor))
        return new

    for module_name, module in backbone.named_modules():
        prefix = module_name + "." if module_name else ""
        norm = is_norm(module_name, module)
        for leaf, parameter in module.named_parameters(recurse=False):
            name = prefix + leaf
            if first(parameter):
                if norm:
                    norm_parameters.append(name)
                elif select(name, module, parameter):
                    masked.append(name)
                else:
                    fixed_parameters.append(name)
        for leaf, buffer in module.named_buffers(recurse=False):
            if first(buffer):
                (norm_buffers if norm else fixed_buffers).append(prefix + leaf)
    return Roles(tuple(masked), tuple(norm_parameters), tuple(norm_buffers), tuple(fixed_parameters), tuple(fixed_buffers))


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over the names, shapes and float32 values of `tensors`, sorted by name.

    The same on any device, in any memory format and after a cast to a wider type.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
