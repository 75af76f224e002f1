"""Activation checkpointing inside a backbone that runs with a task's tensors is refused, because it cannot work.

The layers would run a second time in the backward pass, when the call has ended and its tensors are no longer in the layers. One
mode of `torch.utils.checkpoint` then fails, the other gives no gradients and no error.

PyTorch has no hook that says when checkpointing starts. So its two entry points are replaced, while a call with grad enabled runs
and no longer. What replaces them only looks for such a call on the stack of its own thread: in other threads, and if an interrupt
leaves it behind, it does nothing.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint as torch_checkpoint


def without_activation_checkpointing(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, with a `RuntimeError` where code within it starts activation checkpointing. Without grad it is harmless.

    Raises:
        RuntimeError: also when this version of PyTorch has other entry points, so that checkpointing could not be refused.
    """
    if not torch.is_grad_enabled():
        return function(*args)
    call = object()
    _calls.add(call)
    try:
        _replace()
        return _refusing(function, *args)
    finally:
        _calls.discard(call)
        if not _calls:
            _restore()
            # No lock, which an interrupt could leave locked. A call that another thread began just now may be without protection
            # for this moment; its next one is not.
            if _calls:
                _replace()


def _refusing(function: Callable[..., Any], *args: Any) -> Any:
    """That this is on the stack is all that says so: there is nothing to reset, which an interrupt could prevent."""
    return function(*args)


_CALL = _refusing.__code__
_calls: set[object] = set()
"""The calls that run now, in all threads."""


class _EntryPoint:
    """The method `name` of a class of PyTorch's, and what replaces it during a call."""

    def __init__(self, owner: str, name: str) -> None:
        self._owner: Any = getattr(torch_checkpoint, owner, None)
        self._name = name
        self._original: Any = None
        self._guard: Any = staticmethod(self._call) if name == "forward" else lambda *args, **kwargs: self._call(*args, **kwargs)

    def exists(self) -> bool:
        return isinstance(self._owner, type) and self._name in vars(self._owner)

    def replace(self) -> None:
        found = vars(self._owner)[self._name]
        if found is not self._guard:
            self._original = found
            setattr(self._owner, self._name, self._guard)

    def restore(self) -> None:
        if vars(self._owner)[self._name] is self._guard:
            setattr(self._owner, self._name, self._original)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code is _CALL:
                raise RuntimeError(
                    "activation checkpointing is on inside the backbone of a MaskedNetwork: it would run the layers again after "
                    "the call, without the task's weights. Turn it off (set_grad_checkpointing(False) in timm) and lower the "
                    "batch size or the resolution instead"
                )
            frame = frame.f_back  # type: ignore[assignment]
        return self._original.__get__(None, self._owner)(*args, **kwargs)


# Each mode of `torch.utils.checkpoint.checkpoint` uses one: use_reentrant=True the first, use_reentrant=False the second.
_ENTRY_POINTS = (_EntryPoint("CheckpointFunction", "forward"), _EntryPoint("_checkpoint_hook", "__init__"))


def _replace() -> None:
    if not all(entry.exists() for entry in _ENTRY_POINTS):  # one of them is not documented
        raise RuntimeError(
            f"torch {torch.__version__} does activation checkpointing in a way that img2img does not know and could not refuse, "
            "and trainings with it would be wrong: install an earlier torch, or a newer img2img"
        )
    for entry in _ENTRY_POINTS:
        entry.replace()


def _restore() -> None:
    for entry in _ENTRY_POINTS:
        entry.restore()
