"""`~` is one's home folder wherever a path is given, and never the name of a folder."""

import os
import subprocess
import sys
from pathlib import Path

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
from img2img.export import export_task
from img2img.files.atomic import check_folder
from img2img.files.json_files import read_json, write_json
from img2img.files.paths import expanded, paths_in
from img2img.files.writable import check_writable
from img2img.files.yaml import read_yaml
from img2img.training.config import read_experiment
from img2img.training.evaluation import read_run

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
