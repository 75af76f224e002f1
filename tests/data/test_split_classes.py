from collections.abc import Sequence

import numpy as np
import pytest

from img2img.data.arrays import ArrayDataset
from img2img.data.base import ImageDataset, Sample
from img2img.data.split import SplitClasses, Subset
from img2img.errors import InputError


def whole(categories: Sequence[int] = (6, 0, 3, 3, 1, 5, 2, 6)) -> ArrayDataset:
    """Seven classes; the pixels of image i are i."""
    images = np.arange(len(categories), dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    return ArrayDataset(images, np.array(categories), classes=list("abcdefg"), name="made")


class Closed(ArrayDataset):
    def __getitem__(self, index: int) -> Sample:
        raise AssertionError("an image was read")


def test_a_task_has_its_classes_relabelled_and_its_images_in_order() -> None:
    dataset = SplitClasses(whole(), number=2, classes_per_task=2)
    assert dataset.classes == ("c", "d")
    assert [(int(s.image[0, 0, 0]), s.category, s.name) for s in dataset] == [
        (2, 1, "made/00002"),
        (3, 1, "made/00003"),
        (6, 0, "made/00006"),
    ]
    assert dataset.categories.tolist() == [1, 1, 0]
    images, categories = dataset.arrays()
    assert images[:, 0, 0].tolist() == [2, 3, 6]
    assert categories.tolist() == [1, 1, 0]


def test_random_tasks_are_disjoint_and_the_same_for_every_part() -> None:
    def tasks(seed: int, dataset: ArrayDataset) -> list[tuple[str, ...]]:
        options = {"classes_per_task": 2, "order": "random", "seed": seed}
        return [SplitClasses(dataset, number=n, **options).classes for n in (1, 2, 3)]

    first = tasks(0, whole(range(7)))
    assert len({name for classes in first for name in classes}) == 6, "three tasks of two, and one class is left over"
    assert first == tasks(0, whole([6, 5, 4, 3, 2, 1, 0, 0, 1]))
    assert first != tasks(1, whole(range(7)))
    order = np.random.default_rng(0).permutation(7)
    assert first[1] == tuple("abcdefg"[c] for c in sorted(order[2:4]))


def test_no_image_is_read_to_split_and_subsets_can_be_split() -> None:
    closed = Closed(np.zeros((3, 2, 2), np.uint8), np.array([0, 1, 1]), classes=["a", "b"], name="closed")
    assert len(SplitClasses(closed, number=2, classes_per_task=1)) == 2
    half = SplitClasses(Subset(whole(), [2, 4, 6]), number=2, classes_per_task=2)
    assert [s.name for s in half] == ["made/00002", "made/00006"]


class Unlabelled(ImageDataset):
    name = "plain"

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.zeros((1, 1, 3), np.uint8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": 0}, r"number 0: .*1\.\.3.*'made'.* 7 .* 2"),
        ({"number": 4}, r"task number 4: expected 1\.\.3"),
        ({"number": 1, "classes_per_task": 8}, r"classes_per_task=8: expected 1\.\.7"),
        ({"number": 1, "order": "shuffled"}, "order='shuffled'"),
        ({"number": 1, "order": "random", "seed": -1}, "seed=-1"),
        ({"number": 5, "classes_per_task": 1}, r"no image .*task 5.*'e'"),
    ],
)
def test_options_out_of_range_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        SplitClasses(whole(), **{"classes_per_task": 2} | options)


def test_a_set_without_categories_cannot_be_split() -> None:
    with pytest.raises(InputError, match=r"'plain'.*knows the class"):
        SplitClasses(Unlabelled(), number=1, classes_per_task=1)
