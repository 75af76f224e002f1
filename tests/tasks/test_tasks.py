"""The contract of every task, and what each is measured against."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import uniform_filter
from segmentation_models_pytorch.losses import DiceLoss, LovaszLoss
from skimage.color import rgb2lab

from img2img import InputError
from img2img.data.base import VOID, Batch, ImageDataset, Sample
from img2img.tasks import Task, build_task, check_task, task_kinds
from img2img.tasks.base import Example, mean_colour
from img2img.tasks.segmentation import LOSSES, Segmentation
from img2img.tasks.stored import stored_task


class Images(ImageDataset):
    """Four random images with labels."""

    name = "four"
    classes = ("a", "b", "c")
    categories = np.array([0, 1, 1, 2])

    def __init__(self, size: int = 32) -> None:
        rng = np.random.default_rng(0)
        self._samples = []
        for i in range(4):
            image = rng.integers(0, 256, (size // 8, size // 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            label = rng.choice(3, (size, size), p=[0.2, 0.5, 0.3]).astype(np.uint8)
            label[:2] = VOID
            self._samples.append(Sample(image, label, source=255 - image, category=int(self.categories[i]), name=f"image {i}"))

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]


@pytest.fixture
def style_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    path = tmp_path / "style.png"
    Image.fromarray(rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)).save(path)
    return path


def _config(kind: str, style_file: Path) -> dict[str, Any]:
    options: dict[str, dict[str, Any]] = {
        "segmentation": {"classes": ["a", "b", "c"]},
        "classification": {"classes": ["a", "b", "c"]},
        "style": {"picture": str(style_file), "size": 48, "network": {"name": "efficientnet_lite0", "weights": None}},
        "edges": {"drawing": "canny"},
        "denoising": {"sigma": 30},
    }
    return {"kind": kind, **options.get(kind, {})}


def _raw(task: Task) -> torch.Size:
    """The shape of a raw output for the four images."""
    return torch.Size([4, task.out_channels] if task.kind == "classification" else [4, task.out_channels, 32, 32])


@pytest.mark.parametrize("kind", task_kinds())
class TestContract:
    @pytest.fixture
    def task(self, kind: str, style_file: Path) -> Task:
        task = build_task(_config(kind, style_file))
        task.fit(Images())
        return task

    @pytest.fixture
    def batch(self) -> Batch:
        images = Images()
        return Batch.stack([images[i] for i in range(4)])

    def test_the_network_is_fed_three_channels_in_the_unit_range(self, task: Task, batch: Batch) -> None:
        input = task.example(batch).input
        assert input.shape == (4, 3, 32, 32)
        assert input.dtype == torch.float32
        assert input.min() >= 0
        assert input.max() <= 1
        assert torch.equal(task.input(batch), input)
        assert torch.equal(task.target(batch), task.example(batch).target)

    def test_it_keeps_what_is_checked_before_a_training(self, task: Task) -> None:
        check_task(task, Images())

    def test_the_same_batch_gives_the_same_example(self, task: Task, batch: Batch) -> None:
        assert torch.equal(task.example(batch).input, task.example(batch).input)

    def test_inference_needs_the_image_alone_and_the_stored_options(self, task: Task, batch: Batch) -> None:
        again = build_task(task.options())
        assert batch.source is not None
        alone = Batch(image=batch.source if task.kind == "translation" else batch.image)  # there the image given is a pair's A
        assert torch.equal(again.input(alone), task.input(batch))
        raw = torch.randn(_raw(task))
        input = task.input(alone)
        assert torch.equal(again.prediction(raw, input), task.prediction(raw, input))

    def test_the_loss_falls_when_the_raw_output_is_trained_directly(self, task: Task, batch: Batch) -> None:
        example = task.example(batch)
        raw = torch.zeros(_raw(task), requires_grad=True)
        optimiser = torch.optim.Adam([raw], 0.1)
        losses = []
        for _ in range(30):
            optimiser.zero_grad()
            loss = task.loss(raw, example)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]

    def test_training_the_raw_output_beats_the_trivial_baseline_on_the_deciding_metric(self, task: Task, batch: Batch) -> None:
        example = task.example(batch)
        raw = torch.zeros(_raw(task), requires_grad=True)
        optimiser = torch.optim.Adam([raw], 0.2)
        for _ in range(60):
            optimiser.zero_grad()
            task.loss(raw, example).backward()
            optimiser.step()
        values = []
        for prediction in (task.prediction(raw.detach(), example.input), task.baseline(example)):
            figures = task.metrics()
            figures.update(prediction, example)
            values.append(figures.compute()[task.metric])
        trained, baseline = values
        assert trained > 1.1 * baseline if task.higher_is_better else trained < 0.9 * baseline

    def test_predictions_and_targets_are_shown_as_images(self, task: Task, batch: Batch) -> None:
        example = task.example(batch)
        prediction = task.prediction(torch.randn(_raw(task)), example.input)
        for to_image in (task.to_image(prediction, example.input), task.reference(example)):
            assert to_image.shape[:2] == (4, 3)
            assert to_image.shape[2:] == ((128, 128) if task.kind == "classification" else (32, 32))  # room for a name
            assert to_image.min() >= 0
            assert to_image.max() <= 1

    def test_every_form_of_a_result_is_what_it_is_called(self, task: Task, batch: Batch) -> None:
        input = task.served_input(batch)
        prediction = task.prediction(torch.randn(_raw(task)), input)
        for form in task.forms:
            shown = task.show(prediction, input, form)
            if form == "labels":
                assert torch.equal(shown, prediction)
                assert shown.shape == (4, 32, 32)
            elif form == "scores":
                assert torch.allclose(shown.sum(1), torch.ones(4))
                assert shown.shape == (4, task.out_channels)
            else:
                assert shown.shape[:2] == (4, 3)
                assert shown.min() >= 0
                assert shown.max() <= 1
        assert torch.equal(task.show(prediction, input, task.forms[0]), task.to_image(prediction, input))


def test_translation_copies_where_the_network_says_so_and_paints_elsewhere() -> None:
    task, input = build_task({"kind": "translation"}), torch.rand(1, 3, 4, 6)
    raw = torch.zeros(1, 4, 4, 6)
    raw[:, 3, :, :3], raw[:, 3, :, 3:] = 40, -40
    prediction = task.prediction(raw, input)
    assert torch.equal(prediction[..., :3], input[..., :3])
    assert torch.equal(prediction[..., 3:], torch.full((1, 3, 4, 3), 0.5))
    with pytest.raises(InputError, match="a translation task needs"):
        task.target(Batch(image=torch.zeros(1, 3, 4, 4, dtype=torch.uint8)))


def test_a_perfect_segmentation_scores_one_and_void_counts_nowhere() -> None:
    task = build_task({"kind": "segmentation", "classes": ["a", "b", "c"]})
    images = Images()
    example = task.example(Batch.stack([images[i] for i in range(4)]))
    raw = torch.nn.functional.one_hot(example.target.clamp(max=2), 3).permute(0, 3, 1, 2).float() * 20
    assert task.loss(raw, example).item() < 1e-6, "void pixels, which are wrong here, add no loss"
    figures = task.metrics()
    figures.update(task.prediction(raw, example.input), example)
    assert figures.compute()["mIoU"] == 1.0


def test_a_batch_of_void_alone_has_no_loss_and_no_nan() -> None:
    task = build_task({"kind": "segmentation", "classes": ["a", "b"]})
    batch = Batch(image=torch.zeros(1, 3, 8, 8, dtype=torch.uint8), label=torch.full((1, 8, 8), VOID))
    assert task.loss(torch.randn(1, 2, 8, 8), task.example(batch)).item() == 0


def test_a_label_out_of_range_names_the_value_the_image_and_the_range() -> None:
    task = build_task({"kind": "segmentation", "classes": ["a", "b"]})
    label = torch.zeros(2, 8, 8, dtype=torch.int64)
    label[1, 0, 0] = 7
    batch = Batch(image=torch.zeros(2, 3, 8, 8, dtype=torch.uint8), label=label, names=("good.png", "bad.png"))
    with pytest.raises(InputError, match=r"\[7\].*bad.png.*0..1"):
        task.target(batch)


def test_the_majority_class_is_the_most_frequent_one_and_not_void() -> None:
    task = build_task({"kind": "segmentation", "classes": ["a", "b", "c"]})
    images = Images()
    task.fit(images)
    example = task.example(Batch.stack([images[0]]))
    assert (task.baseline(example) == 1).all()


def test_colourisation_feeds_the_lightness_and_keeps_it() -> None:
    task = build_task({"kind": "colourisation"})
    images = Images()
    example = task.example(Batch.stack([images[0]]))
    lab = rgb2lab(images[0].image)
    np.testing.assert_allclose(example.input[0, 0].numpy() * 100, lab[..., 0], atol=2e-3)
    np.testing.assert_allclose(example.target[0].permute(1, 2, 0).numpy(), lab[..., 1:], atol=2e-2)
    back = task.to_image(example.target, example.input)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(back * 255, images[0].image, atol=1.0)
    grey = task.to_image(task.baseline(example), example.input)
    assert (grey.amax(1) - grey.amin(1)).max() < 2e-3


def test_edges_are_black_on_white_and_of_a_pair_side_a() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, 8:] = 255
    batch = Batch.stack([Sample(image, source=image[:, ::-1].copy())])
    for drawing in ("canny", "sobel"):
        drawn = build_task({"kind": "edges", "drawing": drawing}).input(batch)
        assert drawn[0, 0, 8, 6:10].min() == 0, f"{drawing} draws the step"
        assert drawn[0, 0, 8, :5].min() > 1 - 1e-4, f"{drawing} leaves the flat part white"
    pair = build_task({"kind": "edges", "drawing": "pair"})
    assert torch.equal(pair.input(batch), batch.source.float() / 255)
    with pytest.raises(InputError, match=r"needs A\|B pairs"):
        pair.target(Batch(image=batch.image))


def test_the_mean_colour_counts_each_image_once() -> None:
    class Two(ImageDataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Sample:
            return Sample(np.full((4 + 60 * index, 4, 3), (0, 255)[index], np.uint8))

    assert mean_colour(Two()).tolist() == pytest.approx([0.5] * 3)


def test_the_noise_has_the_deviation_asked_for_and_differs_between_images() -> None:
    task = build_task({"kind": "denoising", "sigma": 20})
    image = torch.full((2, 3, 64, 64), 128, dtype=torch.uint8)
    image[1] = 127
    noise = (task.input(Batch(image=image)) - image.float() / 255) * 255
    assert noise.std().item() == pytest.approx(20, rel=0.03)
    assert not torch.allclose(noise[0], noise[1], atol=1)


def test_each_image_of_a_range_has_noise_of_its_own_strength() -> None:
    task = build_task({"kind": "denoising", "sigma": [5, 50]})
    image = torch.full((24, 3, 48, 48), 128, dtype=torch.uint8)
    image[:, :, 0, 0] = torch.arange(24, dtype=torch.uint8)[:, None]
    noise = (task.input(Batch(image=image)) - image.float() / 255) * 255
    deviations = noise[:, :, 1:].std((1, 2, 3))
    assert 4.5 < deviations.min() < 12
    assert 40 < deviations.max() < 51
    assert torch.equal(task.input(Batch(image=image[3:4])), task.input(Batch(image=image))[3:4]), "it depends on the image alone"
    zero, target = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), (5**2 + 5 * 50 + 50**2) ** 0.5 / 3**0.5 / 255)
    assert task.own_loss(zero, target).item() == pytest.approx(1), "in units of the mean variance"
    for sigma in ([5], [50, 5], [0, 0], [1, 2, 3], 0, 300):
        with pytest.raises(InputError, match="expected more than 0"):
            build_task({"kind": "denoising", "sigma": sigma})


def test_noise_of_the_channels_is_as_alike_as_asked_for() -> None:
    image = torch.full((40, 3, 64, 64), 128, dtype=torch.uint8)
    image[:, :, 0, 0] = torch.arange(40, dtype=torch.uint8)[:, None]

    def correlations(**options: Any) -> list[float]:
        task = build_task({"kind": "denoising", "sigma": 20, **options})
        noise = (task.input(Batch(image=image)) - image.float() / 255)[:, :, 1:] * 255
        assert noise.std().item() == pytest.approx(20, rel=0.02)
        return [torch.corrcoef(each.flatten(1))[0, 1].item() for each in noise]

    assert correlations(correlation=0) == pytest.approx([0.0] * 40, abs=0.06)
    assert correlations(correlation=1) == pytest.approx([1.0] * 40, abs=1e-4)
    assert correlations(correlation=0.5) == pytest.approx([0.5] * 40, abs=0.06)
    spread = correlations()
    assert sum(value > 0.999 for value in spread) == pytest.approx(10, abs=6), "a quarter of them is luminance noise"
    assert sum(value < 0.06 for value in spread) >= 4
    for correlation in ([0.5], [0.6, 0.5], 1.5, [-0.1, 0.1]):
        with pytest.raises(InputError, match=r"correlation=.*expected a number from 0"):
            build_task({"kind": "denoising", "correlation": correlation})
    before = stored_task({"task": {"kind": "denoising", "sigma": 20}})
    plain = build_task({"kind": "denoising", "sigma": 20, "correlation": 0})
    assert torch.equal(before.input(Batch(image=image)), plain.input(Batch(image=image))), "a file of before says nothing of it"


def test_denoising_filters_each_pixel_by_weights_of_its_own() -> None:
    task = build_task({"kind": "denoising", "kernel": 3})
    input = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    mean = torch.from_numpy(uniform_filter(input.numpy(), (1, 1, 3, 3), mode="nearest"))
    torch.testing.assert_close(task.prediction(torch.zeros(2, 9, 9, 7), input), mean)
    raw = torch.zeros(2, 9, 9, 7)
    raw[:, 1, :, :4] = 1e3  # the pixel above
    raw[:, 4, :, 4:] = 1e3  # itself
    found = task.prediction(raw, input)
    assert torch.equal(found[..., 1:, :4], input[..., :-1, :4])
    assert torch.equal(found[..., 0, :4], input[..., 0, :4]), "beyond the edge the outermost pixels are repeated"
    assert torch.equal(found[..., 4:], input[..., 4:])
    for kernel in (1, 4, 17):
        with pytest.raises(InputError, match="expected an odd number of pixels from 3 to 15"):
            build_task({"kind": "denoising", "kernel": kernel})
    before = stored_task({"task": {"kind": "denoising", "sigma": 25}})
    assert (before.out_channels, before.options()["kernel"]) == (4, None), "a file of before says nothing of it"
    assert torch.equal(
        before.prediction(torch.tensor([0.0, 0, 0, 1e3])[None, :, None, None], input[:1, :, :1, :1]), input[:1, :, :1, :1]
    )


def test_super_resolution_takes_the_detail_out_and_gets_the_rest_as_pillow_does() -> None:
    task = build_task({"kind": "super_resolution", "factor": 3})
    image = torch.randint(256, (1, 3, 36, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.avg_pool2d(image.float(), 5, 1, 2).to(torch.uint8)
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    small = picture.resize((16, 12), Image.Resampling.BICUBIC)
    expected = np.asarray(small.resize((48, 36), Image.Resampling.BICUBIC), np.float32) / 255
    found = task.input(Batch(image=image))[0].permute(1, 2, 0).numpy()
    assert np.abs(found - expected)[6:-6, 6:-6].max() < 0.02, "another bicubic kernel (-0.75 and -0.5), rounded twice there"
    assert (task.input(Batch(image=image)) - task.target(Batch(image=image))).abs().mean() > 0.01
    assert torch.equal(task.served_input(Batch(image=image)), image.float() / 255), "a user's own was enlarged before"
    raw = torch.randn(1, 1, 36, 48)
    made = task.prediction(raw, task.input(Batch(image=image)))
    assert torch.equal(made, (task.input(Batch(image=image)) + 0.1 * raw).clamp(0, 1)), "all channels get the same"
    before = stored_task({"task": {"kind": "super_resolution", "factor": 3}})
    assert (task.out_channels, before.out_channels, before.options()["detail"]) == (1, 3, "rgb"), "a file of before has three"
    with pytest.raises(InputError, match=r"detail: 'luma': expected 'grey' or 'rgb'"):
        build_task({"kind": "super_resolution", "detail": "luma"})
    for factor in (1, 5):
        with pytest.raises(InputError, match="2, 3 or 4"):
            build_task({"kind": "super_resolution", "factor": factor})


def test_style_weights_make_the_style_image_itself_a_perfect_style(style_file: Path) -> None:
    config = _config("style", style_file) | {"content": 0.0, "variation": 0.0, "style": 3.0}
    task = build_task(config)
    example = task.example(Batch(image=(task.style_image * 255).round().byte()))
    assert task.loss(torch.logit(example.target, eps=1e-6), example).item() < 1e-3
    black = torch.full_like(example.target, -20.0)
    assert task.loss(black, example).item() > 0.3


def test_without_a_image_or_a_perceptual_network_the_error_says_what_to_give(style_file: Path) -> None:
    example = None
    task = build_task({"kind": "style"})
    with pytest.raises(InputError, match="give network"):
        task.loss(torch.zeros(1, 3, 32, 32), example)
    task = build_task({"kind": "style", "network": {"name": "efficientnet_lite0", "weights": None}})
    with pytest.raises(InputError, match="give picture=PATH"):
        task.loss(torch.zeros(1, 3, 32, 32), example)


def test_a_style_takes_the_layers_and_weights_of_its_config(style_file: Path) -> None:
    base = {"kind": "style", "picture": str(style_file), "size": 48, "network": {"name": "squeezenet1_1", "weights": None}}
    usual = build_task(base)._targets[1]  # type: ignore[attr-defined]
    assert (list(usual.style), list(usual.content)) == (["relu1", "fire3", "fire4", "fire5"], ["fire2"])
    layers = {"style_layers": ["fire2", "fire6"], "content_layers": ["fire4", "fire8"]}
    torch.manual_seed(0)
    task = build_task(base | layers | {"content": 2, "style": 5})
    grams, weights = task._targets  # type: ignore[attr-defined]
    assert list(grams) == list(weights.style) == ["fire2", "fire6"]
    assert list(weights.content) == ["fire4", "fire8"]
    features = task._perceptual(task.style_image)  # type: ignore[attr-defined]
    assert weights.content["fire8"] == pytest.approx(2 / (2 * features["fire8"].square().mean().item()))
    assert weights.style["fire6"] == pytest.approx(5 / (2 * grams["fire6"].square().sum().item()))
    assert task.options() == {"kind": "style"}, "inference needs none of it"
    photo = torch.rand(1, 3, 192, 192)
    assert task.loss(torch.zeros(1, 3, 192, 192), Example(photo, photo)).isfinite(), "crops larger than the style image"
    with pytest.raises(InputError, match=r"relu9.*choose some of"):
        _ = build_task(base | {"content_layers": ["relu9"]})._targets  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"content_layers=\[\].*leave it out"):
        build_task(base | {"content_layers": []})


def test_an_unknown_kind_or_option_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="known: classification, colourisation"):
        build_task({"kind": "colorization"})
    with pytest.raises(InputError, match=r"'drawin'.*mean 'drawing'"):
        build_task({"kind": "edges", "drawin": "canny"})
    with pytest.raises(InputError, match="needs the option 'classes'"):
        build_task({"kind": "segmentation"})
    with pytest.raises(InputError, match="expected 'pair', 'canny', 'sobel' or 'hed'"):
        build_task({"kind": "edges", "drawing": "charcoal"})


# ---------------------------------------------------------------------- the losses of a segmentation


def _labelled(seed: int = 0, void: float = 0.3) -> tuple[torch.Tensor, Example]:
    """Raw outputs of four classes, of which the third never occurs, and labels with void."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.tensor([0, 1, 3])[torch.randint(3, (2, 9, 7), generator=generator)]
    target[torch.rand(2, 9, 7, generator=generator) < void] = VOID
    return torch.randn(2, 4, 9, 7, generator=generator), Example(torch.zeros(2, 3, 9, 7), target)


