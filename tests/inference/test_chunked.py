"""Large images part by part: the same as whole up to rounding, for every task, view and direction."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import img2img
from img2img import InputError
from img2img.inference import Model, chunked, prediction, resize
from img2img.inference.evaluator import Evaluator
from img2img.inference.resize import brought_back, resized_rows, rows_needed
from img2img.inference.tiling import run_any_size
from img2img.tasks import build_task, edges

ImageLike = NDArray[np.uint8]

TASKS = {
    "parts": {"kind": "segmentation", "classes": ["ground", "tree", "house"]},
    "colour": {"kind": "colourisation"},
    "guided": {"kind": "colourisation", "guided_filter": {"window": 9}},
    "sobel": {"kind": "edges", "drawing": "sobel"},
    "canny": {"kind": "edges", "drawing": "canny"},
    "clean": {"kind": "denoising"},
    "paint": {"kind": "style"},
}


@pytest.fixture(scope="module")
def model(make_bundle: Callable[..., Path]) -> Model:
    return img2img.load(make_bundle(tasks=TASKS))


@pytest.fixture(scope="module")
def classifier(make_bundle: Callable[..., Path]) -> Model:
    tasks = {"animals": {"kind": "classification", "classes": ["cat", "dog", "cow"]}}
    return img2img.load(make_bundle({"kind": "torchvision", "name": "resnet18"}, tasks))


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_PIXELS", 5000)
    monkeypatch.setattr(resize, "_AT_ONCE", 9000)
    monkeypatch.setattr(edges, "WHOLE", 20_000)


def _image(height: int, width: int) -> ImageLike:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def _both(model: Model, monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> tuple[Any, Any]:
    """What `run` gives part by part, and with every step on the whole image, as before there were parts."""
    with monkeypatch.context() as patch:
        called: list[int] = []
        part = prediction.predicted_rows
        patch.setattr(prediction, "predicted_rows", lambda *a: called.append(1) or part(*a))
        parts = run()
        assert called
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "in_parts", lambda *_: False)
        patch.setattr(edges, "WHOLE", 1 << 30)
        return parts, run()


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((310, 200), {}),
        ((150, 333), {}),
        ((310, 200), {"side": 60}),
        ((150, 333), {"side": 170}),
        ((90, 100), {"side": 165}),
    ],
    ids=str,
)
def test_parts_give_what_the_whole_gives(
    model: Model, monkeypatch: pytest.MonkeyPatch, name: str, size: tuple[int, int], options: dict[str, int]
) -> None:
    tensor = torch.tensor(_image(*size)).permute(2, 0, 1) / 255
    parts, whole = _both(model, monkeypatch, lambda: model.run(name, tensor, tile=160, **options))
    assert parts.shape == whole.shape == tensor.shape
    difference = (parts - whole).abs()
    # A rounding can turn the class of a pixel between two, or an edge of a strength at the threshold and what hangs on it.
    assert difference.mean() < (2e-3 if name in ("parts", "canny") else 1e-5)
    if not options and name != "canny":
        assert (parts - whole).abs().max() < 1e-4


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("size", [(310, 200), (150, 333)])
def test_every_type_and_form(model: Model, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    image = _image(*size)
    transparent = np.concatenate([image, np.full((*size, 1), 77, np.uint8)], axis=2)
    for form in model.tasks["parts"].forms:
        parts, whole = _both(model, monkeypatch, lambda form=form: model.run("parts", image, form=form, tile=160))
        assert parts.dtype == np.uint8
        assert parts.shape == whole.shape
        assert (parts != whole).mean() < 1e-3
        made, again = _both(model, monkeypatch, lambda form=form: model.run("parts", Image.fromarray(image), form=form, tile=160))
        assert (made.mode, made.size) == (again.mode, again.size)
        assert np.array_equal(np.asarray(made), parts)
    kept = model.run("colour", Image.fromarray(transparent), tile=160)
    assert kept.mode == "RGBA"
    assert np.all(np.asarray(kept)[..., 3] == 77)
    batch = torch.rand(2, 3, *size)
    labels = model.run("parts", batch, form="labels", tile=160)
    assert (labels.shape, labels.dtype) == ((2, *size), torch.int64)
    monkeypatch.setattr("img2img.inference.model.TILE", 160)
    for name in ("parts", "colour", "clean"):
        predicted, one = _both(model, monkeypatch, lambda name=name: model.predict(name, batch))
        assert predicted.shape == one.shape
        assert predicted.dtype == one.dtype
        assert (predicted - one).abs().float().mean() < 1e-3


@pytest.mark.parametrize("size", [(310, 200), (150, 333), (20, 400)])
def test_classes_are_written_on_large_images_too(
    classifier: Model, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    image = _image(*size)
    named, whole = _both(classifier, monkeypatch, lambda: classifier.run("animals", image, tile=160))
    assert np.array_equal(named, whole)
    assert named.shape[0] >= 120
    scores, again = _both(classifier, monkeypatch, lambda: classifier.run("animals", image, form="scores", tile=160))
    assert scores == pytest.approx(again, abs=1e-5)
    raw, same = _both(
        classifier, monkeypatch, lambda: classifier.run("animals", torch.rand(2, 3, *size), form="scores", tile=160)
    )
    assert raw.shape == same.shape == (2, 3)


def test_a_task_of_which_nothing_is_known_is_made_as_a_whole(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    task = model.task("clean")
    show = type(task).show
    monkeypatch.setattr(type(task), "in_parts", False)
    monkeypatch.setattr(
        type(task), "show", lambda self, prediction, *a: seen.append(tuple(prediction.shape)) or show(self, prediction, *a)
    )
    model.run("clean", _image(310, 200), tile=160)
    assert seen == [(1, 3, 310, 200)]


@pytest.mark.parametrize(
    ("size", "view"), [((50, 40), (20, 16)), ((50, 40), (120, 90)), ((50, 40), (50, 17)), ((301, 7), (3, 2))]
)
def test_rows_of_a_resized_image(size: tuple[int, int], view: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size) * 255
    expected = F.interpolate(image, view, mode="bilinear", antialias=True, align_corners=False)
    for step in (1, 3, 1000):
        rows = [resized_rows(image, view, i, min(view[0], i + step)) for i in range(0, view[0], step)]
        assert torch.allclose(torch.cat(rows, -2), expected, atol=1e-3)
    raw = torch.randn(2, 5, *view)
    expected = F.interpolate(raw, size, mode="bilinear", align_corners=False)
    for step in (1, 7, 1000):
        made = []
        for first in range(0, size[0], step):
            last = min(size[0], first + step)
            low, high = rows_needed(view[0], size[0], first, last)
            assert 0 <= low < high <= view[0]
            made.append(brought_back(raw[..., low:high, :], low, view, size, first, last))
        assert torch.allclose(torch.cat(made, -2), expected, atol=1e-4)


def test_canny_in_strips_is_kornias() -> None:
    from kornia.filters import canny as kornias

    for size in ((400, 120), (130, 390)):
        images = torch.from_numpy(np.stack([_image(*size), _image(*size)[::-1]])).permute(0, 3, 1, 2)
        expected = kornias(images / 255)[1]
        assert expected.mean() > 0.01
        assert (edges.canny_edges(images) != expected).float().mean() < 1e-4


def test_a_view_is_bounded(model: Model, classifier: Model) -> None:
    strip = np.zeros((2, 6000, 3), np.uint8)
    for run in (lambda: model.run("colour", strip, side=256), lambda: classifier.run("animals", strip, side=256)):
        with pytest.raises(InputError, match="768000 x 256") as caught:
            run()
        assert "side=256" in str(caught.value)
        assert "smaller" in str(caught.value)
    with pytest.raises(InputError, match=r"side=4898.*4898 x 4898.*side=.*32"):
        classifier.run("animals", np.zeros((400, 400, 3), np.uint8), side=4898)
    assert model.run("colour", strip).shape == strip.shape


# ---------------------------------------------------------------------- tiles


def _evaluator(stride: int = 8, min_size: int = 16) -> Evaluator:
    return Evaluator(stride=stride, min_size=min_size, device=torch.device("cpu"))


@pytest.mark.parametrize("size", [(100, 130), (37, 300), (8, 201), (64, 64), (65, 64)])
@pytest.mark.parametrize(("stride", "tile", "overlap"), [(8, 64, 16), (1, 40, 9), (16, 50, 20)])
def test_a_pointwise_network_gives_the_same(size: tuple[int, int], stride: int, tile: int, overlap: int) -> None:
    seen: list[tuple[int, ...]] = []
    layer = nn.Conv2d(3, 5, 1)

    def network(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        assert all(n % stride == 0 and n >= 16 for n in x.shape[-2:])
        y: Tensor = layer(x)
        return y

    input = torch.rand(2, 3, *size)
    raw = run_any_size(network, input, _evaluator(stride), tile=tile, overlap=overlap)
    assert raw.shape == (2, 5, *size)
    assert torch.allclose(raw, layer(input), atol=1e-5)
    largest = max(16, -(-tile // stride) * stride)
    assert all(max(shape[-2:]) <= largest for shape in seen)
    assert len(seen) > 1 or max(size) <= largest


@pytest.mark.parametrize(("size", "most"), [((1600, 1200), 1.25), ((1100, 1100), 1.4), ((1030, 200), 1.4), ((3000, 4000), 1.35)])
def test_little_is_seen_twice(size: tuple[int, int], most: float) -> None:
    seen: list[int] = []

    def network(x: Tensor) -> Tensor:
        seen.append(x.shape[-1] * x.shape[-2])
        return x[:, :1]

    run_any_size(network, torch.zeros(1, 3, *size), _evaluator(32, 32), tile=1024, overlap=128)
    assert sum(seen) <= most * size[0] * size[1]
    assert max(seen) <= 1024**2


def test_a_blurring_network_has_no_seams() -> None:
    blur = nn.Conv2d(3, 1, 9, padding=4, padding_mode="replicate", bias=False)
    nn.init.constant_(blur.weight, 1 / 243)
    input = torch.rand(1, 3, 96, 200)
    whole = run_any_size(blur, input, _evaluator(), tile=None, overlap=32)
    tiled = run_any_size(blur, input, _evaluator(), tile=64, overlap=32)
    cut = run_any_size(blur, input, _evaluator(), tile=64, overlap=0)
    assert (tiled - whole).abs().max() < 0.4 * (cut - whole).abs().max(), "the overlap hides most of what a tile cannot see"
    steps = (tiled - whole).diff(dim=-1).abs().max()
    assert steps < 0.25 * (cut - whole).diff(dim=-1).abs().max(), "and its edge is no line"


@pytest.mark.parametrize("size", [(100, 130), (37, 300), (64, 9)])
@pytest.mark.parametrize(("stride", "tile", "border"), [(8, 32, 8), (8, 64, 8), (1, 40, 5), (8, 16, 8), (8, 1000, 8)])
def test_a_mirrored_border_is_that_of_the_whole_image(size: tuple[int, int], stride: int, tile: int, border: int) -> None:
    input = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    wide = F.pad(input, [border] * 4, mode="reflect")
    evaluator, seen = _evaluator(stride, stride), []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x[:, :1] + 1

    torch.testing.assert_close(evaluator.raw(network, input, border=border), input[:, :1] + 1)
    assert torch.equal(seen.pop()[..., : wide.shape[-2], : wide.shape[-1]], wide)
    torch.testing.assert_close(run_any_size(network, input, evaluator, tile=tile, overlap=8, border=border), input[:, :1] + 1)
    height, width = (min(*pair) for pair in zip(seen[0].shape[-2:], wide.shape[-2:], strict=True))
    assert torch.equal(seen[0][..., :height, :width], wide[..., :height, :width]), "the first tile begins beyond the image"
    beyond = [-n % stride for n in wide.shape[-2:]]  # which is repeated
    last = seen[-1][..., : seen[-1].shape[-2] - beyond[0], : seen[-1].shape[-1] - beyond[1]]
    assert torch.equal(last, wide[..., wide.shape[-2] - last.shape[-2] :, wide.shape[-1] - last.shape[-1] :]), "so does the last"


def test_nothing_is_mirrored_that_is_smaller_than_the_border(model: Model) -> None:
    evaluator, style, clean = _evaluator(32, 32), build_task({"kind": "style"}), model.task("clean")
    assert [evaluator.border(style, size) for size in ((33, 40), (32, 40), (500, 20))] == [32, 0, 0]
    assert evaluator.border(clean, (100, 100)) == 0, "what is copied from the input has no rim"


def test_small_images_run_whole() -> None:
    seen: list[tuple[int, ...]] = []

    def network(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x

    run_any_size(network, torch.rand(1, 3, 50, 60), _evaluator(), tile=64, overlap=16)
    assert seen == [(1, 3, 56, 64)]
