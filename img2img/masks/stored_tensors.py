"""A task file's tensors compared with those that a network and a head have, and the head rebuilt around them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.masks.file_header import refusing
from img2img.masks.frozen_backbone import FrozenBackbone
from img2img.masks.heads import build_head
from img2img.masks.meta import meta_device
from img2img.masks.tensors import all_tensors

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""The types of floating point that a network may be stored in; those of 8 bits and fewer are none that layers compute with."""


def matching(what: str, got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`got` after a check of names, shapes and kinds of type, in the types of `expected`."""
    if got.keys() != expected.keys():
        odd = sorted(got.keys() ^ expected.keys())
        raise InputError(f"{what}: {odd[:3]} missing or unexpected ({len(got)} tensors, expected {len(expected)})")
    for name, tensor in got.items():
        like = expected[name]
        if tensor.shape != like.shape:
            raise InputError(f"{what}: {name} has shape {tuple(tensor.shape)}, expected {tuple(like.shape)}")
        if tensor.dtype != like.dtype and not {tensor.dtype, like.dtype} <= {*_FLOATS}:
            raise InputError(f"{what}: {name} is {tensor.dtype}, expected {like.dtype}")
    return {name: tensor.to(expected[name].dtype) for name, tensor in got.items()}


def head_tensors(head: nn.Module | None) -> dict[str, Tensor]:
    """What of a head is stored: parameters and persistent buffers, a tied one once."""
    if head is None:
        return {}
    names = head.state_dict().keys()
    return {name: tensor for name, tensor in all_tensors(head).items() if name in names}


def float_dtype(backbone: FrozenBackbone) -> torch.dtype:
    """What the backbone's features are made of, float32 unless it was cast."""
    return next((t.dtype for t in backbone.frozen_tensors().values() if t.is_floating_point()), torch.float32)


def rebuild_head(path: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """The head that a header describes, around the tensors of the file: nothing is allocated because the header says so."""
    with refusing(f"{path}: the head cannot be rebuilt"):
        with meta_device():
            head = build_head(description).to(dtype)
        found = matching(f"{path}: head", tensors, head_tensors(head))
        head.load_state_dict({name: tensor.clone() for name, tensor in found.items()}, assign=True)
    return head