def _segmentation(**options: Any) -> Task:
    return build_task({"kind": "segmentation", "classes": ["a", "b", "c", "d"], **options})


def _dice_by_hand(raw: torch.Tensor, target: torch.Tensor) -> float:
    kept, labels = raw.softmax(1).movedim(1, -1)[target != VOID].double(), target[target != VOID]
    terms = []
    for c in range(raw.shape[1]):
        p, y = kept[:, c], (labels == c).double()
        terms.append(1 - 2 * torch.minimum(p, y).sum() / (p.sum() + y.sum()) if y.any() else torch.tensor(0.0))
    return float(sum(terms)) / len(terms)


def _lovasz_by_hand(raw: torch.Tensor, target: torch.Tensor) -> float:
    """The Lovász extension as an integral: the Jaccard loss of the pixels whose error is above a level, over all levels."""
    kept, labels = raw.softmax(1).movedim(1, -1)[target != VOID].double(), target[target != VOID]
    terms = []
    for c in labels.unique().tolist():
        y = labels == c
        errors = (y.double() - kept[:, c]).abs()
        levels = [0.0, *errors.sort().values.tolist()]
        total = 0.0
        for low, high in itertools.pairwise(levels):
            wrong = errors > low
            total += (high - low) * float(wrong.sum() / (wrong | y).sum())
        terms.append(total)
    return sum(terms) / len(terms)


