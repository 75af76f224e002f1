"""What one task owns: its masks, its normalisation state and its head."""

import copy
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from img2img.errors import TrainingDivergedError
from img2img.masks.base import Mask, MaskMethod
from img2img.masks.binary import BinaryMask
from img2img.masks.contract import check_frozen
from img2img.masks.functional_module import EvalScope
from img2img.masks.tensors import Bits, all_finite, pack_bits

NormMode = Literal["own", "statistics", "frozen", "instance"]
"""What of the normalisation is a task's own: parameters and running statistics, the statistics alone, or nothing; "instance": its
parameters, while batch normalisation uses each image's own statistics, see `instance_norm`.
"""
WITHOUT_STATISTICS: Collection[NormMode] = ("frozen", "instance")
"""Modes in which a task has no running statistics of its own."""


def _key(name: str) -> str:
    # Names of submodules, parameters and buffers may not contain a dot.
    return name.replace(".", "/")


class TaskState(nn.Module):
    """Everything that a task adds to the backbone.

    Attributes:
        masks: a `Mask` a masked weight.
        norm: the task's normalisation parameters and buffers, as far as `norm_mode` makes them its own.
        head: the task's last layers, or None.
        frozen: trained and fixed: masks in compact form, nothing requires grad, always in evaluation mode.
        info: plain JSON values that travel with the task file (metrics, how it was trained).
    """

    def __init__(
        self,
        method: MaskMethod,
        masks: Mapping[str, Mask],
        norm_parameters: Mapping[str, Tensor],
        norm_buffers: Mapping[str, Tensor],
        head: nn.Module | None,
        norm_mode: NormMode,
    ) -> None:
        super().__init__()
        self.method = method
        self.norm_mode = norm_mode
        self.masks = nn.ModuleDict({_key(k): m for k, m in masks.items()})
        self.norm = nn.Module()
        self._names = {_key(k): k for k in (*masks, *norm_parameters, *norm_buffers)}
        for name, value in norm_parameters.items():
            self.norm.register_parameter(_key(name), nn.Parameter(value.detach().clone()))
        for name, value in norm_buffers.items():
            self.norm.register_buffer(_key(name), value.detach().clone())
        self.head = head
        self.frozen = False
        self.info: dict[str, Any] = {}

    @torch.no_grad()
    def packed_masks(self) -> dict[str, tuple[Bits, int]]:
        """The binary masks as packed bits with their lengths, by weight name; without the masks that have no binary form."""
        self.prepare()
        found = {}
        for name, mask in self.named_masks():
            if isinstance(mask, BinaryMask) and mask.bits is not None and mask.mask_shape == mask.shape:
                found[name] = (mask.bits.cpu().numpy(), mask.shape.numel())
            elif (binary := mask.binary()) is not None:
                found[name] = (pack_bits(binary).cpu().numpy(), binary.numel())
        return found

    def named_masks(self) -> Iterator[tuple[str, Mask]]:
        """`(weight name, mask)`, in the backbone's order."""
        for key, mask in self.masks.items():
            yield self._names[key], mask  # type: ignore[misc]

    def effective(self, weights: Mapping[str, Tensor], types: Mapping[str, torch.dtype] | None = None) -> dict[str, Tensor]:
        """The effective weight of every masked one of `weights`; in training those in `types` are rounded to that type."""
        self.prepare()
        types = types or {}
        return {name: mask(weights[name], types.get(name)) for name, mask in self.named_masks()}

    def prepare(self) -> None:
        """Let the method do what spans all masks; while in training, before any of them is used."""
        if not self.frozen:
            self.method.prepare(dict(self.named_masks()))

    def penalty(self) -> Tensor | None:
        """What the method adds to the loss, a scalar; None for nothing."""
        return None if self.frozen else self.method.penalty(dict(self.named_masks()))

    def start_from(self, other: "TaskState") -> None:
        """Start the masks, normalisation state and nothing else from those of another task of the same network."""
        theirs = dict(other.named_masks())
        other.prepare()
        for name, mask in self.named_masks():
            if name in theirs:
                mask.start_from(theirs[name])
        norm = other.norm_tensors()
        with torch.no_grad():
            for name, tensor in self.norm_tensors().items():
                if name in norm:
                    tensor.copy_(norm[name])

    def binaries(self) -> dict[str, Tensor]:
        """The binary masks, bool, of the weights' shapes, by weight name; without those that have none."""
        self.prepare()
        found = {name: mask.binary() for name, mask in self.named_masks()}
        return {name: mask for name, mask in found.items() if mask is not None}

    def eval_scope(self) -> EvalScope:
        """What of the backbone must not move in a call: all of a frozen task, or frozen normalisation."""
        return "all" if self.frozen else "norm" if self.norm_mode == "frozen" else "none"

    def norm_tensors(self) -> dict[str, Tensor]:
        """The normalisation parameters and buffers, by their names in the backbone; the tensors themselves."""
        # Read from their tables: at every call, where PyTorch's own walk over modules would take as long as a small layer.
        tensors: dict[str, Any] = {**self.norm._parameters, **self.norm._buffers}
        return {self._names[key]: tensor for key, tensor in tensors.items()}

    def densities(self) -> dict[str, float]:
        """The fraction of ones in each binary mask."""
        return {name: int(mask.sum()) / mask.numel() for name, mask in self.binaries().items()}

    def density(self) -> float | None:
        """The fraction of ones over all binary masks together; None without any."""
        found = self.binaries().values()
        return sum(int(m.sum()) for m in found) / sum(m.numel() for m in found) if found else None

    def effect(self) -> str | None:
        """What the first binary mask does to weights, such as "zeroed" or "moved", see `Mask.effect`; None without any."""
        self.prepare()
        return next((mask.effect for _, mask in self.named_masks() if mask.binary() is not None), None)

    def freeze(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """End the training: scores become stored bits, nothing requires grad, evaluation mode for good.

        Args:
            weights: the masked ones of the backbone, on which exact masks are compared with what they were; None: not compared.

        Raises:
            TrainingDivergedError: a trained value is NaN or infinite: its bit would mean nothing.
            InputError: a mask that should be exact has another effective weight than in training; the task is not frozen.
        """
        if not self.frozen:
            self.prepare()
            if not all_finite(self.parameters()):
                name = next(name for name, parameter in self.named_parameters() if not all_finite([parameter]))
                raise TrainingDivergedError(
                    f"{name} of the task holds values that are NaN or infinite: its training has diverged, and it is not frozen; "
                    "lower the learning rates, or look for broken images"
                )
            names = {id(mask): name for name, mask in self.named_masks()}

            def freeze(twin: Mask, mask: Mask) -> None:
                twin.freeze()
                if weights is not None:
                    check_frozen(names[id(mask)], mask, twin, weights[names[id(mask)]])

            self._change(freeze, frozen=True)
        self.requires_grad_(False)
        self.zero_grad(set_to_none=True)
        self.train(False)

    def unfreeze(self) -> Self:
        """Train on: scores start from the stored masks, and masks, norm parameters and head require grad."""
        if self.frozen:
            for part in (self.norm, self.head):
                if part is not None:
                    part.requires_grad_(True)
            self._change(lambda twin, mask: (twin.start_from(mask), twin.requires_grad_(True)), frozen=False)
        return self

    def _change(self, change: Callable[[Mask, Mask], object], *, frozen: bool) -> None:
        """Change all masks and `frozen` at one stroke: an interrupt finds all as it was, or all changed."""
        masks, twins = [mask for _, mask in self.named_masks()], []
        for mask in masks:
            twin = copy.copy(mask)
            for table in ("_parameters", "_buffers"):
                vars(twin)[table] = dict(vars(mask)[table])
            change(twin, mask)
            twins.append(twin)
        names, values = ["__dict__"] * len(masks), [*map(vars, twins), frozen]
        # In C from the first to the last; Python handles a signal between its own instructions only.
        deque(map(object.__setattr__, [*masks, self], [*names, "frozen"], values), maxlen=0)

    def train(self, mode: bool = True) -> Self:
        """As any module's, but a frozen task stays in evaluation mode: its running statistics must not move."""
        return super().train(mode and not self.frozen)

    def versions(self) -> tuple[int, ...]:
        """Counters that change whenever a mask's tensors are written in place or replaced; the cache's key."""
        tables = [table for mask in self.masks.modules() for table in (mask._parameters, mask._buffers)]
        tensors = [tensor for table in tables for tensor in table.values() if tensor is not None]
        return tuple(v for t in tensors if not t.is_inference() for v in (id(t), t._version))
