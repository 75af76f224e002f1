"""The frozen backbone: tensors that are read, and calls with other tensors in their place."""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from img2img.errors import InputError
from img2img.masks.checkpointing import refuse_activation_checkpointing
from img2img.masks.layers import IsNorm, Layer, Select, assign_roles, describe_layers, hash_tensors
from img2img.masks.task import NormMode, TaskState, all_tensors, detached


class FrozenBackbone(nn.Module):
    """A copy of a module that never changes and that runs with a task's tensors in place of its own.

    Args:
        backbone: any module; it is copied.
        head: the name of the submodule that tasks replace; None for no head.
        select: which parameters are masked.
        is_norm: which modules are normalisation.

    Attributes:
        backbone: the copy, with an Identity in the head's place.
        head_name: the name given.
        roles: what each of its tensors is.
        backbone_sha256: the hash of its values when it was made.
    """

    _frozen: dict[str, Tensor] | None
    _layers: dict[str, Layer] | None

    def __init__(self, backbone: nn.Module, head: str | None, select: Select, is_norm: IsNorm) -> None:
        super().__init__()
        if head is not None and head not in dict(backbone.named_modules()):
            children = [name for name, _ in backbone.named_children()]
            raise InputError(f"head={head!r} is no submodule of the backbone; its children are {children}")
        backbone = copy.deepcopy(backbone).requires_grad_(False)
        if head is not None:
            backbone.set_submodule(head, nn.Identity())
        self.backbone = backbone
        self.head_name = head
        self.roles = assign_roles(backbone, select, is_norm)
        self._lock = threading.RLock()
        self.backbone_sha256 = self.hash_backbone()
        self._is_norm = is_norm
        self._norm_modules = [backbone.get_submodule(name) for name in self.norm_modules()]
        self._inner: Callable[[dict[str, Tensor], tuple[Any, ...], dict[str, Any]], Any] = self._call_backbone
        self._head_checked = head is None
        self._reset_tensors()

    def frozen_tensors(self) -> dict[str, Tensor]:
        """Every tensor of the backbone without autograd history, gathered once.

        Under the lock: in the middle of another thread's call the backbone's attributes are that task's tensors.
        """
        with self._lock:
            if self._frozen is None:
                self._frozen = detached(all_tensors(self.backbone))
            return self._frozen

    def norm_modules(self) -> tuple[str, ...]:
        """The names of the normalisation modules."""
        return tuple(name for name, module in self.backbone.named_modules() if self._is_norm(name, module))

    def masked_weights(self) -> dict[str, Tensor]:
        """The backbone's weights that are masked, by name, without autograd history; the tensors themselves."""
        frozen = self.frozen_tensors()
        return {name: frozen[name] for name in self.roles.masked}

    def norm_tensors(self, norm: NormMode) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The backbone's normalisation parameters and buffers that are a task's own under `norm`."""
        tensors, roles = self.frozen_tensors(), self.roles
        parameters = roles.norm_parameters if norm == "own" else ()
        buffers = roles.norm_buffers if norm != "frozen" else ()
        return {n: tensors[n] for n in parameters}, {n: tensors[n] for n in buffers}

    def layers(self) -> dict[str, Layer]:
        """The masked weights with what is known of their layers, by name."""
        with self._lock:
            if self._layers is None:
                self._layers = describe_layers(self.backbone, self.roles.masked, self._is_norm)
            return self._layers

    def hash_backbone(self) -> str:
        """The SHA-256 of the backbone as it is now, without its head; `backbone_sha256` is the one at construction."""
        with self._lock:
            return hash_tensors(all_tensors(self.backbone).items())

    def copy_backbone(self, head: nn.Module | None = None) -> nn.Module:
        """An ordinary module with the backbone's weights and `head` (used as it is) in its place; it shares nothing else."""
        with self._lock:
            plain = copy.deepcopy(self.backbone)
        if self.head_name is not None and head is not None:
            plain.set_submodule(self.head_name, head)
        return plain

    # ------------------------------------------------------------------ calls

    def _call_backbone(self, tensors: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return functional_call(self.backbone, tensors, args, kwargs)

    def run_with(
        self, own: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], *, compiled: bool = False
    ) -> Any:
        """The backbone's output with the tensors `own` in place of its own ones of those names; without a head.

        Whatever the pass writes into a buffer that is not in `own` is discarded. Modules are in the mode that they are in.

        Args:
            own: tensors by their names in the backbone.
            args: the inputs.
            kwargs: further inputs.
            compiled: run the compiled call, if there is one; hooks are not called then.
        """
        frozen = self.frozen_tensors()
        buffers = self.roles.fixed_buffers + self.roles.norm_buffers
        tensors = frozen | {name: frozen[name].clone() for name in buffers if name not in own} | dict(own)
        with self._lock, refuse_activation_checkpointing():
            if not self._head_checked:
                return self._run_and_check_head(tensors, args, kwargs)
            return (self._inner if compiled else self._call_backbone)(tensors, args, kwargs)

    def _run_and_check_head(self, tensors: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self.head_name is not None
        passed: list[Any] = []
        slot = self.backbone.get_submodule(self.head_name)
        handle = slot.register_forward_hook(lambda module, inputs, output: passed.append(output))
        try:
            features = self._call_backbone(tensors, args, kwargs)
        finally:
            handle.remove()
        if len(passed) != 1 or passed[0] is not features:
            raise InputError(
                f"head={self.head_name!r} is not the last operation of the backbone, which returned something else than "
                "its output: wrap the backbone so that the head comes last, or use head=None"
            )
        self._head_checked = True
        return features

    @contextmanager
    def _evaluating(self, state: TaskState) -> Iterator[None]:
        """Evaluation mode for what must not move in this call: all of a frozen task, or frozen normalisation."""
        modules: list[nn.Module] = []
        if state.frozen:
            modules = [m for m in self.backbone.modules() if m.training]
        elif state.norm_mode == "frozen":
            modules = [m for m in self._norm_modules if m.training]
        try:
            for module in modules:
                module.training = False
            yield
        finally:
            for module in modules:
                module.training = True

    def compile(self, **options: Any) -> None:
        """Compile the backbone's call with `torch.compile`: one graph serves every task, since tasks differ in tensors alone."""
        self._inner = torch.compile(self._call_backbone, **options)

    # ------------------------------------------------------------------ module plumbing

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        with self._lock:
            self._reset_tensors()
            return super()._apply(fn, recurse)

    def _reset_tensors(self) -> None:
        """Forget what was derived from the tensors: they moved, or this is a copy."""
        self._frozen = None
        self._layers = None

    def __getstate__(self) -> dict[str, Any]:
        # What is copied: no lock, nothing derived, no compiled function bound to the original.
        state = self.__dict__.copy()
        for key in ("_lock", "_cache", "_frozen", "_layers", "_inner"):
            state.pop(key, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.RLock()
        self._inner = self._call_backbone
        self._reset_tensors()
