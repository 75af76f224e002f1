"""Which file belongs to which: images with their labels, and pairs of input and target."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from img2img.data import build_data
from img2img.data.datasets.file_matching import Side, pair_files
from img2img.data.datasets.file_names import nfc, on_disk, read_name_list
from img2img.data.datasets.pairs import PairedFolders, PairFolder
from img2img.data.warn_once import collect_warnings
from img2img.errors import InputError


def lay(root: Path, names: Iterable[str]) -> Path:
    """Empty files: pairing looks at names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def paired(first: Path, second: Path, **options: Any) -> list[tuple[str, str]]:
    pairs = pair_files(Side(first, "images", "image"), Side(second, "labels", "label"), **options)
    return [(a.relative_to(first).as_posix(), b.relative_to(second).as_posix()) for a, b in pairs]


def test_a_public_set_is_paired_by_patterns_and_a_refusal_says_which(tmp_path: Path) -> None:
    images = lay(tmp_path / "images", [f"{n}_training.tif" for n in (21, 22, 30)])
    labels = lay(tmp_path / "manual", [f"{n}_manual1.png" for n in (21, 22, 30, 31)])
    with pytest.raises(InputError, match=r"no label for .*21_training.*set `match` to \['{id}_training', '{id}_manual1'\]"):
        paired(images, labels)
    assert paired(images, labels, match=["{id}_training", "{id}_manual1"]) == [
        (f"{n}_training.tif", f"{n}_manual1.png") for n in (21, 22, 30)
    ]


def test_the_suggestion_is_a_suffix_where_that_is_enough(tmp_path: Path) -> None:
    images = lay(tmp_path / "images", ["a/1.jpg", "a/2.jpg", "b/12.jpg"])
    labels = lay(tmp_path / "labels", ["a/1_gt.png", "a/2_gt.png", "b/12_gt.png"])
    with pytest.raises(InputError, match="`suffix` to '_gt'"):
        paired(images, labels)
    assert paired(images, labels, suffix="_gt")[2] == ("b/12.jpg", "b/12_gt.png")
    with pytest.raises(InputError, match="leave out `suffix` and `match`"):
        paired(images, lay(tmp_path / "same", ["a/1.png", "a/2.png", "b/12.png"]), suffix="_gt")


def test_without_a_pattern_the_nearest_name_is_told(tmp_path: Path) -> None:
    images, labels = lay(tmp_path / "images", ["IMG_1.JPG", "x.png"]), lay(tmp_path / "labels", ["img_1.png", "x.png", "y.png"])
    with pytest.raises(InputError, match=r"IMG_1\.JPG.*labels/IMG_1\.png.*is img_1"):
        paired(images, labels)


def test_patterns_may_name_folders_and_extensions(tmp_path: Path) -> None:
    root = lay(tmp_path / "cases", ["1/image.png", "1/mask.png", "2/image.png", "2/mask.png"])
    assert paired(root, root, match=["{id}/image", "{id}/mask"]) == [("1/image.png", "1/mask.png"), ("2/image.png", "2/mask.png")]
    root = lay(tmp_path / "both", ["a.jpg", "a.png", "b.jpg", "b.png"])
    assert paired(root, root, match=["{id}.jpg", "{id}.png"]) == [("a.jpg", "a.png"), ("b.jpg", "b.png")]


def test_images_and_masks_side_by_side(tmp_path: Path) -> None:
    root = lay(tmp_path / "all", ["x.png", "x_mask.png", "y.jpg", "y_mask.png"])
    for options in ({"suffix": "_mask"}, {"match": ["{id}", "{id}_mask"]}):
        assert paired(root, root, **options) == [("x.png", "x_mask.png"), ("y.jpg", "y_mask.png")]
    for options in ({}, {"match": "order"}, {"match": ["{id}", "{id}"]}):
        with pytest.raises(InputError, match=r"are the same folder .*suffix.*match"):
            paired(root, root, **options)
    with pytest.raises(InputError, match=r"no label in .* is called '\{id\}_gt'"):
        paired(root, root, suffix="_gt")
    lay(root, ["z_mask.png"])
    with pytest.raises(InputError, match=r"label .*z_mask\.png .*without"):
        paired(root, root, suffix="_mask")


