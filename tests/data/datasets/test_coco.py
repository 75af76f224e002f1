import json
import pickle
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from img2img.data.base import VOID
from img2img.data.datasets.coco import CocoSegmentation
from img2img.errors import InputError

HEIGHT, WIDTH = 20, 30
CATEGORIES = [{"id": 7, "name": "table"}, {"id": 3, "name": "cup"}, {"id": 90, "name": "person"}]  # not in order, with gaps


def square(x: int, y: int, side: int) -> list[list[float]]:
    """A polygon whose pixels are [y, y + side) x [x, x + side)."""
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def pixels(x: int, y: int, side: int) -> np.ndarray:
    drawn = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    drawn[y : y + side, x : x + side] = 1
    return drawn


def runs(drawn: np.ndarray, *, compressed: bool) -> dict[str, Any]:
    """COCO run lengths of a mask: column by column, zeros first."""
    if compressed:
        rle = coco_mask.encode(np.asfortranarray(drawn))
        return {"size": list(rle["size"]), "counts": rle["counts"].decode()}
    flat = drawn.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(drawn.shape), "counts": [0, *counts] if flat[0] else counts}


def annotation(category: int, segmentation: Any, *, image: int = 1, crowd: int = 0) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": crowd, "area": 1}


def write(root: Path, annotations: list[dict[str, Any]], *, images: int = 1, **changes: Any) -> tuple[Path, Path]:
    """Grey images 1.png ... and an annotation file below `root`."""
    folder, file = root / "images", root / "instances.json"
    folder.mkdir(exist_ok=True)
    for i in range(1, images + 1):
        Image.new("L", (WIDTH, HEIGHT), i).save(folder / f"{i}.png")
    data = {
        # the last image first: the order is that of the ids
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(images, 0, -1)],
        "annotations": [{"id": 100 + i, **a} for i, a in enumerate(annotations)],
        "categories": CATEGORIES,
        **changes,
    }
    file.write_text(json.dumps(data))
    return folder, file


def test_a_polygon_a_run_length_and_a_compressed_one_give_the_same_square(tmp_path: Path) -> None:
    for segmentation in (
        square(4, 5, 9),
        runs(pixels(4, 5, 9), compressed=False),
        runs(pixels(4, 5, 9), compressed=True),
    ):
        sample = CocoSegmentation(*write(tmp_path, [annotation(3, segmentation)]))[0]
        np.testing.assert_array_equal(sample.label, pixels(4, 5, 9))
        assert sample.label is not None
        assert sample.label.dtype == np.uint8
        assert sample.name == "1.png"
        np.testing.assert_array_equal(sample.image, np.full((HEIGHT, WIDTH, 3), 1))


def test_regions_are_those_of_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    segmentations: list[Any] = [
        (rng.uniform(0, 1, (2, 7, 2)) * [WIDTH, HEIGHT]).reshape(2, 14).tolist(),  # two parts
        [[0.5, 0.5, 29.9, 3.2, 12.0, 19.7]],
        runs(rng.integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8), compressed=False),
        runs(rng.integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8), compressed=True),
        runs(np.ones((HEIGHT, WIDTH), dtype=np.uint8), compressed=True),
    ]
    annotations = [annotation(3, s, image=i) for i, s in enumerate(segmentations, start=1)]
    folder, file = write(tmp_path, annotations, images=len(segmentations))
    capsys.readouterr()
    ours = CocoSegmentation(folder, file)
    assert capsys.readouterr().out == ""
    theirs = COCO(file)
    for sample, a in zip(ours, theirs.dataset["annotations"], strict=True):
        np.testing.assert_array_equal(sample.label, theirs.annToMask(a))
        assert sample.label is not None
        assert sample.label.any()


def test_classes_are_background_and_the_categories_by_id(tmp_path: Path) -> None:
    dataset = CocoSegmentation(*write(tmp_path, [annotation(90, square(0, 0, 5))]))
    assert dataset.classes == ("background", "cup", "table", "person")
    np.testing.assert_array_equal(dataset[0].label, 3 * pixels(0, 0, 5))


