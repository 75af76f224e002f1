"""`MaskedNetwork`: one frozen backbone, many tasks, each with a mask, a normalisation state and a head of its own."""

import copy
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from img2img.errors import InputError
from img2img.masks.base import MaskMethod
from img2img.masks.checkpointing import refuse_activation_checkpointing
from img2img.masks.layers import IsNorm, Select, assign_roles, hash_tensors, is_normalisation, is_weight
from img2img.masks.task import NormMode, TaskState, all_tensors, copy_into, detached, total_bytes

_TASK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


class MaskedNetwork(nn.Module):
    """A frozen backbone that runs many tasks, by functional calls with each task's effective tensors.

    The backbone given is copied and never mutated: no layer is re-written, no flag of the original is touched, and every
    buffer is passed in, so nothing that a forward pass writes can reach it.

    Args:
        backbone: any module.
        head: the name of the submodule that tasks replace, the last operation of `backbone`; None for no head.
        select: which parameters are masked; by default the weights of convolutions, linear, bilinear, embedding and
            attention layers, see `layers.is_weight`.
        is_norm: which modules are normalisation, see `layers.is_normalisation`.
        cache_bytes: the bound on cached effective weights; the least recently used task is dropped first.

    Calls are serialised by a lock, because a functional call swaps the attributes of the one shared backbone: a service
    that runs tasks in parallel runs merged copies (`merge`). Outputs are bit-equal for the same batch size, memory
    format, thread count and grad mode.
    """

    _cache: OrderedDict[str, tuple[tuple[int, ...], dict[str, Tensor]]]
    _frozen: dict[str, Tensor] | None

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: str | None = None,
        select: Select = is_weight,
        is_norm: IsNorm = is_normalisation,
        cache_bytes: int = 1 << 30,
    ) -> None:
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
        self.cache_bytes = cache_bytes
        self._norm_modules = [m for name, m in backbone.named_modules() if is_norm(name, m)]
        self._tasks = nn.ModuleDict()
        self._inner: Callable[[dict[str, Tensor], tuple[Any, ...], dict[str, Any]], Any] = self._call_backbone
        self._head_checked = head is None
        self._reset_tensors()

    # ------------------------------------------------------------------ tasks

    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, in the order in which they were added."""
        return tuple(self._tasks)

    def state(self, task: str) -> TaskState:
        """What `task` owns: masks, norm state, head.

        Raises:
            InputError: there is no such task.
        """
        if task not in self._tasks:
            raise InputError(f"no task {task!r}; this network has {list(self._tasks)}")
        return self._tasks[task]  # type: ignore[return-value]

    def add_task(self, task: str, method: MaskMethod, *, head: nn.Module | None = None, norm: NormMode = "own") -> TaskState:
        """Add a task with fresh masks, the backbone's norm state and `head` (moved to the backbone's device).

        Args:
            task: letters, digits, `_` and `-`; it is also the name of the task's file.
            method: how the weights are masked.
            head: replaces the backbone's head for this task; required exactly when the network was made with `head`.
            norm: "own" gives the task its own normalisation parameters and running statistics, started from the
                backbone's; "frozen" runs on the backbone's, in evaluation mode.
        """
        self._check_new(task, head)
        if norm not in ("own", "frozen"):
            raise InputError(f"norm={norm!r}: expected 'own' or 'frozen'")
        weights, norm_parameters, norm_buffers = self.masked_weights(), {}, {}
        if norm == "own":
            tensors = self.frozen_tensors()
            norm_parameters = {n: tensors[n] for n in self.roles.norm_parameters}
            norm_buffers = {n: tensors[n] for n in self.roles.norm_buffers}
        return self._register(task, TaskState(method, method.create(weights), norm_parameters, norm_buffers, head, norm))

    def _check_new(self, task: str, head: nn.Module | None) -> None:
        if not _TASK_NAME.fullmatch(task):
            raise InputError(f"task name {task!r}: use letters, digits, '_' and '-' only, since it names a file too")
        if task in self._tasks:
            raise InputError(f"there is a task {task!r} already; delete_task it first or choose another name")
        if hasattr(self._tasks, task):
            raise InputError(f"task name {task!r} is a word that PyTorch's modules reserve; choose another name")
        if (head is None) != (self.head_name is None):
            raise InputError(
                f"task {task!r}: give `head` exactly when the network has one; got head={head and type(head).__name__}, "
                f"the network was made with head={self.head_name!r}"
            )

    def _register(self, task: str, state: TaskState) -> TaskState:
        device = next((t.device for t in self.backbone.parameters()), torch.device("cpu"))
        state.to(device).train(self.training)
        self._tasks[task] = state
        return state

    def freeze_task(self, task: str) -> None:
        """End the training of `task`: scores become stored bits; its outputs stay the same, bit for bit."""
        self.state(task).freeze()
        self._cache.pop(task, None)

    def delete_task(self, task: str) -> None:
        """Forget `task`; no other task changes."""
        self.state(task)
        del self._tasks[task]
        self._cache.pop(task, None)

    def task_module(self, task: str) -> "TaskModule":
        """`task` alone as a module, for optimisers, Fabric and DDP: its parameters are the task's and no others."""
        return TaskModule(self, task)

    # ------------------------------------------------------------------ calls

    def forward(self, *args: Any, task: str, **kwargs: Any) -> Any:
        """Run the backbone as `task` sees it: its effective weights, its norm state, its head.

        With grad enabled only the task's scores, norm parameters and head get gradients. A frozen task runs in
        evaluation mode whatever `train()` said.
        """
        state = self.state(task)
        frozen, own = self.frozen_tensors(), state.norm_tensors()
        # Whatever a forward pass writes into a buffer that is no task's own is discarded with the copy.
        buffers = self.roles.fixed_buffers + self.roles.norm_buffers
        copies = {name: frozen[name].clone() for name in buffers if name not in own}
        tensors = frozen | copies | own | self._effective(task, state)
        features = self._run(state, tensors, args, kwargs)
        return features if state.head is None else state.head(features)

    def _call_backbone(self, tensors: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return functional_call(self.backbone, tensors, args, kwargs)

    def _run(self, state: TaskState, tensors: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._lock, self._evaluating(state), refuse_activation_checkpointing():
            if not self._head_checked:
                return self._run_and_check_head(tensors, args, kwargs)
            return self._inner(tensors, args, kwargs)

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

    def frozen_tensors(self) -> dict[str, Tensor]:
        """Every tensor of the backbone without autograd history, gathered once.

        Under the lock: in the middle of another thread's call the backbone's attributes are that task's tensors.
        """
        with self._lock:
            if self._frozen is None:
                self._frozen = detached(all_tensors(self.backbone))
            return self._frozen

    def masked_weights(self) -> dict[str, Tensor]:
        """The backbone's weights that are masked, by name, without autograd history; the tensors themselves."""
        frozen = self.frozen_tensors()
        return {name: frozen[name] for name in self.roles.masked}

    def _effective(self, task: str, state: TaskState) -> dict[str, Tensor]:
        """The effective weights of the masked tensors that have a mask."""
        if not state.frozen and (self.training or torch.is_grad_enabled()):
            return state.effective(self.masked_weights())
        with self._lock:
            version = state.versions()
            if task in self._cache and self._cache[task][0] == version:
                self._cache.move_to_end(task)
                return self._cache[task][1]
            # Outside inference mode, since a later call with grad enabled must be able to use what is cached.
            with torch.inference_mode(False), torch.no_grad():
                effective = state.effective(self.masked_weights())
            self._cache.pop(task, None)
            if total_bytes(effective) <= self.cache_bytes:
                self._cache[task] = (version, effective)
            while self.cached_bytes() > self.cache_bytes:
                self._cache.popitem(last=False)
            return effective

    def cached_bytes(self) -> int:
        """Bytes of effective weights held for evaluation."""
        return sum(total_bytes(tensors) for _, tensors in self._cache.values())

    def compile(self, **options: Any) -> None:
        """Compile the backbone's call with `torch.compile`: one graph serves every task, since tasks differ in tensors alone."""
        self._inner = torch.compile(self._call_backbone, **options)

    # ------------------------------------------------------------------ deployment and disk

    def merge(self, task: str) -> nn.Module:
        """An ordinary module that gives exactly `task`'s outputs: a copy of the backbone with everything written in.

        It shares nothing with this network, is in evaluation mode and requires grad.
        """
        state = self.state(task)
        with self._lock, torch.no_grad():
            plain = self.copy_backbone(copy.deepcopy(state.head))
            copy_into(plain, self._effective(task, state) | state.norm_tensors())
        return plain.requires_grad_(True).eval()

    def copy_backbone(self, head: nn.Module | None = None) -> nn.Module:
        """An ordinary module with the backbone's weights and `head` (used as it is) in its place; it shares nothing else."""
        with self._lock:
            plain = copy.deepcopy(self.backbone)
        if self.head_name is not None and head is not None:
            plain.set_submodule(self.head_name, head)
        return plain

    def save_task(self, task: str, path: str | os.PathLike[str], *, info: Mapping[str, Any] | None = None) -> Path:
        """Freeze `task` and write its file; see `storage.save_task_file`."""
        from img2img.masks.storage import save_task_file

        state = self.state(task)
        self.freeze_task(task)
        state.info |= info or {}
        return save_task_file(path, task, state, self)

    def load_task(self, path: str | os.PathLike[str], *, name: str | None = None, head: nn.Module | None = None) -> str:
        """Add the task of a file that `save_task` wrote, after checking everything in it; returns its name.

        Args:
            path: the task's file.
            name: a new name; the saved one by default.
            head: a head of the user's own class, of the shapes that were saved; the known kinds are rebuilt from the file.

        Raises:
            InputError: the file is damaged, of a newer format, or for another backbone. The network is as it was.
        """
        from img2img.masks.storage import load_task_file

        saved_name, state = load_task_file(path, self, head)
        name = saved_name if name is None else name
        self._check_new(name, state.head)
        self._register(name, state)
        return name

    def hash_backbone(self) -> str:
        """The SHA-256 of the backbone as it is now, without its head; `backbone_sha256` is the one at construction."""
        with self._lock:
            return hash_tensors(all_tensors(self.backbone).items())

    # ------------------------------------------------------------------ module plumbing

    def train(self, mode: bool = True) -> Self:
        """As any module's; going to training drops the cached effective weights."""
        with self._lock:
            if mode:
                self._cache.clear()
            return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        with self._lock:
            self._reset_tensors()
            return super()._apply(fn, recurse)

    def _reset_tensors(self) -> None:
        self._cache = OrderedDict()
        self._frozen = None

    def __getstate__(self) -> dict[str, Any]:
        # What is copied: no lock, no cached tensors, no compiled function bound to the original.
        state = self.__dict__.copy()
        for key in ("_lock", "_cache", "_frozen", "_inner"):
            state.pop(key, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.RLock()
        self._inner = self._call_backbone
        self._reset_tensors()


class TaskModule(nn.Module):
    """One task of a `MaskedNetwork` as a module of its own: what an optimiser, Fabric or DDP is given.

    Inactive tasks' parameters would fail DDP, and the backbone has nothing to train.
    """

    def __init__(self, network: MaskedNetwork, task: str) -> None:
        super().__init__()
        self.state = network.state(task)
        self.task = task
        self._network = (network,)  # in a tuple, so that it is not registered

    @property
    def network(self) -> MaskedNetwork:
        """The network that the task belongs to."""
        return self._network[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output for this task."""
        return self.network(*args, task=self.task, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Switch the network, and with it the task."""
        self.network.train(mode)
        self.training = mode
        return self
