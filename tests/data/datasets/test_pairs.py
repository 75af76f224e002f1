from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from img2img.data import build_data
from img2img.data.datasets.pairs import PairedFolders, PairFolder
from img2img.errors import InputError


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