def test_a_folder_of_labels_inside_that_of_images_is_none_of_it(tmp_path: Path) -> None:
    root = lay(tmp_path / "set", ["a.jpg", "b.jpg", "masks/a.png", "masks/b.png"])
    assert paired(root, root / "masks") == [("a.jpg", "a.png"), ("b.jpg", "b.png")]
    assert paired(root / "masks", root) == [("a.png", "a.jpg"), ("b.png", "b.jpg")]


def test_order_takes_numbers_by_their_value_and_needs_as_many_of_both(tmp_path: Path) -> None:
    images = lay(tmp_path / "images", ["img1.png", "img2.png", "img10.png"])
    labels = lay(tmp_path / "labels", ["t_01.png", "t_02.png", "t_10.png"])
    expected = [("img1.png", "t_01.png"), ("img2.png", "t_02.png"), ("img10.png", "t_10.png")]
    assert paired(images, labels, match="order") == expected
    lay(labels, ["t_11.png"])
    with pytest.raises(InputError, match=r"has 3 images and .* has 4 labels"):
        paired(images, labels, match="order")


@pytest.mark.parametrize("match", ["stem", [], ["{id}"], ["{id}", "mask"], ["{id}{id}", "{id}"], ["{id}", 3]])
def test_other_matches_are_refused(tmp_path: Path, match: Any) -> None:
    root = lay(tmp_path, ["a.png"])
    with pytest.raises(InputError, match=r"'name', 'order'.*\{id\}"):
        paired(root, root, match=match)


def test_suffix_and_match_are_not_both_given(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave suffix out"):
        paired(tmp_path, tmp_path, match="order", suffix="_mask")


def test_a_image_that_the_pattern_does_not_fit_is_named_and_not_left_out(tmp_path: Path) -> None:
    images, labels = lay(tmp_path / "i", ["1_a.png", "2_a.png", "3.png"]), lay(tmp_path / "l", ["1_b.png", "2_b.png"])
    with pytest.raises(InputError, match=r"the image .*3\.png is not called '{id}_a'"):
        paired(images, labels, match=["{id}_a", "{id}_b"])


def test_labels_that_belong_to_no_image_are_counted_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paired(lay(tmp_path / "i", ["1.png"]), lay(tmp_path / "l", ["1.png", "2.png", "3.png"]))
    assert "2 of the 3 labels" in caplog.text
    assert "2.png" in caplog.text


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_are_compared_in_one_unicode_form(tmp_path: Path, forms: tuple[str, str]) -> None:
    first, second = (unicodedata.normalize(form, "été/niño.png") for form in forms)
    images, labels = lay(tmp_path / "images", [first]), lay(tmp_path / "labels", [second])
    assert paired(images, labels) == [(first, second)]
    assert on_disk(images, second) == images / first
    assert on_disk(images, "Köln.png") == images / "Köln.png"


def test_names_that_are_of_neither_form_are_found_too(tmp_path: Path) -> None:
    composed, apart = "\u00e9", "e\u0301"
    for name in ("\ufa19.png", f"{apart}/{composed}{apart}.png"):  # a sign that NFC takes for another; both forms in one name
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        assert nfc(name) != name
        assert on_disk(tmp_path, nfc(name)) == path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a  1\nb -1\n", "'a  1'.*names alone"),
        ("a\nb\na\n", "lists a twice"),
        ("\n", "is empty"),
    ],
)
def test_lists_that_are_no_names_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "train.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        read_name_list(tmp_path / "train.txt")


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes("\ufeffa\r\nmy photo\r\n".encode())
    assert read_name_list(tmp_path / "train.txt") == ["a", "my photo"]


@pytest.fixture
def halves() -> tuple[np.ndarray, np.ndarray]:
    both = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    return both[0], both[1]


def test_the_left_half_is_the_source_and_the_right_the_image(tmp_path: Path, halves: tuple[np.ndarray, np.ndarray]) -> None:
    left, right = halves
    Image.fromarray(np.hstack(halves)).save(tmp_path / "1_AB.png")
    (sample,) = PairFolder(tmp_path)
    assert sample.source is not None
    np.testing.assert_array_equal(sample.source, left)
    np.testing.assert_array_equal(sample.image, right)
    assert sample.image.flags.c_contiguous
    assert sample.source.flags.c_contiguous
    assert sample.name == "1_AB.png"
    assert sample.label is None


