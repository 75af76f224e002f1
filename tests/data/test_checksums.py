"""Which files a set reads, and what differs between two states of them."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from img2img.data import build_data
from img2img.data import checksums as stamp_module
from img2img.data.checksums import FileChecksum, combined_digest, file_changes, file_checksums


def _write(root: Path, **contents: str) -> dict[str, Path]:
    root.mkdir(exist_ok=True)
    for name, text in contents.items():
        (root / name).write_text(text)
    return {f"train/{name}": root / name for name in contents}


def test_a_copy_elsewhere_with_other_times_is_the_same(tmp_path: Path) -> None:
    files = _write(tmp_path / "a", x="one", y="two")
    before = file_checksums(files.items())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in (tmp_path / "b").iterdir():
        os.utime(path, (1, 1))
    moved = {name: tmp_path / "b" / path.name for name, path in reversed(files.items())}
    after = file_checksums(moved.items(), before)
    assert not file_changes(before, after)
    assert combined_digest(after) == combined_digest(before) != combined_digest({})


def test_another_content_of_the_same_size_is_a_change(tmp_path: Path) -> None:
    files = _write(tmp_path, x="one", y="two")
    before = file_checksums(files.items())
    (tmp_path / "x").write_text("eno")
    os.utime(tmp_path / "x", (1, 1))
    found = file_changes(before, file_checksums(files.items(), before))
    assert found.changed == ("train/x",)
    assert str(found) == "1 changed (train/x)"
    assert combined_digest(file_checksums(files.items())) != combined_digest(before)


def test_a_change_is_seen_where_the_time_was_set_back(tmp_path: Path) -> None:
    files = _write(tmp_path, x="one")
    os.utime(tmp_path / "x", (1, 1))
    before = file_checksums(files.items())
    time.sleep(0.02)  # the clock of file systems ticks in milliseconds
    (tmp_path / "x").write_text("eno")
    os.utime(tmp_path / "x", (1, 1))  # as an archive does whose files all have one time
    assert file_changes(before, file_checksums(files.items(), before)).changed == ("train/x",)


def test_what_was_not_touched_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = _write(tmp_path, x="one", y="two")
    before = file_checksums(files.items())
    opened: list[Path] = []
    monkeypatch.setattr(stamp_module, "_digest", lambda path, size, time: opened.append(path) or "new")
    os.utime(tmp_path / "y", (1, 1))
    file_checksums(files.items(), before)
    assert opened == [tmp_path / "y"]


def test_what_is_added_removed_and_moved_is_told_apart() -> None:
    a, b, c = (FileChecksum(1, 0, digest) for digest in "abc")
    found = file_changes({"train/1": a, "train/2": b, "test/3": c}, {"train/1": a, "train/3": c, "train/4": b})
    assert (found.added, found.removed, found.moved, found.changed) == (("train/4",), ("train/2",), ("train/3",), ())
    many = file_changes({}, {f"train/{i}": a for i in range(5)})
    assert str(many) == "5 added (train/0, train/1, train/2, ...)"


def test_each_part_names_the_files_of_its_own_samples(tmp_path: Path) -> None:
    for name, count in (("inputs", 10), ("targets", 11)):
        (tmp_path / name / "deep").mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / name / "deep" / f"{i}.png")
    two = {"inputs": str(tmp_path / "inputs"), "targets": str(tmp_path / "targets")}
    labelled = {"images": two["inputs"], "labels": two["targets"], "classes": [*"abcdefghijk"]}
    cases = (
        ({"kind": "paired_folders", **two}, ["deep/{}.png", "deep/{}.png (target)"]),
        ({"kind": "image_label_folder", **labelled}, ["deep/{}.png", "deep/{}.png (label)"]),
        ({"kind": "image_folder", "root": two["inputs"]}, ["deep/{}.png"]),
        ({"kind": "pairs", "root": two["inputs"]}, ["deep/{}.png"]),
        ({"kind": "class_folder", "root": str(tmp_path), "classes": ["inputs", "targets"]}, None),
    )
    for config, names in cases:
        parts = build_data({**config, "limit": {"train": 3}})
        seen = []
        for images in (parts.train, parts.val, parts.test):
            for index in range(len(images)):
                files = images.files(index)
                assert all(path.is_file() for _, path in files)
                number = images[index].image[0, 0, 0]
                if names is not None:
                    assert [name for name, _ in files] == [name.format(number) for name in names]
                seen += files
        assert len(parts.train) == 3, "a limit counts: the other files are not read"
        assert len(set(seen)) == len(seen)
