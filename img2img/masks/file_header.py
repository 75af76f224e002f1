"""What the files of tasks and bases share: the bound on their headers, the checksum, and how damage is refused."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import safetensors
import torch
from torch import Tensor

from img2img.errors import InputError, shortened

MAX_HEADER = 1 << 22
"""Bytes of the longest header that is written or read. That of a network with thousands of weights has less than one million."""

_DAMAGE = (
    safetensors.SafetensorError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever goes wrong with what a file says into an `InputError` that begins with `what`."""
    try:
        yield
    except InputError:
        raise
    except _DAMAGE as error:
        why = shortened(f"{type(error).__name__}: {error}", 500)
        raise InputError(f"{what} ({why}): copy it again from where it came from") from error


def checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the header without its own `checksum`, and over every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256()
    bare = {k: v for k, v in header.items() if k != "checksum"}
    digest.update(json.dumps(bare, sort_keys=True, ensure_ascii=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
