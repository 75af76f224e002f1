"""A task of a bundle measured on images of the user's own, by the function and by the command."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.classification import multiclass_jaccard_index
from torchmetrics.functional.image import peak_signal_noise_ratio
from typer.testing import CliRunner

import img2img
from img2img.cli import app
from img2img.data.spec import DataSpec, build_data
from img2img.errors import InputError, OutOfMemoryError
from img2img.inference.evaluation import evaluate
from img2img.training.run import run

pytestmark = pytest.mark.usefixtures("without_curves")


@pytest.fixture(scope="module")
def learned(config_in: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a segmentation, a colouring, an edge colouring, a denoiser and a translation."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    config = config_in(folder)
    noise = {"task": {"kind": "denoising", "sigma": 30}, "data": config["tasks"]["colour"]["data"]}
    config["tasks"] |= {"noise": noise}
    run(config | {"sequence": [*config["sequence"], "noise"]})
    return folder


def called(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *(str(a) for a in arguments)])


def reported(folder: Path, task: str) -> Mapping[str, Any]:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    (found,) = (entry for entry in results["tasks"] if entry["name"] == task)
    metrics: Mapping[str, Any] = found["metrics"]
    return metrics


@pytest.mark.parametrize("task", ["disks", "colour", "edges", "noise"])
def test_the_test_images_alone_give_what_the_run_reported(learned: Path, disk_data: Path, task: str) -> None:
    images = disk_data / "test" / "images"
    data: dict[str, Any] = {"kind": "image_folder", "root": str(images)}
    if task == "disks":
        data = {"kind": "image_label_folder", "images": str(images), "labels": str(disk_data / "test" / "labels")}
    found = evaluate(learned, task, data)
    assert found.images == 4
    assert found.metrics == pytest.approx(reported(learned, task), rel=1e-4)
    assert found.metrics.keys() == found.baseline.keys()
    assert found.primary_metric in found.metrics


def test_what_is_measured_is_what_run_gives(learned: Path, disk_data: Path) -> None:
    """Against torchmetrics' IoU and PSNR of what `Model.run` makes of the same files."""
    model = img2img.load(learned)
    folder = disk_data / "train"
    data = {"kind": "image_label_folder", "images": str(folder / "images"), "labels": str(folder / "labels")}
    found = evaluate(model, "disks", data)
    files = sorted((folder / "images").iterdir())
    results = model.run("disks", files, form="labels")
    labels = [Image.open(folder / "labels" / file.name) for file in files]
    truth, given = (torch.cat([torch.from_numpy(np.array(image)).flatten() for image in images]) for images in (labels, results))

    def miou(prediction: Tensor) -> float:
        return float(multiclass_jaccard_index(prediction.int(), truth.int(), num_classes=2, average="macro"))

    assert found.images == 12
    assert found.metrics["mIoU"] == pytest.approx(miou(given), rel=1e-6)
    assert found.baseline["mIoU"] == pytest.approx(miou(torch.zeros_like(truth)), rel=1e-6)  # the ground is larger than disks

    def psnr(made: Any, file: Path) -> float:
        shown, true = (torch.from_numpy(np.asarray(image).astype(np.float32) / 255) for image in (made, Image.open(file)))
        value: Tensor = peak_signal_noise_ratio(shown.clamp(0, 1), true, data_range=1.0)
        return float(value)

    edges = evaluate(model, "edges", {"kind": "image_folder", "root": str(folder / "images")})
    each = [psnr(model.run("edges", file), file) for file in files]
    assert edges.metrics["PSNR"] == pytest.approx(np.mean(each), rel=2e-3)  # results of `run` are rounded to 8 bits


def test_images_are_brought_to_the_size_of_the_training_unless_another_is_given(
    learned: Path, disk_data: Path, tmp_path: Path
) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for file in sorted((disk_data / "test" / folder).iterdir()):
            Image.open(file).resize((128, 128), Image.Resampling.NEAREST).save(tmp_path / folder / file.name)
    data = {"kind": "image_label_folder", "images": str(tmp_path / "images"), "labels": str(tmp_path / "labels")}
    usual = evaluate(learned, "disks", data).metrics
    assert usual == evaluate(learned, "disks", data | {"resize": 32}).metrics
    assert usual != evaluate(learned, "disks", data | {"resize": 96}).metrics


