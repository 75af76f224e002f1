"""Activation checkpointing inside a backbone that runs with a task's tensors is refused, because it cannot work.

The layers would run a second time in the backward pass, when the call has ended and its tensors are no longer in the layers. One
mode of `torch.utils.checkpoint` then fails, the other gives no gradients and no error.

PyTorch has no hook that says when checkpointing starts. So its two entry points are replaced, while a call with grad enabled runs
and no longer. What replaces them only looks for such a call on the stack of its own thread: in other threads, and if an interrupt
leaves it behind, it does nothing.
"""

import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint as torch_checkpoint

# Each mode of `torch.utils.checkpoint.checkpoint` uses one: use_reentrant=True the first, use_reentrant=False the second.
_ENTRY_POINTS = (("CheckpointFunction", "forward"), ("_checkpoint_hook", "__init__"))

_lock = threading.RLock()
_calls = 0
_replaced: list["_Replaced"] = []


class _Replaced(NamedTuple):
    """An entry point that was replaced: the attribute `name` of `owner`."""

    owner: Any
    name: str
    original: Any
    guard: Any

    def is_in_place(self) -> bool:
        return vars(self.owner)[self.name] is self.guard


def without_activation_checkpointing(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, with a `RuntimeError` where code within it starts activation checkpointing. Without grad it is harmless.

    Raises:
        RuntimeError: also when this version of PyTorch has other entry points, so that checkpointing could not be refused.
    """
    if not torch.is_grad_enabled():
        return function(*args)
    _enter()
    try:
        return _refusing(function, *args)
    finally:
        _leave()


def _refusing(function: Callable[..., Any], *args: Any) -> Any:
    """That this is on the stack is all that says so: there is nothing to reset, which an interrupt could prevent."""
    return function(*args)


_CALL = _refusing.__code__


def _enter() -> None:
    global _calls
    with _lock:
        # Not by the number of calls: an interrupt may have stopped this half-way.
        if len(_replaced) < len(_ENTRY_POINTS) or not all(entry.is_in_place() for entry in _replaced):
            _restore()
            _replace()
        _calls += 1


def _leave() -> None:
    global _calls
    with _lock:
        _calls -= 1
        if _calls == 0:
            _restore()


def _replace() -> None:
    owners = [(getattr(torch_checkpoint, owner, None), name) for owner, name in _ENTRY_POINTS]
    if not all(isinstance(owner, type) and name in vars(owner) for owner, name in owners):  # one of them is not documented
        raise RuntimeError(
            f"torch {torch.__version__} does activation checkpointing in a way that img2img does not know and could not refuse, "
            "and trainings with it would be wrong: install an earlier torch, or a newer img2img"
        )
    for owner, name in owners:
        original = vars(owner)[name]
        guard = _guarded(getattr(owner, name))
        _replaced.append(_Replaced(owner, name, original, staticmethod(guard) if isinstance(original, staticmethod) else guard))
        setattr(owner, name, _replaced[-1].guard)


def _restore() -> None:
    while _replaced:
        if _replaced[-1].is_in_place():
            setattr(_replaced[-1].owner, _replaced[-1].name, _replaced[-1].original)
        _replaced.pop()


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
