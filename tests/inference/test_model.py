"""A loaded bundle: its tasks on one image, lists and folders, at any size, with cached and merged weights, from threads."""

import copy
import json
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F
from web_bundles import image_bundle, make_bundle, photo, same, task_file

import img2img
from img2img import InputError
from img2img.bundle import load_bundle
from img2img.data.base import Batch, ImageDataset, Sample
from img2img.inference import Model
from img2img.inference.prediction import measured_side
from img2img.masks import task_network
from img2img.tasks import build_task
from img2img.tasks.segmentation import palette

ImageLike = NDArray[np.uint8]


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return img2img.load(bundle)


def _image(height: int = 40, width: int = 52, seed: int = 0) -> ImageLike:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _by_hand(model: Model, name: str, image: ImageLike) -> torch.Tensor:
    """The same by the network alone: mirror, pad, run, cut, show."""
    task = model.task(name)
    input = task.served_input(Batch(image=torch.from_numpy(image).permute(2, 0, 1)[None]))
    height, width = image.shape[:2]
    stride = model.backbone.stride
    border = stride if task.mirrored else 0
    padded = F.pad(input, [border] * 4, mode="reflect") if border else input
    padded = F.pad(padded, (0, -width % stride, 0, -height % stride), mode="replicate")
    with torch.no_grad():
        raw = model.network(padded, task=name)[..., border : border + height, border : border + width]
    return task.to_image(task.prediction(raw, input), input)[0]


def test_tasks_say_what_they_are(model: Model) -> None:
    assert list(model.tasks) == ["parts", "colour", "edges", "clean"]
    parts = model.tasks["parts"]
    assert (parts.kind, parts.primary_metric, parts.metrics, parts.side) == ("segmentation", "mIoU", {"mIoU": 0.5}, 32)
    assert (parts.classes, parts.forms) == (("ground", "tree", "house"), ("colours", "labels", "overlay"))
    assert parts.method == "piggyback"
    assert parts.density == pytest.approx(0.5, abs=0.1)
    assert parts.bytes == (model.folder / "tasks" / "parts.safetensors").stat().st_size