def test_all_images_count_or_the_test_part_of_data_with_parts(learned: Path, disk_data: Path) -> None:
    roots = {part: {"root": str(disk_data / part / "images")} for part in ("train", "val", "test")}
    whole: dict[str, Any] = {"kind": "image_folder", "root": str(disk_data / "train" / "images")}
    assert evaluate(learned, "colour", {"kind": "image_folder", "parts": roots}).images == 4
    assert evaluate(learned, "colour", whole).images == 12
    assert evaluate(learned, "colour", whole | {"fractions": [0.5, 0.25, 0.25]}).images == 3
    assert evaluate(learned, "colour", whole | {"limit": {"test": 5}}).images == 5


@pytest.mark.parametrize("more", [{"blocks": 1}, {"limit": {"train": 8}}, {"fractions": [0.5, 0.25, 0.25], "limit": {"test": 2}}])
def test_options_of_a_training_give_its_own_test_images(learned: Path, disk_data: Path, more: dict[str, Any]) -> None:
    whole: dict[str, Any] = {"kind": "image_folder", "root": str(disk_data / "train" / "images")}
    trained = build_data(whole | more)
    measured = DataSpec.of(whole | more).build_test()
    assert [measured.files(i) for i in range(len(measured))] == [trained.test.files(i) for i in range(len(trained.test))]
    assert evaluate(learned, "colour", whole | more).images == len(trained.test) < 12


