"""Images of a user's own through a whole run: what is read, what the log says of it, and what the task keeps."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import img2img
from img2img.errors import InputError
from img2img.training.config import read_experiment
from img2img.training.run import run
from img2img.training.task_data import prepare

Make = Callable[..., dict[str, Any]]


@pytest.mark.slow
def test_a_run_inside_its_own_images_reads_them_alone_each_time(config: Make, disk_data: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(disk_data / "train" / "images", photos)
    (photos / "notes.heic").touch()
    out = photos / "runs" / "x"
    data = {"kind": "image_folder", "root": str(photos)}
    tasks = {name: {"task": {"kind": "colourisation"}, "data": data} for name in ("colour", "again")}
    first = config(tasks=tasks, sequence=["colour"], out=str(out))
    run(first, bars=False)
    assert list(out.rglob("*.png"))
    for other in (first, first | {"out": str(tmp_path / "other")}):
        experiment = read_experiment(other)
        parts = prepare(experiment, experiment.tasks[0]).parts
        assert sum(map(len, (parts.train, parts.val, parts.test))) == 12
    run(first | {"sequence": ["colour", "again"]}, bars=False)
    log = (out / "log.txt").read_text()
    assert "colour: " + f"{photos}: 12 images; left out 1 other file (.heic: 1)" in log
    assert f"again: {photos}: 12 images; left out 1 other file (.heic: 1) and {out}, where results are" in log


def test_images_of_12_bits_are_said_and_a_task_remembers_their_white(config: Make, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "deep").mkdir()
    for i in range(10):
        Image.fromarray(rng.integers(0, 4096, (32, 32), dtype=np.uint16)).save(tmp_path / "deep" / f"{i}.png")
    data = {"kind": "image_folder", "root": str(tmp_path / "deep")}
    tasks = {
        "dark": {"task": {"kind": "denoising", "sigma": 25}, "data": data},
        "bright": {"task": {"kind": "denoising", "sigma": 25}, "data": data | {"white": 4095}},
    }
    out = tmp_path / "run"
    run(config(tasks=tasks, sequence=["dark", "bright"], out=str(out)), bars=False)
    (said,) = [line for line in (out / "log.txt").read_text().splitlines() if "white=" in line]
    assert "dark: 16-bit images with values up to 4,0" in said
    assert "give white=4095" in said
    model = img2img.load(out)
    assert {name: info.white for name, info in model.tasks.items()} == {"dark": None, "bright": 4095}
    image = tmp_path / "deep" / "0.png"
    values = np.asarray(Image.open(image))
    bright, dark = (np.repeat(np.round(values * (255 / white)).astype(np.uint8)[..., None], 3, 2) for white in (4095, 65535))
    for given in (image, values, Image.open(image)):
        assert np.array_equal(np.asarray(model.run("bright", given)), np.asarray(model.run("bright", bright)))
        assert np.array_equal(np.asarray(model.run("dark", given)), np.asarray(model.run("dark", dark)))
        assert np.array_equal(np.asarray(model.run("dark", given, white=4095)), np.asarray(model.run("dark", bright)))
    both = model.run_all(image)
    assert np.array_equal(np.asarray(both["bright"]), np.asarray(model.run("bright", bright)))
    assert np.array_equal(np.asarray(both["dark"]), np.asarray(model.run("dark", dark)))


def test_images_in_the_run_folder_itself_are_refused_and_left_alone(config: Make, disk_data: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(disk_data / "train" / "images", photos)
    before = sorted(photos.rglob("*"))
    (tmp_path / "link").symlink_to(photos)
    data = {"kind": "image_folder", "parts": {part: {"root": str(tmp_path / "link")} for part in ("train", "val", "test")}}
    tasks = {"colour": {"task": {"kind": "colourisation"}, "data": data}}
    with pytest.raises(InputError, match=r"train\.root=.*link.*out=.*photos"):
        run(config(tasks=tasks, sequence=["colour"], out=str(photos)), bars=False)
    assert sorted(photos.rglob("*")) == before
