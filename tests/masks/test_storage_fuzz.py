"""Thousands of damaged and forged task files: each is refused with an `InputError` or loads, and the network stays whole."""

import copy
import json
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mask_zoo import evaluate
from torch import nn

from img2img import InputError, MaskedNetwork, masks
from img2img.masks import task_header
from img2img.masks.file_header import checksum
from img2img.masks.storage import read_header, read_task_file, storage_table
from img2img.masks.tensors import all_tensors, hash_tensors

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
# What a head that fits its tensors may still say when it runs: a stride of 0, an interpolation that does not exist.
FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, NotImplementedError)


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class Case:
    """A network with one task in it, a file of another, and what that one gives."""

    def __init__(self, folder: Path, method: masks.MaskMethod, *, relative: bool) -> None:
        self.net = MaskedNetwork(Backbone(), head="head")
        self.net.add_task("base", masks.Piggyback(start="uniform"), head=nn.Conv2d(8, 2, 1))
        self.net.freeze_task("base")
        head = nn.Sequential(nn.Conv2d(8, 3, 1), nn.Upsample(scale_factor=2.0))
        self.net.add_task("file", method, head=head, start_from="base" if relative else None)
        self.path = self.net.save_task("file", folder / "file.safetensors", relative_to="base" if relative else None)
        assert (read_header(self.path)["relative_to"] is not None) == relative
        self.intact = self.path.read_bytes()
        self.expected = evaluate(self.net, "file", X)
        self.base = evaluate(self.net, "base", X)
        self.net.delete_task("file")
        self.sha256 = self.net.hash_backbone()

    def load(self, content: bytes) -> torch.Tensor | None:
        """The outputs of the file with this content; None when it is refused. The network is looked at either way."""
        self.path.write_bytes(content)
        outputs = None
        with suppress(InputError):
            self.net.load_task(self.path, name="loaded")
            outputs = self._outputs("loaded")
        for read in (read_header, storage_table):
            with suppress(InputError):
                read(self.path)
        assert self.net.tasks() == ("base",)
        return outputs

    def _outputs(self, task: str) -> torch.Tensor:
        try:
            return evaluate(self.net, task, X)
        except FORWARD_ERRORS:
            return torch.zeros(0)
        finally:
            self.net.delete_task(task)

    def check_whole(self) -> None:
        assert hash_tensors(all_tensors(self.net.backbone).items()) == self.sha256
        assert torch.equal(evaluate(self.net, "base", X), self.base)
        out = self.load(self.intact)
        assert out is not None
        assert torch.equal(out, self.expected)


CASES = {
    "bits": (masks.Piggyback(start="uniform"), False),
    "ternary, relative": (masks.Piggyback(ternary=True), True),
    "codes": (masks.KSM(start="uniform"), False),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    torch.manual_seed(0)
    method, relative = CASES[request.param]
    case = Case(tmp_path_factory.mktemp("fuzz"), method, relative=relative)
    yield case
    case.check_whole()


TRIALS = 200
"""Of edits by a generator with a seed, which are the same each time."""


def _damage(content: bytes, generator: np.random.Generator) -> bytes:
    data = bytearray(content)
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(int(generator.integers(1, 4))):
        # Half of the time in the header, which is where a change can mean something else.
        at = int(generator.integers(header if generator.random() < 0.5 else len(content)))
        length = int(generator.integers(1, 65))
        kind = int(generator.integers(6))
        if kind <= 1:
            data[at : at + 1] = bytes([data[at] ^ 1 << int(generator.integers(8))]) if at < len(data) else b""
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = generator.bytes(length)
        elif kind == 4:
            del data[at : at + length]
        else:
            data[at : at + length] = generator.bytes(length)
    return bytes(data)


def test_random_damage_is_refused_or_changes_nothing(case: Case) -> None:
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(TRIALS):
        outputs = case.load(_damage(case.intact, generator))
        refused += outputs is None
        assert outputs is None or torch.equal(outputs, case.expected)
    assert refused > 0.95 * TRIALS
    case.check_whole()


def test_every_truncation_is_refused(case: Case) -> None:
    for length in range(0, len(case.intact), max(1, len(case.intact) // 100)):
        assert case.load(case.intact[:length]) is None
    case.check_whole()


NASTY: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 10**12, 10**40, -(10**12), 0.5, -0.0, 1e308),
    *([], [1], [0, 0], [10**9, 10**9], [[]], {}, {"": 1}, {"dtype": "bool", "shape": [1], "entropy_bits": 1}),
    *("", "a", "\ud800", "x" * 1000, "mask", "bool", "uint8", "own", "frozen", "statistics", "reflect"),
    *("piggyback", "ksm", "identity", "affine", "supsup", "impresslearn", {"name": "identity", "options": {}}),
    *("Conv2d", "Linear", "Identity", "Sequential", "custom"),
    *({"kind": "Identity", "options": {}}, {"kind": "Sequential", "layers": []}),
]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below `value`."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found = []
    for key in keys:
        found += [(value, key), *_places(value[key])]
    return found


def _forged(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> bytes:
    header["checksum"] = checksum(header, tensors)
    metadata = {"format": task_header.FORMAT, "header": json.dumps(header)}
    return safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()}, metadata=metadata)