def test_named_categories_are_classes_in_the_given_order_and_the_others_background(tmp_path: Path) -> None:
    annotations = [annotation(90, square(0, 0, 5)), annotation(3, square(10, 10, 5)), annotation(7, square(20, 0, 5))]
    dataset = CocoSegmentation(*write(tmp_path, annotations), categories=["person", "cup"])
    assert dataset.classes == ("background", "person", "cup")
    np.testing.assert_array_equal(dataset[0].label, pixels(0, 0, 5) + 2 * pixels(10, 10, 5))


@pytest.mark.parametrize("order", [1, -1])
def test_a_small_object_stays_visible_on_a_large_one(tmp_path: Path, order: int) -> None:
    annotations = [annotation(3, square(5, 5, 4)), annotation(7, square(2, 2, 15))][::order]
    expected = 2 * pixels(2, 2, 15)
    expected[pixels(5, 5, 4) == 1] = 1
    np.testing.assert_array_equal(CocoSegmentation(*write(tmp_path, annotations))[0].label, expected)


@pytest.mark.parametrize("order", [1, -1])
def test_a_crowd_is_void_where_no_object_covers_it(tmp_path: Path, order: int) -> None:
    # The crowd is smaller than the object: neither the order nor the area may decide.
    crowd = annotation(90, runs(pixels(10, 10, 6), compressed=False), crowd=1)
    annotations = [crowd, annotation(7, square(0, 0, 13))][::order]
    expected = 2 * pixels(0, 0, 13)
    expected[(pixels(10, 10, 6) == 1) & (expected == 0)] = VOID
    np.testing.assert_array_equal(CocoSegmentation(*write(tmp_path, annotations))[0].label, expected)


def test_a_crowd_of_a_category_that_is_not_chosen_is_background(tmp_path: Path) -> None:
    crowd = annotation(90, runs(pixels(10, 10, 6), compressed=True), crowd=1)
    dataset = CocoSegmentation(*write(tmp_path, [crowd, annotation(3, square(0, 0, 4))]), categories=["cup"])
    np.testing.assert_array_equal(dataset[0].label, pixels(0, 0, 4))


def test_images_without_a_chosen_category_are_dropped_or_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    annotations = [annotation(3, square(0, 0, 5), image=3), annotation(90, square(0, 0, 5), image=2)]
    files = write(tmp_path, annotations, images=3)
    assert [s.name for s in CocoSegmentation(*files)] == ["2.png", "3.png"]
    assert [s.name for s in CocoSegmentation(*files, categories=["cup"])] == ["3.png"]
    assert "2 of the 3 images" in caplog.text
    assert "keep_empty" in caplog.text
    kept = CocoSegmentation(*files, categories=["cup"], keep_empty=True)
    assert [s.name for s in kept] == ["1.png", "2.png", "3.png"]
    assert kept[0].label is not None
    assert not kept[0].label.any()
    with pytest.raises(InputError, match=r"3 images .*annotation of table"):
        CocoSegmentation(*files, categories=["table"])


def test_a_category_named_background_is_class_zero(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "background"}, {"id": 3, "name": "cup"}]
    files = write(tmp_path, [annotation(3, square(0, 0, 5))], categories=categories)
    assert CocoSegmentation(*files).classes == ("background", "cup")


