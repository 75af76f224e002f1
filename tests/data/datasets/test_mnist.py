"""MNIST and its tasks on made samples in the published format."""

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from torchvision.datasets import MNIST

from img2img.data import build_data
from img2img.data.datasets.mnist import ANGLES, MAX_BYTES, Mnist, read_idx
from img2img.errors import InputError


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def made(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 28, 28), np.uint8), rng.integers(0, 10, count, np.uint8)


TRAIN, TEST = made(40, 0), made(10, 1)


def write(folder: Path, *, packed: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, (images, labels) in (("train", TRAIN), ("t10k", TEST)):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{prefix}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "MNIST" / "raw")
    return tmp_path


def images_of(root: Path, **options: Any) -> np.ndarray:
    return Mnist(root=root, **{"part": "test"} | options).arrays()[0]


def test_the_files_are_read_as_torchvision_reads_them(root: Path) -> None:
    for part in ("train", "test"):
        theirs, ours = MNIST(str(root), train=part == "train"), Mnist(root=root, part=part)
        images, categories = ours.arrays()
        np.testing.assert_array_equal(images, theirs.data.numpy())
        assert categories.tolist() == ours.categories.tolist() == theirs.targets.tolist()
        assert [name[0] for name in theirs.classes] == list(ours.classes)  # theirs are "0 - zero", ...
    assert ours[3].image.shape == (28, 28, 3)
    np.testing.assert_array_equal(ours[3].image[..., 2], TEST[0][3])
    assert (ours[3].category, ours[3].name) == (TEST[1][3], "mnist-test/00003")


def test_a_numbered_task_is_a_permutation_or_a_rotation(root: Path) -> None:
    for kind, options in (("permuted_mnist", {"permutation": 3}), ("rotated_mnist", {"rotation": ANGLES[2]})):
        parts = build_data({"kind": kind, "root": str(root), "number": 3, "val": 5})
        arrays = parts.test.arrays()
        assert arrays is not None
        np.testing.assert_array_equal(arrays[0], images_of(root, **options))
        assert (len(parts.train), len(parts.val)) == (35, 5)
    assert sorted(ANGLES) == list(range(1, 360))
    with pytest.raises(InputError, match=r"task number 360 .*1\.\.359"):
        build_data({"kind": "rotated_mnist", "root": str(root), "number": 360, "val": 5})


def test_packed_files_and_the_folder_itself_are_read_too(tmp_path: Path) -> None:
    write(tmp_path, packed=True)
    np.testing.assert_array_equal(images_of(tmp_path), TEST[0])


def test_a_permutation_moves_the_same_pixels_in_every_part(root: Path) -> None:
    order = np.random.default_rng(3).permutation(784)
    for part, (images, _) in (("train", TRAIN), ("test", TEST)):
        moved = images_of(root, part=part, permutation=3)
        np.testing.assert_array_equal(moved.reshape(-1, 784), images.reshape(-1, 784)[:, order])
    assert not np.array_equal(moved, images_of(root, permutation=4))
    np.testing.assert_array_equal(images_of(root, permutation=0), TEST[0])
    dataset = Mnist(root=root, part="test", permutation=3)
    np.testing.assert_array_equal(dataset[5].image[..., 0], moved[5])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset))[5].image[..., 0], moved[5])


def test_a_quarter_turn_is_counter_clockwise(root: Path) -> None:
    np.testing.assert_array_equal(images_of(root, rotation=90), np.rot90(TEST[0], axes=(1, 2)))


def test_a_rotation_is_bilinear_about_the_centre_with_black_outside(root: Path) -> None:
    turned = images_of(root, rotation=33.5)
    for ours, image in zip(turned, TEST[0], strict=True):
        theirs = ndimage.rotate(image.astype(float), 33.5, reshape=False, order=1, mode="grid-constant")
        assert np.abs(ours - theirs).max() < 0.51  # rounded to whole values
    np.testing.assert_array_equal(Mnist(root=root, part="test", rotation=33.5)[4].image[..., 1], turned[4])


