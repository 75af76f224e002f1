"""Atomic files, files that nobody vouches for, and memory that runs out while one is read."""

import errno
import json
import os
import pickle
import resource
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from img2img.backbones.pretrained import read_tensors
from img2img.cli.output import one_message
from img2img.cli.pipeline import job_errors
from img2img.errors import LONGEST, InputError, TrainingDivergedError, first_line
from img2img.files.atomic import clear_leftovers, make_folder, replace_folder, restore_folder, temporary_beside, write_atomic
from img2img.files.json_files import parse_json, read_json, write_json
from img2img.files.unpickle import read_pickled_arrays
from img2img.files.untrusted import check_plain, mapping
from img2img.training.checked_files import read_checked_tensors, write_checked_tensors
from img2img.training.checkpoint import load_checkpoint, save_checkpoint


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_json(tmp_path / "new" / "a.json", {"x": 1})

    def half(temporary: Path) -> None:
        temporary.write_text("{")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_atomic(path, half)
    assert read_json(path) == {"x": 1}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_the_new_file_appears_whole_under_its_name_at_the_end_only(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"

    def slow(temporary: Path) -> None:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")

    assert write_atomic(path, slow).read_text() == "whole"


def test_nan_is_no_json_and_a_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())
    (tmp_path / "b.json").write_text("{'x': 1}")
    with pytest.raises(InputError, match=r"b\.json is not valid JSON"):
        read_json(tmp_path / "b.json")
    with pytest.raises(InputError, match="no file at"):
        read_json(tmp_path / "c.json")


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"x": "\xc3\xa9"}')
    assert read_json(tmp_path / "a.json") == {"x": "é"}


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "Free some space"),
        (errno.EACCES, "Make the folder writable"),
        (errno.EROFS, "Make the folder writable"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EIO, "Check the path and the disk"),
    ],
)
def test_the_remedy_fits_what_went_wrong(tmp_path: Path, number: int, remedy: str) -> None:
    path = write_json(tmp_path / "a.json", 1)

    def fail(temporary: Path) -> None:
        raise OSError(number, os.strerror(number), str(temporary))

    with pytest.raises(OSError, match=remedy) as caught:
        write_atomic(path, fail)
    assert caught.value.errno == number
    assert "the earlier file is unchanged" in str(caught.value)
    assert ".tmp" not in str(caught.value)


