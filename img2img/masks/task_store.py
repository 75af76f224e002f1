"""The tasks of a network by name: in memory, or registered from disk and loaded when used."""

import dataclasses
import os
import re
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import nn

from img2img.errors import InputError
from img2img.files.paths import expanded
from img2img.files.untrusted import MAX_NAME
from img2img.masks.task_state import TaskState
from img2img.masks.tensors import all_tensors, total_bytes

_TASK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_ATTRIBUTES = frozenset(vars(nn.ModuleDict()))
_RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))})
"""What Windows takes for a device, whatever ending follows."""


@dataclass(frozen=True)
class TaskFile:
    """Where a registered task is.

    Attributes:
        path: its file.
        head: makes its head if that is of the user's own class.
        check: refuses, by an `InputError`, what was read of it.
        checksum: of the file that was read first: what is read again later must be the same. None before.
        stamp: time, size and inode of the file when it was registered; None where there was none.
        relative_to: the task that its masks are coded relative to, "" for none; None where nobody has looked yet.
    """

    path: Path
    head: Callable[[], nn.Module] | None = None
    check: Callable[[Path, TaskState], object] | None = None
    checksum: str | None = None
    stamp: tuple[int, int, int] | None = None
    relative_to: str | None = None

    @classmethod
    def at(cls, path: str | os.PathLike[str], **more: Any) -> "TaskFile":
        """The file that is at `path` now."""
        path = expanded(path).absolute()
        return cls(path, stamp=_stamp(path), **more)

    def is_replaced(self) -> bool:
        """Whether another file is at its path now, or none."""
        return _stamp(self.path) != self.stamp


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def check_task_name(name: str, *, new: bool = True) -> None:
    """Raise an `InputError` unless `name` may be the name of a task: of a file, and of a submodule.

    Args:
        name: the task's.
        new: the task's file is to come. One that is there may have a name that Windows reserves: earlier versions gave such.
    """
    if len(name) > MAX_NAME:
        raise InputError(f"task name {name[:40]!r}… has {len(name)} letters: use {MAX_NAME} at most, since it names a file too")
    if not _TASK_NAME.fullmatch(name):
        raise InputError(f"task name {name!r}: use letters, digits, '_' and '-' only, since it names a file too")
    if hasattr(nn.ModuleDict, name) or name in _ATTRIBUTES:
        raise InputError(f"task name {name!r} is a word that PyTorch's modules reserve; choose another name")
    if new and name.casefold() in _RESERVED:
        raise InputError(f"task name {name!r} is a word that Windows reserves, where no file can have it; choose another name")


class TaskStore(nn.Module):
    """Tasks by name, in the order in which they were added.

    A registered task is read from its file when it is used. What was read is kept until `loaded_bytes` are exceeded, the least
    recently used task dropped first; a task that lives in memory alone is never dropped.

    Args:
        loaded_bytes: the bound on the tasks that were read from files.
    """

    def __init__(self, loaded_bytes: int) -> None:
        super().__init__()
        self.loaded_bytes = loaded_bytes
        self.states = nn.ModuleDict()
        self._names: dict[str, None] = {}  # in order
        self._files: dict[str, TaskFile] = {}
        self._loaded: OrderedDict[str, int] = OrderedDict()

    def names(self) -> tuple[str, ...]:
        """All tasks, loaded or not."""
        return tuple(self._names)

    def loaded(self) -> tuple[str, ...]:
        """The tasks in memory."""
        return tuple(name for name in self._names if name in self.states)

    def loaded_total(self) -> int:
        """Bytes of the tasks that were read from files and may be dropped again."""
        return sum(self._loaded.values())

    def require(self, name: str) -> None:
        """Raise an `InputError` that names the tasks there are unless `name` is one."""
        if not isinstance(name, str) or name not in self._names:
            shown = ", ".join(list(self._names)[:20]) + (f" and {len(self._names) - 20} more" if len(self._names) > 20 else "")
            raise InputError(f"no task {name!r}; this network has {shown or 'none'}")

    def check_new(self, name: str) -> None:
        """Raise an `InputError` unless `name` may be the name of a new task."""
        check_task_name(name, new=False)  # it names a file when it is saved
        if name in self._names:
            raise InputError(f"there is a task {name!r} already; delete_task it first or choose another name")

    def get(self, name: str, read: Callable[[TaskFile], tuple[TaskState, str]]) -> TaskState:
        """The task, by `read` from its file if need be, which gives the file's checksum too.

        Raises:
            InputError: there is no such task, or its file cannot be read, or is another one than that which was read before.
        """
        self.require(name)
        if name not in self.states:
            state, checksum = read(self._files[name])
            self._files[name] = dataclasses.replace(self._files[name], checksum=checksum)
            self._keep(name, state)
            self._loaded[name] = total_bytes(all_tensors(state))
            while sum(self._loaded.values()) > self.loaded_bytes and len(self._loaded) > 1:
                oldest, _ = self._loaded.popitem(last=False)
                del self.states[oldest]
        if name in self._loaded:
            self._loaded.move_to_end(name)
        return self.states[name]  # type: ignore[return-value]

    def add(self, name: str, state: TaskState) -> None:
        """Add a task that lives in memory."""
        self.check_new(name)
        self._keep(name, state)
        self._names[name] = None  # last: a name that has nothing would break every later use

    def register(self, name: str, file: TaskFile) -> None:
        """Add a task that is read when it is first used, and again after it was dropped."""
        self.check_new(name)
        self._files[name] = file
        self._names[name] = None

    def replaced(self) -> tuple[str, ...]:
        """The registered tasks whose file has gone, or is another one by now."""
        return tuple(name for name, file in self._files.items() if file.is_replaced())

    def coded_relative_to(self, name: str, find: Callable[[Path], str]) -> list[str]:
        """The registered tasks that are read with the help of the task `name`, and may have to be read again.

        Args:
            name: the task.
            find: gives what the masks in a file are coded relative to, "" for none. Each file is asked once.
        """
        for other, file in list(self._files.items()):
            if file.relative_to is None:
                self._files[other] = dataclasses.replace(file, relative_to=find(file.path))
        return [other for other, file in self._files.items() if file.relative_to == name and other != name]

    def pin(self, name: str) -> None:
        """Keep a registered task that was read in memory from now on: it is about to change."""
        self._loaded.pop(name, None)
        self._files.pop(name, None)

    def remove(self, name: str) -> None:
        """Forget a task; its file stays."""
        del self._names[name]
        self._files.pop(name, None)
        self._loaded.pop(name, None)
        if name in self.states:
            del self.states[name]

    def rename(self, old: str, new: str) -> None:
        """Give a task another name, and let it keep its place."""
        self.check_new(new)
        tables: tuple[MutableMapping[str, Any] | nn.ModuleDict, ...] = (self._files, self._loaded, self.states)
        for table in tables:  # under both names while that of the list changes, or an interrupt could lose the task
            if old in table:
                table[new] = table[old]
        self._names = {new if name == old else name: None for name in self._names}
        for table in tables:
            if old in table:
                del table[old]

    def train(self, mode: bool = True) -> Self:
        """As any module's, but frozen tasks, which are in evaluation mode, are not gone through: there may be a thousand."""
        self.training = self.states.training = mode
        for state in self.states.children():
            if not state.frozen:
                state.train(mode)
        return self

    def _keep(self, name: str, state: TaskState) -> None:
        self.states[name] = state.train(self.training)
