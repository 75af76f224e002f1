"""`MaskedNetwork`: one frozen backbone, many tasks, each with a mask, a normalisation state and a head of its own."""

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from img2img.errors import InputError
from img2img.files.paths import expanded
from img2img.masks.base import MaskMethod, one_of
from img2img.masks.basis import Basis
from img2img.masks.cache import WeightCache
from img2img.masks.deployed import DeployedNetwork
from img2img.masks.frozen import FrozenBackbone
from img2img.masks.layers import IsNorm, Selection, is_normalisation, is_weight
from img2img.masks.table import TaskFile, TaskTable
from img2img.masks.task import NormMode, TaskState, copy_into
from img2img.masks.task_module import TaskModule

_Module = TypeVar("_Module", bound=nn.Module)


class MaskedNetwork(FrozenBackbone):
    """A frozen backbone that runs many tasks, by calls with each task's effective tensors.

    The backbone given is copied and never mutated: no layer is re-written, no flag of the original is touched, and every
    buffer is passed in, so nothing that a forward pass writes can reach it. Nor is the copy, `backbone`: it is there to be
    read, and changes of its modules after the first call are not seen.

    Args:
        backbone: any module.
        head: the name of the submodule that tasks replace, the last operation of `backbone`; None for no head.
        select: which parameters are masked: name patterns, layer types, or a function, see `layers.as_select`; by default the
            weights of convolutions, linear, bilinear, embedding and attention layers, see `layers.is_weight`.
        is_norm: which modules are normalisation, see `layers.is_normalisation`.
        strict: refuse a selection of which a part fits nothing, or weights that cannot be masked. False is for files that were
            written before this was refused.
        cache_bytes: the bound on cached effective weights; the least recently used task is dropped first.
        loaded_bytes: the bound on tasks that were registered from files and read when used, likewise.

    Calls run on a stand-in for the backbone that shares its tensors (`stand_in.StandIn`), so one that is broken off leaves
    nothing behind. They are serialised by a lock: a service that runs tasks in parallel runs merged copies (`merge`). Outputs
    are bit-equal for the same batch size, memory format, thread count and grad mode.
    """

    _cache: WeightCache

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: str | None = None,
        select: Selection = is_weight,
        is_norm: IsNorm = is_normalisation,
        strict: bool = True,
        cache_bytes: int = 1 << 30,
        loaded_bytes: int = 1 << 28,
    ) -> None:
        self.cache_bytes = cache_bytes
        super().__init__(backbone, head, select, is_norm, strict=strict)
        self._tasks = TaskTable(loaded_bytes)
        self._bases = nn.ModuleDict()

    # ------------------------------------------------------------------ tasks

    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, in the order in which they were added."""
        return self._tasks.names()

    def state(self, task: str) -> TaskState:
        """What `task` owns: masks, norm state, head. A registered task is read from its file if need be.

        Raises:
            InputError: there is no such task.
        """
        with self._lock:
            return self._tasks.get(task, self._read)

    def _read(self, file: TaskFile) -> TaskState:
        from img2img.masks.storage import load_task_file

        return self._placed(load_task_file(file.path, self, None if file.head is None else file.head())[1])

    def add_task(
        self,
        task: str,
        method: MaskMethod,
        *,
        head: nn.Module | None = None,
        norm: NormMode = "own",
        start_from: str | None = None,
    ) -> TaskState:
        """Add a task with fresh masks, the backbone's norm state and `head` (moved to the backbone's device).

        Args:
            task: letters, digits, `_` and `-`; it is also the name of the task's file.
            method: how the weights are masked.
            head: replaces the backbone's head for this task; required exactly when the network was made with `head`.
            norm: "own" gives the task its own normalisation parameters and running statistics, started from the
                backbone's; "statistics" the statistics alone; "frozen" runs on the backbone's, in evaluation mode.
            start_from: a task whose masks and norm state the new one starts from (`nearest_task` finds one); None for a fresh
                start.
        """
        self._check_new(task, head)
        one_of("add_task", "norm", norm, ("own", "statistics", "frozen"))
        other = None if start_from is None else self.state(start_from)
        state = TaskState(method, method.create(self.layers(), self.bases()), *self.norm_tensors(norm), head, norm)
        if other is not None:
            state.start_from(other)
        return self._add(task, state)

    def nearest_task(self, *args: Any, **kwargs: Any) -> str:
        """The task whose normalisation statistics are nearest to those of a batch; a start for a new task on such data.

        Args:
            args: a batch of the new task's inputs, as for a call.
            kwargs: further inputs.

        Raises:
            InputError: there are no tasks, or the backbone keeps no running statistics.
        """
        from img2img.masks.task_inference import by_norm_statistics

        return by_norm_statistics(self, *args, **kwargs).task

    def continue_task(self, task: str) -> TaskState:
        """Take up the training of a frozen task again, from its masks, norm state and head.

        The scores are not stored: they start anew, each as far from flipping its bit as a fresh one. Until the first step the
        outputs are the same, bit for bit where freezing is exact. An optimiser made before this has none of the parameters.
        """
        state = self.state(task)
        with self._lock:
            self._tasks.pin(task)
            self._cache.drop(task)
            state.unfreeze().train(self.training)
        return state

    def _check_new(self, task: str, head: nn.Module | None) -> None:
        self._tasks.check_new(task)
        if (head is None) != (self.head_name is None):
            raise InputError(
                f"task {task!r}: give `head` exactly when the network has one; got head={head and type(head).__name__}, "
                f"the network was made with head={self.head_name!r}"
            )

    def _add(self, task: str, state: TaskState) -> TaskState:
        with self._lock:
            self._tasks.add(task, self._placed(state))
        return state

    def _placed(self, module: _Module) -> _Module:
        """`module` on the backbone's device."""
        device = next((t.device for t in self.backbone.parameters()), torch.device("cpu"))
        return module.to(device)

    def freeze_task(self, task: str) -> None:
        """End the training of `task`: scores become stored bits.

        Its outputs stay the same bit for bit where the method's stored form is exact (`Mask.exact`); quantised values move
        them once, here, and never again.
        """
        with self._lock:
            self._cache.drop(task)
            self.state(task).freeze()

    def delete_task(self, task: str) -> None:
        """Forget `task`; no other task changes, and a registered task's file stays."""
        self._tasks.require(task)
        with self._lock:
            self._cache.drop(task)
            self._tasks.remove(task)

    def rename_task(self, task: str, new: str) -> None:
        """Give `task` another name; it keeps its place. Files written before keep the old one."""
        self._tasks.require(task)
        with self._lock:
            self._cache.drop(task)
            self._tasks.rename(task, new)

    def task_module(self, task: str) -> TaskModule:
        """`task` alone as a module, for optimisers, Fabric and DDP: its parameters are the task's and no others."""
        return TaskModule(self, task)

    # ------------------------------------------------------------------ bases shared by tasks

    def bases(self) -> dict[str, Basis]:
        """The bases of masks that tasks share, by name."""
        return dict(self._bases.items())  # type: ignore[arg-type]

    def add_basis(self, name: str, basis: Basis) -> None:
        """Let tasks combine the masks of `basis` under that name, see `ImpressLearn`."""
        if name in self._bases or not name.isidentifier() or hasattr(self._bases, name):
            raise InputError(f"basis name {name!r} is taken or no name: use letters, digits and '_', none of {list(self._bases)}")
        self._bases[name] = self._placed(basis)

    def delete_basis(self, name: str) -> None:
        """Forget a basis.

        Raises:
            InputError: there is none of that name, or a task combines its masks.
        """
        if name not in self._bases:
            raise InputError(f"no basis {name!r}; this network has {list(self._bases)}")
        users = [task for task in self.tasks() if self.state(task).method.basis_name() == name]
        if users:
            raise InputError(f"the basis {name!r} is in use by {users[:5]}: delete those tasks first")
        del self._bases[name]

    # ------------------------------------------------------------------ calls

    def forward(self, *args: Any, task: str | Sequence[str], **kwargs: Any) -> Any:
        """Run the backbone as `task` sees it: its effective weights, its norm state, its head.

        With grad enabled only the task's scores, norm parameters and head get gradients. A frozen task runs in
        evaluation mode whatever `train()` said.

        Args:
            args: the inputs, as the backbone takes them.
            task: a task's name; or a name for each sample of the batch, along the first axis of every tensor given. Samples of
                one task then run together, and the result is a list of outputs by sample, without the batch axis, since
                tasks may differ in their outputs' shapes.
            kwargs: further inputs.
        """
        if not isinstance(task, str):
            return self._mixed(args, list(task), kwargs)
        state = self.state(task)
        own = state.norm_tensors() | self._effective(task, state)
        features = self.run_with(own, args, kwargs, evaluating=state.evaluating(), compiled=True)
        return features if state.head is None else state.head(features)

    def _mixed(self, args: tuple[Any, ...], tasks: list[str], kwargs: dict[str, Any]) -> list[Any]:
        groups: dict[str, list[int]] = {}
        for index, task in enumerate(tasks):
            groups.setdefault(task, []).append(index)

        def rows(value: Any, indices: list[int]) -> Any:
            if not isinstance(value, Tensor):
                return value
            if value.ndim == 0 or len(value) != len(tasks):
                raise InputError(f"got {len(tasks)} task names for an input of shape {tuple(value.shape)}: give one a sample")
            return value[indices]

        outputs: list[Any] = [None] * len(tasks)
        for task, indices in groups.items():
            out = self.forward(
                *tree_map(lambda v, i=indices: rows(v, i), args),
                task=task,
                **tree_map(lambda v, i=indices: rows(v, i), kwargs),
            )
            for row, index in enumerate(indices):
                outputs[index] = tree_map(lambda t, r=row: t[r], out)
        return outputs

    def _effective(self, task: str, state: TaskState) -> dict[str, Tensor]:
        """The effective weights of the masked tensors that have a mask."""
        if not state.frozen and (self.training or torch.is_grad_enabled()):
            return state.effective(self.masked_weights())
        with self._lock:
            version = state.versions()
            cached = self._cache.get(task, version)
            if cached is None:
                # Outside inference mode, since a later call with grad enabled must be able to use what is cached.
                with torch.inference_mode(False), torch.no_grad():
                    cached = state.effective(self.masked_weights())
                self._cache.put(task, version, cached)
            return cached

    def cached_bytes(self) -> int:
        """Bytes of effective weights held for evaluation."""
        return self._cache.bytes()

    # ------------------------------------------------------------------ deployment and disk

    def merge(self, task: str, *, requires_grad: bool = False) -> nn.Module:
        """An ordinary module that gives exactly `task`'s outputs: a copy of the backbone with everything written in.

        It shares nothing with this network and is in evaluation mode.

        Args:
            task: its name.
            requires_grad: whether its parameters do, for training on. PyTorch takes other kernels of linear layers then, even
                without grad, so outputs may differ in the last digits (as may those of a head of `task` while it is in training).
        """
        state = self.state(task)
        with self._lock, torch.no_grad():
            plain = self.copy_backbone(copy.deepcopy(state.head))
            copy_into(plain, self._effective(task, state) | state.norm_tensors())
        for parameter in plain.parameters():
            parameter.requires_grad_(requires_grad and parameter.is_floating_point())
        return plain.eval()

    def deploy(self) -> DeployedNetwork:
        """A copy whose task is switched in place, without recompiling; see `DeployedNetwork`."""
        return DeployedNetwork(self)

    def save_task(
        self, task: str, path: str | os.PathLike[str], *, info: Mapping[str, Any] | None = None, relative_to: str | None = None
    ) -> Path:
        """Freeze `task` and write its file; see `storage.save_task_file`.

        Args:
            task: its name.
            path: the file; written beside and then renamed.
            info: plain JSON values that travel with the file, added to those that the task has.
            relative_to: a frozen task of this network, which whoever loads the file must have: masks are coded relative to its
                masks where that is smaller.
        """
        from img2img.masks.storage import save_task_file

        state = self.state(task)
        self.freeze_task(task)
        twin = copy.copy(state)
        twin.info = {**state.info, **(info or {})}
        written = save_task_file(path, task, twin, self, relative_to)
        state.info = twin.info  # once the file is there
        return written

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
        self._add(name, state)
        return name

    def register_task(
        self, path: str | os.PathLike[str], *, name: str | None = None, head: Callable[[], nn.Module] | None = None
    ) -> str:
        """Add the task of a file without reading it: that happens when it is first used; returns its name.

        Only the header is read now, and the backbone it is for compared. Thousands of tasks may be registered; those read are
        kept within `loaded_bytes`, the least recently used dropped first. The file has to stay where it is.

        Args:
            path: the task's file.
            name: a new name; the saved one by default.
            head: makes a head of the user's own class; the known kinds are rebuilt from the file.

        Raises:
            InputError: it is no task file, of a newer format, or for another backbone. What the rest of the file holds is
                checked when it is read.
        """
        from img2img.masks.storage import check_backbone, read_header

        path = expanded(path).absolute()
        header = read_header(path)
        check_backbone(path, header, self)
        name = header["task"] if name is None else name
        with self._lock:
            self._tasks.register(name, TaskFile(path, head))
        return name

    # ------------------------------------------------------------------ module plumbing

    def train(self, mode: bool = True) -> Self:
        """As any module's; going to training drops the cached effective weights."""
        with self._lock:
            if mode:
                self._cache = WeightCache(self.cache_bytes)
            return super().train(mode)

    def _reset_tensors(self) -> None:
        super()._reset_tensors()
        self._cache = WeightCache(self.cache_bytes)
