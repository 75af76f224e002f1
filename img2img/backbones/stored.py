"""A backbone built again for tensors in a file, by a description that other people may have written.

The description is compared with the file first, on the meta device, where tensors have shapes and no memory: what does not fit,
however large it says that it is, is refused before anything is allocated.
"""

import os
from collections.abc import Mapping
from typing import Any

from img2img.backbones import BACKBONES, Backbone, build_backbone
from img2img.errors import InputError
from img2img.files.tensors import Shapes, check_shapes
from img2img.files.untrusted import check_plain
from img2img.masks.meta import meta_device

HEAD = "head."
"""How the names of a backbone's head begin."""

MAX_HEAD = 1 << 27
"""Parameters of the head that a backbone is built with, at most: half a gigabyte."""

_ODD = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_SPARE = 8_000
"""Parameters that a network may be built with beyond those of its file, which it drops again: unused stages."""


def rebuild_backbone(
    spec: Mapping[str, Any], shapes: Shapes, path: str | os.PathLike[str], *, with_head: bool = False
) -> Backbone:
    """Build the backbone of `spec` for the tensors of a file, with random weights.

    Args:
        spec: what a file says of it; `weights` in it, of whatever origin, are ignored.
        shapes: the file's tensors, see `tensors.tensor_shapes`.
        path: the file, for messages.
        with_head: whether the file has the head's tensors too.

    Raises:
        InputError: an unknown kind, name or option, sizes beyond reason, or a network that the file's tensors are not of.
    """
    check_plain(dict(spec), "the description of the backbone")
    spec = {**spec, "weights": None}
    own = BACKBONES.find(spec.get("kind")).__module__.startswith("img2img.")  # an unknown one has its own message
    described = f"the description of the backbone beside {path}"
    ignored = "" if with_head else HEAD
    try:
        with meta_device(most=4 * len(shapes) + _SPARE):
            skeleton = build_backbone(spec)
    except InputError as error:
        raise InputError(f"{described} cannot be used: {error}") from error
    except (*_ODD, MemoryError) as error:
        if own:
            raise InputError(f"{described} cannot be built ({type(error).__name__}: {error}): copy both again") from error
        skeleton = None  # a class of the user's own need not run on the meta device
    if skeleton is not None:
        _check_head_size(skeleton)
        check_shapes(path, shapes, skeleton.state_dict(), ignored=ignored)
    backbone = build_backbone(spec)
    check_shapes(path, shapes, backbone.state_dict(), ignored=ignored)
    return backbone


def _check_head_size(skeleton: Backbone) -> None:
    """The head is no part of most files, so that nothing there says how large it is."""
    values = sum(p.numel() for p in skeleton.head.parameters())
    if values > MAX_HEAD:
        raise InputError(
            f"the description of the backbone asks for a head of {values:,} values, expected at most {MAX_HEAD:,}: it is damaged "
            "or forged; get it again from whoever made it"
        )
