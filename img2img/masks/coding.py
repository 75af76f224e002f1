"""Masks and codes at their entropy: bool and uint8 tensors to bytes and back.

A bool tensor is range-coded with one probability for all of it, the fraction of its ones; a uint8 tensor with the frequency of
each value. Where that does not pay, and where the package constriction is not installed, bits are packed and bytes kept as
they are. The first byte says which; after it

    PLAIN     bool: the packed bits (`bits.pack_bits`); uint8: the values
    RANGE     bool: the number of ones. uint8: the highest value and the count of each value up to it. Then, unless all
              elements are equal, the CRC-32 of what is coded (the packed bits or the values) and the coder's words
    RELATIVE  bool alone: the length of the first of two such blobs, and those: of the elements where the reference is zero and
              of those where it is one, each with its own probability

Numbers are LEB128 varints, the CRC and the words 32 bits each, little-endian. Eight packed bits are one symbol to the coder,
which is three times as fast as one bit a symbol and costs nothing.
"""

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from img2img.errors import InputError

Array = npt.NDArray[Any]

PLAIN, RANGE, RELATIVE = 0, 1, 2
_NAMES = {PLAIN: "plain", RANGE: "range", RELATIVE: "relative"}
_ONES = np.array([byte.bit_count() for byte in range(256)])


def encode(values: Tensor, reference: Tensor | None = None) -> Tensor:
    """Code a tensor, in row-major order of its shape, as compactly as these coders can.

    Args:
        values: bool or uint8, of any shape, on any device.
        reference: bool, of the same shape, to code a bool tensor relative to where that is smaller; who decodes needs it too.

    Returns:
        The blob, (bytes,) uint8 on the CPU. It does not say the type and shape of `values`, which `decode` gets as arguments.

    Raises:
        InputError: `values` have another type, or `reference` another type or shape.
    """
    flat = _flat(values)
    if reference is not None and (reference.dtype != torch.bool or reference.shape != values.shape):
        raise InputError(
            f"got the reference {reference.dtype} {tuple(reference.shape)} for a mask of shape {tuple(values.shape)}: "
            "expected a bool tensor of that shape"
        )
    if values.dtype == torch.uint8:
        blob = _encode_codes(flat)
    else:
        blob = _encode_bits(flat)
        # The ideal sizes decide whether it is tried, since splitting and coding take far longer than counting.
        if reference is not None and entropy_bits(values, reference) < 8 * len(blob):
            blob = min(blob, _encode_relative(flat, _flat(reference)), key=len)
    return torch.frombuffer(bytearray(blob), dtype=torch.uint8)


def decode(blob: Tensor, dtype: torch.dtype, shape: Sequence[int], reference: Tensor | None = None) -> Tensor:
    """The tensor that `encode` coded, on the CPU.

    What is allocated is bounded by `shape` and the blob's own length, whatever the blob says.

    Args:
        blob: what `encode` gave.
        dtype: bool or uint8.
        shape: of the tensor; the caller has checked that it is no larger than it may be.
        reference: the one that was given to `encode`.

    Raises:
        InputError: the blob is damaged or does not fit type, shape and reference, or it needs a package that is missing.
    """
    kind = coder(blob)
    if dtype not in (torch.bool, torch.uint8):
        raise InputError(f"got {dtype} to decode to; only bool and uint8 are coded")
    size = math.prod(shape)
    data = blob.cpu().contiguous().numpy().tobytes()
    if dtype == torch.uint8:
        flat = _decode_codes(data, size)
    elif kind == "relative":
        if reference is None or reference.dtype != torch.bool or tuple(reference.shape) != tuple(shape):
            raise InputError(
                "a mask is coded relative to another task's, which is missing or of another shape: load that task first"
            )
        flat = _decode_relative(data, _flat(reference))
    else:
        flat = _decode_bits(data, size)
    try:
        return torch.from_numpy(flat).view(tuple(shape))
    except RuntimeError as error:  # an axis of length 0 among some whose product is beyond 64 bits
        raise _damaged(f"shape {tuple(shape)}: {error}") from error


def coder(blob: Tensor) -> str:
    """How a blob is coded: "plain", "range" or "relative".

    Raises:
        InputError: it is no blob.
    """
    if blob.dtype != torch.uint8 or blob.ndim != 1 or not len(blob) or int(blob[0]) not in _NAMES:
        raise _damaged(f"got {blob.dtype} of shape {tuple(blob.shape)}, {blob.flatten()[:1].tolist()} first")
    return _NAMES[int(blob[0])]


