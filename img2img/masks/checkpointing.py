"""Activation checkpointing inside a backbone that runs with a task's tensors is refused: it cannot work."""

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint as torch_checkpoint

# Each mode of `torch.utils.checkpoint.checkpoint` uses one of these, looked up at the time of the call.
_CLASSES = {"CheckpointFunction": "forward", "_checkpoint_hook": "__init__"}  # use_reentrant=True, use_reentrant=False
_ENTRIES = [(getattr(torch_checkpoint, name, None), method) for name, method in _CLASSES.items()]
if not all(hasattr(owner, method) for owner, method in _ENTRIES):  # they are no documented ones
    raise ImportError(
        f"torch {torch.__version__} does activation checkpointing in a way that img2img does not know and could not refuse, and "
        "trainings with it would be wrong: install an earlier torch, or a newer img2img"
    )


def without_checkpointing(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, with a `RuntimeError` where code within it starts activation checkpointing.

    The layers would run a second time in the backward pass, when the call has ended and its tensors are no longer in the
    layers: one mode of `torch.utils.checkpoint` then fails, the other gives no gradients and no error.

    That this call is on the stack is all that says so: there is nothing to reset, which an interrupt could prevent.
    """
    return function(*args)


_CALL = without_checkpointing.__code__


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    def guard(*args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code is _CALL:
                raise RuntimeError(
                    "activation checkpointing is on inside the backbone of a MaskedNetwork: it would run the layers again after "
                    "the call, without the task's weights. Turn it off (set_grad_checkpointing(False) in timm) and lower the "
                    "batch size or the resolution instead"
                )
            frame = frame.f_back  # type: ignore[assignment]
        return function(*args, **kwargs)

    return guard


# Installed once and for all, and inert outside a MaskedNetwork's own call on the same thread.
for _owner, _name in _ENTRIES:
    _wrapped = _guarded(getattr(_owner, _name))
    setattr(_owner, _name, staticmethod(_wrapped) if _name == "forward" else _wrapped)
