import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import VOCSegmentation as TorchvisionVOC

from img2img.data.base import VOID
from img2img.data.datasets.voc import VOC_CLASSES, VocSegmentation
from img2img.errors import InputError


def write_voc(year: Path, names: dict[str, list[str]]) -> Path:
    """A VOC year with the lists `names`; labels are palette PNGs with an aeroplane, a tvmonitor and a void outline."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (year / folder).mkdir(parents=True)
    for split, images in names.items():
        (year / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{n}\n" for n in images))
        for name in images:
            Image.new("RGB", (8, 6), (0, 120, 0)).save(year / "JPEGImages" / f"{name}.jpg")
            label = np.zeros((6, 8), dtype=np.uint8)
            label[1:4, 1:4] = 1
            label[4, 4:] = 20
            label[5] = 255
            image = Image.fromarray(label, mode="P")
            image.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
            image.save(year / "SegmentationClass" / f"{name}.png")
    return year


@pytest.fixture
def year(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "VOCdevkit" / "VOC2012", {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]})


def test_images_and_labels_are_those_that_torchvision_reads(tmp_path: Path, year: Path) -> None:
    ours, theirs = VocSegmentation(year, "train"), TorchvisionVOC(str(tmp_path), year="2012", image_set="train")
    assert len(ours) == len(theirs) == 2
    for sample, (image, label) in zip(ours, theirs, strict=False):
        np.testing.assert_array_equal(sample.image, np.asarray(image))
        np.testing.assert_array_equal(sample.label, np.asarray(label))
    assert ours[0].name == "2007_000032"
    assert ours[0].label is not None
    assert np.unique(ours[0].label).tolist() == [0, 1, 20, VOID]


def test_the_classes_are_the_21_of_voc(year: Path) -> None:
    assert VocSegmentation(year, "val").classes == VOC_CLASSES
    assert len(VOC_CLASSES) == 21
    assert (VOC_CLASSES[1], VOC_CLASSES[15], VOC_CLASSES[20]) == ("aeroplane", "person", "tvmonitor")


def test_the_root_may_be_a_folder_above_the_year(tmp_path: Path, year: Path) -> None:
    for root in (year, year.parent, tmp_path):
        images = VocSegmentation(root, "val")
        assert [s.name for s in images] == ["2007_000033"]
        assert images.name == "VOC2012-val"


def test_two_years_below_the_root_are_refused(year: Path) -> None:
    write_voc(year.parent / "VOC2007", {"train": ["1"]})
    with pytest.raises(InputError, match=r"'VOC2007', 'VOC2012'.*one year"):
        VocSegmentation(year.parent, "train")


def test_a_missing_list_names_those_there_are(year: Path) -> None:
    with pytest.raises(InputError, match=r"test\.txt.*'train', 'val'"):
        VocSegmentation(year, "test")


def test_an_empty_list_is_refused(year: Path) -> None:
    (year / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    with pytest.raises(InputError, match=r"val\.txt is empty"):
        VocSegmentation(year, "val")


@pytest.mark.parametrize("file", ["JPEGImages/2007_000039.jpg", "SegmentationClass/2007_000039.png"])
def test_a_missing_file_of_the_list_is_named(year: Path, file: str) -> None:
    (year / file).unlink()
    with pytest.raises(InputError, match=rf"{file} .*missing.*list .*train\.txt"):
        VocSegmentation(year, "train")


def test_a_label_value_beyond_voc_is_refused(year: Path) -> None:
    Image.fromarray(np.full((6, 8), 21, dtype=np.uint8)).save(year / "SegmentationClass" / "2007_000033.png")
    with pytest.raises(InputError, match=r"000033\.png.* 21: .*0\.\.20, 255"):
        VocSegmentation(year, "val")[0]


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a Pascal VOC folder"):
        VocSegmentation(tmp_path, "train")
    with pytest.raises(InputError, match="nearest that exists"):
        VocSegmentation(tmp_path / "gone", "train")


def test_lists_with_a_byte_order_mark_and_images_of_other_extensions_are_read(year: Path) -> None:
    name = "2007_000032"
    file = year / "ImageSets" / "Segmentation" / "train.txt"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    (year / "JPEGImages" / f"{name}.jpg").rename(year / "JPEGImages" / f"{name}.JPG")
    (year / "SegmentationClass" / f"{name}.png").rename(year / "SegmentationClass" / f"{name}.PNG")
    sample = VocSegmentation(year, "train")[0]
    assert sample.name == name
    assert sample.label is not None
    assert np.unique(sample.label).tolist() == [0, 1, 20, VOID]
    Image.new("RGB", (8, 6)).save(year / "JPEGImages" / f"{name}.png")
    with pytest.raises(InputError, match="differ only in their extension"):
        VocSegmentation(year, "train")


def test_a_list_with_flags_says_what_they_are(year: Path) -> None:
    (year / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_000032  1\n2007_000039 -1\n")
    with pytest.raises(InputError, match=r"train\.txt.*names alone"):
        VocSegmentation(year, "train")


def test_names_in_a_list_are_found_in_whichever_unicode_form(tmp_path: Path) -> None:
    name = "été"
    year = write_voc(tmp_path / "VOC2012", {"train": [unicodedata.normalize("NFD", name)]})
    (year / "ImageSets" / "Segmentation" / "train.txt").write_text(name, encoding="utf-8")
    assert [s.name for s in VocSegmentation(year, "train")] == [name]