def entropy_bits(values: Tensor, reference: Tensor | None = None) -> float:
    """The ideal number of bits: `n H(p)`, `H` the entropy of one element with the frequencies `p` of the tensor's own values.

    With a reference, `Σ_r n_r H(p_r)`, where `n_r` elements have the reference `r` in {0, 1} and the frequencies `p_r`.
    """
    flat = _flat(values)
    if values.dtype == torch.uint8:
        return _ideal(np.bincount(flat, minlength=256).tolist())
    if reference is None:
        ones = int(np.count_nonzero(flat))
        return _ideal([ones, len(flat) - ones])
    other = _flat(reference)
    both, ones, others = (int(np.count_nonzero(a)) for a in (flat & other, flat, other))
    return _ideal([both, others - both]) + _ideal([ones - both, len(flat) - others - (ones - both)])


def _ideal(counts: Sequence[int]) -> float:
    total = sum(counts)
    return math.fsum(count * math.log2(total / count) for count in counts if count)


# ---------------------------------------------------------------------- bool


def _encode_bits(flat: Array) -> bytes:
    packed = np.packbits(flat, bitorder="little")
    plain = bytes([PLAIN]) + packed.tobytes()
    size, ones = len(flat), int(np.count_nonzero(flat))
    head = bytes([RANGE]) + _varint(ones)
    if ones in (0, size):
        return min(head, plain, key=len)
    stream = _constriction()
    if stream is None or len(head) + 4 + _ideal([ones, size - ones]) / 8 >= len(plain):
        return plain
    packed[-1] |= _padding(size, ones)
    model = _model(stream, _byte_probabilities(ones, size))
    return min(head + _crc(packed) + _encode_symbols(stream, model, packed), plain, key=len)


def _decode_bits(data: bytes, size: int) -> Array:
    length = (size + 7) // 8
    if data[:1] == bytes([PLAIN]):
        packed = np.frombuffer(data, np.uint8, offset=1)
        if len(packed) != length or (size % 8 and packed[-1] >> size % 8):
            raise _damaged(f"{len(packed)} bytes of packed bits for {size} elements, or bits after the last")
        return np.unpackbits(packed, count=size, bitorder="little").view(np.bool_)
    if data[:1] != bytes([RANGE]):
        raise _damaged(f"it begins with {data[:1]!r}")
    ones, at = _read_varint(data, 1)
    if ones > size:
        raise _damaged(f"{ones} ones among {size} elements")
    if ones in (0, size):
        if at != len(data):
            raise _damaged("it is too long")
        return np.full(size, ones > 0)
    stream = _required()
    packed = _decode_symbols(stream, _model(stream, _byte_probabilities(ones, size)), data, at, length)
    flat = np.unpackbits(packed, count=size, bitorder="little").view(np.bool_)
    if np.count_nonzero(flat) != ones:
        raise _damaged(f"it has {np.count_nonzero(flat)} ones, not {ones} as it says")
    return flat


def _padding(size: int, ones: int) -> int:
    """What fills the last byte up: the likelier value."""
    return 0xFF << size % 8 & 0xFF if size % 8 and 2 * ones > size else 0


def _byte_probabilities(ones: int, size: int) -> Array:
    """The probability of each byte, `p^k (1 - p)^(8 - k)` for k ones.

    By products in a fixed order, each rounded as IEEE 754 says: the same on every platform, which `pow` is not.
    """
    p, q = [1.0], [1.0]
    for _ in range(8):
        p.append(p[-1] * (ones / size))
        q.append(q[-1] * ((size - ones) / size))
    return np.array([p[k] * q[8 - k] for k in range(9)])[_ONES]


def _encode_relative(flat: Array, reference: Array) -> bytes:
    first = _encode_bits(flat[~reference])
    return bytes([RELATIVE]) + _varint(len(first)) + first + _encode_bits(flat[reference])


def _decode_relative(data: bytes, reference: Array) -> Array:
    length, at = _read_varint(data, 1)
    ones = int(np.count_nonzero(reference))
    flat = np.empty(len(reference), np.bool_)
    flat[~reference] = _decode_bits(data[at : at + length], len(reference) - ones)
    flat[reference] = _decode_bits(data[at + length :], ones)
    return flat


