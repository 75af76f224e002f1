from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from img2img.data.pairs import PairFolder
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
    with pytest.raises(InputError, match=r"odd\.png is 7 pixels wide: expected an even width"):
        pairs[0]


def test_another_side_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 4)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="a_side='top': expected 'left' or 'right'"):
        PairFolder(tmp_path, a_side="top")  # type: ignore[arg-type]


def test_missing_empty_and_damaged_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nearest that exists"):
        PairFolder(tmp_path / "gone")
    with pytest.raises(InputError, match="no picture in"):
        PairFolder(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(InputError, match=r"a\.jpg"):
        PairFolder(tmp_path)[0]
