"""The Visual Decathlon on a made sample in the devkit's format."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from img2img.data.datasets.decathlon import DECATHLON, UNKNOWN, Decathlon, write_decathlon_results
from img2img.errors import InputError

# Ids as the challenge has them: ten million times the dataset's number, plus a number from 1. Not in order, and one that no
# image of val has.
BASE = 10_000_000
CATEGORIES = [{"id": BASE + 3, "name": "wing"}, {"id": BASE + 1, "name": "jet"}, {"id": BASE + 2, "name": "kite"}]
IMAGES = {"train": [3, 1, 2, 1], "val": [3, 2], "test": [None, None, None]}


def content(dataset: str, part: str) -> dict[str, Any]:
    labels = IMAGES[part]
    first = BASE + 1000 * list(IMAGES).index(part)
    images = [
        {"id": first + i, "file_name": f"data/{dataset}/{part}/{i:03}.jpg", "width": 90, "height": 72} for i in range(len(labels))
    ]
    if part == "test":
        return {"images": images, "info": {}}
    # COCO joins annotations by the image's id, whatever their order
    annotations = [{"id": 7 + i, "image_id": first + i, "category_id": BASE + (c or 0)} for i, c in enumerate(labels)][::-1]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def write(root: Path, dataset: str = "aircraft") -> Path:
    """The devkit's folder."""
    for part in IMAGES:
        listed = content(dataset, part)
        path = root / "annotations" / f"{dataset}_{'test_stripped' if part == 'test' else part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(listed))
        for i, image in enumerate(listed["images"]):
            file = root / image["file_name"]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (90, 72), (50 * i, 0, 0)).save(file)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "decathlon-1.0")


def change(root: Path, part: str, **parts: Any) -> None:
    path = root / "annotations" / f"aircraft_{part}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def opened(root: Path, part: str) -> Decathlon:
    return Decathlon(root=root, dataset="aircraft", part=part)  # type: ignore[arg-type]


def test_classes_are_the_sorted_ids_of_the_training_categories(root: Path) -> None:
    train, val = opened(root, "train"), opened(root, "val")
    assert train.classes == val.classes == ("jet", "kite", "wing")
    assert train.category_ids == (BASE + 1, BASE + 2, BASE + 3)
    assert [s.category for s in train] == train.categories.tolist() == [2, 0, 1, 0]
    # Counted from val's own smallest label, as the reference code does, these would be 1 and 0.
    assert [s.category for s in val] == [2, 1]
    assert val.image_ids == (BASE + 1000, BASE + 1001)
    assert val[1].name == "data/aircraft/val/001.jpg"
    assert val[1].image.shape == (72, 90, 3)
    assert abs(int(val[1].image[0, 0, 0]) - 50) < 4


def test_the_test_part_has_no_categories(root: Path) -> None:
    test = opened(root, "test")
    assert [s.category for s in test] == [None] * 3
    assert test.categories.tolist() == [UNKNOWN] * 3
    assert test.classes == ("jet", "kite", "wing")


def test_train_and_val_together(root: Path) -> None:
    both = opened(root, "train+val")
    assert both.categories.tolist() == [2, 0, 1, 0, 2, 1]
    assert [s.name.split("/")[2] for s in both] == ["train"] * 4 + ["val"] * 2


def test_images_may_lie_elsewhere_and_root_may_be_the_folder_above(root: Path, tmp_path: Path) -> None:
    (root / "data").rename(tmp_path / "images")
    dataset = Decathlon(root=tmp_path, dataset="aircraft", part="val", data=tmp_path / "images")
    assert dataset[0].image.shape == (72, 90, 3)
    with pytest.raises(InputError, match=r"aircraft.val.000\.jpg.*1\.0-data.*`data`"):
        opened(root, "val")


def test_names_that_occur_twice_are_told_apart(root: Path) -> None:
    change(root, "train", categories=[{"id": BASE + 1, "name": "crane"}, {"id": BASE + 2, "name": "crane"}, {"id": BASE + 3}])
    assert opened(root, "train").classes == (f"crane ({BASE + 1})", f"crane ({BASE + 2})", str(BASE + 3))