def test_a_stray_piece_beside_a_polygon_draws_nothing(tmp_path: Path) -> None:
    dataset = CocoSegmentation(*write(tmp_path, [annotation(3, [[1, 1], *square(4, 5, 9), [2, 2, 9, 9]])]))
    np.testing.assert_array_equal(dataset[0].label, pixels(4, 5, 9))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[4, 5], [13, 5], [13, 14], [4, 14]], r"pairs .*\[\[x, y, x, y, \.\.\.\]\]"),
        ([[[4, 5], [13, 5], [13, 14]]], "no list of numbers"),
        ([[4, 5, 9, 9]], "four numbers, a box"),
        ([[]], "none of its polygons has three points"),
        ([[4, 5, 9]], "odd"),
        ([[True, 0, 5, 0, 5, 5]], "no list of numbers"),
        ([["1", "0", "5", "0", "5", "5"]], "no list of numbers"),
        ([[2, 2, 5, 5, 9, 9]], "on a line"),
        ([[0.1, 0.1, 0.6, 0.1, 0.6, 0.6]], "between 0 and 1"),
        (square(WIDTH + 1, 2, 4), "outside the 30 x 20 image"),
        (runs(pixels(0, 0, 0), compressed=False), "hold no pixel"),
        (runs(pixels(0, 0, 0), compressed=True), "hold no pixel"),
        ({"size": [WIDTH, HEIGHT], "counts": [3, HEIGHT * WIDTH - 3]}, r"\[30, 20\].*\[20, 30\]"),
        ({"size": [HEIGHT, WIDTH], "counts": 5}, "neither a list of run lengths nor"),
        ({"size": [HEIGHT, WIDTH], "counts": [True, HEIGHT * WIDTH - 1]}, "whole number"),
        ({"counts": [HEIGHT * WIDTH]}, "lack size"),
    ],
)
def test_what_would_become_background_without_a_word_is_refused(tmp_path: Path, segmentation: Any, message: str) -> None:
    sound = annotation(7, square(0, 0, 5))
    dataset = CocoSegmentation(*write(tmp_path, [sound, annotation(3, segmentation)]))
    with pytest.raises(InputError, match=rf"101 .*instances\.json .*1\.png.*{message}"):
        dataset[0]


@pytest.mark.parametrize("flat", [[2, 2, 9, 2, 9, 2, 2, 2], [3.2, 3.2, 3.3, 3.2, 3.3, 3.3]])
def test_an_object_thinner_than_a_pixel_draws_nothing_and_is_no_mistake(tmp_path: Path, flat: list[float]) -> None:
    dataset = CocoSegmentation(*write(tmp_path, [annotation(7, [flat]), annotation(3, square(4, 5, 9))]))
    label = dataset[0].label
    assert label is not None
    np.testing.assert_array_equal(label == 1, pixels(4, 5, 9) == 1)
    assert (label == 2).sum() <= 8


def test_an_object_that_reaches_over_the_edge_is_cut_there(tmp_path: Path) -> None:
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[:, 25:] = 1
    outline = [[25, -3, WIDTH + 9, -3, WIDTH + 9, HEIGHT + 3, 25, HEIGHT + 3]]
    np.testing.assert_array_equal(CocoSegmentation(*write(tmp_path, [annotation(3, outline)]))[0].label, expected)


def test_an_empty_crowd_is_nowhere_and_one_without_an_outline_is_refused(tmp_path: Path) -> None:
    crowd = annotation(90, runs(pixels(0, 0, 0), compressed=False), crowd=1)
    dataset = CocoSegmentation(*write(tmp_path, [crowd, annotation(3, square(4, 5, 9))]))
    np.testing.assert_array_equal(dataset[0].label, pixels(4, 5, 9))
    with pytest.raises(InputError, match=r"annotation 100 .* has no outline"):
        CocoSegmentation(*write(tmp_path, [crowd | {"segmentation": []}]))


@pytest.mark.parametrize("whole", [float, str])
def test_whole_numbers_may_be_written_in_any_form(tmp_path: Path, whole: Any) -> None:
    image = {"id": 1, "file_name": "1.png", "height": whole(HEIGHT), "width": whole(WIDTH)}
    drawn = runs(pixels(4, 5, 9), compressed=False)
    drawn = {"size": [whole(n) for n in drawn["size"]], "counts": [whole(n) for n in drawn["counts"]]}
    number = {"id": whole(100), "image_id": whole(1), "category_id": whole(3)}
    categories = [{"id": 3.0, "name": "cup"}, {"id": "7", "name": "table"}, {"id": 90, "name": "person"}]
    numbers = {"image_id": 1, "category_id": 7, "iscrowd": whole(0)}  # 1 means the image of the id 1.0 or "1"
    annotations = [annotation(3, drawn) | number, annotation(7, square(20, 0, 5)) | numbers]
    dataset = CocoSegmentation(*write(tmp_path, annotations, images=1, categories=categories))
    files = write(tmp_path, annotations, categories=categories)
    data = json.loads(files[1].read_text())
    files[1].write_text(json.dumps(data | {"images": [image]}))
    np.testing.assert_array_equal(dataset[0].label, pixels(4, 5, 9) + 2 * pixels(20, 0, 5))
    np.testing.assert_array_equal(CocoSegmentation(*files)[0].label, dataset[0].label)


