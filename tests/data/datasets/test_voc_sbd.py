"""VOC joined with SBD, on made samples in the formats of both."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import loadmat, savemat
from scipy.sparse import csc_matrix
from torchvision.datasets import SBDataset

from img2img.data import build_data
from img2img.data.base import VOID
from img2img.data.datasets import matlab
from img2img.data.datasets.matlab import read_uint8_field
from img2img.data.datasets.voc import VOC_CLASSES
from img2img.data.datasets.voc_sbd import VocSbd
from img2img.errors import InputError

TRAIN = ["2008_000002", "2008_000008", "2009_000010", "2011_000003"]  # SBD's; the third is in VOC's val list too
VOC_TRAIN = ["2007_000032", "2008_000008"]
VOC_VAL = ["2007_000033", "2009_000010", "2010_000001"]


def sbd_label(name: str) -> NDArray[np.uint8]:
    """A label of 6 x 8 pixels that differs from image to image."""
    label = np.zeros((6, 8), np.uint8)
    label[2:4, 3:7] = 1 + sum(map(ord, name)) % 20
    return label


def write_label(path: Path, label: Any) -> None:
    """As SBD has it: a 1x1 struct of the boundaries (a cell of sparse matrices), the label and the classes in it."""
    boundaries = np.empty((20, 1), dtype=object)
    for i in range(20):
        boundaries[i, 0] = csc_matrix((6, 8), dtype=np.uint8)
    record = {"Boundaries": boundaries, "Segmentation": label, "CategoriesPresent": np.array([[1]], np.uint8)}
    savemat(path, {"GTcls": record}, do_compression=True)


def write_sbd(folder: Path, names: Sequence[str]) -> Path:
    for part in ("img", "cls"):
        (folder / part).mkdir(parents=True)
    (folder / "train.txt").write_text("".join(f"{n}\n" for n in reversed(names)))
    for i, name in enumerate(names):
        Image.new("RGB", (8, 6), (40 * i, 120, 0)).save(folder / "img" / f"{name}.jpg")
        write_label(folder / "cls" / f"{name}.mat", sbd_label(name))
    return folder


@pytest.fixture
def sbd(tmp_path: Path) -> Path:
    return write_sbd(tmp_path / "benchmark_RELEASE" / "dataset", TRAIN)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    year = tmp_path / "VOCdevkit" / "VOC2011"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (year / folder).mkdir(parents=True)
    for split, names in (("train", VOC_TRAIN), ("val", VOC_VAL)):
        (year / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
        for name in names:
            Image.new("RGB", (8, 6), (0, 0, 200)).save(year / "JPEGImages" / f"{name}.jpg")
            label = np.full((6, 8), 15, np.uint8)
            label[5] = VOID
            image = Image.fromarray(label, mode="P")
            image.putpalette(list(range(256)) * 3)
            image.save(year / "SegmentationClass" / f"{name}.png")
    return year


def names(images: VocSbd) -> list[str]:
    return [images[i].name for i in range(len(images))]


def test_the_test_set_is_vocs_val_list_without_what_sbd_trains_on(sbd: Path, voc: Path) -> None:
    train, test = VocSbd(sbd, voc, "train"), VocSbd(sbd, voc, "test")
    assert names(train) == TRAIN, "sorted, whatever the list's order"
    assert names(test) == ["2007_000033", "2010_000001"]
    assert train.classes == test.classes == VOC_CLASSES


def test_vocs_own_list_can_be_added_but_never_a_image_of_the_test_set(sbd: Path, voc: Path) -> None:
    file = voc / "ImageSets" / "Segmentation" / "train.txt"
    file.write_text(file.read_text() + "2010_000001\n2009_000010\n")  # both in the val list, the second in SBD's too
    train = VocSbd(sbd, voc, "train", voc_train=True)
    assert names(train) == sorted(["2007_000032", *TRAIN])
    assert not {"2007_000033", "2010_000001"} & set(names(train))
    labels = {train[i].name: train[i].label for i in range(len(train))}
    assert (labels["2007_000032"] == VOID).any(), "VOC's label, with its outlines"
    np.testing.assert_array_equal(labels["2008_000008"], sbd_label("2008_000008"), "SBD's, where both have one")


def test_images_and_labels_are_those_that_torchvision_reads(sbd: Path, voc: Path) -> None:
    ours, theirs = VocSbd(sbd, voc, "train"), SBDataset(str(sbd), image_set="train", mode="segmentation")
    expected = {Path(file).stem: theirs[i] for i, file in enumerate(theirs.images)}
    assert len(ours) == len(expected) == 4
    for i in range(len(ours)):
        sample = ours[i]
        image, label = expected[sample.name]
        np.testing.assert_array_equal(sample.image, np.asarray(image))
        np.testing.assert_array_equal(sample.label, np.asarray(label))
        np.testing.assert_array_equal(sample.label, sbd_label(sample.name))


def test_the_test_sets_labels_are_vocs_with_255_as_void(sbd: Path, voc: Path) -> None:
    label = VocSbd(sbd, voc, "test")[0].label
    assert label is not None
    assert np.unique(label).tolist() == [15, VOID]


def test_a_tenth_of_the_training_list_is_held_out_to_choose_by(tmp_path: Path, voc: Path) -> None:
    all_names = [f"2008_{i:06}" for i in range(20)]
    sbd = write_sbd(tmp_path / "sbd", all_names)
    config = {"kind": "voc_sbd", "sbd": str(sbd), "voc": str(voc), "fractions": [0.9, 0.1]}
    config["parts"] = {"train": {"split": "train"}, "test": {"split": "test"}}
    parts = build_data(config)
    found = [[p[i].name for i in range(len(p))] for p in (parts.train, parts.val, parts.test)]
    again = build_data(config)
    assert [len(n) for n in found] == [18, 2, 3]
    assert sorted(found[0] + found[1]) == all_names
    assert found == [[p[i].name for i in range(len(p))] for p in (again.train, again.val, again.test)], "fixed"


def test_the_folder_may_be_one_above(sbd: Path, voc: Path) -> None:
    for root in (sbd, sbd.parent, sbd.parent.parent):
        assert len(VocSbd(root, voc.parent, "train")) == 4
    with pytest.raises(InputError, match=r"img, cls and train\.txt"):
        VocSbd(voc, voc, "train")


@pytest.mark.parametrize("file", ["img/2008_000008.jpg", "cls/2008_000008.mat"])
def test_a_missing_file_of_the_list_is_named(sbd: Path, voc: Path, file: str) -> None:
    (sbd / file).unlink()
    with pytest.raises(InputError, match=rf"{file} .*missing.*list .*train\.txt"):
        VocSbd(sbd, voc, "train")
    assert len(VocSbd(sbd, voc, "test")) == 2


def test_a_list_that_is_missing_empty_or_covers_the_whole_val_list_is_refused(sbd: Path, voc: Path) -> None:
    list_file = sbd / "train.txt"
    list_file.write_text("".join(f"{n}\n" for n in VOC_VAL))
    with pytest.raises(InputError, match=r"every image.*'VOC2011-val'"):
        VocSbd(sbd, voc, "test")
    list_file.write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        VocSbd(sbd, voc, "train")
    list_file.unlink()
    with pytest.raises(InputError, match=r"no list .*train\.txt: expected SBD's"):
        VocSbd(sbd, voc, "train")
    with pytest.raises(InputError, match=r"'val'.*'train' or 'test'"):
        VocSbd(sbd, voc, "val")  # type: ignore[arg-type]


def read(path: Path) -> NDArray[np.uint8]:
    return read_uint8_field(path, "GTcls", "Segmentation")


@pytest.mark.parametrize("shape", [(6, 8), (1, 3), (3, 1), (37, 51)])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_label_is_read_as_scipy_wrote_it(tmp_path: Path, shape: tuple[int, int], compressed: bool) -> None:
    label = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    content = {"first": np.eye(3), "GTcls": {"Names": ["a", "b"], "Empty": np.zeros((0, 0)), "Segmentation": label}}
    savemat(tmp_path / "a.mat", content, do_compression=compressed)
    np.testing.assert_array_equal(read(tmp_path / "a.mat"), label)
    np.testing.assert_array_equal(read(tmp_path / "a.mat"), loadmat(tmp_path / "a.mat")["GTcls"][0, 0]["Segmentation"])


def test_a_file_of_the_other_byte_order_is_read(tmp_path: Path) -> None:
    def element(kind: int, data: bytes) -> bytes:
        return struct.pack(">2I", kind, len(data)) + data + bytes(-len(data) % 8)

    def array(kind: int, dims: tuple[int, int], name: bytes, rest: bytes) -> bytes:
        return element(
            14, element(6, struct.pack(">2I", kind, 0)) + element(5, struct.pack(">2i", *dims)) + element(1, name) + rest
        )

    values = array(9, (2, 3), b"", element(2, bytes([1, 4, 2, 5, 3, 6])))
    names = element(5, struct.pack(">i", 16)) + element(1, b"Segmentation".ljust(16, b"\0"))
    file = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + array(2, (1, 1), b"GTcls", names + values)
    (tmp_path / "a.mat").write_bytes(file)
    np.testing.assert_array_equal(read(tmp_path / "a.mat"), [[1, 2, 3], [4, 5, 6]], "column by column")


@pytest.mark.parametrize(
    "content",
    [
        {"GTinst": {"Segmentation": sbd_label("a")}},
        {"GTcls": {"Boundaries": 1}},
        {"GTcls": sbd_label("a")},
        {"GTcls": {"Segmentation": sbd_label("a").astype(float)}},
        {"GTcls": {"Segmentation": np.zeros((2, 3, 4), np.uint8)}},
        {"GTcls": {"Segmentation": "person"}},
    ],
)
def test_a_file_with_another_content_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    savemat(tmp_path / "odd.mat", content)
    with pytest.raises(InputError, match=r"odd\.mat.*uint8.*Segmentation"):
        read(tmp_path / "odd.mat")


@pytest.mark.parametrize("compressed", [True, False])
def test_a_damaged_file_is_refused_or_read_but_never_worse(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"GTcls": {"Segmentation": sbd_label("a")}}, do_compression=compressed)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 8, 3):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"a\.mat"):
            read(path)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for at in rng.integers(100, len(whole), 3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert read(path).ndim == 2
        except InputError:
            refused += 1
    assert refused > 100


def test_what_is_no_matlab_file_of_version_5_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mat"
    with pytest.raises(InputError, match="no file at"):
        read(path)
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF")
    with pytest.raises(InputError, match="is not a MATLAB file of version 5"):
        read(path)
    savemat(path, {"GTcls": {"Segmentation": np.zeros((100, 100), np.uint8)}}, do_compression=True)
    monkeypatch.setattr(matlab, "MAX_BYTES", 5000)  # a bomb: a thousandth of the pixels' bytes in the file
    with pytest.raises(InputError, match="larger than 5,000 bytes"):
        read(path)


def test_a_label_of_another_size_or_with_an_unknown_value_is_refused(sbd: Path, voc: Path) -> None:
    write_label(sbd / "cls" / f"{TRAIN[0]}.mat", np.zeros((8, 6), np.uint8))
    write_label(sbd / "cls" / f"{TRAIN[1]}.mat", np.full((6, 8), 21, np.uint8))
    write_label(sbd / "cls" / f"{TRAIN[2]}.mat", np.zeros((1, 8), np.uint8))
    images = VocSbd(sbd, voc, "train")
    with pytest.raises(InputError, match=r"8 x 6.*\.mat.*6 x 8.*same size"):
        images[0]
    with pytest.raises(InputError, match=r"\.mat.* 21: .*0\.\.20, 255"):
        images[1]
    with pytest.raises(InputError, match="is 8 x 1"):
        images[2]
