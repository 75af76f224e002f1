"""The layers of a backbone: which tensors are masked, which are normalisation state, and what a mask may know of its layer."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from img2img.errors import InputError

Select = Callable[[str, nn.Module, nn.Parameter], bool]
"""`select(parameter name, owning module, parameter) -> is it masked?`"""
Selection = Select | str | type[nn.Module] | Sequence[str | type[nn.Module]]
"""A function, or name patterns (`"encoder.*"`) and layer types, of which one has to fit."""
IsNorm = Callable[[str, nn.Module], bool]
"""`is_norm(module name, module) -> is its state a task's own?`"""

MASKABLE = (_ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention)
WEIGHTS = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
# Subclasses count, so timm's BatchNormAct2d, GroupNorm1 and LayerNorm2d do; _NormBase is BatchNorm's and InstanceNorm's.
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def is_weight(name: str, module: nn.Module, parameter: nn.Parameter) -> bool:
    """The default selection: weights of convolutions (transposed too), linear, bilinear, embedding and attention layers.

    Biases, class tokens, position embeddings and layer-scale gammas stay frozen.
    """
    return isinstance(module, MASKABLE) and name.rpartition(".")[2] in WEIGHTS


def parts_of(selection: Selection) -> list[str | type[nn.Module]] | None:
    """The name patterns and layer types of a selection, each once; None of a function.

    Raises:
        InputError: a part of the selection is neither.
    """
    if not isinstance(selection, str | type | Sequence):
        return None
    parts = [selection] if isinstance(selection, str | type) else list(selection)
    wrong = [p for p in parts if not isinstance(p, str) and not (isinstance(p, type) and issubclass(p, nn.Module))]
    if wrong:
        raise InputError(f"select got {wrong[0]!r}: expected name patterns, layer types, or one function")
    return list(dict.fromkeys(parts))


def as_select(selection: Selection) -> Select:
    """The function of a selection. Patterns and types choose among what `is_weight` does; a function chooses among all.

    A pattern is one of the shell's (`*`, `?`, `[abc]`) for the whole parameter name, such as `"decoder.*.weight"`; a type counts
    with its subclasses.

    Raises:
        InputError: a part of the selection is neither.
    """
    parts = parts_of(selection)
    if parts is None:
        return selection  # type: ignore[return-value]

    def select(name: str, module: nn.Module, parameter: nn.Parameter) -> bool:
        fits = (fnmatch.fnmatchcase(name, p) if isinstance(p, str) else isinstance(module, p) for p in parts)
        return is_weight(name, module, parameter) and any(fits)

    return select


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


def fill_uniform(scores: Tensor, low: float, high: float) -> Tensor:
    """Fill `scores` with values between two bounds, and return it.

    They are drawn in row-major order, so that a seed means the same in any memory format.
    """
    return scores.copy_(torch.empty(scores.shape, dtype=scores.dtype, device=scores.device).uniform_(low, high))


@dataclass(frozen=True)
class Layer:
    """A masked weight, and what a mask method may know of the layer that it belongs to.

    Attributes:
        weight: `W`, frozen; the tensor itself.
        kernel_dims: how many trailing axes are the kernel's: 2 of a Conv2d, 0 of linear, bilinear, embedding and attention.
        out_axis: the axis of the output channels: 0, but 1 of a transposed convolution and of an embedding.
        groups: of a convolution, the groups of its channels; 1 otherwise. Axis 1 of a convolution's weight has the channels of
            one group only: the inputs, or of a transposed one the outputs.
        normalised: a normalisation follows directly, so that a scale of the whole weight has no effect.
    """

    weight: Tensor
    kernel_dims: int = 0
    out_axis: int = 0
    groups: int = 1
    normalised: bool = False

    @property
    def out_channels(self) -> int:
        """How many output channels the layer has."""
        return self.weight.shape[self.out_axis] * (self.groups if self.out_axis == 1 else 1)

    @property
    def fan_in(self) -> int:
        """How many inputs one output channel sums over."""
        if self.out_axis == 1 and self.kernel_dims == 0:  # an embedding picks one
            return 1
        return self.weight.numel() // self.out_channels

    @property
    def kernel_shape(self) -> torch.Size:
        """The weight's shape with every kernel axis 1: one value a kernel. The weight's own shape where there is no kernel."""
        whole = self.weight.ndim - self.kernel_dims
        return torch.Size((*self.weight.shape[:whole], *[1] * self.kernel_dims))

    def mask_shape(self, *, kernel_wise: bool) -> torch.Size:
        """The shape of a mask with a value for each kernel, or for each element."""
        return self.kernel_shape if kernel_wise else self.weight.shape

    def empty_scores(self, *, kernel_wise: bool = False) -> Tensor:
        """An uninitialised tensor for the scores of a mask: float32 whatever the weight's dtype, in its memory format."""
        scores = torch.empty_like(self.weight, dtype=torch.float32, requires_grad=False)
        return scores.new_empty(self.kernel_shape) if kernel_wise and self.kernel_dims > 0 else scores

    def uniform_scores(self, low: float, high: float, *, kernel_wise: bool = False) -> Tensor:
        """Scores drawn between two bounds, see `fill_uniform`."""
        return fill_uniform(self.empty_scores(kernel_wise=kernel_wise), low, high)

    def per_channel(self, k: Tensor) -> Tensor:
        """One value an output channel, (out_channels,), as a tensor that multiplies the weight by broadcasting.

        A grouped transposed convolution's weight is (in, out / groups, ...): output channel = group * out / groups + axis 1.
        """
        if self.groups == 1 or self.out_axis == 0:
            shape = [1] * self.weight.ndim
            shape[self.out_axis] = -1
            return k.view(shape)
        inputs, outputs = self.weight.shape[:2]
        k = k.view(self.groups, 1, outputs).expand(-1, inputs // self.groups, -1)
        return k.reshape(inputs, outputs, *[1] * self.kernel_dims)

    def channel_sums(self, x: Tensor) -> Tensor:
        """`x`, of the weight's shape, summed for each output channel: (out_channels,), float32. The adjoint of `per_channel`."""
        if self.groups > 1 and self.out_axis == 1:
            inputs, outputs = x.shape[:2]
            return x.reshape(self.groups, inputs // self.groups, outputs, -1).sum((1, 3)).flatten().float()
        others = [axis for axis in range(x.ndim) if axis != self.out_axis]
        return (x.sum(others) if others else x.clone()).float()  # a sum over no axes would be one over all

    @property
    def taps(self) -> int:
        """How many positions a kernel has; 1 where there is no kernel."""
        return self.weight.shape[self.weight.ndim - self.kernel_dims :].numel()

    @property
    def inputs(self) -> int:
        """How many inputs of the layer an output channel has weights for: those of its group, pairs of a bilinear layer."""
        return self.weight.numel() // (self.out_channels * self.taps)

    def as_matrix(self, x: Tensor) -> Tensor:
        """`x`, of the weight's shape, as (out_channels, inputs * taps): a row for each output channel, group after group.

        A column is a tap of an input's kernel, the taps of one input side by side. A bias has one column.
        """
        if self.out_axis == 0:
            return x.reshape(len(x), -1)
        inputs, outputs = x.shape[:2]
        return x.reshape(self.groups, inputs // self.groups, outputs, -1).transpose(1, 2).reshape(self.out_channels, -1)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """The inverse of `as_matrix`."""
        shape = self.weight.shape
        if self.out_axis == 0:
            return matrix.reshape(shape)
        return matrix.reshape(self.groups, shape[1], shape[0] // self.groups, -1).transpose(1, 2).reshape(shape)


def describe_layers(backbone: nn.Module, masked: Iterable[str], is_norm: IsNorm) -> dict[str, Layer]:
    """The `Layer` of each masked weight, by the weight's name in `backbone`."""
    found = {}
    followed = _followed_by_norm(backbone, is_norm)
    for name in masked:
        owner, _, leaf = name.rpartition(".")
        module = backbone.get_submodule(owner)
        weight = module.get_parameter(leaf).detach()
        whole = weight.ndim > 1  # a bias, which a selection may name, has its output channels on axis 0 in every layer
        transposed = whole and isinstance(module, _ConvTransposeNd)
        embedding = whole and isinstance(module, nn.Embedding | nn.EmbeddingBag)
        found[name] = Layer(
            weight,
            kernel_dims=weight.ndim - 2 if isinstance(module, _ConvNd) and weight.ndim > 2 else 0,
            out_axis=1 if transposed or embedding else 0,
            groups=module.groups if isinstance(module, _ConvNd) else 1,
            normalised=leaf == "weight" and owner in followed,
        )
    return found


def _followed_by_norm(backbone: nn.Module, is_norm: IsNorm) -> set[str]:
    """The names of the layers whose output's scale is normalised away.

    Taken from the order of registration: the next sibling is a normalisation of as many channels. A batch or instance
    normalisation takes out a bias too; after the others the layer must have none for its scale to be without effect.
    """
    found = set()
    for parent_name, parent in backbone.named_modules():
        children = list(parent.named_children())
        for (name, layer), (next_name, norm) in pairwise(children):
            prefix = parent_name + "." if parent_name else ""
            if not isinstance(layer, _ConvNd | nn.Linear) or not is_norm(prefix + next_name, norm):
                continue
            outputs = layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features
            channels = getattr(norm, "num_features", None) or getattr(norm, "num_channels", None)
            channels = channels or getattr(norm, "normalized_shape", (None,))[0]
            if channels == outputs and (isinstance(norm, _NormBase) or layer.bias is None):
                found.add(prefix + name)
    return found


def kernel_sum(a: Tensor, b: Tensor, kernel_dims: int) -> Tensor:
    """`a ∘ b` summed over the trailing `kernel_dims` axes, which stay as axes of length 1; the product is not written out."""
    if a.shape[a.ndim - kernel_dims :].numel() == 1:
        return a * b
    if a.stride(-1) != 1 and a.stride() == b.stride():
        # The kernel lies outside of the channels (channels_last): add up one plane of channels after another.
        planes = zip(a.flatten(-kernel_dims).unbind(-1), b.flatten(-kernel_dims).unbind(-1), strict=True)
        first, second = next(planes)
        total = first * second
        for first, second in planes:
            total.addcmul_(first, second)
        return total.view(*total.shape, *[1] * kernel_dims)
    letters = "abcdefgh"[: a.ndim]
    kept = letters[: a.ndim - kernel_dims]
    with torch.autocast(a.device.type, enabled=False):  # a backward pass may run inside such a region
        summed = torch.einsum(f"{letters},{letters}->{kept}", a, b)
    return summed.view(*summed.shape, *[1] * kernel_dims)


def number_of_ones(density: float, size: int) -> int:
    """`density * size` to the nearest whole number, at least 1: a layer without any passes nothing on."""
    return max(1, round(density * size))


def erdos_renyi(shapes: Mapping[str, torch.Size], density: float) -> dict[str, float]:
    """Erdős-Rényi-Kernel densities: `min(1, ε Σ axes / Π axes)` for each layer, ε such that all layers together have `density`.

    For a convolution that is `ε (n_in + n_out + k_h + k_w) / (n_in n_out k_h k_w)` (Evci et al. 2020, section 3).
    """
    densities = dict.fromkeys(shapes, 1.0)
    ratios = {name: sum(shape) / shape.numel() for name, shape in shapes.items()}
    free = set(shapes)
    while free:
        budget = density * sum(s.numel() for s in shapes.values()) - sum(shapes[n].numel() for n in shapes.keys() - free)
        scale = budget / sum(sum(shapes[name]) for name in free)
        full = {name for name in free if scale * ratios[name] >= 1}
        if not full:  # else what they cannot take goes to the others, which raises the scale
            return densities | {name: scale * ratios[name] for name in free}
        free -= full
    return densities
