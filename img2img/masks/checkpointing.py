"""Activation checkpointing inside a functional call is refused: it cannot work."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.utils.checkpoint as torch_checkpoint

# Each mode of `torch.utils.checkpoint.checkpoint` uses one of these, looked up at the time of the call.
_ENTRIES: tuple[tuple[Any, str], ...] = (
    (torch_checkpoint.CheckpointFunction, "forward"),  # use_reentrant=True
    (torch_checkpoint._checkpoint_hook, "__init__"),  # use_reentrant=False
)
_inside = threading.local()


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    def guard(*args: Any, **kwargs: Any) -> Any:
        if getattr(_inside, "depth", 0):
            raise RuntimeError(
                "activation checkpointing is on inside the backbone of a MaskedNetwork: it would run the layers again after "
                "the call, without the task's weights. Turn it off (set_grad_checkpointing(False) in timm) and lower the "
                "batch size or the resolution instead"
            )
        return function(*args, **kwargs)

    return guard


# Installed once and for all, and inert outside a MaskedNetwork's own call on the same thread.
for _owner, _name in _ENTRIES:
    _wrapped = _guarded(getattr(_owner, _name))
    setattr(_owner, _name, staticmethod(_wrapped) if _name == "forward" else _wrapped)


@contextmanager
def refuse_activation_checkpointing() -> Iterator[None]:
    """Raise a `RuntimeError` where code on this thread starts activation checkpointing within the block.

    The layers would run a second time in the backward pass, when the functional call has ended and the backbone's own
    weights are back: one mode of `torch.utils.checkpoint` then fails, the other gives no gradients and no error.
    """
    _inside.depth = getattr(_inside, "depth", 0) + 1
    try:
        yield
    finally:
        _inside.depth -= 1