def test_a_full_disk_inside_a_library_that_says_so_by_another_error_is_one_message(tmp_path: Path) -> None:
    """A real limit on the size of files, met by torch's zip writer and by safetensors' Rust."""
    tensor = torch.zeros(100_000)
    path = write_json(tmp_path / "a.pt", 1)
    before = path.read_bytes()

    def by_torch(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            torch.save(tensor, file)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for limit in (100, 1_000, 10_000, 100_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            for write in (by_torch, lambda p: safetensors.torch.save_file({"x": tensor}, p)):
                with pytest.raises(OSError, match=r"a\.pt .*earlier file is unchanged"):
                    write_atomic(path, write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_the_folder_is_flushed_after_the_rename_and_so_are_new_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    replace, fsync = os.replace, os.fsync

    def replaced(a: Path, b: Path) -> None:
        replace(a, b)
        happened.append("renamed")

    def synced(handle: int) -> None:
        fsync(handle)
        happened.append(Path(f"/proc/self/fd/{handle}").readlink().name)

    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(os, "fsync", synced)
    write_json(tmp_path / "new" / "newer" / "a.json", 1)
    assert set(happened[:2]) == {tmp_path.name, "new"}, "the names of the two new folders"
    assert happened[2].endswith(".tmp")
    assert happened[3:] == ["renamed", "newer"]
    monkeypatch.setattr(os, "fsync", lambda handle: fsync(handle) if _is_file(handle) else _refuse())
    write_json(tmp_path / "b.json", 2)  # a file system that syncs no folders
    assert read_json(tmp_path / "b.json") == 2


def _is_file(handle: int) -> bool:
    return not os.path.isdir(f"/proc/self/fd/{handle}")


def _refuse() -> None:
    raise OSError(errno.EINVAL, "Invalid argument")


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 250 + ".json", "é" * 125 + ".json"):
        assert read_json(write_json(tmp_path / name, {"x": 1})) == {"x": 1}
    with pytest.raises(OSError, match="shorter name"):
        write_json(tmp_path / ("x" * 300), 1)


def test_what_a_killed_process_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from img2img.files.atomic import write_atomic\n"
        "write_atomic(Path(sys.argv[1]), lambda p: (p.write_bytes(b'half'), p.with_name(p.name + '.mp4').touch(), os._exit(9)))"
    )
    (tmp_path / "below").mkdir()
    for path in (tmp_path / "a.json", tmp_path / "below" / "b.mp4"):
        assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 9
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    process, here = int(ended.stdout), f"{zlib.crc32(socket.gethostname().encode()):08x}"
    (tmp_path / f".old.json.{process}.tmp").touch()  # as versions before named them
    (tmp_path / f".half.{here}-{process}-0.tmp").mkdir()
    (tmp_path / f".half.{here}-{process}-0.tmp" / "file").touch()
    old = tmp_path / f".ages.{zlib.crc32(b'another'):08x}-1-0.tmp"
    old.touch()
    os.utime(old, (0, 0))
    kept = {
        "a.tmp", ".b.tmp", f".c.{os.getpid()}.tmp", temporary_beside(tmp_path / "d").name,
        f".another.{zlib.crc32(b'another'):08x}-{process}-0.tmp", f"e.{process}.tmp", "below",
    }  # fmt: skip
    for name in kept - {"below"}:
        (tmp_path / name).touch()
    assert len(clear_leftovers(tmp_path, below=1)) == 7
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert not list((tmp_path / "below").iterdir())
    assert clear_leftovers(tmp_path / "nowhere") == []


def _new_beside(folder: Path, text: str) -> Path:
    made = temporary_beside(folder)
    made.mkdir()
    (made / "file").write_text(text)
    return made


def test_a_folder_that_a_killed_process_put_aside_comes_back_or_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from img2img.files import atomic\n"
        "real, end = os.replace, lambda *_, **__: os._exit(9)\n"
        "if sys.argv[3] == 'between':\n"
        "    atomic.os.replace = lambda a, b: (real(a, b), str(b).endswith('.old') and end())\n"
        "else:\n"
        "    atomic.shutil.rmtree = end\n"
        "atomic.replace_folder(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    folder = tmp_path / "it"
    folder.mkdir()
    (folder / "file").write_text("first")
    for moment, text, names in (("between", "second", {"first"}), ("after", "third", {"first", "third"})):
        new = _new_beside(folder, text).rename(tmp_path / ".it.4194304.tmp")  # of none that runs
        assert subprocess.run([sys.executable, "-c", code, str(new), str(folder), moment]).returncode == 9
        left = [path for path in tmp_path.iterdir() if path.suffix != ".tmp"]
        assert {(path / "file").read_text() for path in left} == names
        restore_folder(folder)
        assert (folder / "file").read_text() == ("first" if moment == "between" else "third")
        assert [path for path in tmp_path.iterdir() if path.suffix == ".old"] == []
        clear_leftovers(tmp_path)

    ended = int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True).stdout)
    clear_leftovers(tmp_path)
    theirs = {tmp_path / f".it.{os.getppid()}.old", tmp_path / f".other.{ended}.old"}  # of one that runs, of another folder
    for path in (*theirs, tmp_path / f".it.{ended}.old"):
        path.mkdir()
    replace_folder(_new_beside(folder, "fourth"), folder)
    assert (folder / "file").read_text() == "fourth"
    assert set(tmp_path.iterdir()) == {folder, *theirs}


def test_a_link_to_a_folder_stays_where_that_is_replaced(tmp_path: Path) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    replace_folder(_new_beside(folder, "new"), link)
    assert link.is_symlink()
    assert (folder / "file").read_text() == "new"
    assert set(tmp_path.iterdir()) == {folder, link}


def test_a_folder_is_replaced_though_one_that_waits_for_it_makes_it_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = tmp_path / "folder", os.replace
    folder.mkdir()
    lock = folder / ".img2img.lock"

    def replace(source: Path, target: Path) -> None:
        real(source, target)
        if target.suffix == ".old":
            folder.mkdir()
            lock.touch()
            threading.Timer(0.2, lock.unlink).start()

    monkeypatch.setattr(os, "replace", replace)
    replace_folder(_new_beside(folder, "new"), folder)
    assert (folder / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


def test_the_first_line_of_a_message_even_of_an_empty_or_endless_one() -> None:
    assert first_line(ValueError("\n  one\ntwo")) == "one"
    assert first_line(RuntimeError("")) == "RuntimeError"
    assert first_line(RuntimeError(" \n ")) == "RuntimeError"
    assert len(first_line(RuntimeError("x" * 10_000_000))) < 400


SHORT = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


def _weights(path: Path) -> Any:
    safetensors.torch.save_file({"x": torch.zeros(3)}, path)
    return read_tensors(path)


def _checkpoint(path: Path) -> Any:
    save_checkpoint(path, {"fingerprint": "a", "x": torch.zeros(3)})
    return load_checkpoint(path, fingerprint="a")


def _sealed(path: Path) -> Any:
    write_checked_tensors(path, {"x": torch.zeros(3)})
    return read_checked_tensors(path, remedy="delete it")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(SHORT)])
