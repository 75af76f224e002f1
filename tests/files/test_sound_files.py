"""Memory that runs out while a file is read is no damage of the file, and what ends a command is one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from img2img.backbones.pretrained import read_tensors
from img2img.cli.output import one_message
from img2img.cli.pipeline import job_errors
from img2img.errors import InputError, TrainingDivergedError
from img2img.files.unpickle import read_pickled_arrays
from img2img.training.checked_files import read_checked_tensors, write_checked_tensors
from img2img.training.checkpoint import load_checkpoint, save_checkpoint

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