def test_a_may_be_on_the_right(tmp_path: Path, halves: tuple[np.ndarray, np.ndarray]) -> None:
    left, right = halves
    Image.fromarray(np.hstack(halves)).save(tmp_path / "1.png")
    sample = PairFolder(tmp_path, a_side="right")[0]
    np.testing.assert_array_equal(sample.source, right)
    np.testing.assert_array_equal(sample.image, left)


def test_an_odd_width_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (7, 4)).save(tmp_path / "odd.png")
    pairs = PairFolder(tmp_path)
    assert len(pairs) == 1
    with pytest.raises(InputError, match=r"odd\.png.* 7 .*even width"):
        pairs[0]


def test_another_side_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 4)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="a_side='top': expected 'left' or 'right'"):
        PairFolder(tmp_path, a_side="top")  # type: ignore[arg-type]


def test_missing_empty_and_damaged_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nearest that exists"):
        PairFolder(tmp_path / "gone")
    with pytest.raises(InputError, match="no image in"):
        PairFolder(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(InputError, match=r"a\.jpg"):
        PairFolder(tmp_path)[0]


def test_two_folders_are_paired_by_their_paths_without_the_extension(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (4, 5, 3), dtype=np.uint8) for name in ("a", "b", "A", "B")}
    for folder in ("in/x", "out/x"):
        (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(images["a"]).save(tmp_path / "in" / "1.bmp")
    Image.fromarray(images["b"]).save(tmp_path / "in" / "x" / "1.png")
    Image.fromarray(images["A"]).save(tmp_path / "out" / "1.png")
    Image.fromarray(images["B"]).save(tmp_path / "out" / "x" / "1.png")
    Image.fromarray(images["B"]).save(tmp_path / "out" / "unused.png")
    pairs = PairedFolders(tmp_path / "in", tmp_path / "out")
    assert [sample.name for sample in pairs] == ["1.bmp", "x/1.png"]
    for sample, (source, image) in zip(pairs, (("a", "A"), ("b", "B")), strict=True):
        assert sample.source is not None
        np.testing.assert_array_equal(sample.source, images[source])
        np.testing.assert_array_equal(sample.image, images[image])
    folders = {"inputs": str(tmp_path / "in"), "targets": str(tmp_path / "out")}
    parts = build_data({"kind": "paired_folders", "parts": dict.fromkeys(("train", "val", "test"), folders)})
    assert len(parts.train) == len(parts.test) == 2
    (tmp_path / "out" / "1.png").unlink()
    with pytest.raises(InputError, match=r"1.bmp.*out/1.png.*suffix"):
        PairedFolders(tmp_path / "in", tmp_path / "out")
    Image.new("RGB", (6, 4)).save(tmp_path / "out" / "1.png")
    with pytest.raises(InputError, match=r"1.bmp.*5 x 4.*1.png.*6 x 4.*same size"):
        PairedFolders(tmp_path / "in", tmp_path / "out")[0]


def test_two_folders_are_paired_by_patterns_too(tmp_path: Path) -> None:
    for folder, ending, value in (("in", "_low", 1), ("out", "_high", 2)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 4), (value, 0, 0)).save(tmp_path / folder / f"7{ending}.png")
    pairs = PairedFolders(tmp_path / "in", tmp_path / "out", match=["{id}_low", "{id}_high"])
    assert [(int(s.source[0, 0, 0]), int(s.image[0, 0, 0])) for s in pairs if s.source is not None] == [(1, 2)]


@pytest.mark.parametrize(("size", "warned"), [((240, 160), True), ((120, 96), True), ((512, 256), False), ((640, 240), False)])
def test_single_photos_given_for_pairs_are_asked_about(tmp_path: Path, size: tuple[int, int], warned: bool) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png")
    with collect_warnings() as warnings:
        assert PairFolder(tmp_path)[0].image.shape == (size[1], size[0] // 2, 3)
    assert any("Single photos are no pairs" in text for text in warnings) == warned
