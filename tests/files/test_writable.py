"""Whether results can be written is asked before the work, not after it."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import img2img
from img2img import InputError
from img2img.bundle.join import join_bundles
from img2img.export import export_bundle
from img2img.files.writable import check_writable
from img2img.hub import save_pretrained
from img2img.research.impresslearn import run as run_study
from img2img.research.suites.runner import Job, run_jobs
from img2img.training.run import run
from img2img.training.sequence import SequenceRunner


def test_a_folder_that_takes_files_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path, "out")
    check_writable(tmp_path / "new" / "deep", "out", "tasks")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path, int], None]:
    """`locked(folder, errno)`: from now on files below it cannot be written; to root permission bits say nothing."""
    places: list[tuple[Path, int]] = []
    write = Path.write_bytes

    def refusing(self: Path, data: Any) -> int:
        for folder, number in places:
            if folder in self.parents:
                raise OSError(number, os.strerror(number), str(self))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", refusing)
    return lambda folder, number: places.append((folder, number))


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EROFS, "Read-only file system.*permission"),
        (errno.EACCES, "permission"),
        (errno.EPERM, "permission"),
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
    ],
)
def test_the_remedy_fits_the_cause(locked: Any, tmp_path: Path, number: int, said: str) -> None:
    locked(tmp_path, number)
    with pytest.raises(InputError, match=rf"out=.*new: .*{said}") as caught:
        check_writable(tmp_path / "new", "out")
    assert ("space" in str(caught.value)) == (number in (errno.ENOSPC, errno.EDQUOT))


def test_nothing_is_worked_for_what_cannot_be_kept(
    locked: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(SequenceRunner, "run", refuse)
    monkeypatch.setattr(subprocess, "run", refuse)
    locked(tmp_path / "bundle", errno.EROFS)
    images = {"kind": "scenes", "scenes": "shapes", "size": 32, "count": {"train": 4, "val": 2, "test": 2}}
    with pytest.raises(InputError, match=r"bundle=.*Read-only"):
        img2img.add_task(
            tmp_path / "bundle", "new", task={"kind": "segmentation"}, data=images, train={"steps": 1}, out=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=r"into=.*Read-only"):
        join_bundles(tmp_path / "bundle", [bundle])
    (tmp_path / "closed").mkdir()
    locked(tmp_path / "closed", errno.EACCES)
    out = tmp_path / "closed" / "out"
    job = Job(label="a", seed=0, folder=tmp_path / "open" / "a" / "0")
    study = {"name": "s", "out": str(out), "data": {"kind": "made"}, "densities": [0.1], "counts": [1]}
    study |= {"inference": {"tasks": 0}, "variants": {"counts": []}}
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: export_bundle(bundle, out, format="onnx"), "out="),
        (lambda: save_pretrained(bundle, out), "parent="),
        (lambda: run_jobs(Path("none.py"), [job], parallel=1, store=out), "--store="),
        (lambda: run_jobs(Path("none.py"), [Job(label="a", seed=0, folder=out / "0")], parallel=1, store=None), "--out="),
        (lambda: run_study(study), "out="),
    ]
    for call, said in calls:
        with pytest.raises(InputError, match=f"{said}.*permission"):
            call()
    assert list((tmp_path / "closed").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("unshare"), reason="needs namespaces of Linux")
def test_a_disk_that_is_mounted_for_reading(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    mount = f"mount -t tmpfs -o ro tmpfs {tmp_path / 'disk'}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("may not mount")
    script = "import sys; from img2img.files.writable import check_writable; check_writable(sys.argv[1], 'out')"
    command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$0" -c "$1" "$2"', sys.executable, script, str(tmp_path / "disk")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "InputError: out=" in done.stderr
    assert "Read-only file system" in done.stderr
    assert "permission" in done.stderr


def test_a_run_folder_that_takes_no_files(locked: Any, tmp_path: Path) -> None:
    (tmp_path / "run" / "bundle").mkdir(parents=True)
    locked(tmp_path / "run" / "bundle", errno.EROFS)
    config = {
        "name": "n", "out": str(tmp_path / "run"), "backbone": {"kind": "image_transformer"}, "method": {"name": "piggyback"},
        "tasks": {"t": {"task": {"kind": "colourisation"}, "data": {"kind": "samples"}}}, "sequence": ["t"],
    }  # fmt: skip
    with pytest.raises(InputError, match=r"out=.*bundle \(Read-only"):
        run(config)