def test_dice_and_lovasz_are_smps_and_those_of_the_papers() -> None:
    for seed in range(3):
        raw, example = _labelled(seed)
        dice, lovasz = (float(_segmentation(loss={name: 1}).loss(raw, example)) for name in ("dice", "lovasz"))
        assert dice == float(DiceLoss("multiclass", ignore_index=VOID)(raw, example.target))
        assert lovasz == float(LovaszLoss("multiclass", ignore_index=VOID)(raw, example.target))
        assert dice == pytest.approx(_dice_by_hand(raw, example.target), abs=1e-6)
        assert lovasz == pytest.approx(_lovasz_by_hand(raw, example.target), abs=1e-6)


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    raw, example = _labelled()
    one = {name: _segmentation(loss={name: 1}).loss(raw, example) for name in LOSSES}
    assert float(one["cross_entropy"]) == float(_segmentation().loss(raw, example))
    weights = {"lovasz": 0.25, "cross_entropy": 0.5, "dice": 2}
    found = _segmentation(loss=weights).loss(raw, example)
    torch.testing.assert_close(found, sum(weights[name] * one[name] for name in LOSSES))
    assert float(_segmentation(loss={"cross_entropy": 0, "dice": 2}).loss(raw, example)) == 2 * float(one["dice"])