@pytest.mark.parametrize(
    ("part", "changed", "message"),
    [
        ("val", {"annotations": [{"image_id": BASE + 1000, "category_id": BASE + 4}]}, "category 10000004, which the training"),
        ("val", {"annotations": [{"image_id": BASE + 1000, "category_id": BASE + 1}]}, "image 10001001 no category"),
        (
            "val",
            {"annotations": [{"image_id": BASE + 1000, "category_id": BASE + c} for c in (1, 2)]},
            "image 10001000 two categories",
        ),
        ("val", {"images": [{"id": "1", "file_name": "x"}]}, r"images\[0\].*id, file_name"),
        ("val", {"images": [{"id": 1, "file_name": "x"}] * 2}, "images of one id"),
        ("val", {"annotations": []}, "no list 'annotations'"),
        ("train", {"categories": None}, "no list 'categories'"),
        ("train", {"categories": CATEGORIES[:2]}, "category 10000002, which the training"),
    ],
)
def test_files_that_do_not_fit_are_named(root: Path, part: str, changed: dict[str, Any], message: str) -> None:
    change(root, part, **changed)
    with pytest.raises(InputError, match=message) as caught:
        opened(root, part)
    assert f"aircraft_{part}.json" in str(caught.value)


def test_one_id_in_both_files_of_the_union_is_refused(root: Path) -> None:
    listed = content("aircraft", "train")
    change(root, "val", images=listed["images"], annotations=listed["annotations"])
    with pytest.raises(InputError, match=r"train\+val has images of one id"):
        opened(root, "train+val")


def test_a_folder_without_the_devkit_names_both_layouts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"annotations.*decathlon-1\.0.*devkit"):
        Decathlon(root=tmp_path, dataset="dtd", part="train")


def test_absent_data_says_where_it_comes_from(root: Path) -> None:
    with pytest.raises(InputError, match=r"dtd_train\.json.*decathlon-1\.0-devkit"):
        Decathlon(root=root, dataset="dtd", part="train")
    with pytest.raises(InputError, match=r"'flowers'.*mean vgg-flowers"):
        Decathlon(root=root, dataset="flowers", part="train")
    with pytest.raises(InputError, match=r"part='trainval'.*train, val, test"):
        opened(root, "trainval")


def test_results_are_in_official_ids(root: Path, tmp_path: Path) -> None:
    for dataset in DECATHLON:
        write(root, dataset)
    sets = [Decathlon(root=root, dataset=dataset, part="test") for dataset in DECATHLON]
    predictions = [(s, dict(zip(s.image_ids, np.array([2, 0, 1]), strict=True))) for s in sets]
    path = write_decathlon_results(tmp_path / "results.json", predictions)
    results = json.loads(path.read_text())
    expected = [{"image_id": BASE + 2000 + i, "category_id": BASE + c} for i, c in enumerate((3, 1, 2))]
    assert results == expected * 10
    with pytest.raises(InputError, match=r"vgg-flowers.*all ten"):
        write_decathlon_results(tmp_path / "results.json", predictions[:-1])
    write_decathlon_results(tmp_path / "results.json", predictions[:1], partial=True)
    assert json.loads(path.read_text()) == expected


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        ({BASE + 2000: 0, BASE + 2002: 1}, "lack 1 images, such as 10002001"),
        ({BASE + 2000 + i: 0 for i in range(4)}, "unknown 1 .*10002003"),
        ({BASE + 2000 + i: i + 1 for i in range(3)}, r"10002002 .* 3: .*0\.\.2"),
        ({BASE + 2000 + i: BASE + 1 for i in range(3)}, "not the official id"),
        ({BASE + 2000 + i: 1.0 for i in range(3)}, r"is 1\.0"),
    ],
)
def test_incomplete_results_are_not_written(root: Path, tmp_path: Path, predicted: dict[int, Any], message: str) -> None:
    test = opened(root, "test")
    with pytest.raises(InputError, match=message):
        write_decathlon_results(tmp_path / "results.json", [(test, predicted)], partial=True)
    whole = (test, dict.fromkeys(test.image_ids, 0))
    with pytest.raises(InputError, match="predictions for aircraft twice"):
        write_decathlon_results(tmp_path / "results.json", [whole, whole], partial=True)
    assert not (tmp_path / "results.json").exists()