def test_a_limit_of_a_whole_set_is_said_to_take_training_images(
    learned: Path, disk_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole: dict[str, Any] = {"kind": "image_folder", "root": str(disk_data / "train" / "images")}
    evaluate(learned, "colour", whole | {"limit": {"test": 5}})
    assert "5 of all 12 images are measured; if the task was trained on this set" in caplog.text
    caplog.clear()
    for more in ({}, {"limit": {"test": 12}}, {"fractions": [0.5, 0.25, 0.25], "limit": {"test": 2}}):
        evaluate(learned, "colour", whole | more)
    assert "are measured; if" not in caplog.text


def test_options_of_the_task_may_differ_from_those_of_its_file(learned: Path, disk_data: Path) -> None:
    data = {"kind": "image_folder", "root": str(disk_data / "test" / "images")}
    light, strong = (evaluate(learned, "noise", data, options={"sigma": sigma}).baseline["MSE"] for sigma in (10, 50))
    usual = evaluate(learned, "noise", data).baseline["MSE"]
    assert light is not None
    assert usual is not None
    assert strong is not None
    assert light < usual < strong
    assert light == pytest.approx(100, rel=0.1)  # the variance of the noise, less what is clipped


@pytest.mark.parametrize(
    ("task", "data", "more", "message"),
    [
        ("skies", {"kind": "image_folder", "root": "IMAGES"}, {}, "no task 'skies'"),
        (
            "disks",
            {"kind": "image_folder", "root": "IMAGES"},
            {},
            "no labels: expected those of a segmentation with ground, disk",
        ),
        (
            "disks",
            {"kind": "image_label_folder", "images": "IMAGES", "labels": "LABELS", "classes": ["disk", "ground"]},
            {},
            "the classes disk, ground, and the task has ground, disk",
        ),
        ("colour", {"kind": "image_folder", "root": "nowhere"}, {}, "no folder at nowhere"),
        ("colour", {"kind": "image_foldr", "root": "IMAGES"}, {}, "'image_foldr' is unknown"),
        ("colour", {"kind": "image_folder", "root": "IMAGES"}, {"options": {"kind": "edges"}}, "kind 'edges': expected 'colour"),
        (
            "colour",
            {"kind": "image_folder", "root": "IMAGES"},
            {"options": {"bins": {"grid": 20}}},
            "outputs, and its head has 2",
        ),
        ("colour", {"kind": "image_folder", "root": "IMAGES"}, {"options": {"sigma": 2}}, "sigma"),
        ("colour", {"kind": "image_folder", "root": "IMAGES"}, {"metrics": ["lpips"]}, "no network is given"),
        (
            "disks",
            {"kind": "image_label_folder", "images": "IMAGES", "labels": "LABELS"},
            {"metrics": ["lpips"]},
            "segmentation task makes no photos",
        ),
        *(
            (
                "colour",
                {"kind": "image_folder", "root": "IMAGES"},
                {"metrics": value},
                f"metrics={re.escape(repr(value))}: expected a list",
            )
            for value in ("lpips", 5, ["lpips", 5])
        ),
        ("colour", ["IMAGES"], {}, "data=.*expected a mapping"),
        ("colour", {"kind": "image_folder", "root": "IMAGES"}, {"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    learned: Path, disk_data: Path, task: str, data: Any, more: dict[str, Any], message: str
) -> None:
    places = {"IMAGES": str(disk_data / "test" / "images"), "LABELS": str(disk_data / "test" / "labels")}
    if isinstance(data, dict):
        data = {key: places.get(value, value) if isinstance(value, str) else value for key, value in data.items()}
    with pytest.raises(InputError, match=message):
        evaluate(learned, task, data, **more)


@pytest.mark.parametrize("weights", ["cached", "merged"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_task_is_measured_as_its_model_runs_it(
    learned: Path, disk_data: Path, weights: Any, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the MSE of what `Model.predict` makes of the same files."""
    model = img2img.load(learned, weights=weights, precision=precision)
    files = sorted((disk_data / "test" / "images").iterdir())
    photos = [np.asarray(Image.open(file)) for file in files]
    monkeypatch.setattr(type(model.task("noise")), "input", lambda self, batch: self.served_input(batch))  # no noise
    data = {"kind": "image_folder", "root": str(files[0].parent)}
    found = evaluate(model, "noise", data, batch_size=1).metrics["MSE"]
    if weights == "merged":
        assert model.weights_kept()["misses"] == 1, "the network that was merged is the one that was measured"
    made_of_them = [255 * model.predict("noise", photo).permute(1, 2, 0).numpy() for photo in photos]
    expected = np.mean([np.square(made - photo).mean() for made, photo in zip(made_of_them, photos, strict=True)])
    other = evaluate(img2img.load(learned), "noise", data, batch_size=1).metrics["MSE"]
    assert (found == pytest.approx(other, rel=1e-5)) == (precision == "float32")
    assert found == pytest.approx(expected, rel=1e-5)


def test_where_memory_runs_out_the_options_of_the_call_are_named(
    learned: Path, disk_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = img2img.load(learned)

    def fail(self: Any, raw: Any, input: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(type(model.task("noise")), "prediction", fail)
    said = r"up to batch_size=4 at once: try batch_size=2, or make the images smaller \(resize\)$"
    with pytest.raises(OutOfMemoryError, match=said):
        evaluate(model, "noise", {"kind": "image_folder", "root": str(disk_data / "test" / "images")}, batch_size=4)


def test_the_command_measures_a_task_on_given_images(learned: Path, disk_data: Path, tmp_path: Path) -> None:
    shutil.copytree(learned / "bundle", tmp_path / "bundle")  # without its run
    places = ["--images", disk_data / "test" / "images", "--labels", disk_data / "test" / "labels"]
    shown = called(tmp_path / "bundle", "--task", "disks", *places, "--json")
    assert shown.exit_code == 0, f"{shown.output} {shown.exception}"
    (entry,) = json.loads(shown.stdout).values()
    assert entry["metrics"] == pytest.approx(reported(learned, "disks"), rel=1e-4)
    assert entry["reported"] == pytest.approx(reported(learned, "disks"))
    table = called(tmp_path / "bundle", "--task", "disks", *places).stdout
    assert all(name in table for name in entry["metrics"])
    assert f"{entry['baseline']['mIoU']:.4g}" in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "IMAGES"], "got 4 tasks for these images: expected one; name it .--task., of disks, colour, edges, noise"),
        (["--task", "disks", "--images", "IMAGES"], "for a segmentation task: expected --labels too"),
        (["--task", "colour", "--images", "IMAGES", "--part", "val"], "got --part val and images of your own"),
        (["--task", "colour", "--resize", "32"], "got --resize alone: expected images of your own"),
        (["--task", "colour", "--labels", "IMAGES"], "expected --images"),
        (["--task", "colour", "--images", "IMAGES", "--perceptual", "vgg16"], "expected --metrics or --style too"),
        (["--task", "colour", "--images", "IMAGES", "--metrics", "kid", "--perceptual", "vgg"], "expected one of lite0"),
        (["--task", "colour", "--images", "IMAGES", "--metrics", "kid", "--perceptual", "vgg16=none"], "no file at 'none'"),
        (
            ["--task", "colour", "--images", "IMAGES", "--metrics", "kid", "--perceptual", "squeezenet_caffe"],
            "squeezenet_caffe=FILE",
        ),
    ],
)
def test_options_of_the_command_that_do_not_go_together_are_refused(
    learned: Path, disk_data: Path, options: list[str], message: str
) -> None:
    folder = str(disk_data / "test" / "images")
    result = called(learned, *[folder if option == "IMAGES" else option for option in options])
    assert result.exit_code == 1
    with pytest.raises(InputError, match=message):
        raise result.exception


def test_a_style_needs_its_picture() -> None:
    result = called("starter", "--task", "gogh", "--images", "photos")
    assert "has no style image: give it by --style" in str(result.exception)
