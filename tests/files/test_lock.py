"""One process at a time in a folder: the second hears who works there, and what a dead one left is no obstacle."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from img2img.files import lock
from img2img.files.lock import NAME, FolderInUseError, Holder, check_free, hold

FORK = multiprocessing.get_context("fork")  # a new interpreter would import torch first, for seconds


def _hold(folder: Path, seconds: float, held: Any) -> None:
    with hold(folder):
        held.set()
        time.sleep(seconds)


@contextmanager
def held_elsewhere(folder: Path, seconds: float = 60) -> Iterator[int]:
    """Another process, whose number it is, holds the folder for the length of the block; it is killed then."""
    held = FORK.Event()
    process = FORK.Process(target=_hold, args=(folder, seconds, held))
    process.start()
    try:
        assert held.wait(20)
        assert process.pid is not None
        yield process.pid
    finally:
        process.kill()
        process.join()


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its content and time."""
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()}


def written(folder: Path, holder: Holder | None) -> Path:
    """A lock file that nobody has locked."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_text("" if holder is None else json.dumps(asdict(holder)))
    return folder / NAME


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks."""

    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)


@pytest.fixture
def ended() -> int:
    """The number of a process that has ended."""
    process = FORK.Process(target=int)
    process.start()
    process.join()
    assert process.pid is not None
    return process.pid


def test_the_second_process_hears_who_holds_the_folder_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x"
    with held_elsewhere(folder) as process:
        before = tree(tmp_path)
        for attempt in (lambda: hold(folder).__enter__(), lambda: check_free(folder)):
            with pytest.raises(FolderInUseError, match=rf"x is in use by process {process} on {socket.gethostname()}, since 20"):
                attempt()
        assert tree(tmp_path) == before
    # It was killed: nothing is in the way, whatever it left.
    assert (folder / NAME).exists()
    check_free(folder)
    with hold(folder):
        assert json.loads((folder / NAME).read_text())["process"] == os.getpid()
    assert list(folder.iterdir()) == []


def test_after_the_block_a_folder_is_as_it_was_and_what_was_not_there_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError), hold(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / NAME).touch(exist_ok=False)
    assert list(tmp_path.iterdir()) == []
    with hold(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "c").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "c"]
    check_free(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_one_who_waits_gets_the_folder_when_it_is_free(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path, seconds=1), hold(tmp_path, wait=30):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_threads_of_one_process_keep_each_other_out(tmp_path: Path) -> None:
    inside, most, done = 0, 0, []

    def work() -> None:
        nonlocal inside, most
        with hold(tmp_path, wait=30):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1
        done.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, len(done)) == (1, 8)
    with hold(tmp_path), pytest.raises(FolderInUseError, match="this very process"), hold(tmp_path, wait=0):
        pass


def test_a_forked_child_neither_keeps_nor_frees_the_lock(tmp_path: Path) -> None:
    """The workers of a data loader outlive a killed parent for some seconds."""
    with hold(tmp_path):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        with pytest.raises(FolderInUseError):
            check_free(tmp_path)
    try:
        with hold(tmp_path, wait=0):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with hold(tmp_path):
        if not (child := os.fork()):
            try:
                raise KeyboardInterrupt
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert (tmp_path / NAME).exists()


def test_a_dead_process_of_this_machine_is_known_by_the_lock_whatever_its_number_is_now(tmp_path: Path) -> None:
    me = lock._myself()
    for left in (
        me,  # the number is in use again, as ours is
        replace(me, host="a container of this machine"),
        replace(me, boot="the run before" if me.boot else "", start=1),  # the machine was started again
        None,
    ):
        written(tmp_path, left)
        check_free(tmp_path)
        with hold(tmp_path, wait=0):
            pass


def test_of_another_machine_the_message_says_what_to_delete(tmp_path: Path) -> None:
    path = written(tmp_path, Holder(process=77, host="node12", boot="other", start=1, since="2026-01-01 10:00:00+00:00"))
    before = tree(tmp_path)
    for attempt in (lambda: hold(tmp_path, wait=0).__enter__(), lambda: check_free(tmp_path)):
        with pytest.raises(FolderInUseError, match=r"77 on node12.*10:00.*delete .*\.lock"):
            attempt()
    assert tree(tmp_path) == before
    path.unlink()
    with hold(tmp_path, wait=0):
        pass


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"process": 1}', "null", '{"process": "x", "host": 1, "boot": 2, "start": 3, "since": 4}']
)
def test_a_damaged_lock_file_that_nobody_has_locked_is_no_obstacle(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    check_free(tmp_path)
    with hold(tmp_path, wait=0):
        pass


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_number_and_the_start_of_the_process_decide(tmp_path: Path, ended: int) -> None:
    me = lock._myself()
    for left in (replace(me, process=ended), replace(me, start=me.start - 1)):  # ended; ended, and its number used again
        written(tmp_path, left)
        check_free(tmp_path)
        with hold(tmp_path, wait=0):
            assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()
            with pytest.raises(FolderInUseError, match="this very process"), hold(tmp_path, wait=0):
                pass
    for left in (replace(me, process=os.getppid(), start=lock._start(os.getppid())), replace(me, host="another container")):
        written(tmp_path, left)
        with pytest.raises(FolderInUseError), hold(tmp_path, wait=0):
            pass


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if str(path).endswith(NAME):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="writable or choose another"), hold(tmp_path / "x"):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="choose another path"), hold(tmp_path / "file"):
        pass


def _take_turns(folder: Path, turns: int) -> None:
    inside = folder.with_suffix(".inside")
    while turns:
        with contextlib.suppress(FolderInUseError), hold(folder, wait=random.random() / 10):
            inside.mkdir()  # fails where another is there
            time.sleep(random.random() / 100)
            inside.rmdir()
            turns -= 1


def test_many_processes_at_one_folder_are_never_two_at_a_time(tmp_path: Path) -> None:
    processes = [FORK.Process(target=_take_turns, args=(tmp_path / "run", 30)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    assert not [path for path in tmp_path.rglob("*") if path.name != "run"]
