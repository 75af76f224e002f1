"""What binary masks share: scores while training, packed bits once frozen."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.masks.base import Mask
from img2img.masks.layers import Layer
from img2img.masks.tensors import pack_bits, unpack_bits


class BinaryMask(Mask):
    """A mask `M` in {0, 1} for each weight or each kernel: `score` (float32) while training, `bits` (packed) once frozen.

    Subclasses say what of the scores is one (`ones`) and how `M` acts on the weight.
    """

    bits: Tensor | None

    def __init__(self, layer: Layer, score: Tensor | None, mask: Tensor | None, *, kernel_wise: bool = False) -> None:
        """Either `score`, to be trained, or `mask` (bool), frozen; of the kernel's shape when `kernel_wise`."""
        super().__init__()
        self.shape = layer.weight.shape
        self.kernel_dims = layer.kernel_dims if kernel_wise else 0
        self.mask_shape = layer.mask_shape(kernel_wise=kernel_wise)
        self.score = None if score is None else nn.Parameter(score)
        self.register_buffer("bits", None if mask is None else pack_bits(mask))
        self.frozen = score is None

    @abstractmethod
    def ones(self, score: Tensor) -> Tensor:
        """`M` from the scores, bool, of their shape."""

    @abstractmethod
    def scores_for(self, mask: Tensor) -> Tensor:
        """Scores that give `mask`, each as far from flipping as a fresh one: float32, of `mask`'s shape."""

    def hard(self) -> Tensor:
        """`M`, bool, of `mask_shape`."""
        if self.score is not None:
            return self.ones(self.score.detach())
        assert self.bits is not None
        return unpack_bits(self.bits, self.mask_shape)

    def scores(self) -> tuple[nn.Parameter, ...]:
        """The scores; none once frozen."""
        return () if self.score is None else (self.score,)

    def binary(self) -> Tensor:
        """`M`, bool, of the weight's shape."""
        return self.hard().expand(self.shape)

    def decode(self, weight: Tensor) -> tuple[Tensor, ...]:
        """`M`, in the weight's memory format when it has the weight's shape."""
        mask = self.hard()
        if mask.shape != weight.shape:
            return (mask,)
        return (torch.empty_like(weight, dtype=torch.bool, requires_grad=False).copy_(mask),)

    def freeze(self) -> None:
        """Keep the mask, one bit each, and drop the scores."""
        if self.score is not None:
            self.bits = pack_bits(self.hard())
            self.score = None
            self.frozen = True

    def stored(self) -> dict[str, Tensor]:
        """`{"mask": bool of mask_shape}`."""
        self.freeze()
        return {"mask": self.hard()}

    @torch.no_grad()
    def start_from(self, other: Mask) -> None:
        """Scores that give `other`'s mask. For a kernel, that of the majority of its weights, ones where they are even."""
        mask = other.keeps()
        if mask is None:
            raise InputError(
                f"a {type(other).__name__} has no binary mask of kept weights to start from: choose another task, or none "
                "(start_from=None)"
            )
        if mask.shape != self.mask_shape:
            kernel = tuple(range(-self.kernel_dims, 0))
            mask = mask.float().mean(kernel, keepdim=True) >= 0.5
        score = mask.new_empty(self.mask_shape, dtype=torch.float32) if self.score is None else self.score.detach()
        score = score.copy_(self.scores_for(mask))
        self.score = nn.Parameter(score, requires_grad=True)
        self.bits = None
        self.frozen = False
