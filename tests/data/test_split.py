from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from img2img.data.arrays import ArrayDataset
from img2img.data.base import ImageDataset, Sample
from img2img.data.split import PARTS, SplitClasses, Subset, limit, take
from img2img.errors import InputError


class Numbers(ImageDataset):
    """Images named by their position."""

    classes = ("a", "b")
    name = "numbers"

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        return Sample(image=np.zeros((1, 1, 3), dtype=np.uint8), name=str(range(self.size)[index]))


def positions(images: ImageDataset) -> list[int]:
    return [int(images[i].name) for i in range(len(images))]


def test_a_subset_shows_the_chosen_items_in_their_order() -> None:
    subset = Subset(Numbers(10), [7, 2, 2])
    assert positions(subset) == [7, 2, 2]
    assert [s.name for s in subset] == ["7", "2", "2"]
    assert subset.classes == ("a", "b")
    assert subset.name == "numbers"
    assert subset[-1].name == "2"


@pytest.mark.parametrize("index", [-1, 10])
def test_a_subset_refuses_positions_outside_its_set(index: int) -> None:
    with pytest.raises(InputError, match=rf"indices \[{index}\]: expected 0\.\.9"):
        Subset(Numbers(10), [index])


@given(size=st.integers(10, 300), weights=st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any))
def test_the_parts_are_disjoint_exhaustive_ordered_and_of_the_right_size(size: int, weights: list[int]) -> None:
    fractions = [w / sum(weights) for w in weights]
    everything: list[int] = []
    for part, fraction in zip(PARTS, fractions, strict=True):
        if fraction == 0:
            with pytest.raises(InputError, match="is 0"):
                take(Numbers(size), part, fractions=fractions)
            continue
        try:
            found = positions(take(Numbers(size), part, fractions=fractions))
        except InputError:
            assert min(f for f in fractions if f) * size < 2  # only a set too small for a part may be refused
            return
        assert found == sorted(found)
        assert abs(len(found) - fraction * size) < 2
        everything += found
    assert sorted(everything) == list(range(size))


def test_blocks_are_cut_into_beginning_middle_and_end() -> None:
    parts = [positions(take(Numbers(20), part, fractions=(0.6, 0.2, 0.2), blocks=2)) for part in PARTS]
    assert parts == [[0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15], [6, 7, 16, 17], [8, 9, 18, 19]]
    with pytest.raises(InputError, match=r"into .*'val': 0"):
        take(Numbers(20), "train", fractions=(0.8, 0.1, 0.1), blocks=10)


@given(size=st.integers(60, 300), blocks=st.integers(1, 6))
def test_blocks_leave_few_neighbours_in_different_parts(size: int, blocks: int) -> None:
    parts = [positions(take(Numbers(size), part, blocks=blocks)) for part in PARTS]
    assert sorted(position for part in parts for position in part) == list(range(size))
    part_of = {position: number for number, part in enumerate(parts) for position in part}
    assert sum(part_of[i] != part_of[i + 1] for i in range(size - 1)) == 3 * blocks - 1


def test_the_default_is_eight_one_one_in_every_ten() -> None:
    sizes = {part: positions(take(Numbers(1000), part)) for part in PARTS}
    assert {part: len(found) for part, found in sizes.items()} == {"train": 800, "val": 100, "test": 100}
    for found in sizes.values():
        # every run of a hundred neighbours, such as one sorted class, gives every part its share
        counts = np.histogram(found, bins=range(0, 1001, 100))[0]
        assert np.ptp(counts) <= 2


def test_the_same_set_gives_the_same_parts() -> None:
    assert positions(take(Numbers(57), "val")) == positions(take(Numbers(57), "val"))
    assert take(Numbers(57), "val").name == "numbers-val"
    assert take(Numbers(57), "val").classes == ("a", "b")


def test_ten_images_are_enough_and_three_are_not() -> None:
    assert [len(take(Numbers(10), part)) for part in PARTS] == [8, 1, 1]
    with pytest.raises(InputError, match=r"'numbers'.* 3 .*'val': 0, .*one"):
        take(Numbers(3), "train")


def test_a_set_without_a_test_part_can_be_asked_for() -> None:
    train, val = (positions(take(Numbers(4), part, fractions=(0.5, 0.5, 0.0))) for part in ("train", "val"))
    assert (train, val) == ([0, 2], [1, 3])


@pytest.mark.parametrize("fractions", [(0.8, 0.1), (0.8, 0.1, 0.2), (1.1, -0.1, 0.0), (float("nan"), 0.5, 0.5)])
def test_fractions_that_are_no_split_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="that sum to 1"):
        take(Numbers(50), "train", fractions=fractions)


def test_another_part_is_refused() -> None:
    with pytest.raises(InputError, match="'dev': expected one of train, val, test"):
        take(Numbers(50), "dev")  # type: ignore[arg-type]


def test_a_limit_spreads_over_the_set() -> None:
    assert positions(limit(Numbers(10), 5)) == [0, 2, 4, 6, 8]
    assert positions(limit(Numbers(10), 3)) == [0, 3, 6]
    assert positions(limit(Numbers(3), 10)) == [0, 1, 2]
    with pytest.raises(InputError, match="limit of 0"):
        limit(Numbers(3), 0)


# ---------------------------------------------------------------------- more of the same


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


def test_a_set_too_small_for_its_blocks_names_the_remedy() -> None:
    with pytest.raises(InputError, match="give fewer blocks than 5, so that each has an image for every part, or add images"):
        take(Numbers(10), "train", blocks=5)
    with pytest.raises(InputError, match=r"expected at least one in each part; add images, or raise the small fractions$"):
        take(Numbers(2), "train")
