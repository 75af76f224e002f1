"""CIFAR-100 on made samples in both formats."""

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import CIFAR100, cifar

from img2img.data.datasets.cifar100 import CLASSES, SUPERCLASSES, Cifar100
from img2img.errors import InputError

# The index of the superclass of each class, as the pairs of `fine_labels` and `coarse_labels` in the published files have it.
COARSE = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7,
    6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
    16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16,
    12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
]  # fmt: skip


class Python2(pickle._Pickler):
    """Writes texts and bytes as Python 2 did, by which the published files were written: both are its `str`."""

    def _save_string(self, value: Any) -> None:
        content = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch = {**pickle._Pickler.dispatch, str: _save_string, bytes: _save_string}  # noqa: RUF012


def write_pickle(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        Python2(file, protocol=2).dump(content)
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


def made(each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) and labels, `each` of a class, shuffled."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (100 * each, 32, 32, 3), np.uint8), rng.permutation(np.repeat(np.arange(100), each))


def write_published(root: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    folder = root / "cifar-100-python"
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    content = {"filenames": [f"{i}.png" for i in range(len(labels))], "batch_label": "training batch 1 of 1", "data": rows}
    content |= {"fine_labels": labels.tolist(), "coarse_labels": [COARSE[c] for c in labels]}
    write_pickle(folder / part, content)
    write_pickle(folder / "meta", {"fine_label_names": list(CLASSES), "coarse_label_names": list(SUPERCLASSES)})


def write_npz(root: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    np.savez(root / f"{part}.npz", x=images, y=labels, classes=np.array(CLASSES))


@pytest.fixture(params=[write_published, write_npz])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    request.param(tmp_path, "train", *made(4, 0))
    request.param(tmp_path, "test", *made(1, 1))
    return tmp_path


def test_superclasses_cut_the_classes_as_the_published_labels_do() -> None:
    assert sorted(CLASSES) == list(CLASSES)
    assert len(set(CLASSES)) == 100
    for index, names in enumerate(SUPERCLASSES.values()):
        assert names == tuple(CLASSES[c] for c in range(100) if COARSE[c] == index)


def test_the_whole_set_is_what_torchvision_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, each, seed in (("train", 2, 0), ("test", 1, 1)):
        write_published(tmp_path, part, *made(each, seed))
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)
    for part in ("train", "test"):
        theirs, ours = CIFAR100(str(tmp_path), train=part == "train"), Cifar100(root=tmp_path, part=part)
        images, categories = ours.arrays()
        np.testing.assert_array_equal(images, theirs.data)
        assert categories.tolist() == theirs.targets
        assert list(ours.classes) == theirs.classes
        np.testing.assert_array_equal(ours[7].image, np.asarray(theirs[7][0]))


def test_both_formats_give_the_same(root: Path) -> None:
    images, labels = made(4, 0)
    dataset = Cifar100(root=root, part="train")
    np.testing.assert_array_equal(dataset.arrays()[0], images)
    np.testing.assert_array_equal(dataset.categories, labels)
    assert dataset.classes == CLASSES


def test_a_task_is_a_superclass_in_the_official_order(root: Path) -> None:
    images, labels = made(1, 1)
    dataset = Cifar100(root=root, part="test", number=20)
    assert dataset.classes == ("lawn_mower", "rocket", "streetcar", "tank", "tractor")
    rows = [row for row, c in enumerate(labels) if COARSE[c] == 19]
    np.testing.assert_array_equal(dataset.arrays()[0], images[rows])
    assert [dataset.classes[s.category or 0] for s in dataset] == [CLASSES[labels[row]] for row in rows]
    assert dataset[0].name == f"cifar100-superclass20-test/{rows[0]:05}"


def test_random_tasks_are_a_partition_that_the_seed_decides(tmp_path: Path) -> None:
    write_npz(tmp_path, "test", *made(1, 1))

    def tasks(seed: int) -> list[tuple[str, ...]]:
        options = {"root": tmp_path, "part": "test", "grouping": "random", "groups": 10, "seed": seed}
        return [Cifar100(number=n, **options).classes for n in range(1, 11)]

    first = tasks(0)
    assert sorted(name for classes in first for name in classes) == list(CLASSES)
    assert all(len(classes) == 10 and list(classes) == sorted(classes) for classes in first)
    assert first == tasks(0) != tasks(1)


def test_validation_is_balanced_and_the_same_in_every_task(tmp_path: Path) -> None:
    write_npz(tmp_path, "train", *made(4, 0))
    options = {"root": tmp_path, "val_per_class": 1}

    def rows(part: str, **more: Any) -> list[str]:
        return [s.name.split("/")[1] for s in Cifar100(part=part, **options, **more)]

    whole = Cifar100(part="val", **options)
    assert np.bincount(whole.categories).tolist() == [1] * 100
    train, val = rows("train"), rows("val")
    assert sorted(train + val) == [f"{row:05}" for row in range(400)], "disjoint, and together the training file"
    for number in (1, 7):
        assert set(rows("val", number=number)) <= set(val)
        assert set(rows("train", number=number)) <= set(train)
    by_task = [row for n in range(1, 21) for row in rows("val", number=n, grouping="random", seed=5)]
    assert sorted(by_task) == val


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "all"}, "part='all'.*train, val, test"),
        ({"part": "val"}, "part='val'.*val_per_class=0.*1"),
        ({"val_per_class": -1}, "val_per_class=-1"),
        ({"val_per_class": 2}, "val_per_class=2: expected less than 2"),
        ({"number": 0}, r"number 0 .*1\.\.20"),
        ({"number": 5, "grouping": "random", "groups": 4}, r"number 5 .*1\.\.4"),
        ({"grouping": "coarse"}, "grouping='coarse'"),
        ({"grouping": "random", "groups": 30}, "groups=30"),
        ({"groups": 10}, "groups=10.*grouping='superclass'"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_npz(tmp_path, "train", *made(2, 0))
    with pytest.raises(InputError, match=message):
        Cifar100(**{"root": tmp_path, "part": "train"} | options)


def test_absent_data_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cifar-100-python/train.*Toronto"):
        Cifar100(root=tmp_path, part="train")


class Trap:
    def __reduce__(self) -> Any:
        return os.mkdir, ("trap",)


def test_a_pickle_with_a_program_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_published(tmp_path, "test", *made(1, 1))
    with open(tmp_path / "cifar-100-python" / "test", "wb") as file:
        pickle.dump({"data": Trap(), "fine_labels": []}, file)
    with pytest.raises(InputError, match="is not an array"):
        Cifar100(root=tmp_path, part="test")
    assert os.listdir(tmp_path) == ["cifar-100-python"]


def test_arrays_of_python_objects_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", x=np.array([Trap()]), y=[0], classes=np.array(CLASSES))
    with pytest.raises(InputError, match=r"test\.npz cannot be read .*allow_pickle"):
        Cifar100(root=tmp_path, part="test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((100, 32, 32), np.uint8)}, r"images \(100, 32, 32\) uint8"),
        ({"x": np.zeros((100, 32, 32, 3))}, r"float64 and labels"),
        ({"y": np.arange(99)}, r"labels \(99,\)"),
        ({"y": np.arange(1, 101)}, r"labels in 0\.\.99"),
        ({"classes": np.array(CLASSES[::-1])}, "has the classes worm, woman"),
    ],
)
def test_arrays_of_something_else_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    images, labels = made(1, 1)
    np.savez(tmp_path / "test.npz", **{"x": images, "y": labels, "classes": np.array(CLASSES)} | change)
    with pytest.raises(InputError, match=message):
        Cifar100(root=tmp_path, part="test")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x93NUMPY"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "test.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"test\.npz cannot be read"):
        Cifar100(root=tmp_path, part="test")


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    images, labels = made(1, 1)
    write_npz(tmp_path, "test", images, labels)
    Cifar100(root=tmp_path, part="test")
    write_npz(tmp_path, "test", 255 - images, labels)
    os.utime(tmp_path / "test.npz", ns=(1, 1))
    np.testing.assert_array_equal(Cifar100(root=tmp_path, part="test")[0].image, 255 - images[0])
