"""Colourisation by bins of ab, against a literal transcription of the paper, and by a perceptual term."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.color import rgb2lab
from torch import Tensor

from img2img import InputError, MaskedNetwork
from img2img.backbones import build_backbone
from img2img.bundle import HEAD, add_task_to_bundle, save_backbone
from img2img.data.base import Batch, ImageDataset, Sample
from img2img.export import export_task
from img2img.inference import load
from img2img.inference.prediction import TILE, tile_for
from img2img.masks import Piggyback
from img2img.metrics.colour_classes import class_weights, gamut_bins, smoothed_prior
from img2img.tasks import build_task, colour_bins
from img2img.tasks.colourisation import Colourisation
from img2img.tasks.stored import stored_baseline

Array = NDArray[np.float64]


def colouring(**options: Any) -> Colourisation:
    task = build_task({"kind": "colourisation", **options})
    assert isinstance(task, Colourisation)
    return task


class Photos(ImageDataset):
    """Mostly dull images of one colour each and a saturated one, so that frequencies differ."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        colour = (230, 20, 30) if index == 8 else tuple(110 + rng.integers(0, 30, 3))
        image = np.clip(np.array(colour) + rng.integers(-9, 10, (24, 32, 3)), 0, 255).astype(np.uint8)
        return Sample(image, name=str(index))


# The paper's formulas as printed, a pixel and a bin at a time.


def paper_soft_target(colour: Array, centres: Array, *, sigma: float) -> Array:
    """Section 2.2: the five nearest bins, weighted by a Gaussian of their distance to the ground truth."""
    distance = np.sqrt(((centres - colour) ** 2).sum(1))
    z = np.zeros(len(centres))
    for q in np.argsort(distance, kind="stable")[:5]:
        z[q] = np.exp(-(distance[q] ** 2) / (2 * sigma**2))
    return z / z.sum()


def paper_weights(counts: Array, centres: Array, *, sigma: float, lam: float) -> Array:
    """Equation 4."""
    p = counts / counts.sum()
    smoothed = np.zeros(len(p))
    for q, centre in enumerate(centres):
        for r, other in enumerate(centres):
            smoothed[q] += p[r] * np.exp(-((centre - other) ** 2).sum() / (2 * sigma**2))
    smoothed /= smoothed.sum()
    w = 1 / ((1 - lam) * smoothed + lam / len(p))
    return w / (smoothed * w).sum()  # E[w] = Σ p̃_q w_q = 1


def paper_annealed_mean(z: Array, centres: Array, *, temperature: float) -> Array:
    """Equation 5, of a distribution z over bins."""
    f = np.exp(np.log(z) / temperature)
    return (f / f.sum()) @ centres


def softmax(x: Array) -> Array:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def test_every_colour_of_8_bits_lies_in_a_bin_and_every_bin_holds_one() -> None:
    assert len(gamut_bins(10)) == 261
    assert len(gamut_bins(20)) < 100
    bins = {tuple(each) for each in gamut_bins(10).tolist()}
    rng = np.random.default_rng(0)
    ab = rgb2lab(rng.integers(0, 256, (40_000, 3)) / 255.0)[:, 1:]
    assert {tuple(each) for each in np.round(ab / 10).astype(int).tolist()} <= bins
    task = colouring(bins={})
    assert task.bins is not None
    squared, number = task.bins.nearest(torch.from_numpy(ab).float())
    assert (task.bins.centres[number[:, 0]] - torch.from_numpy(ab)).abs().max() <= 5.001
    assert squared.max() <= 50.01
    assert task.out_channels == len(bins)


