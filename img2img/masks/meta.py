"""Modules by shapes alone: made and run on the meta device, where tensors have shapes and no memory."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from img2img.errors import InputError
from img2img.masks.tensors import all_tensors

_FILLING = frozenset({"erfinv_", "fill_", "normal_", "uniform_", "zero_"})


class _NoValues(TorchFunctionMode):
    """Nothing is filled, and code that asks for a value gets 0, on which no shape depends."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _FILLING or getattr(func, "__module__", "") == "torch.nn.init":
            target = args[0] if args else (kwargs or {}).get("tensor")
            if isinstance(target, Tensor) and target.is_meta:
                return target
        if func is Tensor.item and args[0].is_meta:
            return 0.0
        if func is Tensor.tolist and args[0].is_meta:
            return torch.zeros(args[0].shape, device="cpu").tolist()
        return func(*args, **(kwargs or {}))


@contextmanager
def meta_device(*, most: int | None = None) -> Iterator[None]:
    """Tensors and modules that are made inside, in this thread, are on the meta device.

    Args:
        most: how many parameters modules may register inside; None for no bound.

    Raises:
        InputError: a module registers more than `most` parameters.
    """
    thread, count = threading.get_ident(), 0

    def counting(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if most is not None and count > most:
            raise InputError(f"its network has more than {most} tensors, far more than the file: copy both again")

    # It counts for all threads' modules, so it is there only when it is needed.
    handle = None if most is None else register_module_parameter_registration_hook(counting)
    try:
        with torch.device("meta"), _NoValues():
            yield
    finally:
        if handle is not None:
            handle.remove()


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
def cost_of(module: nn.Module, shape: tuple[int, ...]) -> Cost:
    """The cost of `module`, on whatever device, on a float tensor of `shape`. Errors that the module would raise are raised."""
    tensors = all_tensors(module)
    meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)
    with FlopCounterMode(display=False) as counter, _Largest() as largest, meta_device():
        out: Tensor = functional_call(module, meta, (torch.empty(shape, dtype=dtype),))
    return Cost(tuple(out.shape), largest.elements, counter.get_total_flops())
