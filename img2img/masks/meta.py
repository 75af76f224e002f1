"""What a module would make and cost, by shapes alone: on the meta device, where tensors have no memory."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """Of one call.

    Attributes:
        shape: the output's.
        largest: elements of the largest tensor that is made on the way.
        operations: multiplications and additions of convolutions and matrix products.
    """

    shape: tuple[int, ...]
    largest: int
    operations: int


class _Largest(TorchDispatchMode):
    """Counts the elements of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))])
        return result


@torch.no_grad()
def dry_run(module: nn.Module, shape: tuple[int, ...]) -> Cost:
    """The cost of `module` on a float tensor of `shape`. Errors that the module would raise are raised."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)
    with FlopCounterMode(display=False) as counter, _Largest() as largest:
        out: Tensor = functional_call(module, meta, (torch.empty(shape, dtype=dtype, device="meta"),))
    return Cost(tuple(out.shape), largest.elements, counter.get_total_flops())