def test_weights_of_bins_are_equation_4_of_the_counted_training_images() -> None:
    task = colouring(bins={"grid": 20, "rebalance": 0.3, "sigma": 7.0})
    photos = Photos()
    task.fit(photos)
    bins = task.bins
    assert bins is not None
    centres, counts = bins.centres.double().numpy(), np.zeros(len(bins))
    for i in range(len(photos)):
        for colour in rgb2lab(photos[i].image[::2, ::2]).reshape(-1, 3)[:, 1:]:
            counts[((centres - colour) ** 2).sum(1).argmin()] += 1
    expected = paper_weights(counts, centres, sigma=7.0, lam=0.3)
    np.testing.assert_allclose(bins.weights.numpy(), expected, rtol=1e-4)
    prior = smoothed_prior(counts, bins.centres, sigma=7.0)
    assert (prior * bins.weights).sum().item() == pytest.approx(1, abs=1e-5)
    assert expected.max() > 3 * expected.min()
    np.testing.assert_allclose(class_weights(prior, rebalance=1).numpy(), 1.0)
    products = (class_weights(prior, rebalance=0) * prior)[prior > 1e-9]  # a bin that is never met has no weight to speak of
    assert (products / products[0]).tolist() == [pytest.approx(1)] * len(products)
    assert len(products) > 5


@pytest.mark.parametrize("options", [{}, {"grid": 20, "sigma": 4.0}])
def test_the_loss_and_the_soft_target_are_the_paper_s(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    task = colouring(bins=options)
    task.fit(Photos())
    bins = task.bins
    assert bins is not None
    monkeypatch.setattr(colour_bins, "_AT_ONCE", 4 * len(bins))  # so that pixels are taken in parts
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 3, 5), generator=generator).byte()
    example = task.example(Batch(image=image))
    raw = 3 * torch.randn(2, len(bins), 3, 5, generator=generator)
    number, share = bins.soft_target(example.target)
    centres, sigma = bins.centres.double().numpy(), options.get("sigma", 5.0)
    total = 0.0
    for n in range(2):
        for y in range(3):
            for x in range(5):
                z = paper_soft_target(example.target[n, :, y, x].double().numpy(), centres, sigma=sigma)
                given = np.zeros(len(bins))
                given[number[n, :, y, x].numpy()] = share[n, :, y, x].numpy()
                np.testing.assert_allclose(given, z, atol=1e-5)
                predicted = softmax(raw[n, :, y, x].double().numpy())
                total -= float(bins.weights[z.argmax()]) * float((z * np.log(predicted)).sum())
    assert task.loss(raw, example).item() == pytest.approx(total / 30, rel=1e-4)
    ab = task.prediction(raw, example.input)
    for n, y, x in ((0, 0, 0), (1, 2, 4)):
        mean = paper_annealed_mean(softmax(raw[n, :, y, x].double().numpy()), centres, temperature=0.38)
        np.testing.assert_allclose(ab[n, :, y, x].numpy(), mean, atol=1e-3)
    monkeypatch.setattr(colour_bins, "_AT_ONCE", 1 << 30)
    # Read in parts or as a whole: on some processors a product of other rows is rounded otherwise.
    torch.testing.assert_close(task.prediction(raw, example.input), ab, rtol=1e-5, atol=1e-4)


def test_a_temperature_of_one_is_the_mean_and_a_low_one_the_likeliest_bin() -> None:
    raw = torch.zeros(1, 261, 1, 1)
    raw[0, 7] = 2.0
    centre, mean = gamut_bins(10).float() * 10, (torch.softmax(raw[0, :, 0, 0], 0) @ (gamut_bins(10).float() * 10))
    ab = {t: colouring(bins={"temperature": t}).prediction(raw, raw)[0, :, 0, 0] for t in (1.0, 0.1)}
    assert torch.allclose(ab[1.0], mean, atol=1e-4)
    assert torch.allclose(ab[0.1], centre[7], atol=1e-2)