def test_ids_may_be_text(tmp_path: Path) -> None:
    images = [{"id": name, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n, name in ((1, "b"), (2, "a"), (3, 5))]
    annotations = [annotation(3, square(0, 0, n)) | {"image_id": name} for n, name in ((2, "b"), (3, "a"), (4, "5"))]
    folder, file = write(tmp_path, annotations, images=3)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"images": images}))
    dataset = CocoSegmentation(folder, file)
    assert [s.name for s in dataset] == ["3.png", "2.png", "1.png"]
    assert [int(np.count_nonzero(s.label)) for s in dataset if s.label is not None] == [16, 9, 4]


@pytest.mark.parametrize(
    ("value", "void"), [(True, True), (False, False), (None, False), ("1", True), ("0", False), (0.0, False)]
)
def test_iscrowd_is_read_by_its_meaning(tmp_path: Path, value: Any, void: bool) -> None:
    dataset = CocoSegmentation(*write(tmp_path, [annotation(3, square(4, 5, 9)) | {"iscrowd": value}]))
    np.testing.assert_array_equal(dataset[0].label, (VOID if void else 1) * pixels(4, 5, 9))


_NO_ID = [None, True, [], {}, "", 1.5, float("nan")]
_NO_SIZE = [*_NO_ID, 0, -48, "tall", 48.5]
_NO_TEXT = [None, True, 3, [], {}, "", "  "]


@pytest.mark.parametrize(
    ("part", "key", "wrong"),
    [
        *[("images", key, wrong) for key in ("height", "width") for wrong in _NO_SIZE],
        *[("images", "id", wrong) for wrong in _NO_ID],
        *[("images", "file_name", wrong) for wrong in _NO_TEXT],
        *[("annotations", key, wrong) for key in ("id", "image_id", "category_id") for wrong in _NO_ID],
        *[("annotations", "segmentation", wrong) for wrong in (None, True, 5, {}, "", "polygon")],
        *[("annotations", "iscrowd", wrong) for wrong in (2, -1, 0.5, "yes", [], {})],
        *[("categories", "id", wrong) for wrong in _NO_ID],
        *[("categories", "name", wrong) for wrong in _NO_TEXT],
    ],
)
def test_every_field_of_a_wrong_type_is_one_message(tmp_path: Path, part: str, key: str, wrong: Any) -> None:
    folder, file = write(tmp_path, [annotation(3, square(4, 5, 9))])
    data = json.loads(file.read_text())
    data[part][0][key] = wrong
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match=rf"(annotation|{part}\[0\]).* in .*instances\.json has {key} "):
        CocoSegmentation(folder, file)


def test_a_image_under_two_ids_is_refused(tmp_path: Path) -> None:
    folder, file = write(tmp_path, [annotation(3, square(4, 5, 9))], images=2)
    file.write_text(file.read_text().replace("2.png", "1.png"))
    with pytest.raises(InputError, match=r"2 and 1 .*instances\.json.*1\.png"):
        CocoSegmentation(folder, file)


def test_names_are_compared_in_one_unicode_form_and_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    composed, decomposed = "été", unicodedata.normalize("NFD", "été")
    folder, file = write(tmp_path, [annotation(3, square(4, 5, 9))], categories=[{"id": 3, "name": decomposed}])
    (folder / "1.png").rename(folder / f"{decomposed}.png")
    text = file.read_text().replace("1.png", f"{composed}.png")
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    dataset = CocoSegmentation(folder, file, categories=[composed])
    assert dataset.classes == ("background", composed)
    assert dataset[0].name == f"{composed}.png"
    np.testing.assert_array_equal(dataset[0].label, pixels(4, 5, 9))


def test_an_unknown_category_is_answered_with_close_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'persn'.*mean person"):
        CocoSegmentation(*write(tmp_path, []), categories=["persn"])


@pytest.mark.parametrize("names", [[], ["cup", "cup"]])
def test_no_category_and_one_twice_are_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(InputError, match="at least one and each once"):
        CocoSegmentation(*write(tmp_path, []), categories=names)


