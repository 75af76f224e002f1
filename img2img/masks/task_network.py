"""One frozen backbone, many tasks, each with a mask, a normalisation state and a head."""

import copy
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from img2img.errors import InputError
from img2img.masks.base import MaskMethod
from img2img.masks.basis import Basis
from img2img.masks.contract import check_created, check_method
from img2img.masks.frozen_backbone import FrozenBackbone
from img2img.masks.instance_norm import check_batch_norm
from img2img.masks.layers import IsNorm, Selection, is_normalisation, is_weight
from img2img.masks.storage import check_backbone, read_header
from img2img.masks.task_loading import LoadedFile, load_task_file
from img2img.masks.task_saving import save_task_file
from img2img.masks.task_state import NormMode, TaskState
from img2img.masks.task_store import TaskFile, TaskStore
from img2img.masks.weight_cache import WeightCache
from img2img.validation import one_of

_Module = TypeVar("_Module", bound=nn.Module)


class TaskNetwork(FrozenBackbone):
    """A frozen backbone and its tasks: adding, training, running and storing them. `MaskedNetwork` is the complete class."""

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
        self._tasks = TaskStore(loaded_bytes)
        self._bases = nn.ModuleDict()

    # ------------------------------------------------------------------ tasks

    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, in the order in which they were added."""
        return self._tasks.names()

    def check_has(self, task: str) -> None:
        """Raise an `InputError` that names the tasks there are unless `task` is one."""
        self._tasks.require(task)

    def state(self, task: str) -> TaskState:
        """What `task` owns: masks, norm state, head. A registered task is read from its file if need be.

        Raises:
            InputError: there is no such task.
        """
        with self._lock:
            return self._tasks.get(task, self._read)

    def _read(self, file: TaskFile) -> tuple[TaskState, str]:
        loaded = self._load(file.path, None if file.head is None else file.head(), file.checksum)
        if file.check is not None:
            file.check(file.path, loaded.state)
        return self._placed(loaded.state), loaded.checksum

    def _load(self, path: str | os.PathLike[str], head: nn.Module | None, checksum: str | None = None) -> LoadedFile:
        def find(name: str) -> TaskState | None:
            return self.state(name) if name in self.tasks() else None

        return load_task_file(path, self, self.bases(), find, head, checksum=checksum)

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
            method: how the weights are masked: an object such as `Piggyback()`.
            head: replaces the backbone's head for this task; required exactly when the network was made with `head`.
            norm: "own" gives the task its own normalisation parameters and running statistics, started from the
                backbone's; "statistics" the statistics alone; "frozen" runs on the backbone's, in evaluation mode; "instance" its
                own parameters, and in place of running statistics those of each image.
            start_from: a task whose masks and norm state the new one starts from (`nearest_task` finds one); None for a fresh
                start.

        Raises:
            InputError: the name is taken or none, the head is missing or too many, `method` is no object of a registered class,
                or makes masks of weights that there are not.
        """
        check_method(method)
        self._check_new(task, head)
        one_of("add_task norm", norm, get_args(NormMode))
        if norm == "instance":
            check_batch_norm(self.backbone)
        other = None if start_from is None else self.state(start_from)
        layers = self.layers()
        created = method.create(layers, self.bases())
        check_created(method, created, layers)
        state = TaskState(method, created, *self.norm_tensors(norm), head, norm)
        if other is not None:
            state.start_from(other)
        return self._add(task, state)

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
        them once, here, and never again. From then on nothing of the task requires grad: back-propagating through it raises
        PyTorch's "element 0 of tensors does not require grad" until `continue_task` takes its training up again.

        Raises:
            TrainingDivergedError: a trained value is NaN or infinite.
            InputError: a mask that should be exact has another effective weight than in training; the task is not frozen.
        """
        with self._lock:
            self._cache.drop(task)
            self.state(task).freeze(self.masked_weights())

    def delete_task(self, task: str) -> None:
        """Forget `task`; no other task changes, and a registered task's file stays."""
        self._tasks.require(task)
        with self._lock:
            self._keep_relatives(task)
            self._cache.drop(task)
            self._tasks.remove(task)

    def rename_task(self, task: str, new: str) -> None:
        """Give `task` another name; it keeps its place. Files written before keep the old one."""
        self._tasks.require(task)
        with self._lock:
            self._keep_relatives(task)
            self._cache.drop(task)
            self._tasks.rename(task, new)

    def _keep_relatives(self, task: str) -> None:
        """Read the registered tasks whose files are coded relative to `task`, which will not be found again, and keep them."""
        for name in self._tasks.coded_relative_to(task, _relative_to):
            self.state(name)
            self._tasks.pin(name)

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
        tensors = state.norm_tensors() | self._effective(task, state, self.autocast_types())
        by_instance = state.norm_mode == "instance"
        features = self.run_with(tensors, args, kwargs, eval_scope=state.eval_scope(), by_instance=by_instance, compiled=True)
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

    def _effective(self, task: str, state: TaskState, types: Mapping[str, torch.dtype] | None = None) -> dict[str, Tensor]:
        """The effective weights of the masked tensors that have a mask; of a task in training those in `types` in that type."""
        if not state.frozen:
            # Never cached: a fused optimiser changes scores without a trace in the version counters of tensors.
            if self.training or torch.is_grad_enabled():
                return state.effective(self.masked_weights(), types)
            with torch.no_grad():
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

    def cache_counts(self) -> dict[str, int]:
        """`bytes` of the effective weights held for evaluation, and how often they were there (`hits`) or not (`misses`)."""
        return {"bytes": self._cache.bytes(), "hits": self._cache.hits, "misses": self._cache.misses}

    def loaded_bytes(self) -> int:
        """Bytes of the tasks in memory that were read from their files when they were used."""
        return self._tasks.loaded_total()

    # ------------------------------------------------------------------ files of tasks

    def save_task(
        self, task: str, path: str | os.PathLike[str], *, info: Mapping[str, Any] | None = None, relative_to: str | None = None
    ) -> Path:
        """Freeze `task` and write its file; see `task_saving.save_task_file`.

        The task is frozen afterwards, see `freeze_task`: in the middle of a training `continue_task` goes on with it.

        Args:
            task: its name.
            path: the file; written beside and then renamed.
            info: plain JSON values that travel with the file, added to those that the task has.
            relative_to: a frozen task of this network, which whoever loads the file must have: masks are coded relative to its
                masks where that is smaller.
        """
        state = self.state(task)
        self.freeze_task(task)
        twin = copy.copy(state)
        twin.info = {**state.info, **(info or {})}
        reference = None if relative_to is None else (relative_to, self.state(relative_to))
        written = save_task_file(path, task, twin, self, self.bases(), reference)
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
        loaded = self._load(path, head)
        name = loaded.name if name is None else name
        self._check_new(name, loaded.state.head)
        self._add(name, loaded.state)
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
        file = TaskFile.at(path, head=head)
        header = read_header(file.path)
        check_backbone(file.path, header, self)
        name = header["task"] if name is None else name
        with self._lock:
            self._tasks.register(name, dataclasses.replace(file, checksum=header["checksum"]))
        return name

    def register_files(self, files: Mapping[str, Path], *, check: Callable[[Path, TaskState], object] | None = None) -> None:
        """Add tasks of files by name, of which nothing is read until they are used; see `register_task`.

        Args:
            files: by the tasks' names. They have to stay where they are.
            check: refuses, by an `InputError`, what was read of a file.

        Raises:
            InputError: a name is taken or none, or there is no such file; then none is added.
        """
        found = {name: TaskFile.at(path, check=check) for name, path in files.items()}
        with self._lock:
            for name, file in found.items():
                self._tasks.check_new(name)
                if not file.path.is_file():
                    raise InputError(f"no task file at {file.path}; check the path")
            for name, file in found.items():
                self._tasks.register(name, file)

    def check_file(self, path: str | os.PathLike[str], *, check: Callable[[Path, TaskState], object] | None = None) -> None:
        """Raise the `InputError` by which a task's file would be refused when it is used; see `register_files`."""
        self._read(TaskFile.at(path, check=check))

    def replaced_files(self) -> tuple[str, ...]:
        """The registered tasks whose file has gone, or is another one by now; it looks at the files' times, sizes and inodes."""
        return self._tasks.replaced()

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


def _relative_to(path: Path) -> str:
    """The task that the masks in a file are coded relative to, "" for none, or where the file is none (any more)."""
    try:
        header = read_header(path)
    except (InputError, OSError):
        return ""
    return str((header["relative_to"] or {}).get("task", ""))
