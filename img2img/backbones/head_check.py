"""Does a task's head, read from a file, give on a backbone what the task needs, at a cost within bounds?"""

import torch
from torch import nn

from img2img.backbones.base import Backbone
from img2img.backbones.classifier import Classifier
from img2img.backbones.encoder_decoder import EncoderDecoder
from img2img.errors import InputError
from img2img.masks.meta import Cost, cost_of, meta_device

MEMORY = 32
"""The largest tensor inside a head has at most so many times the elements of its input and output together."""
OPERATIONS = 2_000_000
"""Multiplications and additions for each pixel (of whole images' heads: for each value) of a head's output, at most. Whole
networks have some hundred thousand."""
SLACK = 4
"""A head may cost so many times what the backbone's own kind of head does, whatever the other bounds say."""

_ERRORS = (ArithmeticError, AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)


def check_head(backbone: Backbone, head: nn.Module | None, channels: int) -> None:
    """Run `head` by its shapes alone, beside a head of the backbone's own for as many channels.

    Raises:
        InputError: there is none, it does not run, gives other shapes, or costs more than `MEMORY` and `OPERATIONS` allow.
    """
    if head is None:
        raise InputError("the task has no head, and its backbone needs one: the file is of another network")
    with meta_device():
        own = backbone.make_head(channels)
    for shape in _shapes(backbone):
        try:
            expected = cost_of(own, shape)
        except _ERRORS:
            continue  # features that this backbone never makes
        try:
            got = cost_of(head, shape)
        except _ERRORS as error:
            raise InputError(
                f"the head does not run on the backbone's features {shape} ({error}): expected one that gives {expected.shape}; "
                "the file is damaged or forged, get it again from whoever made it"
            ) from error
        _compare(shape, got, expected)


def _shapes(backbone: Backbone) -> list[tuple[int, ...]]:
    channels = backbone.head_channels
    maps: list[tuple[int, ...]] = [(1, channels, 1, 1), (2, channels, 3, 5), (1, channels, 24, 40)]
    rows: list[tuple[int, ...]] = [(2, channels)]
    return rows if isinstance(backbone, Classifier) else maps if isinstance(backbone, EncoderDecoder) else maps + rows


def _compare(shape: tuple[int, ...], got: Cost, expected: Cost) -> None:
    if got.shape != expected.shape:
        raise InputError(
            f"the head gives {got.shape} for the backbone's features {shape}: expected {expected.shape}, as many channels as the "
            "task has and the image's size; the file is of another network or forged, get it again from whoever made it"
        )
    values = torch.Size(got.shape).numel()
    pixels = values // got.shape[1] if len(got.shape) > 2 else values
    memory = max(MEMORY * (torch.Size(shape).numel() + values), SLACK * expected.largest)
    operations = max(OPERATIONS * pixels, SLACK * expected.operations)
    for what, found, most in (("values at once", got.largest, memory), ("operations", got.operations, operations)):
        if found > most:
            raise InputError(
                f"the head takes {found:,} {what} for an output of {got.shape}: expected at most {most:,}; the file is damaged "
                "or forged, get it again from whoever made it"
            )