@pytest.mark.parametrize("read", [_weights, _checkpoint, _sealed])
def test_memory_that_runs_out_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Any], error: Exception
) -> None:
    path = tmp_path / ("a.pt" if read is _checkpoint else "a.safetensors")
    read(path)

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    for place in ("safetensors.torch.load_file", "safetensors.torch.load", "torch.load"):
        monkeypatch.setattr(place, fail)
    with pytest.raises(type(error)) as raised:
        read(path)
    assert raised.value is error


def test_nor_of_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> bytes:
        raise MemoryError

    (tmp_path / "a").touch()
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(MemoryError):
        read_pickled_arrays(tmp_path / "a", dtypes=("u1",), expected="arrays", remedy="none")


@pytest.mark.parametrize("guard", [one_message, job_errors])
@pytest.mark.parametrize(
    "error", [InputError("wrong"), TrainingDivergedError("the loss is nan"), MemoryError(), OSError(28, "No space left")]
)
def test_what_ends_a_command_is_one_line(guard: Any, error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, guard():
        raise error
    said = capsys.readouterr().err + str(ended.value.code)
    assert "error: " in said
    assert "wrong" in said or "nan" in said or "memory" in said or "space" in said


@pytest.mark.parametrize(
    "text",
    [
        *("NaN", "-Infinity", "1e400", "9" * 41, "9" * 10_000, "{", "", '{"a": nan}'),
        *("[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, b"\xff", b'"\xed\xa0\x80"'),
    ],
    ids=lambda text: str(text[:12]),
)
def test_what_is_no_json_of_plain_sizes_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError) as caught:
        parse_json(text)
    assert not isinstance(caught.value, RecursionError)


def test_what_is_json_comes_as_it_is() -> None:
    value = {"a": [1, -2.5, "ü", None, True, {"b": 10**20}]}
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[[[[[1]]]]]], "nested"),
        (list(range(10_001)), "10001 entries"),
        ({"a" * 1001: 1}, "1001 letters"),
        ({"a": ["b" * 1001]}, "1001 letters"),
        (1e10, "the number"),
        (-(10**40), "the number"),
        ({1, 2}, "a set"),
    ],
)
def test_values_larger_than_any_are_refused(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"it has .*{message}"):
        check_plain(value, "it")
    check_plain({"a": [1, 2.5, "b" * 1000, None, True, {"c": [[1]]}]}, "it")


def test_a_message_is_cut_in_its_middle_and_can_be_printed() -> None:
    error = InputError("what was got: " + "x" * 12_000_000 + "; what to do")
    assert len(str(error)) <= LONGEST
    assert str(error).startswith("what was got: xxx")
    assert str(error).endswith("xxx; what to do")
    assert " … (1199" in str(error)
    assert str(InputError("short")) == "short"
    assert str(InputError("half a letter: \ud800")).encode(sys.stdout.encoding or "utf-8")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_what_is_only_shown_is_a_mapping_or_nothing() -> None:
    assert mapping({"a": 1}) == {"a": 1}
    assert mapping([1]) == mapping("x") == mapping(None) == {}


def test_nan_is_taken_where_that_is_asked_for() -> None:
    assert parse_json('[1, Infinity, "x"]', allow_nan=True) == [1, float("inf"), "x"]
    with pytest.raises(ValueError, match="Infinity"):
        parse_json('[1, Infinity, "x"]')


# ---------------------------------------------------------------------- pickled arrays


def read(path, *dtypes):
    return read_pickled_arrays(path, dtypes=dtypes, expected="a pickle of a test", remedy="write it")


def test_arrays_come_back_in_their_containers(tmp_path) -> None:
    array = np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    (tmp_path / "a").write_bytes(pickle.dumps({"data": [array], "labels": [3, 1], "names": ["café"]}))
    content = read(tmp_path / "a", "u1")
    np.testing.assert_array_equal(content["data"][0], array)
    assert content["labels"] == [3, 1]
    assert content["names"] == ["café"]


def test_arrays_of_another_type_are_refused(tmp_path) -> None:
    (tmp_path / "a").write_bytes(pickle.dumps(np.zeros(2, np.float32)))
    with pytest.raises(InputError, match=r"'f4'.*a pickle of a test"):
        read(tmp_path / "a", "u1")


def test_a_missing_file_says_what_to_do(tmp_path) -> None:
    with pytest.raises(InputError, match=r"nowhere.*a pickle of a test"):
        read(tmp_path / "nowhere", "u1")


def test_a_folder_that_another_process_removes_at_this_moment_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir, folder = os.mkdir, tmp_path / "a"
    raced: list[str] = []

    def race(path: Any, *more: Any) -> None:
        if not raced:
            raced.append(str(path))
            raise FileExistsError(errno.EEXIST, "File exists", str(path))  # and it is gone when pathlib looks at it
        mkdir(path, *more)

    monkeypatch.setattr(os, "mkdir", race)
    make_folder(folder)
    assert raced == [str(folder)]
    assert folder.is_dir()
    make_folder(folder)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")
