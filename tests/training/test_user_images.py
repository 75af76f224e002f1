"""What comes from a user: images through a whole run, and a run folder of somebody else, of which nothing is run."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import img2img
from img2img.errors import InputError
from img2img.files.yaml import read_yaml
from img2img.registry import import_modules
from img2img.training.config import read_experiment
from img2img.training.evaluation import read_run
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


CONFIG = """\
name: theirs
out: runs/theirs
imports: [{module}]
backbone: {{kind: image_transformer, width: 4, blocks: 1}}
method: {{name: piggyback}}
train: {{steps: 2}}
sequence: [colour]
tasks: {{colour: {{task: {{kind: colourisation}}, data: {{kind: samples}}}}}}
"""


def _run(folder: Path, text: str) -> Path:
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "config.yaml").write_text(text)
    return folder


@pytest.mark.parametrize("as_file", [False, True])
def test_modules_that_a_run_names_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_file: bool) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"planted_{as_file}"
    (tmp_path / f"{name}.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    run = _run(tmp_path / "run", CONFIG.format(module=f"{name}.py" if as_file else name))
    assert read_run(run).imports == ()
    assert not (tmp_path / "ran").exists()
    assert name not in sys.modules
    import_modules([f"{name}.py"])  # by one's own word it is
    assert (tmp_path / "ran").exists()


def test_a_kind_that_only_a_strangers_module_defines_is_said_with_the_way_on(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", CONFIG.format(module="theirs").replace("name: piggyback", "name: their_own"))
    with pytest.raises(InputError, match="--import MODULE"):
        read_run(run)


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "name: [unclosed",
        "name: ${missing.key}",
        "name: ${oc.env:IMG2IMG_NO_SUCH_VARIABLE}",
        "name: ${unknown_resolver:1}",
        "name: ???",
        "name: !!python/object/apply:os.getcwd []",
        "- a list",
        "",
        "[" * 4000,
        "a: &a [*a]",
        BOMB,
        "name: \udcff",
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_a_config_that_cannot_be_read_is_one_message(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "run"
    _run(folder, "")
    path = folder / "config" / "config.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"config\.yaml") as refused:
        read_run(folder)
    assert len(str(refused.value)) < 1000


def test_interpolations_are_resolved_or_left(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("\ufeffseed: 3\nagain: {seed: '${seed}'}\n")
    assert read_yaml(path, "a config") == {"seed": 3, "again": {"seed": 3}}
    assert read_yaml(path, "a config", resolve=False) == {"seed": 3, "again": {"seed": "${seed}"}}
    with pytest.raises(InputError, match="no file"):
        read_yaml(tmp_path / "y.yaml", "a config")