@pytest.mark.parametrize("options", [{"loss": {name: 1}} for name in LOSSES] + [{"class_weights": "median_frequency"}])
def test_void_pixels_reach_no_term_of_the_loss(options: dict[str, Any]) -> None:
    task = _segmentation(**options)
    raw, example = _labelled()
    raw.requires_grad_(True)
    loss = task.loss(raw, example)
    (gradient,) = torch.autograd.grad(loss, raw)
    void = (example.target == VOID)[:, None].expand_as(raw)
    assert (gradient[void] == 0).all()
    assert (gradient[~void] != 0).any()
    noisy = torch.where(void, 50 * torch.randn(raw.shape), raw.detach())
    assert float(task.loss(noisy, example)) == pytest.approx(loss.item(), abs=1e-6)
    alone = Example(example.input, torch.full_like(example.target, VOID))
    (gradient,) = torch.autograd.grad(task.loss(raw, alone), raw)
    assert task.loss(raw, alone).item() == 0
    assert (gradient == 0).all()


class Uneven(ImageDataset):
    """Two label images of 100 pixels: 80 of a, 20 of b; then 50 of a, 10 of d, 40 of void."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        counts = [{0: 80, 1: 20}, {0: 50, 3: 10, VOID: 40}][index]
        label = np.concatenate([np.full(count, c, np.uint8) for c, count in counts.items()]).reshape(10, 10)
        return Sample(np.zeros((10, 10, 3), np.uint8), label, name=str(index))


def test_median_frequency_weights_are_those_of_the_formula_and_torchs_weighted_mean() -> None:
    task = _segmentation(class_weights="median_frequency")
    task.fit(Uneven())
    # Frequencies where the class occurs: a 130 of 160, b 20 of 100, d 10 of 60; their median is 1/5. The third never occurs.
    weights = torch.tensor([0.2 / (130 / 160), 1.0, 1.0, 0.2 / (10 / 60)])
    raw, example = _labelled()
    reference = torch.nn.CrossEntropyLoss(weight=weights, ignore_index=VOID)
    torch.testing.assert_close(task.loss(raw, example), reference(raw, example.target))
    counted = example.target[example.target != VOID]
    torch.testing.assert_close(task.loss_count(example), weights[counted].sum())
    assert float(task.loss(raw, example)) != pytest.approx(float(_segmentation().loss(raw, example)), rel=1e-3)


def test_what_only_a_training_needs_is_not_stored() -> None:
    assert _segmentation(loss={"dice": 1, "cross_entropy": 1}, class_weights="median_frequency").options() == (
        _segmentation().options()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": {"jaccard": 1}}, "jaccard.*cross_entropy.*dice.*lovasz"),
        ({"loss": {"dice": -1}}, "loss.dice=-1.*0 or more"),
        ({"loss": {"dice": "1"}}, "loss.*'1'"),
        ({"loss": {"dice": 0}}, "above 0"),
        ({"loss": "dice"}, "loss.*'dice'.*Mapping"),
        ({"class_weights": "balanced"}, "balanced.*median_frequency"),
        ({"class_weights": "median_frequency", "loss": {"dice": 1}}, "cross_entropy above 0"),
    ],
)
def test_losses_that_are_none_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _segmentation(**options)


# ---------------------------------------------------------------------- what validations measure


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "segmentation", "classes": ["a", "b", "c"]},
        {"kind": "classification", "classes": ["a", "b", "c"]},
        {"kind": "colourisation"},
        {"kind": "edges", "drawing": "sobel"},
        {"kind": "denoising"},
        {"kind": "translation"},
    ],
    ids=lambda options: options["kind"],
)
def test_a_validation_measures_the_primary_metric_of_all_metrics(options: dict[str, Any]) -> None:
    task = build_task(options)
    torch.manual_seed(0)
    made = [task.metrics(), task.primary_metrics()]
    for _ in range(2):
        image, source = (torch.randint(256, (2, 3, 16, 20), dtype=torch.uint8) for _ in range(2))
        batch = Batch(image=image, label=torch.randint(3, (2, 16, 20)), source=source, category=torch.randint(3, (2,)))
        example = task.example(batch)
        raw = torch.randn(2, task.out_channels, *(() if task.kind == "classification" else (16, 20)))
        for metrics in made:
            metrics.update(task.prediction(raw, example.input), example)
    every, primary = (metrics.compute() for metrics in made)
    assert primary.items() <= every.items()
    assert task.metric in primary


def test_a_subclass_with_a_primary_metric_of_its_own_validates_by_it() -> None:
    class ByBoundary(type(build_task({"kind": "segmentation", "classes": ["a", "b"]}))):  # type: ignore[misc]
        metric = "boundary F1"
        higher_is_better = True

    task = ByBoundary(classes=["a", "b"])
    metrics = task.primary_metrics()
    labels = (torch.arange(12) > 5).long().expand(1, 12, 12)
    metrics.update(labels, Example(torch.zeros(1, 3, 12, 12), labels))
    assert metrics.compute()["boundary F1"] == 1


def test_more_classes_than_eight_bits_number_beside_void_are_refused() -> None:
    assert Segmentation(classes=[f"class {i}" for i in range(255)]).out_channels == 255
    with pytest.raises(InputError, match="256 classes: expected 255 at most"):
        Segmentation(classes=[f"class {i}" for i in range(256)])
