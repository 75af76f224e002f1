"""One process at a time in a folder: a file in it says who, and the kernel's lock on that file says whether it still lives.

The lock is `flock`'s, which the system drops when its process ends, however it ends. It holds between containers of one machine,
and between machines on network file systems that carry locks (NFS does on Linux). The file's content, the process, its machine
and its start, is for the message, and for where locks say too little: a file system without them, and another machine, whose
processes nobody here can see. A lock file alone would be wrong wherever process numbers mean something else, as in containers; a
kernel's lock alone could name nobody.
"""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from img2img.errors import InputError
from img2img.files.atomic import cannot_write, is_running, make_folder
from img2img.files.paths import expanded

try:
    import fcntl
except ImportError:  # Windows: there the file's content alone decides
    fcntl = None  # type: ignore[assignment]

NAME = ".img2img.lock"
_SHORTLY = 0.5
"""Seconds that a look at a lock by another process, or its last moments, may take."""
_held: set[int] = set()
"""Open lock files of this process, which children that it forks must not keep alive."""


@dataclass(frozen=True)
class Holder:
    """Who holds a folder.

    Attributes:
        process: its number, 0 where that is not known.
        host: the machine's name, or the container's.
        boot: what Linux calls this run of the machine's kernel, or "".
        start: when the process began, in the kernel's ticks, or 0.
        since: when it took the folder.
    """

    process: int
    host: str
    boot: str
    start: int
    since: str


class FolderInUseError(InputError):
    """Another process works in the folder."""


@contextlib.contextmanager
def hold(folder: str | os.PathLike[str], *, wait: float = _SHORTLY) -> Iterator[None]:
    """Keep other processes, and other threads, out of a folder for the length of the block.

    The folder is made if need be. After the block, and where the folder is refused, it is as it was but for what others wrote.

    Args:
        folder: which.
        wait: seconds to wait for another process to end its work there.

    Raises:
        FolderInUseError: another process holds it; says who, and what to do.
        OSError: it cannot be written.
    """
    folder = expanded(folder)
    path = folder / NAME
    made = [above for above in (folder, *folder.parents) if not above.exists()]
    handle: int | None = None
    owner = os.getpid()
    try:
        handle = _wait_for(path, wait)
        yield
    finally:
        if os.getpid() == owner:  # not in a child that was forked in the block
            if handle is not None:
                _release(path, handle)
            for above in made:
                with contextlib.suppress(OSError):
                    above.rmdir()  # only while empty


def check_free(folder: str | os.PathLike[str]) -> None:
    """Raise a `FolderInUseError` if a process holds the folder; nothing is written."""
    path = expanded(folder) / NAME
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        held = _lock(handle, shared=True)
        holder = _read(handle)
        if held is False or (holder is not None and not _has_ended(holder, locked=held is True)):
            raise FolderInUseError(_message(path, holder))
    finally:
        os.close(handle)


def forget_elsewhere(folder: str | os.PathLike[str]) -> None:
    """Remove the lock that a process of another machine left in a folder: the caller knows that it has ended.

    The lock of a process of this machine, in whatever container, stays: the kernel knows whether it lives.
    """
    path = expanded(folder) / NAME
    holder = _of_file(path)
    if holder is not None and holder.host != socket.gethostname() and not (holder.boot and holder.boot == _boot()):
        path.unlink(missing_ok=True)


def _wait_for(path: Path, wait: float) -> int:
    until = time.monotonic() + wait
    while True:
        try:
            make_folder(path.parent)
            taken = _take(path)
        except FileNotFoundError:
            continue  # the folder was removed at this moment
        except OSError as error:
            raise cannot_write(path, error) from error
        if isinstance(taken, int):
            return taken
        if time.monotonic() >= until:
            raise FolderInUseError(_message(path, taken))
        time.sleep(0.05)


def _take(path: Path) -> int | Holder | None:
    """The lock file, open and locked; or who has it, None where that is not known."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not path.is_file():
            raise
        return _of_file(path)  # another user's
    _held.add(handle)
    kept = False
    try:
        locked = _lock(handle)
        holder = _read(handle)
        if locked is False:
            return holder
        if not _is_at(handle, path):  # the one before removed it when it was done
            return _take(path)
        if holder is not None and not _has_ended(holder, locked=locked is True):
            return holder
        me = _myself()
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, json.dumps(asdict(me)).encode())
        if locked is None:
            time.sleep(_SHORTLY / 5)  # without a lock two may have come this far: the last to write has it
            if (holder := _of_file(path)) != me:
                return holder
        kept = True
        return handle
    finally:
        if not kept:
            _close(handle)


def _lock(handle: int, *, shared: bool = False) -> bool | None:
    """Whether the open file could be locked; None where the system or the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return False
        return None
    return True


def _release(path: Path, handle: int) -> None:
    if fcntl is None:  # Windows removes no open file
        _close(handle)
    with contextlib.suppress(OSError):
        path.unlink()  # while it is locked: whoever opened it before sees that it is gone
    if fcntl is not None:
        _close(handle)


def _close(handle: int) -> None:
    _held.discard(handle)
    os.close(handle)


def _let_go_in_child() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


# ---------------------------------------------------------------------- who


def _myself() -> Holder:
    process = os.getpid()
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return Holder(process, socket.gethostname(), _boot(), _start(process), since)


def _read(handle: int) -> Holder | None:
    """What the file says; None where it says nothing yet, or nothing that makes sense."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        values = json.loads(os.read(handle, 4096))
        holder = Holder(**values)
    except (ValueError, TypeError, RecursionError):
        return None
    fine = all(type(value) is type(mine) for value, mine in zip(values.values(), asdict(_myself()).values(), strict=True))
    return holder if fine and values.keys() == asdict(holder).keys() else None


def _of_file(path: Path) -> Holder | None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return _read(handle)
    finally:
        os.close(handle)


def _has_ended(holder: Holder, *, locked: bool) -> bool:
    """Whether a process is known to be no more whose file lies there; `locked`: the kernel has given us the lock on it."""
    if holder.boot and holder.boot == _boot():
        if locked:  # one kernel: it knows
            return True
        if holder.host != socket.gethostname():
            return False  # another container, with other numbers
        return not is_running(holder.process) or 0 != holder.start != _start(holder.process)
    if holder.host != socket.gethostname():
        return False
    if holder.boot and _boot():
        return True  # the machine was started again since
    return locked or not is_running(holder.process)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _start(process: int) -> int:
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        return int(stat.rpartition(")")[2].split()[19])  # the name before may hold anything
    except (OSError, ValueError, IndexError):
        return 0


def _message(path: Path, holder: Holder | None) -> str:
    who = "another process"
    if holder is not None:
        who = "this very process" if holder == _myself_at(holder) else f"process {holder.process}"
        who += f" on {holder.host:.100}, since {holder.since:.40}"
    remedy = "wait until it has ended, or choose another folder"
    if holder is None or holder.host != socket.gethostname():
        remedy += f". If it has ended and cannot be seen from here, delete {path} and run again"
    return f"{path.parent} is in use by {who}: expected one process at a time; {remedy}"


def _myself_at(holder: Holder) -> Holder:
    return Holder(**(asdict(_myself()) | {"since": holder.since}))