def test_it_says_what_it_is(model: Model, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repr(model) == f"<Model of {str(model.folder)!r} on cpu: {', '.join(model.tasks)}>"
    monkeypatch.setattr(model.backbone, "stride", 8, raising=False)
    for _ in range(2):
        model.check("colour", side=7)
    (said,) = [record.message for record in caplog.records if "stride" in record.message]
    assert said.startswith("side=7 is below the network's stride of 8")
    model.check("colour", side=8)
    assert sum("stride" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("name", ["parts", "colour", "edges", "clean"])
def test_a_result_is_what_the_network_gives(model: Model, name: str) -> None:
    image = _image(37, 50)
    expected = _by_hand(model, name, image).mul(255).round().byte().permute(1, 2, 0).numpy()
    result = model.run(name, image, side=37)
    assert result.shape == image.shape
    assert np.abs(result.astype(int) - expected).max() <= 1
    made = model.run(name, Image.fromarray(image), side=37)
    assert made.size == (50, 37)
    assert np.array_equal(np.asarray(made), result)


class _Blank(ImageDataset):
    """Grey images of given sizes."""

    def __init__(self, *sizes: tuple[int, int]) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Sample:
        return Sample(image=np.zeros((*self.sizes[index], 3), np.uint8))


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
def test_the_first_test_image_alone_does_not_say_at_which_size_a_task_was_measured(kind: str) -> None:
    task = build_task({"kind": kind, "classes": ["a", "b"]})
    assert measured_side(task, _Blank((48, 64), (60, 48))) == 48
    assert measured_side(task, _Blank((32, 32), (96, 128), (64, 64))) == (96 if kind == "segmentation" else None)


@pytest.mark.parametrize(("name", "small"), [("parts", True), ("colour", True), ("edges", False), ("clean", False)])
def test_what_lies_in_large_shapes_is_looked_for_at_the_measured_size(model: Model, name: str, small: bool) -> None:
    large, measured = _image(70, 90), model.tasks[name].side
    assert measured == 32
    assert np.array_equal(model.run(name, large), model.run(name, large, side=measured if small else 70))
    assert not np.array_equal(model.run(name, large, side=measured), model.run(name, large, side=70))
    for shape in ((32, 60), (20, 60)):  # no image is enlarged for it
        assert np.array_equal(model.run(name, _image(*shape)), model.run(name, _image(*shape), side=shape[0]))


def test_a_tensor_keeps_its_precision_and_batch(model: Model) -> None:
    batch = torch.rand(3, 3, 40, 48)
    result = model.run("colour", batch)
    assert result.shape == batch.shape
    assert result.dtype == torch.float32
    assert torch.allclose(model.run("colour", batch[1]), result[1], atol=1e-5)
    double = model.run("colour", batch.double())
    assert torch.allclose(double, result, atol=1e-5)
    assert torch.equal(model.run("parts", batch, form="labels"), torch.stack([model.predict("parts", x) for x in batch]))


def test_segmentation_as_labels_colours_and_overlay(model: Model) -> None:
    from img2img.tasks.segmentation import palette

    image = _image()
    labels = model.run("parts", image, form="labels")
    assert labels.shape == image.shape[:2]
    colours = model.run("parts", image)
    assert np.array_equal(colours, palette(3)[labels.astype(int)].mul(255).round().byte().numpy())
    overlay = model.run("parts", image, form="overlay")
    assert np.abs(overlay - (image.astype(float) + colours) / 2).max() <= 1
    made = model.run("parts", Image.fromarray(image), form="labels")
    assert made.mode == "P"
    assert np.array_equal(np.asarray(made.convert("RGB")), colours), "a label image shows the same colours"


def test_lists_and_folders_keep_their_order_and_sizes(model: Model, tmp_path: Path) -> None:
    images = [_image(seed=0), _image(seed=1), _image(32, 33, seed=2), _image(seed=3)]
    singly = [model.run("colour", p) for p in images]
    for batch_size in (1, 2, 8):
        together = model.run("colour", images, batch_size=batch_size)
        assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(together, singly, strict=True))
    (tmp_path / "b").mkdir()
    for path, image in zip(("1.png", "2.png", "b/0.png"), images, strict=False):
        Image.fromarray(image).save(tmp_path / path)
    found = model.run("colour", tmp_path)
    assert list(found) == ["1.png", "2.png", "b/0.png"]
    assert all(np.abs(np.asarray(a).astype(int) - b).max() <= 1 for a, b in zip(found.values(), singly, strict=False))
    assert model.run("colour", []) == []


def test_streaming_reads_no_further_than_it_must(model: Model) -> None:
    read: list[int] = []

    def images() -> Any:
        for i in range(10):
            read.append(i)
            yield _image(32, 32 if i % 2 else 40)

    results = model.stream("colour", images(), batch_size=2)
    next(results)
    assert len(read) <= 2


def test_all_tasks_at_once(model: Model) -> None:
    image = _image()
    together = model.run_all(image)
    assert list(together) == list(model.tasks)
    for name, result in together.items():
        assert np.array_equal(result, model.run(name, image))


def test_large_images_are_tiled_and_small_views_brought_back(model: Model) -> None:
    # smooth, so that a half-size view shows the same
    smooth = np.asarray(Image.fromarray(_image(6, 8)).resize((400, 300), Image.Resampling.BICUBIC))
    whole = model.run("colour", smooth, tile=None).astype(int)
    tiled = model.run("colour", smooth, tile=160).astype(int)
    assert tiled.shape == whole.shape
    assert np.abs(tiled - whole).mean() < 1, "tiles differ where their edges are alone"
    low = model.run("colour", smooth, side=150).astype(int)
    assert low.shape == whole.shape
    lightness = [np.asarray(Image.fromarray(p.astype(np.uint8)).convert("L")).astype(int) for p in (low, smooth)]
    assert np.abs(lightness[0] - lightness[1]).mean() < 12, "lightness is that of the full-size image"


def test_denoising_gets_the_image_as_it_is(model: Model) -> None:
    batch = Batch(image=torch.from_numpy(_image()).permute(2, 0, 1)[None])
    task = model.task("clean")
    assert torch.equal(task.served_input(batch), batch.image / 255)
    assert not torch.equal(task.input(batch), batch.image / 255), "in training noise is added"


def test_merged_weights_give_the_same_bits(model: Model, bundle: Path) -> None:
    merged, image = img2img.load(bundle, weights="merged"), _image()
    for name in model.tasks:
        assert np.array_equal(merged.run(name, image), model.run(name, image))


@pytest.mark.parametrize("weights", ["cached", "merged"])
def test_the_weights_of_tasks_are_kept_within_a_bound(bundle: Path, weights: Any) -> None:
    model, image = img2img.load(bundle, weights=weights), _image()
    expected = {name: model.run(name, image) for name in model.tasks}
    whole = model.weights_kept()
    assert (whole["hits"], whole["misses"]) == (0, len(expected))
    one = whole["bytes"] / len(expected)
    bounded = img2img.load(bundle, weights=weights, weights_bytes=int(2.5 * one))
    for name in ("parts", "colour", "parts", "edges", "parts"):
        assert np.array_equal(bounded.run(name, image), expected[name])
    kept = bounded.weights_kept()
    assert (kept["hits"], kept["misses"]) == (2, 3), "those used last are there"
    assert kept["bytes"] <= 2.5 * one


def test_a_bundle_is_opened_unread_and_a_damaged_task_stops_nobody_but_its_own(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "opened"))
    (folder / "tasks" / "edges.safetensors").write_bytes(b"damaged")
    read: list[str] = []
    load_file = task_network.load_task_file

    def noted(path: Path, *args: Any, **options: Any) -> Any:
        read.append(path.stem)
        return load_file(path, *args, **options)

    monkeypatch.setattr(task_network, "load_task_file", noted)
    model = img2img.load(folder)
    assert list(model.tasks) == ["parts", "colour", "edges", "clean"]
    assert read == []
    expected = img2img.load(bundle).run("colour", _image())
    read.clear()
    assert np.array_equal(model.run("colour", _image()), expected)
    assert model.tasks["colour"].kind == "colourisation"
    assert read == ["colour"], "once, and no other"
    for use in (lambda: model.run("edges", _image()), lambda: model.tasks["edges"], lambda: load_bundle(folder)):
        with pytest.raises(InputError, match=r"edges\.safetensors"):
            use()
    (folder / "tasks" / "clean.safetensors").unlink()
    with pytest.raises(InputError, match=r"clean\.safetensors"):
        img2img.load(folder)


