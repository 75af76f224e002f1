"""The installed wheel does without the checkout: its commands, its configs, its templates."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as a wheel has it, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("img2img", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def _run(installed: Path, where: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "img2img", *map(str, arguments)]
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)


def test_the_package_is_the_wheels(installed: Path, tmp_path: Path) -> None:
    code = "import img2img, img2img.configs as c; print(img2img.__file__); print(c.config_folder())"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(installed / "img2img" / "__init__.py"), str(installed / "img2img" / "configs")]


def test_a_task_is_trained_and_run_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    overrides = [
        "experiment=demo", "sequence=[shapes,colour]", "compare.decoder_only=[]", "out=made", "train.steps=2",
        "train.validation.every=2",
        "evaluation.check_images=1", "evaluation.panels=1", "backbone=resnet18_unet", "backbone.weights=null",
        "masks.trainable_copies=null", "train.validation.precise_bn_batches=0", "device.threads=1",
        "tasks.shapes.data.count={train: 8, val: 2, test: 2}", "+tasks.colour.data.limit={train: 4, val: 2, test: 2}",
    ]  # fmt: skip
    done = _run(installed, tmp_path, "train", *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "made" / "report.html").is_file()
    assert (tmp_path / "made" / "config" / "config.yaml").is_file()
    listed = _run(installed, tmp_path, "tasks", "list", "made", "--json")
    assert [task["name"] for task in json.loads(listed.stdout)] == ["shapes", "colour"]
    picture = next((tmp_path / "made" / "pictures").glob("*.png"))
    done = _run(installed, tmp_path, "run", "colour", picture, "--bundle", "made", "--out", "out", "--json")
    assert done.returncode == 0, done.stderr
    assert Path(tmp_path, json.loads(done.stdout)["results"][0]["output"]).is_file()


def test_an_experiment_of_ones_own_is_found_and_a_wrong_key_named(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    text = (
        "# @package _global_\nname: mine\nsequence: [colour]\n"
        "tasks: {colour: {task: {kind: colourisation}, data: {kind: samples}}}\n"
    )
    (tmp_path / "mine" / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    done = _run(installed, tmp_path, "train", "--config-dir", "mine", "experiment=mine", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "name: mine" in done.stdout
    done = _run(installed, tmp_path, "train", "--config-dir", "mine", "experiment=mine", "train.stepz=1")
    assert done.returncode == 1
    assert "stepz" in done.stderr