def test_the_stored_task_runs_as_the_trained_one_and_needs_no_training_images() -> None:
    task = colouring(bins={"grid": 20, "temperature": 0.5, "rebalance": 0.9})
    task.fit(Photos())
    stored = json.loads(json.dumps(task.options()))
    assert set(stored["bins"]) == {"grid", "temperature", "centres"}
    again = build_task(stored)
    raw, input = torch.randn(1, task.out_channels, 4, 6), torch.rand(1, 3, 4, 6)
    assert torch.equal(again.prediction(raw, input), task.prediction(raw, input))
    assert torch.equal(task.prediction(task.compact(raw, input), input), task.prediction(raw, input))
    assert task.compact(raw, input).shape[1] == task.compact_channels == 2
    assert colouring().options() == {"kind": "colourisation"}, "as files have it that exist"


def test_distillation_of_bins_is_a_cross_entropy_that_the_teacher_itself_minimises() -> None:
    task = colouring(bins={"grid": 40})
    teacher = torch.randn(1, task.out_channels, 2, 2)
    own = task.distillation(teacher, teacher, temperature=2.0)
    assert task.distillation(teacher + torch.randn_like(teacher), teacher, temperature=2.0) > own
    likely = torch.softmax(teacher.double() / 2, 1)
    assert own.item() == pytest.approx(-(likely * likely.log()).sum(1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("bins", [None, {"grid": 30}])
def test_the_perceptual_term_is_added_by_its_weight_and_trains_the_colours(bins: Any) -> None:
    network = {"name": "efficientnet_lite0", "weights": None}
    torch.manual_seed(0)
    plain = colouring(bins=bins)
    task = colouring(bins=bins, loss={"perceptual": 2.0, "network": network})
    task.fit(Photos())
    if plain.bins is not None:
        plain.fit(Photos())
    image = torch.from_numpy(np.stack([Photos()[i].image for i in (7, 8)])).permute(0, 3, 1, 2)
    example = task.example(Batch(image=image[..., :24]))
    raw = torch.zeros(2, task.out_channels, 24, 24, requires_grad=True)
    term = task.loss(raw, example) - plain.loss(raw, example)
    assert term > 0
    (gradient,) = torch.autograd.grad(term, raw)
    assert gradient.abs().max() > 0
    half = colouring(bins=bins, loss={"perceptual": 1.0, "network": network})
    half.__dict__["_perceptual"] = task._perceptual  # the same random weights
    half.bins = task.bins
    assert (half.loss(raw, example) - plain.loss(raw, example)).item() == pytest.approx(term.item() / 2, rel=1e-3)
    assert "loss" not in task.options()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": {"grid": 1}}, r"grid: 1.*4 or more"),
        ({"bins": {"gird": 10}}, r"'gird'.*mean 'grid'"),
        ({"bins": {"centres": [[0, 0]] * 6}}, r"6 centres.*each once"),
        ({"bins": {"centres": [[0, 0], [1, 1]]}}, r"2 centres.*5 to 4096"),
        ({"bins": {"centres": [[0, 999], [1, 1], [2, 2], [3, 3], [4, 4]]}}, r"centres.*128"),
        ({"loss": {"perceptual": 1.0}}, r"give loss.network"),
        ({"loss": {"perceptual": -1.0}}, r"perceptual: -1"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        colouring(**options)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MaskedNetwork, Colourisation]:
    """A bundle with a task of bins on a small U-Net, whose head is drawn so that colours are far from grey."""
    torch.manual_seed(0)
    spec = {"kind": "smp", "encoder": "resnet18", "decoder_channels": [8, 8], "depth": 2, "weights": None, "out_channels": 2}
    backbone = build_backbone(spec)
    network = MaskedNetwork(backbone, head=HEAD)
    task = colouring(bins={"grid": 20})
    task.fit(Photos())
    head = backbone.make_head(task.out_channels)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    network.add_task("colour", Piggyback(), head=head)
    network.freeze_task("colour")
    folder = tmp_path_factory.mktemp("bins")
    save_backbone(folder, network, backbone.spec)
    add_task_to_bundle(folder, network.eval(), "colour", options=task.options(), info={})
    return folder, network, task


def test_a_bundle_runs_bins_whole_in_tiles_and_at_another_size(bundle: tuple[Path, MaskedNetwork, Colourisation]) -> None:
    folder, network, task = bundle
    image = torch.rand(1, 3, 48, 400, generator=torch.Generator().manual_seed(1))
    model = load(folder)
    expected = task.prediction(network(task.input(Batch(image=image * 255)), task="colour"), image)
    assert expected.std() > 5
    assert torch.allclose(model.predict("colour", image), expected, atol=1e-2)
    whole, tiled = (model.run("colour", image, tile=tile) for tile in (None, 288))
    far = torch.cat([whole[..., :100], whole[..., -100:]], -1) - torch.cat([tiled[..., :100], tiled[..., -100:]], -1)
    assert far.abs().max() < 1e-3, "away from where tiles fade into each other"
    assert model.run("colour", image, side=24).shape == image.shape
    # Blended and resized are a and b, not a score a bin.
    assert model.memory("colour", (3000, 4000)) < 2 << 30
    assert tile_for(task, None) is None
    assert tile_for(task, 300) == 300
    assert tile_for(colouring(), TILE) == TILE
    assert 256 <= tile_for(colouring(bins={"grid": 5}), TILE) < 300  # type: ignore[operator]


@pytest.mark.parametrize("ending", ["onnx", "pt2", "safetensors"])
def test_exported_files_give_the_annealed_mean(
    bundle: tuple[Path, MaskedNetwork, Colourisation], ending: str, tmp_path: Path
) -> None:
    if ending == "onnx":
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package)
    _, network, task = bundle
    exported = export_task(network, "colour", task, tmp_path / f"colour.{ending}")
    assert exported.agreement.difference < 1e-4
    assert exported.values["options"] == task.options()
    assert exported.values["output"].startswith("raw" if ending == "safetensors" else "output_image")
    if ending == "pt2":
        program = torch.export.load(tmp_path / "colour.pt2").module()
        image = torch.rand(1, 3, 32, 64)
        input = task.input(Batch(image=255 * image))
        shown: Tensor = task.to_image(task.prediction(network(input, task="colour"), input), input)
        assert torch.allclose(program(image), shown, atol=1e-4)
        assert (shown - shown.mean(1, keepdim=True)).abs().max() > 0.02


def test_of_bins_the_primary_metric_is_one_that_grey_does_not_win() -> None:
    images = torch.rand(2, 12, 12, 3, generator=torch.Generator().manual_seed(0)).mul(255).byte().numpy()
    for task, expected in ((colouring(bins={}), ("balanced AuC", True)), (colouring(), ("ab error", False))):
        assert (task.metric, task.higher_is_better) == expected
        example = task.example(Batch(image=torch.from_numpy(images).permute(0, 3, 1, 2)))
        metrics = (task.metrics(), task.primary_metrics())
        for each in metrics:
            each.update(task.baseline(example), example)
        full, primary = (each.compute() for each in metrics)
        assert primary == {name: full[name] for name in ("ab error", "delta E", "AuC", "balanced AuC")}


class _OwnMetric(Colourisation):
    metric = "SSIM"
    higher_is_better = True


def test_a_subclass_keeps_its_own_primary_metric_with_bins() -> None:
    task = _OwnMetric(bins={})
    assert (task.metric, task.higher_is_better) == ("SSIM", True)
    assert type(task.primary_metrics()) is type(task.metrics())


def test_a_file_that_was_measured_by_another_metric_has_no_baseline() -> None:
    """Files of bins were measured by the ab error once: its baseline says nothing of the balanced AuC."""
    task = colouring(bins={})
    info = {"figures": {"ab error": 240.0}, "baseline": 263.0}
    assert stored_baseline(task, info) is None
    assert stored_baseline(colouring(), info) == 263.0
    assert stored_baseline(task, {"figures": {"balanced AuC": None}, "baseline": 0.65}) == 0.65
