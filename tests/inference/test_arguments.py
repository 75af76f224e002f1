"""What users give, in all its types, becomes an image; a wrong type is one message that names the argument."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import decode_image

import img2img
from img2img import InputError
from img2img.inference import Model
from img2img.inference.conversion import open_input

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
TASK, DATA = {"kind": "translation"}, {"kind": "pairs", "root": "nowhere"}


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return img2img.load(bundle)


WRONG: list[tuple[dict[str, Any], str]] = [
    *(({"side": value}, "side=") for value in ("x", float("nan"), 2.5, 64.0, True, [1], (), np.array([1, 2]), object)),
    *(({"side": value}, "side=.*1 pixel or more") for value in (0, -3, np.int64(-1))),
    *(({"tile": value}, "tile=") for value in (True, False, "1024", 512.0, {}, 128)),
    *(({"batch_size": value}, "batch_size=") for value in (2.5, "2", 0, True, float("inf"), [2])),
    *(({"form": value}, "form=") for value in (3, ["image"], "", b"image", np.array(["image"]))),
    *(({"errors": value}, "errors=.*'raise', 'return'") for value in ("ignore", None, True, ["raise"])),
]


@pytest.mark.parametrize(("options", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_options_of_run_and_stream(model: Model, options: dict[str, Any], said: str) -> None:
    for call in (lambda: model.run("colour", [IMAGE], **options), lambda: model.stream("colour", [IMAGE], **options)):
        with pytest.raises(InputError, match=said) as caught:
            call()
        assert len(str(caught.value)) < 300
    if "form" not in options:
        with pytest.raises(InputError, match=said):
            model.run_all([IMAGE], **options)
    if "batch_size" not in options:  # of which one image has no need
        with pytest.raises(InputError, match=said):
            model.run("colour", IMAGE, **options)


@pytest.mark.parametrize("images", [IMAGE, "nowhere.png"], ids=["an array", "no file"])
def test_errors_is_checked_of_one_image_of_all_tasks_before_it_is_opened(model: Model, images: Any) -> None:
    with pytest.raises(InputError, match=r"errors='skip'.*'raise', 'return'"):
        model.run_all(images, errors="skip")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(100,), (0, 5), (5, -1), (5, 5, 3), 7, None, "ab", (2.5, 3), (None, 3), (True, 3)], ids=str)
def test_sizes_of_images(model: Model, size: Any) -> None:
    with pytest.raises(InputError, match=r"size=.*pixel"):
        model.memory("colour", size)
    assert model.memory("colour", (np.int64(20), np.int32(30))) == model.memory("colour", (20, 30))  # type: ignore[arg-type]


@pytest.mark.parametrize("task", [["colour"], None, 3, {"colour": 1}, ("colour",), b"colour", np.array(["a"]), ""])
def test_names_of_tasks(model: Model, task: Any) -> None:
    for call in (
        lambda: model.run(task, IMAGE),
        lambda: model.stream(task, [IMAGE]),
        lambda: model.predict(task, IMAGE),
        lambda: model.task(task),
        lambda: model.memory(task, (20, 20)),
    ):
        with pytest.raises(InputError, match=r"no task .*parts, colour, edges, clean"):
            call()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(({"device": value}, "device=") for value in (None, 3, ["cpu"], "meta", "", "cuda:x", torch.float32)),
        *(({"precision": value}, "precision=.*'float32', 'bfloat16'") for value in (None, 16, torch.bfloat16, ["float32"])),
        *(({"weights": value}, "weights=.*'cached', 'merged'") for value in (None, 1, ("merged",))),
        *(({"batching": value}, "batching=.*Batching") for value in (3, True, {"batch_max": 2})),
    ],
    ids=str,
)
def test_options_of_load(bundle: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        img2img.load(bundle, **options)


@pytest.mark.parametrize("folder", [None, 3, b"runs", [], "", "a\0b"])
def test_folders(folder: Any) -> None:
    with pytest.raises(InputError, match=r"folder=.*expected a path"):
        img2img.load(folder)


def test_whole_numbers_of_numpy_are_taken(model: Model) -> None:
    expected = model.run("colour", [IMAGE], side=16, tile=512, batch_size=2)[0]
    taken = model.run("colour", [IMAGE], side=np.int64(16), tile=np.uint16(512), batch_size=np.int32(2))[0]
    assert np.array_equal(taken, expected)
    assert img2img.load(model.folder, device=torch.device("cpu")).device.type == "cpu"  # type: ignore[arg-type]


@pytest.mark.parametrize("images", ["photo.jpg", IMAGE, IMAGE[..., 0], torch.rand(3, 8, 8), None, 3, b"photos"])
def test_one_image_is_no_stream(model: Model, images: Any) -> None:
    with pytest.raises(InputError, match="for many images: expected a list"):
        model.stream("colour", images)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *(({"name": value}, "name=") for value in (None, 3, ["night"], "")),
        *(({"task": value}, "task=.*mapping") for value in (None, "translation", 3, {1: 2})),
        *(({"data": value}, "data=.*mapping") for value in (None, "day", ["day"])),
        *(({"method": value}, "method=") for value in (None, 3, ["piggyback"])),
        *(({"train": value}, "train=.*mapping") for value in (3, "steps", ["steps"])),
        *(({"out": value}, "out=.*path") for value in (3, ["runs"], "")),
    ],
    ids=str,
)
def test_arguments_of_add_task(model: Model, changes: dict[str, Any], said: str) -> None:
    arguments: dict[str, Any] = {"name": "night", "task": TASK, "data": DATA} | changes
    with pytest.raises(InputError, match=said):
        img2img.add_task(model.folder, **arguments)


def test_arguments_of_sharing_and_exporting(model: Model, tmp_path: Path) -> None:
    from img2img.export import export_bundle, export_task

    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: img2img.save_pretrained(model.folder, 3), "folder="),  # type: ignore[arg-type]
        (lambda: img2img.save_pretrained(model.folder, tmp_path / "a", license=3), "license="),  # type: ignore[arg-type]
        (lambda: img2img.push_to_hub(model.folder, 3), "repo_id="),  # type: ignore[arg-type]
        (lambda: img2img.push_to_hub(model.folder, "me/demo", private="no"), "private="),  # type: ignore[arg-type]
        (lambda: export_task(model.network, "colour", model.task("colour"), 3), "path="),  # type: ignore[arg-type]
        (lambda: export_task(model.network, "colour", model.task("colour"), "a.onnx", size=256), "size="),  # type: ignore[arg-type]
        (lambda: export_task(model.network, "colour", model.task("colour"), "a.onnx", size=(1.5, 2)), "size="),  # type: ignore[arg-type]
        (lambda: export_task(model.network, "colour", model.task("colour"), "a.onnx", raw="no"), "raw="),  # type: ignore[arg-type]
        (lambda: export_bundle(model.folder, None, format="onnx"), "folder="),  # type: ignore[arg-type]
    ]
    for call, said in calls:
        with pytest.raises(InputError, match=said):
            call()


def test_nothing_is_exported_or_trained_over_the_bundle(model: Model, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from img2img.cli import app
    from img2img.export import export_bundle

    before = {path: path.read_bytes() for path in model.folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="within the bundle"):
        export_bundle(model.folder, model.folder / "tasks", format="safetensors")
    for out in ("backbone.safetensors", "tasks/../tasks/colour.safetensors"):
        result = CliRunner().invoke(app, ["export", "colour", "--bundle", str(model.folder), "--out", str(model.folder / out)])
        assert isinstance(result.exception, InputError)
    for out in (model.folder, model.folder / "tasks", tmp_path):
        with pytest.raises(InputError, match="choose another folder"):
            img2img.add_task(model.folder, "night", task=TASK, data={"kind": "pairs", "root": str(tmp_path)}, out=out)
    assert {path: path.read_bytes() for path in model.folder.rglob("*") if path.is_file()} == before


RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
ALPHA = np.random.default_rng(1).integers(0, 256, (6, 9), dtype=np.uint8)


def _values(image: Any) -> NDArray[np.uint8]:
    opened = open_input(image)
    assert opened.values.shape == (1, 3, 6, 9)
    assert opened.size == (6, 9)
    values: NDArray[np.uint8] = opened.values[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
    return values


def test_every_type_of_an_rgb_image_is_the_same_image(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    tensor = torch.from_numpy(RGB).permute(2, 0, 1) / 255
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(RGB), RGB, tensor, tensor.double(), tensor[None]):
        assert np.array_equal(_values(given), RGB)
    assert torch.equal(open_input(tmp_path / "a.png").values[0], decode_image(str(tmp_path / "a.png"))), "torchvision agrees"


def test_grey_is_repeated_and_16_bits_are_scaled() -> None:
    grey = RGB[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    for given in (grey, grey[..., None], Image.fromarray(grey), torch.from_numpy(grey)[None] / 255, grey.astype(np.uint16) * 257):
        assert np.array_equal(_values(given), expected)
    assert np.array_equal(_values(Image.fromarray(grey.astype(np.uint16) * 257)), expected)
    assert np.array_equal(_values(RGB.astype(np.uint16) * 257), RGB)


def test_transparent_images_lie_on_white_and_results_keep_the_transparency() -> None:
    rgba = np.concatenate([RGB, ALPHA[..., None]], axis=2)
    share = ALPHA[..., None] / 255
    on_white = RGB * share + 255 * (1 - share)
    shown = torch.rand(1, 3, 6, 9)
    for given in (rgba, Image.fromarray(rgba)):
        assert np.abs(_values(given) - on_white).max() <= 1
        assert np.array_equal(np.asarray(open_input(given).image(shown))[..., 3], ALPHA)


def test_a_photo_is_turned_as_its_exif_says() -> None:
    image = Image.fromarray(RGB.transpose(1, 0, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn clockwise
    image.info["exif"] = exif.tobytes()
    assert np.array_equal(_values(image), np.rot90(RGB.transpose(1, 0, 2), -1))
    assert image.size == (6, 9), "the user's own is left alone"


def test_results_have_the_type_of_what_came() -> None:
    shown = torch.rand(1, 3, 6, 9)
    expected = (shown[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = open_input(Image.fromarray(RGB)).image(shown)
    assert isinstance(image, Image.Image)
    assert np.array_equal(np.asarray(image), expected)
    array = open_input(RGB).image(shown)
    assert array.dtype == np.uint8
    assert np.array_equal(array, expected)
    assert torch.equal(open_input(torch.rand(3, 6, 9)).image(shown), shown[0])
    assert torch.equal(open_input(torch.rand(1, 3, 6, 9)).image(shown), shown)


def test_labels_come_as_indices(tmp_path: Path) -> None:
    labels = torch.randint(0, 3, (1, 6, 9))
    image = open_input(Image.fromarray(RGB)).labels(labels, 3)
    image.save(tmp_path / "labels.png")
    from img2img.data.images.decode import read_label

    assert np.array_equal(read_label(tmp_path / "labels.png"), labels[0].numpy()), "a label file that training reads"
    array = open_input(RGB).labels(labels, 3)
    assert array.dtype == np.uint8
    assert np.array_equal(array, labels[0].numpy())
    assert torch.equal(open_input(torch.rand(2, 3, 6, 9)).labels(labels, 3), labels)


def test_scores_come_by_class_the_likeliest_first() -> None:
    scores = torch.tensor([[0.2, 0.7, 0.1]])
    by_class = open_input(RGB).scores(scores, ("cat", "dog", "cow"))
    assert list(by_class) == ["dog", "cat", "cow"]
    assert by_class == pytest.approx({"dog": 0.7, "cat": 0.2, "cow": 0.1})
    assert torch.equal(open_input(torch.rand(3, 6, 9)).scores(scores, ("cat", "dog", "cow")), scores[0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (RGB.astype(np.float32), r"\(6, 9, 3\) float32.*\(H, W, 3\) uint8"),
        (RGB[None], "give many as a list"),
        (RGB[..., :2], "expected"),
        (RGB[:0], "expected"),
        (np.zeros((3, 6, 9), np.int64), "uint8"),
        (torch.zeros(3, 6, 9, dtype=torch.uint8), r"\(3, 6, 9\) torch.uint8.*\(N, 3, H, W"),
        (torch.zeros(6, 9, 3), "expected"),
        (torch.full((3, 6, 9), 200.0), r"200 to 200.*\[0, 1\]"),
        (torch.full((3, 6, 9), torch.nan), "values from nan"),
        (torch.full((3, 6, 9), -1.0), "values from -1"),
        (Image.fromarray(RGB[..., 0].astype(np.float32)), "the image has float pixels"),
        (7, "got a int: expected a path"),
        ("nowhere.png", "no such file: nowhere.png"),
    ],
)
def test_what_is_no_image_is_refused(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_input(given)
