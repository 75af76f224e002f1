"""Coded masks: what comes back, how small they are, and that no blob does harm."""

import math
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from img2img import InputError
from img2img.masks import coding
from img2img.masks.coding import coder, decode, encode, entropy_bits
from img2img.masks.tensors import pack_bits, unpack_bits

DENSITIES = [0.0, 1e-4, 0.02, 0.5, 0.97, 1.0]
HEADER_BITS = 8 * 16  # kind, counts, CRC-32 and the coder's last words


def _bits(size: int, density: float, seed: int = 0) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) < density


def _codes(size: int, spread: float) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0)).mul(spread).add(128).clamp(0, 255).to(torch.uint8)


@pytest.fixture
def no_constriction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "constriction", None)  # importing it raises ImportError


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1000, 1_000_000])
def test_bits_come_back_and_are_never_longer_than_packed(size: int, density: float) -> None:
    mask = _bits(size, density)
    blob = encode(mask)
    assert torch.equal(decode(blob, torch.bool, (size,)), mask)
    assert len(blob) <= 1 + (size + 7) // 8


@pytest.mark.parametrize("density", [1e-5, 1e-4, 1e-3, 0.02, 0.1, 0.3, 0.45, 0.5, 0.7, 0.97, 0.999])
def test_a_million_bits_take_at_most_a_hundredth_more_than_their_entropy(density: float) -> None:
    mask = _bits(1_000_000, density)
    assert 8 * len(encode(mask)) <= 1.01 * entropy_bits(mask) + HEADER_BITS


def test_the_entropy_is_shannons() -> None:
    mask = torch.tensor([True] * 3 + [False] * 5)
    assert entropy_bits(mask) == pytest.approx(8 * -(3 / 8 * math.log2(3 / 8) + 5 / 8 * math.log2(5 / 8)))
    assert entropy_bits(torch.ones(9, dtype=torch.bool)) == entropy_bits(torch.zeros(0, dtype=torch.bool)) == 0
    codes = torch.tensor([7, 7, 7, 200], dtype=torch.uint8)
    assert entropy_bits(codes) == pytest.approx(4 * -(3 / 4 * math.log2(3 / 4) + 1 / 4 * math.log2(1 / 4)))


def test_the_entropy_given_a_reference_is_that_of_its_two_halves() -> None:
    mask, reference = _bits(500, 0.3), _bits(500, 0.6, seed=1)
    expected = entropy_bits(mask[reference]) + entropy_bits(mask[~reference])
    assert entropy_bits(mask, reference) == pytest.approx(expected)


@pytest.mark.parametrize(("value", "size"), [(False, 10**6), (True, 10**6), (False, 9)])
def test_a_constant_mask_costs_some_bytes(value: bool, size: int) -> None:
    mask = torch.full((size,), value)
    assert len(encode(mask)) <= 5
    assert torch.equal(decode(encode(mask), torch.bool, (size,)), mask)


def test_the_order_is_row_major_whatever_the_memory_format() -> None:
    mask = _bits(2 * 3 * 4 * 5, 0.2).view(2, 3, 4, 5)
    blob = encode(mask.to(memory_format=torch.channels_last))
    assert torch.equal(blob, encode(mask))
    assert torch.equal(decode(blob, torch.bool, (2, 3, 4, 5)), mask)
    assert torch.equal(decode(encode(torch.tensor(True)), torch.bool, ()), torch.tensor(True))


def test_the_layout_of_plain_bits_and_of_range_coded_ones_is_the_documented_one() -> None:
    assert encode(torch.tensor([True, False, True] + [False] * 6 + [True])).tolist() == [0, 0b101, 0b10]
    mask = _bits(10_000, 0.02)
    ones = int(mask.sum())
    blob = encode(mask).numpy().tobytes()
    packed = np.packbits(mask.numpy(), bitorder="little").tobytes()
    assert 128 <= ones < 1 << 14
    assert blob[:3] == bytes([1, ones & 127 | 128, ones >> 7]), "kind, then the number of ones as a varint"
    assert struct.unpack("<I", blob[3:7]) == (zlib.crc32(packed),)
    assert (len(blob) - 7) % 4 == 0