def test_more_categories_than_8_bits_hold_are_refused(tmp_path: Path) -> None:
    files = write(tmp_path, [], categories=[{"id": i, "name": f"c{i}"} for i in range(255)])
    with pytest.raises(InputError, match="255 categories: expected at most 254"):
        CocoSegmentation(*files)
    files = write(tmp_path, [annotation(254, square(0, 0, 5))], categories=[{"id": i, "name": f"c{i}"} for i in range(1, 255)])
    label = CocoSegmentation(*files)[0].label
    assert label is not None
    assert label.max() == 254


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "a list.*COCO instance file"),
        ('{"images": [], "info": {}}', r"'images', 'info'.*annotations"),
        ('{"images": [], "annotations": {}, "categories": []}', "expected a COCO instance file"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', r"images\[0\].*file_name, height, width"),
        ('{"images": [3], "annotations": [], "categories": []}', r"images\[0\] .* is not an object"),
    ],
)
def test_files_that_are_not_coco_are_refused(tmp_path: Path, text: str, message: str) -> None:
    folder, file = write(tmp_path, [])
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        CocoSegmentation(folder, file)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    folder, file = write(tmp_path, [annotation(3, square(0, 0, 5))])
    with pytest.raises(InputError, match=r"no file at .*gone\.json"):
        CocoSegmentation(folder, tmp_path / "gone.json")
    with pytest.raises(InputError, match=r"no folder at .*gone"):
        CocoSegmentation(tmp_path / "gone", file)
    (folder / "1.png").unlink()
    with pytest.raises(InputError, match=r"no such file: .*1\.png"):
        CocoSegmentation(folder, file)[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"category_id": 4}, "100 .*category_id 4"),
        ({"image_id": 9}, "100 .*image_id 9"),
        ({"segmentation": []}, "annotation 100 .* has no outline"),
        ({"segmentation": "polygon"}, "100 .*'polygon'.*polygons"),
    ],
)
def test_annotations_that_refer_to_nothing_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CocoSegmentation(*write(tmp_path, [annotation(3, square(0, 0, 5)) | wrong]))


def test_ids_that_occur_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="of one id"):
        CocoSegmentation(*write(tmp_path, [], categories=[*CATEGORIES, {"id": 3, "name": "mug"}]))


@pytest.mark.parametrize(
    "segmentation",
    [
        [[0, 0, 5, 0, 5]],  # odd
        [0, 0, 5, 0, 5, 5],  # not nested
        [["a", 0, 5, 0, 5, 5]],
        [[0, 0, 1e9, 0, 5, 5]],  # pycocotools would allocate for a billion points
        [[0, 0, float("nan"), 0, 5, 5]],
        {"size": [HEIGHT, WIDTH]},
        {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]},
        {"size": [HEIGHT, WIDTH], "counts": [3, 4]},  # pycocotools would return uninitialised memory
        {"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]},
        {"size": [HEIGHT, WIDTH], "counts": [0.5, HEIGHT * WIDTH - 0.5]},
        {"size": [HEIGHT, WIDTH], "counts": "zzzz"},
        {"size": [HEIGHT, WIDTH], "counts": "02"},  # as [3, 4]
        {"size": [HEIGHT, WIDTH], "counts": "é"},
        {"size": [HEIGHT, WIDTH], "counts": 5},
    ],
)
def test_a_region_that_cannot_be_drawn_names_its_annotation(tmp_path: Path, segmentation: Any) -> None:
    dataset = CocoSegmentation(*write(tmp_path, [annotation(3, segmentation)]))
    with pytest.raises(InputError, match=r"100 .*instances\.json .*drawn"):
        dataset[0]


def test_a_image_of_another_size_names_both_sizes(tmp_path: Path) -> None:
    folder, file = write(tmp_path, [annotation(3, square(0, 0, 5))])
    Image.new("RGB", (HEIGHT, WIDTH)).save(folder / "1.png")
    with pytest.raises(InputError, match=r"1\.png.*20 x 30.*instances\.json.*30 x 20"):
        CocoSegmentation(folder, file)[0]


def test_sets_reach_worker_processes(tmp_path: Path) -> None:
    dataset = pickle.loads(pickle.dumps(CocoSegmentation(*write(tmp_path, [annotation(3, square(4, 5, 9))]))))
    np.testing.assert_array_equal(dataset[0].label, pixels(4, 5, 9))