def _edit_header(header: dict[str, Any], generator: np.random.Generator) -> None:
    for _ in range(int(generator.integers(1, 3))):
        places = _places(header)
        container, key = places[int(generator.integers(len(places)))]
        kind = int(generator.integers(8))
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[str(generator.integers(100))] = container.pop(key)
        elif kind == 2:
            other, other_key = places[int(generator.integers(len(places)))]
            container[key] = copy.deepcopy(other[other_key])
        else:
            container[key] = copy.deepcopy(NASTY[int(generator.integers(len(NASTY)))])


def test_forged_headers_are_refused_or_load(case: Case, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    case.path.write_bytes(case.intact)
    header, tensors = read_task_file(case.path)
    refused = 0
    for _ in range(TRIALS):
        edited = copy.deepcopy(header)
        _edit_header(edited, generator)
        refused += case.load(_forged(edited, tensors)) is None
    assert refused > TRIALS / 2
    case.check_whole()


def _edit_tensors(tensors: dict[str, torch.Tensor], generator: np.random.Generator) -> None:
    names = sorted(tensors)
    name = names[int(generator.integers(len(names)))]
    tensor = tensors[name]
    kind = int(generator.integers(8))
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[name + "x" * int(generator.integers(2)) + "/mask" * int(generator.integers(2))] = tensor
    elif kind == 2:
        tensors[name] = tensors[names[int(generator.integers(len(names)))]]
    elif kind == 3:
        dtypes = [torch.bool, torch.uint8, torch.float16, torch.float64, torch.int64, torch.float8_e4m3fn, torch.complex64]
        tensors[name] = tensor.to(dtypes[int(generator.integers(len(dtypes)))])
    elif kind == 4:
        tensors[name] = tensor.reshape(-1)[: int(generator.integers(tensor.numel() + 1))].clone()
    elif kind == 5:
        tensors[name] = tensor.reshape(-1, *[1] * int(generator.integers(3)))
    elif tensor.numel():
        data = bytearray(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for _ in range(int(generator.integers(1, 4))):
            data[int(generator.integers(len(data)))] ^= 1 << int(generator.integers(8))
        tensors[name] = torch.frombuffer(data, dtype=tensor.dtype).view(tensor.shape)


def test_forged_tensors_are_refused_or_load(case: Case) -> None:
    generator = np.random.default_rng(2)
    case.path.write_bytes(case.intact)
    header, tensors = read_task_file(case.path)
    refused = 0
    for _ in range(TRIALS):
        edited = dict(tensors)
        _edit_tensors(edited, generator)
        content = _forged(dict(header), {name: t.clone() for name, t in edited.items()})
        refused += case.load(content) is None
    assert TRIALS / 2 < refused < TRIALS, "changed numbers of norm state and head load"
    case.check_whole()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON, place=st.integers(0, 10_000))
def test_any_json_anywhere_in_a_forged_header_is_refused_or_loads(case: Case, value: Any, place: int) -> None:
    case.path.write_bytes(case.intact)
    header, tensors = read_task_file(case.path)
    places = _places(header)
    container, key = places[place % len(places)]
    container[key] = value
    case.load(_forged(header, tensors))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), length=st.none() | st.integers(0, 2**64 - 1), text=JSON)
def test_any_bytes_and_any_json_as_a_file_are_refused(case: Case, content: bytes, length: int | None, text: Any) -> None:
    start = json.dumps({"__metadata__": text} if length is None else text).encode()
    assert case.load(struct.pack("<Q", len(start) if length is None else length) + start + content) is None
    assert case.load(content) is None
