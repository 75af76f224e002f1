"""The files of a bundle's tasks as they were when they were read, and how the folder has changed since."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from img2img.bundle import task_path
from img2img.errors import InputError


class TaskFileError(InputError):
    """The file of a task that was dropped from memory cannot be read again: it has gone, or is another one by now."""


_Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class BundleChanges:
    """How a bundle differs from what was loaded of it.

    Attributes:
        added: tasks that came.
        removed: tasks that went.
        replaced: tasks of the same name with another file.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.replaced)


class TaskFiles:
    """The files that were read, each known by its time, size and inode.

    Args:
        folder: the bundle's.
        names: the tasks whose files are read next.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder = folder
        self._known: dict[str, _Stamp | None] = {}
        self.take(names)

    def take(self, names: Iterable[str]) -> None:
        """Note the files of tasks; call it before they are read, so that a file which changes meanwhile counts as changed."""
        self._known |= {name: self._stamp(name) for name in names}

    def drop(self, names: Iterable[str]) -> None:
        """Forget the files of tasks."""
        for name in names:
            self._known.pop(name, None)

    def changes(self, tasks: Sequence[str]) -> BundleChanges:
        """What has changed, where the bundle lists `tasks` now."""
        listed = set(tasks)
        return BundleChanges(
            added=tuple(name for name in tasks if name not in self._known),
            removed=tuple(name for name in self._known if name not in listed),
            replaced=tuple(name for name, stamp in self._known.items() if name in listed and self._stamp(name) != stamp),
        )

    def _stamp(self, name: str) -> _Stamp | None:
        try:
            found = task_path(self._folder, name).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
