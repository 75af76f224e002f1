"""Classification as a task: targets, loss, distillation, baseline, images."""

import pytest
import torch
from torch.nn import functional as F

from img2img import InputError
from img2img.data.base import Batch, Sample
from img2img.data.split import Subset
from img2img.data.synthetic.patterns import Patterns
from img2img.tasks import build_task
from img2img.tasks.base import Example


def _batch(count: int = 6, size: int = 16) -> Batch:
    images = Patterns("train", count=count, classes=3, size=size)
    return Batch.stack([images[i] for i in range(count)])


def test_target_and_loss_are_the_categories_and_their_cross_entropy() -> None:
    task, batch = build_task({"kind": "classification", "classes": ["cat", "dog", "bird"]}), _batch()
    example = task.example(batch)
    assert example.target.tolist() == [0, 1, 2, 0, 1, 2]
    assert example.input.shape == (6, 3, 16, 16)
    raw = torch.randn(6, 3)
    by_hand = -sum(F.log_softmax(raw, 1)[i, c] for i, c in enumerate(example.target.tolist())) / 6
    torch.testing.assert_close(task.loss(raw, example), by_hand)


def test_figures_of_a_perfect_and_of_the_trivial_prediction() -> None:
    task = build_task({"kind": "classification", "classes": ["cat", "dog", "bird"]})
    images = Subset(Patterns("train", count=9, classes=3, size=8), [0, 1, 4, 7, 5])  # of dog three, of the others one
    task.fit(images)
    example = task.example(Batch.stack([images[i] for i in range(5)]))
    figures = task.metrics()
    figures.update(task.prediction(F.one_hot(example.target, 3).float(), example.input), example)
    assert figures.compute()["top-1"] == 1
    figures = task.metrics()
    figures.update(task.baseline(example), example)
    assert figures.compute()["top-1"] == pytest.approx(3 / 5)


def test_distillation_is_lowest_where_the_outputs_agree() -> None:
    task, target = build_task({"kind": "classification", "classes": ["a", "b"]}), torch.tensor([[2.0, -1.0], [0.5, 0.0]])
    soft = (target / 2).exp() / (target / 2).exp().sum(1, keepdim=True)
    entropy = -(soft * soft.log()).sum(1).mean()
    torch.testing.assert_close(task.distillation(target, target, temperature=2), entropy)
    assert task.distillation(target.flip(1), target, temperature=2) > entropy + 0.1


def test_wrong_categories_are_refused() -> None:
    task = build_task({"kind": "classification", "classes": ["cat", "dog"]})
    with pytest.raises(InputError, match=r"categories \[2\].*0\.\.1"):
        task.example(_batch())
    with pytest.raises(InputError, match="a category"):
        task.example(Batch.stack([Sample(_batch().image[0].permute(1, 2, 0).numpy())]))
    with pytest.raises(InputError, match="two classes or more"):
        build_task({"kind": "classification", "classes": ["cat"]})


def test_a_result_is_the_image_over_the_name_of_its_class() -> None:
    task, example = build_task({"kind": "classification", "classes": ["cat", "dog", "bird"]}), None
    example = task.example(_batch())
    assert isinstance(example, Example)
    raw = F.one_hot(example.target, 3).float()
    shown = task.to_image(raw, example.input)
    assert shown.shape == (6, 3, 128, 128), "small images are enlarged, so that a name can be read"
    assert torch.equal(shown, task.reference(example)), "scores and categories are shown alike"
    enlarged = F.interpolate(example.input, scale_factor=8, mode="nearest")
    torch.testing.assert_close(shown[:, :, :100], enlarged[:, :, :100])
    assert not torch.equal(shown[0, :, 110:], shown[1, :, 110:]), "the names differ"
    assert torch.equal(shown[0, :, 110:], shown[3, :, 110:]), "and are the same for one class"


def test_smoothed_labels_change_the_loss_of_training_and_nothing_that_is_stored() -> None:
    plain, smooth = (
        build_task({"kind": "classification", "classes": ["a", "b", "c", "d"], **o}) for o in ({}, {"label_smoothing": 0.2})
    )
    raw = torch.tensor([[3.0, 0.0, -1.0, 0.5]])
    example = plain.example(Batch(image=torch.zeros(1, 3, 4, 4, dtype=torch.uint8), category=torch.tensor([1])))
    log = raw.log_softmax(1)[0]
    assert float(smooth.loss(raw, example)) == pytest.approx(float(-(0.85 * log[1] + 0.05 * (log.sum() - log[1]))))
    assert float(plain.loss(raw, example)) == pytest.approx(float(-log[1]))
    assert smooth.options() == plain.options()
    with pytest.raises(InputError, match="label_smoothing=1"):
        build_task({"kind": "classification", "classes": ["a", "b"], "label_smoothing": 1.0})
