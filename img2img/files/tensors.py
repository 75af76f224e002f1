"""`.safetensors` files: the same bytes for the same values, and what a file holds before any of it is read."""

import json
import os
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from img2img.errors import InputError
from img2img.files.paths import expanded

MAX_TENSORS_HEADER = 1 << 24
"""Bytes of the longest description of tensors in a `.safetensors` file."""

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""Of each tensor by name its type, as `safetensors` spells it ("F32"), and its shape."""


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The content of a `safetensors` file, the same bytes for the same values: the library shuffles the keys of its metadata."""
    content = safetensors.torch.save(dict(tensors), metadata=dict(metadata))
    end = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:end])
    entries = {"__metadata__": dict(sorted(entries.pop("__metadata__").items())), **entries}
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)  # so that the tensors are aligned
    return len(header).to_bytes(8, "little") + header + content[end:]


def tensor_shapes(path: str | os.PathLike[str]) -> Shapes:
    """The tensors that a `.safetensors` file says it holds. None of them is read; the sizes fit the file's own.

    Raises:
        InputError: it is no such file, cut off, or describes more than `MAX_TENSORS_HEADER` bytes of names.
    """
    path = expanded(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > MAX_TENSORS_HEADER:
            raise ValueError(f"its header is to have {length} bytes")
        with safetensors.safe_open(path, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is damaged or no .safetensors file ({error}): copy it again") from error


FLOATS = ("F64", "F32", "F16", "BF16")
"""The types of floating point that networks are stored in. Those of 8 bits and fewer are none that a layer computes with."""


def check_shapes(path: str | os.PathLike[str], got: Shapes, expected: Mapping[str, Any], *, ignored: str = "") -> None:
    """Refuse a file whose tensors are not those of a network.

    Args:
        path: the file, for messages.
        got: what it holds.
        expected: the network's tensors by name, on any device, the meta device too.
        ignored: tensors of the network whose names begin with it need not be there.

    Raises:
        InputError: a tensor is missing or left over, or of another shape or kind of type.
    """
    wanted = {name: tensor for name, tensor in expected.items() if not (ignored and name.startswith(ignored))}
    odd = sorted(got.keys() ^ wanted.keys())
    if odd:
        raise InputError(
            f"{path} does not fit the network that is described beside it: {odd[:3]} missing or unexpected ({len(got)} tensors, "
            f"expected {len(wanted)}); copy both again"
        )
    for name, tensor in wanted.items():
        kind, shape = got[name]
        if shape != tuple(tensor.shape):
            raise InputError(
                f"{path} does not fit the network that is described beside it: {name} has the shape {shape}, expected "
                f"{tuple(tensor.shape)}; copy both again"
            )
        if (kind in FLOATS) != tensor.is_floating_point():
            raise InputError(f"{path}: {name} is of the type {kind}, expected {tensor.dtype}; copy the file again")