def test_of_many_tasks_those_used_last_stay_in_memory(bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "many"))
    names = [f"colour{i}" for i in range(30)]
    for name in names:
        shutil.copy(folder / "tasks" / "colour.safetensors", folder / "tasks" / f"{name}.safetensors")
    description = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(description | {"tasks": names}))
    one = img2img.load(folder)
    one.task(names[0])
    model = img2img.load(folder, loaded_bytes=int(3.5 * one.network.loaded_bytes()))
    outputs = [model.run(name, _image()) for name in names]
    assert all(np.array_equal(output, outputs[0]) for output in outputs)
    assert model.network._tasks.loaded() == tuple(names[-3:])


@pytest.mark.parametrize("weights", ["cached", "merged"])
def test_a_task_that_came_into_the_bundle_is_loaded(tmp_path: Path, weights: Any) -> None:
    folder = image_bundle(tmp_path / "bundle")
    file = task_file(folder, tmp_path / "copy", "night")
    model = img2img.load(str(folder), weights=weights)
    before = model.run("colour", photo())
    assert model.load_new_tasks() == []
    description = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(description | {"tasks": [*description["tasks"], "night"]}))
    (folder / "tasks" / "night.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="night"):
        model.load_new_tasks()
    assert list(model.tasks) == description["tasks"]
    shutil.copy(file, folder / "tasks")
    assert model.load_new_tasks() == ["night"]
    assert same(model.run("night", photo()), img2img.load(str(folder)).run("night", photo()))
    assert same(model.run("colour", photo()), before)


def test_colours_are_chosen_in_full_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {"first": {"kind": "translation"}, "colour": {"kind": "colourisation", "bins": {"grid": 20}}}
    folder = make_bundle(tmp_path / "b", {"kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3}, tasks)
    half = img2img.load(folder, precision="bfloat16")
    task = half.task("colour")
    plain, seen = task.compact, []

    def compact(raw: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return plain(raw, input)

    monkeypatch.setattr(task, "compact", compact)
    half.run("colour", _image())
    assert seen == [False]


def test_bfloat16_is_near(model: Model, bundle: Path) -> None:
    half, image = img2img.load(bundle, precision="bfloat16"), _image()
    for name in ("colour", "edges"):
        difference = np.abs(half.run(name, image).astype(int) - model.run(name, image))
        assert 0 < difference.mean() < 4


TRANSPARENT = np.full((160, 170, 4), 128, np.uint8)


@pytest.mark.parametrize("tile", [None, 129], ids=["whole", "in tiles"])
@pytest.mark.parametrize("array", [True, False], ids=["array", "PIL image"])
def test_photos_alone_get_the_transparency_back(model: Model, array: bool, tile: int | None) -> None:
    """Colours of classes would be other colours with it."""
    given = TRANSPARENT if array else Image.fromarray(TRANSPARENT)
    for name in ("colour", "edges", "clean"):
        found = np.asarray(model.run(name, given, tile=tile))
        assert found.shape == (160, 170, 4)
        assert (found[..., 3] == 128).all()
    known = {tuple(colour) for colour in (palette(3)[:3] * 255).round().int().tolist()}
    colours = np.asarray(model.run("parts", given, tile=tile))
    assert colours.shape == (160, 170, 3)
    assert {tuple(colour) for colour in colours.reshape(-1, 3).tolist()} <= known
    assert np.asarray(model.run("parts", given, form="overlay", tile=tile)).shape == (160, 170, 3)
    assert np.asarray(model.run("parts", given, form="labels", tile=tile)).shape == (160, 170)


def test_the_name_on_a_transparent_image_is_seen(make_bundle: Callable[..., Path]) -> None:
    spec = {"kind": "torchvision", "name": "resnet18"}
    classifier = img2img.load(make_bundle(spec, {"which": {"kind": "classification", "classes": ["cat", "dog"]}}))
    clear = TRANSPARENT * np.array([1, 1, 1, 0], np.uint8)
    found = classifier.run("which", clear)
    assert found.shape == (160, 170, 3)
    assert found.min() < 100, "black letters on white"


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("weights", ["cached", "merged"])
def test_threads_do_not_mix_tasks(bundle: Path, weights: str) -> None:
    model = img2img.load(bundle, weights=weights)
    before = model.network.hash_backbone()
    work = [(name, _image(seed=i)) for i in range(6) for name in model.tasks]
    expected = [model.run(name, image) for name, image in work]
    fresh = img2img.load(bundle, weights=weights)
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda job: fresh.run(*job), work))
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    assert fresh.network.hash_backbone() == before


def test_a_classifier_names_whole_images(make_bundle: Callable[..., Path]) -> None:
    tasks = {"animals": {"kind": "classification", "classes": ["cat", "dog", "cow"]}}
    model = img2img.load(make_bundle({"kind": "torchvision", "name": "resnet18"}, tasks))
    image = _image(300, 260)
    scores = model.run("animals", image, form="scores")
    assert sum(scores.values()) == pytest.approx(1)
    small = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    small = F.interpolate(small, (37, 32), mode="bilinear", antialias=True)  # the shorter side that the bundle says: 32
    with torch.no_grad():
        expected = model.network(small.clamp(0, 255) / 255, task="animals").softmax(1)[0]
    assert [scores[c] for c in ("cat", "dog", "cow")] == pytest.approx(expected.tolist(), abs=1e-5)
    assert scores != model.run("animals", image, form="scores", side=260)
    named = model.run("animals", image)
    assert named.shape == image.shape
    assert np.array_equal(named[:280], image[:280]), "the name is in the lowest rows"
    assert not np.array_equal(named[285:], image[285:])
    assert model.run("animals", torch.rand(2, 3, 40, 40), form="scores").shape == (2, 3)


def test_a_classifier_of_squares_sees_squares(make_bundle: Callable[..., Path]) -> None:
    tasks = {"animals": {"kind": "classification", "classes": ["cat", "dog", "cow"], "square": True}}
    model = img2img.load(make_bundle({"kind": "torchvision", "name": "resnet18"}, tasks))
    image = _image(300, 100)
    whole = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    for side, given in ((32, {}), (48, {"side": 48})):  # the bundle says 32
        small = F.interpolate(whole, (side, side), mode="bilinear", antialias=True)
        with torch.no_grad():
            expected = model.network(small.clamp(0, 255) / 255, task="animals").softmax(1)[0]
        scores = model.run("animals", image, form="scores", **given)
        assert [scores[c] for c in ("cat", "dog", "cow")] == pytest.approx(expected.tolist(), abs=1e-5)
    assert model.run("animals", image).shape == image.shape


def test_the_folder_of_a_run_and_of_its_bundle_are_the_same(bundle: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(bundle, tmp_path / "run" / "bundle")
    assert list(img2img.load(tmp_path / "run").tasks) == list(img2img.load(str(tmp_path / "run" / "bundle")).tasks)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cuda:77"}, "device='cuda:77' cannot be used here"),
        ({"device": "toaster"}, "device='toaster' cannot be used"),
        ({"precision": "half"}, "precision='half'.*'float32', 'bfloat16'"),
        ({"weights": "none"}, "weights='none'.*'cached', 'merged'"),
    ],
)
def test_options_that_cannot_be(bundle: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        img2img.load(bundle, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (("style", _image()), {}, "'style'.*parts, colour, edges, clean"),
        (("colour", _image()), {"form": "labels"}, "form='labels'.*gives image"),
        (("parts", _image()), {"form": "mask"}, "gives colours, labels, overlay"),
        (("parts", _image()), {"side": 0}, "side=0: expected 1 pixel or more"),
        (("parts", _image()), {"tile": 100}, "tile=100: expected more than 128"),
        (("parts", [_image()]), {"batch_size": 0}, "batch_size=0"),
        (("parts", "nowhere"), {}, "no such file: nowhere"),
    ],
)
def test_calls_that_cannot_be(model: Model, arguments: tuple[Any, ...], options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        model.run(*arguments, **options)


def _in_another_process(model: Model, image: ImageLike) -> tuple[ImageLike, dict[str, float], str]:
    results = model.run("colour", image)
    return results, dict(model.tasks["parts"].metrics), model.network.hash_backbone()


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("weights", ["cached", "merged"])
def test_a_model_goes_to_a_worker_process(bundle: Path, weights: Any) -> None:
    model, image = img2img.load(bundle, weights=weights), _image()
    expected = model.run("colour", image)  # what is derived of it is there, and stays behind
    if weights == "merged":
        again = pickle.loads(pickle.dumps(model))
        assert np.array_equal(again.run("colour", image), expected)
        assert not copy.deepcopy(model)._merged._by_task
        return
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found, metrics, sha256 = pool.apply(_in_another_process, (model, image))
    assert np.array_equal(found, expected)
    assert metrics == {"mIoU": 0.5}
    assert sha256 == model.network.backbone_sha256


@pytest.mark.parametrize("weights", ["cached", "merged"])
def test_a_default_type_of_float64_changes_nothing(bundle: Path, weights: Any) -> None:
    image = _image(70, 180)
    tensor = torch.from_numpy(image).permute(2, 0, 1) / 255

    def results() -> list[Any]:
        model = img2img.load(bundle, weights=weights)
        found = [model.run(name, image, form=form, side=64) for name, task in model.tasks.items() for form in task.forms]
        return [*found, *(model.run(name, tensor, tile=140) for name in model.tasks), model.network.backbone_sha256]

    expected = results()
    torch.set_default_dtype(torch.float64)
    try:
        found = results()
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        assert type(ours) is type(theirs)
        assert getattr(ours, "dtype", None) == getattr(theirs, "dtype", None)
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_a_bundle_whose_selection_has_a_part_that_fits_nothing_still_loads(
    make_bundle: Callable[..., Path],
) -> None:
    """Such were written before they were refused."""
    folder = make_bundle(tasks={"colour": {"kind": "colourisation"}})
    expected = img2img.load(folder).run("colour", _image())
    description = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(description | {"select": ["*", "encodr.*"]}))
    assert np.array_equal(img2img.load(folder).run("colour", _image()), expected)


def test_super_resolution_gives_more_pixels_than_it_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = {"kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3}
    tasks = {"first": {"kind": "translation"}, "sharp": {"kind": "super_resolution"}}
    model = img2img.load(make_bundle(tmp_path / "b", backbone, tasks))
    image = photo(50, 37)
    made = model.run("sharp", image)
    assert made.size == (100, 74)
    enlarged = np.asarray(image.resize((100, 74), Image.Resampling.BICUBIC), np.float32)
    task, twice = model.task("sharp"), F.interpolate(torch.rand(1, 3, 37, 50), scale_factor=2.0, mode="bicubic")
    assert task.served_input(Batch(image=(twice * 255).clamp(0, 255))).shape[-2:] == (74, 100)
    by_hand = _by_hand(model, "sharp", np.array(image.resize((100, 74), Image.Resampling.BICUBIC)))
    assert np.abs(np.asarray(made, np.float32) - by_hand.permute(1, 2, 0).numpy() * 255).mean() < 6, "another bicubic kernel"
    assert np.abs(np.asarray(made, np.float32) - enlarged).mean() < 60
    assert np.array_equal(model.run("sharp", np.asarray(image)), np.asarray(made))
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert model.run("sharp", tensor).shape == (3, 74, 100)
    assert model.predict("sharp", tensor).shape == (3, 74, 100)
    assert model.run("sharp", photo(50, 37, mode="RGBA")).mode == "RGBA"
    large = photo(90, 300)
    whole, tiled = (np.asarray(model.run("sharp", large, tile=tile), np.float32) for tile in (None, 160))
    assert whole.shape == tiled.shape == (600, 180, 3)
    assert np.abs(whole - tiled).max() <= 2
    assert model.memory("sharp", (3000, 2000)) > 1.5 * model.memory("first", (3000, 2000)), "four times the pixels"
    monkeypatch.setattr("img2img.data.images.decode.MAX_PIXELS", 7000)
    with pytest.raises(InputError, match="would be enlarged to 100 x 74"):
        model.run("sharp", image)
