"""`~` is one's home folder wherever a path is given, and never the name of a folder."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import img2img
from img2img import hub
from img2img.bundle import load_bundle
from img2img.bundle.join import join_bundles
from img2img.cli.report import report
from img2img.data import build_data
from img2img.data.images.decode import read_image, read_label
from img2img.errors import InputError
from img2img.export import export_bundle, export_task
from img2img.files.atomic import check_folder
from img2img.files.json_files import read_json, write_json
from img2img.files.paths import expanded, paths_in
from img2img.files.writable import check_writable
from img2img.files.yaml import read_yaml
from img2img.hub import save_pretrained
from img2img.research.impresslearn import run as run_study
from img2img.research.suites.runner import Job, run_jobs
from img2img.training.config import read_experiment
from img2img.training.evaluation import read_run
from img2img.training.run import run
from img2img.training.sequence import SequenceRunner

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and a working folder in which no `~` may be made."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_files_and_folders(home: Path) -> None:
    assert expanded("~/a/b") == home / "a" / "b"
    assert expanded(Path("~")) == home
    for name in ("~draft.png", "~$a.png", "a/~/b"):
        assert expanded(name) == Path(name)
    write_json("~/new/a.json", 1)
    assert read_json("~/new/a.json") == 1
    assert check_folder("~/new", "out") == home / "new"
    check_writable("~/new", "out")
    (home / "a.yaml").write_text("x: 1")
    assert read_yaml("~/a.yaml", "a config") == {"x": 1}
    Image.new("L", (4, 4)).save(home / "a.png")
    assert read_image("~/a.png").shape == (4, 4, 3)
    assert read_label("~/a.png").shape == (4, 4)
    assert os.listdir(".") == []


def test_bundles_runs_and_exports(home: Path, bundle: Path) -> None:
    (home / "given").symlink_to(bundle)
    image = np.zeros((32, 32, 3), np.uint8)
    Image.fromarray(image).save(home / "a.png")
    model = img2img.load("~/given")
    task = next(iter(model.tasks))
    assert np.array_equal(np.asarray(model.run(task, "~/a.png")), np.asarray(model.run(task, image)))
    network, _ = load_bundle("~/given")
    network.save_task(task, "~/a.safetensors")
    assert (home / "a.safetensors").is_file()
    join_bundles("~/joined", ["~/given"])
    assert (home / "joined" / "bundle.json").is_file()
    hub.save_pretrained("~/given", "~/shared")
    assert list(img2img.from_pretrained("~/shared").tasks) == list(model.tasks)
    export_task(network, task, model.task(task), "~/a.export.safetensors")
    assert (home / "a.export.safetensors").is_file()
    assert os.listdir(".") == []


def test_configs(home: Path) -> None:
    for i in range(10):
        (home / "photos").mkdir(exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), i, np.uint8)).save(home / "photos" / f"{i}.png")
    assert len(build_data({"kind": "image_folder", "root": "~/photos"}).train) == 8
    config = {
        "name": "x", "out": "~/runs/x", "backbone": {"kind": "image_transformer"}, "method": {"name": "piggyback"},
        "train": {"steps": 1}, "sequence": ["c"],
        "tasks": {"c": {"task": {"kind": "colourisation"}, "data": {"kind": "image_folder", "root": "~/photos"}}},
    }  # fmt: skip
    assert read_experiment(config).folder == home / "runs" / "x"
    with pytest.raises(InputError, match=str(home)):
        read_run(Path("~/nowhere").expanduser())
    assert os.listdir(".") == []


def test_an_account_without_a_home_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: os.fspath(path))  # what it does there
    with pytest.raises(InputError, match=r"no home folder.*HOME"):
        expanded("~/x")
    assert expanded("~other/x") == Path("~other/x")


def test_on_the_command_line(home: Path) -> None:
    """In a process of its own, since shells expand `~` after `=` neither in options nor in overrides."""
    command = [sys.executable, "-m", "img2img", "report", "nowhere", "--out=~/made"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert os.listdir(".") == []


def test_the_page_of_a_run_goes_home(home: Path) -> None:
    """Found on the command line by `--out=~/page`."""
    with pytest.raises(InputError, match=str(home / "nowhere")):
        report(Path("~/nowhere"))
    (home / "run").mkdir()
    (home / "run" / "results.json").write_text("{}")
    with pytest.raises(InputError, match=str(home / "run" / "results.json")):
        report(Path("~/run"), out=Path("~/page"))
    assert os.listdir(".") == []


def test_the_texts_among_options_that_may_be_paths(home: Path) -> None:
    nested = {"train": {"labels": "y", "name": "b"}}
    options = {"kind": "a", "root": "~/x", "parts": nested, "classes": ["z"], "side": 3, "odd": "\0"}
    assert dict(paths_in(options)) == {"root": home / "x", "parts.train.labels": Path("y")}


# ---------------------------------------------------------------------- whether results can be written


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
