"""Arrays in a pickle from an untrusted source.

A pickle can run any program, so this reader lets it name three things of numpy and nothing else.
"""

import io
import os
import pickle
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from img2img.errors import InputError
from img2img.files.paths import expanded

_NDARRAY = "ndarray"  # stands for the class, which a pickle names but has no need to call


def read_pickled_arrays(
    path: str | os.PathLike[str], *, dtypes: Collection[str], expected: str, remedy: str, encoding: str = "ASCII"
) -> Any:
    """The containers, numbers, texts and arrays in a pickle.

    Args:
        path: the file.
        dtypes: the types that arrays may have, as pickles spell them: `("f4", "<f4")`, `("u1",)`.
        expected: what the file should be, for messages: "a pickle of float32 arrays, such as vgg16.ckpt".
        remedy: what to do when there is no such file, for messages.
        encoding: how texts written by Python 2 are read; "latin1" if there are arrays among them.

    Raises:
        InputError: there is no such file, it is no pickle, or it names anything but arrays; nothing of it has been run.
    """
    path = expanded(path)
    if not path.is_file():
        raise InputError(f"no file at {str(path)!r}: expected {expected}; {remedy}")
    try:
        return _ArrayUnpickler(path.read_bytes(), dtypes, encoding).load()
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle makes the unpickler raise almost anything
        raise InputError(f"{path} was refused ({error}): expected {expected}; do not use this file") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Reads containers and numpy's arrays of some types. Every other class or function is refused by its name."""

    def __init__(self, content: bytes, dtypes: Collection[str], encoding: str) -> None:
        super().__init__(io.BytesIO(content), encoding=encoding)

        def dtype(code: str, align: bool = False, copy: bool = True) -> np.dtype[Any]:
            if code not in dtypes:
                raise pickle.UnpicklingError(f"an array of the type {code!r}")
            return np.dtype(code, copy=True)  # a copy, since the pickle goes on to set its byte order

        self._allowed = {
            ("numpy", "ndarray"): _NDARRAY,
            ("numpy", "dtype"): dtype,
            # numpy 2 renamed the module; pickles carry the name of the numpy that wrote them.
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array") from None


def _reconstruct(kind: str, shape: tuple[int, ...], code: bytes | str) -> NDArray[Any]:
    # An empty array, as numpy makes here too: type, shape and bytes follow, and numpy checks them.
    return np.empty(0, np.int8)
