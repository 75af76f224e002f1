"""One matrix out of a MATLAB file of version 5, such as SBD's labels are.

Source: MathWorks, "MAT-File Format", level 5. Not `scipy.io.loadmat`: a damaged byte in an uncompressed file makes its compiled
reader (1.17) crash the process or ask for gigabytes. Nothing here is allocated by what a file claims, but by what it holds.
"""

import math
import os
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from img2img.errors import InputError
from img2img.files.paths import expanded

MAX_BYTES = 1 << 28
"""A variable is refused that is larger than this after decompression; a label of 89 million pixels is smaller."""

# Types of a data element, and classes of an array (tables 1-1 and 1-3 of the source).
_UINT8, _MATRIX, _COMPRESSED = 2, 14, 15
_STRUCT_CLASS, _UINT8_CLASS = 2, 9


def read_uint8_field(path: str | os.PathLike[str], variable: str, field: str) -> NDArray[np.uint8]:
    """The uint8 matrix in a field of a variable that is a 1x1 structure.

    Returns:
        (H, W) uint8.

    Raises:
        InputError: no such file, a damaged file or one of another version, or no uint8 matrix in that place.
    """
    path = expanded(path)
    if not path.is_file():
        raise InputError(f"no file at {path}: expected a MATLAB file there; unpack the data again")
    content = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None or content[124:126] not in (b"\x00\x01", b"\x01\x00"):
        raise InputError(f"{path} is not a MATLAB file of version 5: expected one; take the original file, or save with -v7")
    try:
        label = _find(content[128:], order, variable, field)
    except (struct.error, zlib.error, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): expected a whole MATLAB file; unpack it again") from error
    if label is None:
        raise InputError(f"{path} has no uint8 matrix {variable}.{field}: expected one; take the file that was published")
    return label


def _find(content: bytes, order: str, variable: str, field: str) -> NDArray[np.uint8] | None:
    for kind, data in _elements(content, order):
        if kind == _COMPRESSED:
            kind, data = next(_elements(_decompressed(data), order), (0, b""))
        if kind != _MATRIX:
            continue
        flags, dims, name, rest = _header(data, order)
        if name != variable or flags != _STRUCT_CLASS or math.prod(dims) != 1:
            continue
        parts = _elements(rest, order)
        (_, length), (_, names) = next(parts, (0, b"")), next(parts, (0, b""))
        (size,) = struct.unpack(f"{order}i", length)
        if size < 1:
            raise ValueError(f"field names of {size} bytes")
        for start, (_, value) in zip(range(0, len(names), size), parts, strict=False):
            if names[start : start + size].rstrip(b"\0") == field.encode():
                return _matrix(value, order)
    return None


def _matrix(data: bytes, order: str) -> NDArray[np.uint8] | None:
    """The values of a uint8 matrix, which are stored column by column; None for an array of another kind."""
    if not data:  # an empty array may be written without any header
        return None
    flags, dims, _, rest = _header(data, order)
    if flags != _UINT8_CLASS or len(dims) != 2:
        return None
    kind, values = next(_elements(rest, order), (0, b""))
    if kind != _UINT8 or min(dims) < 1 or len(values) != math.prod(dims):
        raise ValueError(f"a matrix of {dims} with {len(values)} values")
    return np.frombuffer(values, np.uint8).reshape(dims, order="F").copy(order="C")


def _header(data: bytes, order: str) -> tuple[int, tuple[int, ...], str, bytes]:
    """The class, sizes and name of an array, and the elements after them."""
    flags, at = _element(data, 0, order)[1:]
    dims, at = _element(data, at, order)[1:]
    name, at = _element(data, at, order)[1:]
    sizes = struct.unpack(f"{order}{len(dims) // 4}i", dims)
    return struct.unpack(f"{order}2I", flags)[0] & 0xFF, sizes, name.decode("latin-1"), data[at:]


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        kind, value, at = _element(data, at, order)
        yield kind, value


def _element(data: bytes, at: int, order: str) -> tuple[int, bytes, int]:
    """The type and bytes of the data element at a position, and where the next begins."""
    first, size = struct.unpack_from(f"{order}2I", data, at)
    if first >> 16:  # small: size and type share a word, and the value is the next one
        kind, size, start, end = first & 0xFFFF, first >> 16, at + 4, at + 8
    else:
        kind, start = first, at + 8
        end = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
    if size > (4 if first >> 16 else len(data) - start):
        raise ValueError(f"an element of {size} bytes at the position {at} of {len(data)}")
    return kind, data[start : start + size], end


def _decompressed(data: bytes) -> bytes:
    reader = zlib.decompressobj()
    content = reader.decompress(data, MAX_BYTES)
    if not reader.eof:
        raise ValueError(f"a compressed variable that is cut off or larger than {MAX_BYTES:,} bytes")
    return content
