"""Datasets from a config."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from img2img import InputError
from img2img.data import build_data
from img2img.data.datasets.folder import ImageFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(10):
        Image.fromarray(np.full((20, 30, 3), i, np.uint8)).save(tmp_path / f"{i:02}.png")
    return tmp_path


def test_one_folder_is_split_resized_and_limited(folder: Path) -> None:
    parts = build_data(
        {"kind": "image_folder", "root": str(folder), "fractions": [0.6, 0.2, 0.2], "resize": 10, "limit": {"train": 3}}
    )
    assert [len(p) for p in (parts.train, parts.val, parts.test)] == [3, 2, 2]
    names = [p[i].name for p in (parts.train, parts.val, parts.test) for i in range(len(p))]
    assert len(set(names)) == 7, "no image is in two parts"
    assert parts.test[0].image.shape == (10, 15, 3)


def test_square_brings_both_sides_of_every_part_to_so_many_pixels(folder: Path) -> None:
    parts = build_data({"kind": "image_folder", "root": str(folder), "square": 12, "middle": 8})
    assert parts.train[0].image.shape == (12, 12, 3)
    assert parts.val[0].image.shape == parts.test[0].image.shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": 10, "square": 12}, "resize: 10 .*square: 12.*one"),
        ({"square": 0}, "square: 0: .*whole number"),
        ({"square": "12"}, "square: '12': .*whole number"),
        ({"square": True}, "got square: True: expected"),
        ({"resize": "160"}, "resize: '160': .*whole number"),
        ({"resize": True}, "got resize: True: expected"),
        ({"middle": 2.5}, r"got middle: 2\.5: expected"),
        ({"limit": 5}, "got limit: 5: expected images by part"),
        ({"limit": {"vall": 5}}, "limit: {'vall': 5}.*by part"),
        ({"limit": {"val": 0}}, "got limit: .*expected images by part"),
        ({"limit": {"val": True}}, "got limit: .*expected images by part"),
        ({"limit": [1]}, "got limit: .*expected images by part"),
        ({"parts": [1]}, "parts: .*options of its own"),
        ({"parts": {"train": None, "val": None, "test": None}}, "parts: .*options of its own"),
        ({"parts": {True: {}}}, "train, val, test.* got True"),
        ({"fractions": [True, 0, 0]}, "got fractions: .*list of numbers"),
        ({"fast_decode": 1, "resize": 10}, "got fast_decode: 1: expected true"),
        ({"fast_decode": True}, "fast_decode: true without a size: give resize"),
        ({"blocks": 0}, "got blocks: 0: expected a whole number"),
        ({"blocks": 2, "parts": {"train": {}, "val": {}, "test": {}}}, "got blocks: 2, .*leave blocks out"),
    ],
)
def test_options_of_every_kind_that_cannot_be_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_data({"kind": "image_folder", "root": str(folder), **options})


def test_parts_have_folders_of_their_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "more" / "x.png")
    own = {"train": {"root": str(tmp_path / "more")}, "val": {"root": str(tmp_path / "more")}, "test": {"root": str(folder)}}
    parts = build_data({"kind": "image_folder", "parts": own})
    assert len(parts.train) == 1
    assert len(parts.test) >= 10


def test_rendered_kinds_need_no_folder() -> None:
    parts = build_data({"kind": "scenes", "scenes": "shapes", "size": 32, "count": {"train": 2, "val": 1, "test": 1}})
    assert parts.classes == parts.test.classes
    assert "disk" in parts.classes
    samples = build_data({"kind": "samples", "tile": 64})
    assert all(samples.test[i].image.shape == (64, 64, 3) for i in range(len(samples.test)))


def test_an_unknown_kind_or_option_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"known: .*coco.*samples, scenes"):
        build_data({"kind": "imagenet"})
    with pytest.raises(InputError, match="no option 'roots': did you mean 'root'"):
        build_data({"kind": "image_folder", "roots": str(folder)})
    common = "square, middle, limit, white, fast_decode, parts, fractions, blocks"
    with pytest.raises(InputError, match=rf"'resiz'.*mean 'resize'.*{common}"):
        build_data({"kind": "image_folder", "root": str(folder), "resiz": 8})
    with pytest.raises(InputError, match=r"'limits'.*mean 'limit'"):
        build_data({"kind": "patterns", "count": {"train": 1, "val": 1, "test": 1}, "limits": {"train": 1}})
    with pytest.raises(InputError, match="no option 'scene'"):
        build_data({"kind": "scenes", "scene": "shapes"})


def test_val_is_cut_from_train_where_test_has_a_set_of_its_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "more" / "x.png")
    for i in range(10):
        (tmp_path / "train").mkdir(exist_ok=True)
        (folder / f"{i:02}.png").rename(tmp_path / "train" / f"{i:02}.png")
    own = {"train": {"root": str(tmp_path / "train")}, "test": {"root": str(tmp_path / "more")}}
    parts = build_data({"kind": "image_folder", "parts": own, "fractions": [0.8, 0.2]})
    names = [[p[i].name for i in range(len(p))] for p in (parts.train, parts.val, parts.test)]
    assert [len(n) for n in names] == [8, 2, 1]
    assert sorted(names[0] + names[1]) == [f"{i:02}.png" for i in range(10)], "disjoint, and together the training set"
    assert names[2] == ["x.png"]


def test_a_stored_set_is_read_once_for_all_parts_that_are_cut_from_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = ImageFolder.__init__

    def counted(self: ImageFolder, root: str) -> None:
        opened.append(root)
        original(self, root)

    monkeypatch.setattr(ImageFolder, "__init__", counted)
    build_data({"kind": "image_folder", "root": str(folder)})
    assert opened == [str(folder)]
    own = {"train": {"root": str(folder)}, "test": {"root": str(tmp_path)}}
    build_data({"kind": "image_folder", "parts": own, "fractions": [0.9, 0.1]})
    assert opened == [str(folder), str(folder), str(tmp_path)]


def test_blocks_cut_a_whole_set_and_the_training_folder(folder: Path) -> None:
    def sizes(**options: Any) -> list[int]:
        parts = build_data({"kind": "image_folder", "blocks": 1} | options)
        return [len(part) for part in (parts.train, parts.val, parts.test)]

    root = str(folder)
    whole = sum(sizes(root=root, fractions=[0.6, 0.2, 0.2]))
    assert sizes(root=root, fractions=[0.6, 0.2, 0.2]) == [
        round(0.6 * whole),
        round(0.8 * whole) - round(0.6 * whole),
        whole - round(0.8 * whole),
    ]
    assert sum(sizes(parts={"train": {"root": root}, "test": {"root": root}}, fractions=[0.5, 0.5])) == 2 * whole


@pytest.mark.parametrize(
    ("parts", "fractions", "message"),
    [
        (("train", "test"), None, "`fractions`.*val.*got train, test"),
        (("train", "val", "test"), [0.9, 0.1], "got train, val, test with fractions"),
        (("train", "val"), [0.9, 0.1], "got train, val with fractions"),
        (("train", "test"), [0.8, 0.1, 0.1], "expected two, of train and val"),
        (("train", "test"), [0.8, 0.1], "that sum to 1"),
        (("train", "test"), 0.9, "fractions: 0.9: .*list of numbers"),
        (("train", "test"), ["most", "few"], "expected a list of numbers"),
    ],
)
def test_parts_and_fractions_that_do_not_go_together_are_refused(
    folder: Path, parts: tuple[str, ...], fractions: Any, message: str
) -> None:
    config: dict[str, Any] = {"kind": "image_folder", "parts": {p: {"root": str(folder)} for p in parts}}
    if fractions is not None:
        config["fractions"] = fractions
    with pytest.raises(InputError, match=message):
        build_data(config)


def test_parts_with_different_classes_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    for i in range(10):
        Image.new("L", (30, 20)).save(tmp_path / "labels" / f"{i:02}.png")
    own = {"images": str(tmp_path / "images"), "labels": str(tmp_path / "labels")}
    (tmp_path / "images").mkdir()
    for i in range(10):
        (folder / f"{i:02}.png").rename(tmp_path / "images" / f"{i:02}.png")
    parts = {"train": own | {"classes": ["sky", "road"]}, "val": own | {"classes": ["sky", "road"]}}
    parts["test"] = own | {"classes": ["road", "sky"]}
    with pytest.raises(InputError, match=r"test.*road, sky.*train.*sky, road"):
        build_data({"kind": "image_label_folder", "parts": parts})


def test_images_of_two_parts_are_warned_of(folder: Path, tmp_path: Path) -> None:
    """The slip of VOC's trainval beside val: every test image is trained on, and the report looks fine."""
    for name in ("all", "apart"):
        (tmp_path / name).mkdir()
    for file in folder.glob("*.png"):
        file.rename(tmp_path / "all" / file.name)
    folder = tmp_path / "all"
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    Image.new("RGB", (30, 20)).save(tmp_path / "apart" / "00.png")
    roots = {"train": folder, "val": tmp_path / "apart", "test": tmp_path / "link"}
    data = {"kind": "image_folder", "parts": {part: {"root": str(root)} for part, root in roots.items()}, "limit": {"test": 4}}
    (text,) = build_data(data).test.warnings()
    assert text.startswith("4 of 4 test images are among those of train too, such as")
    assert "too good" in text
    data["parts"]["test"] = data["parts"]["val"]  # type: ignore[index]
    (text,) = build_data(data).train.warnings()
    assert text.startswith("1 of 1 test images are among those of val too")
    assert not build_data({"kind": "image_folder", "root": str(folder)}).train.warnings()


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_links_to_images_of_another_part_are_warned_of(folder: Path, tmp_path: Path, link: Callable[..., None]) -> None:
    roots = {part: tmp_path / f"of_{part}" for part in ("train", "val", "test")}
    files = sorted(folder.glob("*.png"))
    for number, root in enumerate(roots.values()):
        root.mkdir()
        files[number].rename(root / "own.png")
    link(roots["train"] / "own.png", roots["test"] / "another name.png")
    data = {"kind": "image_folder", "parts": {part: {"root": str(root)} for part, root in roots.items()}}
    (text,) = build_data(data).test.warnings()
    assert text.startswith("1 of 2 test images are among those of train too, such as")
    assert "another name.png" in text
