"""Pickles of arrays; what they must not do is tested with `convert_vgg16`, for which the reader was written."""

import pickle

import numpy as np
import pytest

from img2img.errors import InputError
from img2img.files.unpickle import read_pickled_arrays


def read(path, *dtypes):
    return read_pickled_arrays(path, dtypes=dtypes, expected="a pickle of a test", remedy="write it")


def test_arrays_come_back_in_their_containers(tmp_path) -> None:
    array = np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    (tmp_path / "a").write_bytes(pickle.dumps({"data": [array], "labels": [3, 1], "names": ["café"]}))
    content = read(tmp_path / "a", "u1")
    np.testing.assert_array_equal(content["data"][0], array)
    assert content["labels"] == [3, 1]
    assert content["names"] == ["café"]


def test_arrays_of_another_type_are_refused(tmp_path) -> None:
    (tmp_path / "a").write_bytes(pickle.dumps(np.zeros(2, np.float32)))
    with pytest.raises(InputError, match=r"'f4'.*a pickle of a test"):
        read(tmp_path / "a", "u1")


def test_a_missing_file_says_what_to_do(tmp_path) -> None:
    with pytest.raises(InputError, match=r"nowhere.*a pickle of a test"):
        read(tmp_path / "nowhere", "u1")