def test_the_coders_words_are_those_of_the_version_that_the_format_began_with() -> None:
    """Files stay readable as long as this holds: a constriction that codes otherwise would be noticed here."""
    mask = torch.arange(400) ** 2 % 97 == 0
    assert bytes(encode(mask).tolist()).hex() == "0105d302d9082b1161e80515bb7b"
    codes = (torch.arange(120) % 40 // 13).to(torch.uint8)
    assert bytes(encode(codes).tolist()).hex() == "010327272703f50d7693a5030000bab6304c9eec4c92a7a931766b0bdb668a1ecee7f9791f37"


def test_probabilities_of_bytes_are_those_of_their_bits() -> None:
    p = 3 / 7
    expected = [p ** bin(b).count("1") * (1 - p) ** (8 - bin(b).count("1")) for b in range(256)]
    assert coding._byte_probabilities(3, 7).tolist() == pytest.approx(expected, rel=1e-13)
    assert sum(expected) == pytest.approx(1)


@pytest.mark.parametrize("size", [1, 100, 100_000])
@pytest.mark.parametrize("spread", [0.0, 0.4, 3.0, 30.0, 1000.0])
def test_codes_come_back_and_are_never_longer_than_raw(size: int, spread: float) -> None:
    codes = _codes(size, spread)
    blob = encode(codes)
    assert torch.equal(decode(blob, torch.uint8, (size,)), codes)
    assert len(blob) <= 1 + size


def test_codes_of_unequal_frequency_take_their_entropy_and_the_table() -> None:
    codes = _codes(100_000, 10.0)
    table = 3 * (int(codes.max()) + 1)
    assert 8 * len(encode(codes)) <= 1.01 * entropy_bits(codes) + 8 * table + HEADER_BITS
    assert coder(encode(codes)) == "range"
    uniform = torch.arange(256, dtype=torch.uint8).repeat(20)
    assert coder(encode(uniform)) == "plain"
    assert len(encode(torch.full((10_000,), 3, dtype=torch.uint8))) < 10


@pytest.mark.parametrize("flipped", [0.0, 0.001, 0.05])
@pytest.mark.parametrize("density", [0.05, 0.5, 0.9])
def test_a_mask_like_its_reference_costs_what_differs(density: float, flipped: float) -> None:
    reference = _bits(100_000, density)
    mask = reference ^ _bits(100_000, flipped, seed=1)
    blob = encode(mask, reference)
    assert coder(blob) == "relative"
    assert len(blob) < 0.8 * len(encode(mask))
    assert 8 * len(blob) <= 1.01 * entropy_bits(mask, reference) + 2 * HEADER_BITS
    assert torch.equal(decode(blob, torch.bool, mask.shape, reference), mask)


def test_a_mask_unlike_its_reference_is_coded_without_it() -> None:
    mask, reference = _bits(10_000, 0.3), _bits(10_000, 0.3, seed=1)
    blob = encode(mask, reference)
    assert torch.equal(blob, encode(mask))
    assert torch.equal(decode(blob, torch.bool, mask.shape), mask), "so it can be decoded without it"


def test_a_mask_that_is_its_references_opposite_costs_nothing_either() -> None:
    reference = _bits(10_000, 0.5)
    assert len(encode(~reference, reference)) < 12


def test_another_reference_or_none_is_refused() -> None:
    reference = _bits(10_000, 0.5)
    blob = encode(reference ^ _bits(10_000, 0.01, seed=1), reference)
    for other in (None, reference[1:], reference.to(torch.uint8), ~reference, _bits(10_000, 0.5, seed=2)):
        with pytest.raises(InputError):
            decode(blob, torch.bool, (10_000,), other)


def test_what_is_neither_bool_nor_uint8_is_refused() -> None:
    with pytest.raises(InputError, match=r"torch\.float32; only bool and uint8"):
        encode(torch.zeros(3))
    with pytest.raises(InputError, match="reference"):
        encode(torch.zeros(3, dtype=torch.bool), torch.zeros(4, dtype=torch.bool))
    byte = torch.zeros((), dtype=torch.uint8)
    for blob in (torch.zeros(3), byte, byte.view(1, 1), byte[None][:0], byte[None] + 9):
        with pytest.raises(InputError, match="damaged"):
            decode(blob, torch.bool, (3,))
        with pytest.raises(InputError, match="damaged"):
            coder(blob)
    with pytest.raises(InputError, match="damaged"):
        decode(byte[None], torch.bool, (2**61, 2**61, 0))
    with pytest.raises(InputError, match=r"torch\.float32 to decode to"):
        decode(torch.zeros(4, dtype=torch.uint8), torch.float32, (3,))


@pytest.mark.usefixtures("no_constriction")
@pytest.mark.parametrize("density", DENSITIES)
def test_without_constriction_bits_are_packed_and_bytes_kept(density: float) -> None:
    mask, codes = _bits(1001, density), _codes(1001, 5.0)
    blob = encode(mask)
    assert len(blob) == (2 if density == 0 else 3 if density == 1 else 1 + 126)
    assert torch.equal(decode(blob, torch.bool, (1001,)), mask)
    assert encode(codes).tolist() == [0, *codes.tolist()]
    assert torch.equal(decode(encode(codes), torch.uint8, (1001,)), codes)
    nearly = mask.clone()
    nearly[:5] ^= True
    assert torch.equal(decode(encode(nearly, mask), torch.bool, (1001,), mask), nearly)


def test_reading_what_is_range_coded_without_constriction_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    mask, codes = _bits(1000, 0.05), _codes(1000, 2.0)
    blobs = encode(mask), encode(codes)
    monkeypatch.setitem(sys.modules, "constriction", None)
    for blob, dtype in zip(blobs, (torch.bool, torch.uint8), strict=True):
        with pytest.raises(InputError, match="pip install constriction"):
            decode(blob, dtype, (1000,))


def _damage(blob: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    data = bytearray(blob.numpy().tobytes())
    for _ in range(generator.integers(1, 4)):
        at = int(generator.integers(len(data) + 1))
        kind = generator.integers(5)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            del data[at : at + int(generator.integers(1, 9))]
        elif kind == 2:
            data[at:at] = generator.bytes(int(generator.integers(1, 9)))
        elif kind == 3:
            data[: int(generator.integers(12))] = generator.bytes(int(generator.integers(12)))
        else:
            data[:1] = bytes([int(generator.integers(4))])
    return torch.from_numpy(np.frombuffer(bytes(data), np.uint8).copy())


def test_damaged_blobs_are_refused_or_give_a_tensor_of_the_type_and_shape_asked_for() -> None:
    """A blob can be changed into another one that is whole; but what is range-coded has a CRC of its own."""
    generator = np.random.default_rng(0)
    reference = _bits(999, 0.4)
    cases = [(_bits(999, p), None) for p in (0.0, 0.03, 0.5, 1.0)] + [(_codes(999, s), None) for s in (0.0, 2.0, 1000.0)]
    cases.append((reference ^ _bits(999, 0.02, seed=1), reference))
    refused = 0
    for values, other in cases:
        blob = encode(values, other)
        for _ in range(600):
            try:
                out = decode(_damage(blob, generator), values.dtype, (27, 37), other)
            except InputError:
                refused += 1
            else:
                assert out.dtype == values.dtype
                assert out.shape == (27, 37)
                assert out.dtype != torch.bool or set(out.view(torch.uint8).unique().tolist()) <= {0, 1}
    assert refused > 3000


@pytest.mark.parametrize("values", [_bits(4000, 0.03), _codes(4000, 3.0)], ids=["bits", "codes"])
def test_any_change_to_the_coders_words_is_found(values: torch.Tensor) -> None:
    blob = encode(values)
    for position in range(len(blob) - 80, len(blob), 3):
        changed = blob.clone()
        changed[position] ^= 1
        try:
            out = decode(changed, values.dtype, values.shape)
        except InputError:
            continue
        assert torch.equal(out, values), "the last word may be any of several"


def test_bits_after_the_last_and_bytes_after_the_end_are_refused() -> None:
    blobs = [([0, 0b1101], torch.bool, 3), ([0, 0b101, 0], torch.bool, 3), ([1, 0, 0], torch.bool, 900)]
    blobs += [([0, 1, 2, 3, 4], torch.uint8, 3), ([1, 0, 3, 0], torch.uint8, 3)]
    for values, dtype, size in blobs:
        with pytest.raises(InputError, match="damaged"):
            decode(torch.tensor(values, dtype=torch.uint8), dtype, (size,))
    mask = _bits(800, 0.05)
    with pytest.raises(InputError, match="damaged"):
        decode(torch.cat([encode(mask), torch.zeros(12, dtype=torch.uint8)]), torch.bool, (800,))


def _range_coded(mask: torch.Tensor, *, ones: int, crc_of: torch.Tensor) -> torch.Tensor:
    """A blob of the words that are `mask` to whoever reads `ones`, with the CRC of another mask."""
    stream = coding._constriction()
    packed, other = (np.packbits(m.numpy(), bitorder="little") for m in (mask, crc_of))
    words = coding._encode_symbols(stream, coding._model(stream, coding._byte_probabilities(ones, len(mask))), packed)
    data = bytes([coding.RANGE]) + coding._varint(ones) + coding._crc(other) + words
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def test_both_the_number_of_ones_and_the_crc_must_be_those_of_what_is_decoded() -> None:
    mask = _bits(800, 0.05)
    ones = int(mask.sum())
    assert torch.equal(_range_coded(mask, ones=ones, crc_of=mask), encode(mask))
    with pytest.raises(InputError, match=f"it has {ones} ones, not {ones + 1}"):
        decode(_range_coded(mask, ones=ones + 1, crc_of=mask), torch.bool, (800,))
    with pytest.raises(InputError, match="CRC"):
        decode(_range_coded(mask.roll(1), ones=ones, crc_of=mask), torch.bool, (800,))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([torch.bool, torch.uint8]), st.integers(0, 2000), st.booleans())
def test_arbitrary_bytes_are_refused_or_decoded(data: bytes, dtype: torch.dtype, size: int, referred: bool) -> None:
    blob = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
    try:
        out = decode(blob, dtype, (size,), _bits(size, 0.5) if referred else None)
    except InputError:
        return
    assert out.dtype == dtype
    assert out.shape == (size,)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 300), st.integers(0, 2**32 - 1), st.sampled_from(DENSITIES), st.sampled_from(DENSITIES))
def test_every_mask_comes_back_with_and_without_reference(size: int, seed: int, density: float, flipped: float) -> None:
    reference = _bits(size, density, seed)
    mask = reference ^ _bits(size, flipped, seed + 1)
    assert torch.equal(decode(encode(mask), torch.bool, (size,)), mask)
    blob = encode(mask, reference)
    assert len(blob) <= len(encode(mask))
    assert torch.equal(decode(blob, torch.bool, (size,), reference), mask)


# ---------------------------------------------------------------------- packed bits


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5), (2, 3, 3, 3), (0,)])
def test_packed_bits_are_an_eighth_and_come_back(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape) < 0.3
    bits = pack_bits(mask)
    assert bits.numel() == (mask.numel() + 7) // 8
    assert torch.equal(unpack_bits(bits, mask.shape), mask)


def test_packed_bits_are_in_row_major_order_lowest_first() -> None:
    mask = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 1, 0]]).bool()
    assert pack_bits(mask).tolist() == [0b10000001, 0b0]
    assert torch.equal(pack_bits(mask.t().contiguous().t()), pack_bits(mask))
