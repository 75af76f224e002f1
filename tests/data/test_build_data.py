"""Datasets from a config."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from img2img import InputError
from img2img.data import build_data


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
    assert len(set(names)) == 7, "no picture is in two parts"
    assert parts.test[0].image.shape == (10, 15, 3)


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
    with pytest.raises(InputError, match="known: scenes, samples, coco"):
        build_data({"kind": "imagenet"})
    with pytest.raises(InputError, match="no option 'roots': did you mean 'root'"):
        build_data({"kind": "image_folder", "roots": str(folder)})
    with pytest.raises(InputError, match="no option 'scene'"):
        build_data({"kind": "scenes", "scene": "shapes"})