def test_validation_is_cut_from_the_training_files_alike_in_every_task(root: Path) -> None:
    def rows(part: str, **options: Any) -> list[int]:
        return [int(s.name.split("/")[1]) for s in Mnist(root=root, part=part, val=15, **options)]

    train, val = rows("train"), rows("val")
    assert (len(train), len(val)) == (25, 15)
    assert sorted(train + val) == list(range(40))
    assert val == rows("val", permutation=2) == rows("val", rotation=10)
    assert val != list(range(25, 40)), "shuffled: the files may be sorted"
    dataset = Mnist(root=root, part="val", val=15)
    assert dataset.categories.tolist() == TRAIN[1][val].tolist()
    np.testing.assert_array_equal(dataset.arrays()[0], TRAIN[0][val])
    assert rows("test") == list(range(10))


def test_tasks_share_the_images_in_memory(root: Path) -> None:
    first, second = (Mnist(root=root, part="train", permutation=n) for n in (1, 2))
    assert first._images is second._images
    with pytest.raises(ValueError, match="read-only"):
        first._images[0] = 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "valid"}, "part='valid'"),
        ({"part": "val"}, "part='val'.*val=0.*1 or more"),
        ({"part": "train", "val": 40}, "val=40: expected less than 40"),
        ({"permutation": -1}, "permutation=-1"),
        ({"rotation": float("nan")}, "rotation=nan"),
        ({"rotation": 3.0, "permutation": 3}, "expected one of them"),
    ],
)
def test_options_out_of_range_are_refused(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Mnist(**{"root": root, "part": "test"} | options)


def test_absent_files_say_where_they_come_from(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"MNIST/raw/train-images-idx3-ubyte"):
        Mnist(root=tmp_path / "empty", part="train")
    (root / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match=r"no file .*t10k-labels-idx1-ubyte\.gz"):
        Mnist(root=root, part="test")


def test_labels_that_do_not_fit_the_images_are_refused(root: Path) -> None:
    file = root / "MNIST/raw/t10k-labels-idx1-ubyte"
    file.write_bytes(idx(TEST[1][:9]))
    with pytest.raises(InputError, match="10 t10k images and 9 labels"):
        Mnist(root=root, part="test")
    file.write_bytes(idx(TEST[1] + 20))
    with pytest.raises(InputError, match=r"expected a label of 0\.\.9"):
        Mnist(root=root, part="test")


WHOLE = idx(np.zeros((2, 3, 3), np.uint8))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a", b"", "begins with"),
        ("a", b"\x00\x00\x08\x01" + WHOLE[4:], "begins with 00000801"),
        ("a", b"\x00\x00\x0d\x03" + WHOLE[4:], "begins with 00000d03"),
        ("a", WHOLE[:9], "unpack requires"),
        ("a", WHOLE[:-1], r"17 values: expected \(2, 3, 3\)"),
        ("a", WHOLE + b"\x00", "more values"),
        ("a", b"\x00\x00\x08\x03" + b"\xff" * 12, "claims"),
        ("a.gz", WHOLE, "[Nn]ot a gzipped file"),
        ("a.gz", gzip.compress(WHOLE, mtime=0)[:-9], "ended before"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_idx(tmp_path / name, 3)
    assert str(tmp_path / name) in str(caught.value)


def test_what_a_packed_file_holds_beyond_its_claim_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(WHOLE + bytes(1 << 20)))
    asked: list[int] = []
    original = gzip.GzipFile.read

    def counted(self: gzip.GzipFile, size: int = -1) -> bytes:
        asked.append(size)
        return original(self, size)

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    with pytest.raises(InputError, match="more values"):
        read_idx(tmp_path / "a.gz", 3)
    assert 0 < sum(asked) < 100 < MAX_BYTES
    assert min(asked) >= 0
