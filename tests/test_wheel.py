"""The installed wheel does without the checkout: its commands, its configs, its templates."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
OVERRIDES = [
    "experiment=demo", "sequence=[shapes,recolour]", "compare.decoder_only=[]", "out=made", "train.steps=2",
    "train.validation.every=2", "evaluation.check_images=1", "evaluation.panels=1", "backbone=image_transformer",
    "backbone.width=4", "backbone.blocks=0", "masks.trainable_copies=null", "device.threads=1",
    "train.validation.precise_bn_batches=0", "train.augmentation.crop=32",
    "tasks.shapes.data.count={train: 8, val: 2, test: 2}", "+tasks.recolour.data.limit={train: 4, val: 2, test: 2}",
]  # fmt: skip
MINE = """# @package _global_
name: mine
sequence: [colour]
tasks: {colour: {task: {kind: colourisation}, data: {kind: samples}}}
"""
COMMANDS = {
    "train": ["train", *OVERRIDES],
    "list": ["tasks", "list", "made", "--json"],
    "run": ["run", "recolour", "made/images", "--bundle", "made", "--out", "out", "--json"],
    "starter": ["run", "denoise", "made/images/recolour.png", "--out", "starter", "--json"],
    "mine": ["train", "--config-dir", "mine", "experiment=mine", "--cfg", "job"],
    "wrong": ["train", "--config-dir", "mine", "experiment=mine", "train.stepz=1"],
}
# All in one process: each new one would take seconds to import the libraries.
PROGRAM = """
import contextlib, io, json, sys
import img2img
from img2img.cli import main
from img2img.training.compose import config_folder

answers = {"files": [img2img.__file__, str(config_folder())]}
for name, arguments in json.load(sys.stdin).items():
    sys.argv = ["img2img", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            main()
        except SystemExit as ended:
            code = ended.code
            if isinstance(code, str):  # as the interpreter takes it
                print(code, file=sys.stderr)
                code = 1
    answers[name] = {"code": code, "out": out.getvalue(), "error": error.getvalue()}
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as a wheel has it, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("img2img", "configs", "bundles"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are given: away from the checkout, with an experiment of the user's own."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "mine" / "experiment").mkdir(parents=True)
    (folder / "mine" / "experiment" / "mine.yaml").write_text(MINE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def answers(installed: Path, place: Path) -> dict[str, Any]:
    """What each of the commands ended with and printed."""
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(COMMANDS), cwd=place, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_package_and_its_command_are_the_wheels(installed: Path, answers: dict[str, Any]) -> None:
    assert answers["files"] == [str(installed / "img2img" / "__init__.py"), str(installed / "img2img" / "configs")]
    (entry,) = installed.glob("*.dist-info/entry_points.txt")
    assert "img2img = img2img.cli:main" in entry.read_text(encoding="utf-8")
    served = installed / "img2img" / "web" / "static"
    assert {path.name for path in served.iterdir()} == {"index.html", "style.css", "script.js"}


def test_a_task_is_trained_and_run_away_from_the_checkout(place: Path, answers: dict[str, Any]) -> None:
    assert not answers["train"]["code"], answers["train"]
    assert (place / "made" / "report.html").is_file()
    assert (place / "made" / "config" / "config.yaml").is_file()
    assert [task["name"] for task in json.loads(answers["list"]["out"])] == ["shapes", "recolour"]
    assert not answers["run"]["code"], answers["run"]
    results = json.loads(answers["run"]["out"])["results"]
    assert {Path(result["output"]).name for result in results} == {p.name for p in (place / "made" / "images").glob("*.png")}
    assert all((place / result["output"]).is_file() for result in results)


def test_the_bundle_that_comes_with_it_runs_without_a_training(place: Path, answers: dict[str, Any]) -> None:
    assert not answers["starter"]["code"], answers["starter"]
    assert (place / "starter" / "recolour.png").is_file()


def test_an_experiment_of_ones_own_is_found_and_a_wrong_key_named(answers: dict[str, Any]) -> None:
    assert not answers["mine"]["code"], answers["mine"]
    assert "name: mine" in answers["mine"]["out"]
    assert answers["wrong"]["code"] == 1
    assert "stepz" in answers["wrong"]["error"]