# ---------------------------------------------------------------------- uint8


def _encode_codes(flat: Array) -> bytes:
    plain = bytes([PLAIN]) + flat.tobytes()
    if len(flat) == 0:
        return plain
    counts = np.bincount(flat).tolist()
    head = bytes([RANGE, len(counts) - 1]) + b"".join(map(_varint, counts))
    if len(flat) in counts:
        return min(head, plain, key=len)
    stream = _constriction()
    if stream is None or len(head) + 4 + _ideal(counts) / 8 >= len(plain):
        return plain
    model = _model(stream, np.array(counts) / len(flat))
    return min(head + _crc(flat) + _encode_symbols(stream, model, flat), plain, key=len)


def _decode_codes(data: bytes, size: int) -> Array:
    if data[:1] == bytes([PLAIN]):
        if len(data) != 1 + size:
            raise _damaged(f"{len(data) - 1} values for {size} elements")
        return np.frombuffer(data, np.uint8, offset=1).copy()
    if data[:1] != bytes([RANGE]) or len(data) < 2:
        raise _damaged(f"it begins with {data[:2]!r}")
    counts, at = [], 2
    for _ in range(data[1] + 1):
        count, at = _read_varint(data, at)
        counts.append(count)
    if sum(counts) != size or size == 0:
        raise _damaged(f"it counts {sum(counts)} values, expected {size}")
    if size in counts:
        if at != len(data):
            raise _damaged("it is too long")
        return np.full(size, counts.index(size), np.uint8)
    stream = _required()
    flat = _decode_symbols(stream, _model(stream, np.array(counts) / size), data, at, size)
    if not np.array_equal(np.bincount(flat, minlength=len(counts)), counts):
        raise _damaged("its values are not those that it counts")
    return flat


# ---------------------------------------------------------------------- the range coder


def _constriction() -> Any:
    """The coders of constriction; None where it is not installed."""
    try:
        from constriction import stream
    except ModuleNotFoundError as error:
        if error.name != "constriction":
            raise  # it is installed and broken: masks would become larger without a word
        return None
    return stream


def _required() -> Any:
    stream = _constriction()
    if stream is None:
        raise InputError("a mask is range-coded, which needs the package constriction to read: pip install constriction")
    return stream


def _model(stream: Any, probabilities: Array) -> Any:
    # Both options change the coded words, so they are part of the format.
    return stream.model.Categorical(probabilities, perfect=False, lazy=False)


def _encode_symbols(stream: Any, model: Any, symbols: Array) -> bytes:
    range_encoder = stream.queue.RangeEncoder()
    range_encoder.encode(symbols.astype(np.int32), model)
    words: bytes = range_encoder.get_compressed().astype("<u4").tobytes()
    return words


def _decode_symbols(stream: Any, model: Any, data: bytes, at: int, count: int) -> Array:
    """`count` bytes from the CRC and words at `at`.

    The CRC would also find a constriction that decodes otherwise than the one that coded, which it promises not to do.
    """
    if len(data) < at + 4 or (len(data) - at) % 4:
        raise _damaged(f"{len(data) - at} bytes of words")
    words = np.frombuffer(data, "<u4", offset=at + 4).astype(np.uint32)
    range_decoder = stream.queue.RangeDecoder(words)
    try:
        symbols: Array = range_decoder.decode(model, count).astype(np.uint8)
    except AssertionError as error:  # how constriction says that no encoder writes such words
        raise _damaged(str(error)) from error
    if not range_decoder.maybe_exhausted() or _crc(symbols) != data[at : at + 4]:
        raise _damaged("its CRC-32 or length differs")
    return symbols


# ---------------------------------------------------------------------- bytes


def _flat(tensor: Tensor) -> Array:
    if tensor.dtype not in (torch.bool, torch.uint8):
        raise InputError(f"got a tensor of {tensor.dtype}; only bool and uint8 are coded")
    array: Array = tensor.detach().cpu().contiguous().view(-1).numpy()
    return array


def _crc(symbols: Array) -> bytes:
    return zlib.crc32(symbols.data).to_bytes(4, "little")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for index, byte in enumerate(data[at : at + 9]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, at + index + 1
    raise _damaged("a number in it has no end")


def _damaged(why: str) -> InputError:
    return InputError(f"a coded tensor is damaged ({why}): copy the file again from where it came from")
