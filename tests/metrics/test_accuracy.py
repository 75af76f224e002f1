"""Accuracies by hand and against torchmetrics, and what is refused."""

import math
from collections import Counter

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from img2img.errors import InputError
from img2img.metrics.accuracy import AccuracyMetrics, ranks


def test_hand_computed_case() -> None:
    metric = AccuracyMetrics(("ant", "bee", "cow"))
    metric.update(
        torch.tensor([[0.1, 0.8, 0.1], [3.0, 1.0, 2.0], [-1.0, -2.0, -3.0], [5.0, 6.0, 4.0]]), torch.tensor([1, 0, 1, 1])
    )
    result = metric.compute()
    assert result == pytest.approx(
        {"top-1": 3 / 4, "accuracy of ant": 1.0, "accuracy of bee": 2 / 3, "accuracy of cow": math.nan}, nan_ok=True
    )
    assert all(type(value) is float for value in result.values())


def test_agrees_with_torchmetrics_over_the_whole_set_and_not_with_a_mean_over_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = [f"c{i}" for i in range(9)]
    target = torch.randint(0, 8, (60,), generator=generator)  # the last class never occurs
    scores = torch.randn(60, 9, generator=generator) + torch.nn.functional.one_hot(target, 9)
    metric, batches = AccuracyMetrics(classes), [slice(0, 1), slice(1, 4), slice(4, 60)]
    for batch in batches:
        metric.update(scores[batch], target[batch])
    result = metric.compute()

    for k in (1, 5):
        assert result[f"top-{k}"] == pytest.approx(multiclass_accuracy(scores, target, 9, "micro", top_k=k).item())
    for i, recall in enumerate(multiclass_accuracy(scores, target, 9, None)[:8].tolist()):
        assert result[f"accuracy of c{i}"] == pytest.approx(recall)
    assert math.isnan(result["accuracy of c8"])
    assert result["top-1"] < result["top-5"]
    weights = Counter(target.tolist())
    assert sum(n * result[f"accuracy of c{i}"] for i, n in weights.items()) / 60 == pytest.approx(result["top-1"])
    by_batch = [(scores[b].argmax(1) == target[b]).double().mean().item() for b in batches]
    assert sum(by_batch) / 3 != pytest.approx(result["top-1"], abs=1e-3)


@pytest.mark.parametrize(("count", "figures"), [(2, ["top-1"]), (5, ["top-1"]), (6, ["top-1", "top-5"])])
def test_top_5_is_given_where_there_are_more_than_five_classes(count: int, figures: list[str]) -> None:
    classes = "abcdef"[:count]
    metric = AccuracyMetrics(classes)
    metric.update(torch.arange(count * 1.0).expand(count, -1), torch.arange(count))
    result = metric.compute()
    assert list(result) == figures + [f"accuracy of {c}" for c in classes]
    assert result["top-1"] == pytest.approx(1 / count)
    assert result.get("top-5", 5 / 6) == pytest.approx(5 / 6)


def test_of_equal_scores_the_lower_class_counts_as_the_higher() -> None:
    scores = torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0]]).expand(5, -1)
    assert ranks(scores, torch.arange(5)).tolist() == [3, 0, 1, 4, 2]
    metric = AccuracyMetrics("abcdefg")  # as a baseline that knows no frequencies
    metric.update(torch.full((7, 7), 1 / 7), torch.arange(7))
    result = metric.compute()
    assert (result["top-1"], result["top-5"], result["accuracy of a"]) == (1 / 7, 5 / 7, 1.0)


def test_infinite_scores_are_scores() -> None:
    assert ranks(torch.tensor([[-math.inf, 0.0, math.inf]]).expand(3, -1), torch.arange(3)).tolist() == [2, 1, 0]


def test_reset_forgets_what_was_counted() -> None:
    metric = AccuracyMetrics("ab")
    metric.update(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert metric.compute()["top-1"] == 0.0
    metric.reset()
    metric.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert metric.compute()["top-1"] == 1.0


def test_class_indices_out_of_range_are_refused_by_value() -> None:
    metric = AccuracyMetrics("abc")
    with pytest.raises(InputError, match=r"target.*\[-1, 7\].*0\.\.2"):
        metric.update(torch.zeros(4, 3), torch.tensor([7, 0, -1, 7]))
    with pytest.raises(InputError, match="before any image"):
        metric.compute()  # nothing of the refused batch was counted


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (torch.zeros(4, 2), torch.zeros(4, dtype=torch.long), r"expected \(4, 3\) floats"),
        (torch.zeros(5, 3), torch.zeros(4, dtype=torch.long), r"expected \(4, 3\) floats"),
        (torch.zeros(4), torch.zeros(4, dtype=torch.long), r"expected \(4, 3\) floats"),
        (torch.zeros(4, 3, dtype=torch.long), torch.zeros(4, dtype=torch.long), r"int64: expected \(4, 3\) floats"),
        (torch.tensor([[0.0, math.nan, 0.0]]), torch.zeros(1, dtype=torch.long), "NaN"),
        (torch.zeros(4, 3), torch.zeros(4), r"expected \(N,\) int64"),
        (torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.long), r"expected \(N,\) int64"),
    ],
)
def test_what_does_not_fit_is_refused(prediction: torch.Tensor, target: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        AccuracyMetrics("abc").update(prediction, target)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(InputError, match="before any image"):
        AccuracyMetrics("ab").compute()


@pytest.mark.parametrize("classes", [(), ("one",), ("a", "b", "a")])
def test_classes_must_be_two_or_more_and_distinct(classes: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="classes"):
        AccuracyMetrics(classes)
